"""Which strategies, placements and micro-batches fit a device, and the smallest change that makes a recipe fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from accel_kd.config.checks import accumulation_steps, check, finetune_training
from accel_kd.config.schema import RunConfig
from accel_kd.errors import UserError
from accel_kd.planning.memory import Placement, Strategy
from accel_kd.run_plan.stages import Planner, Stage

Settings = Mapping[str, Any]
"""Settings of a recipe by their full names."""


@dataclass(frozen=True)
class Advice:
    """What to change so that the run fits: settings, and the strategy if it is another one."""

    settings: Settings
    strategy: Strategy | None
    stages: list[Stage]


def strategies(num_ranks: int) -> list[Strategy]:
    """Those that so many ranks can have; one rank has nothing to share."""
    return [Strategy.ONE] if num_ranks == 1 else [strategy for strategy in Strategy if strategy is not Strategy.ONE]


def placements(planner: Planner) -> list[Placement]:
    """Where the teacher can be; without one there is nothing to place."""
    if not planner.streams:
        return [Placement.CACHED]
    shared = [Placement.SHARDED] if planner.machine.num_ranks > 1 else []
    return [Placement.REPLICATED, *shared, Placement.OFFLOADED, Placement.CACHED]


def largest_micro_batches(planner: Planner) -> dict[Strategy, dict[Placement, int | None]]:
    """The most rows a rank that fit under each strategy and placement; None where one row does not."""
    return {
        strategy: {
            placement: _rows_of(_largest_micro_batch(planner, planner.config, strategy, placement))
            for placement in placements(planner)
        }
        for strategy in strategies(planner.machine.num_ranks)
    }


def advice(planner: Planner, strategy: Strategy) -> Advice | None:
    """The first change that fits, least intrusive first: a smaller micro-batch changes no result, another place of the
    teacher and a store none either, bf16 changes digits, and another strategy the launch. None where nothing fits.
    """
    for candidate in [strategy, *(other for other in strategies(planner.machine.num_ranks) if other is not strategy)]:
        for settings in _without_micro_batch(planner.config):
            config = with_settings(planner.config, settings)
            if config is None:
                continue
            found = _largest_micro_batch(planner, config, candidate, None)
            if found is not None:
                other = None if candidate is strategy else candidate
                return Advice({**settings, **found.settings}, other, found.stages)
    return None


def with_settings(config: RunConfig, settings: Settings) -> RunConfig | None:
    """The recipe with other settings; None where it would be refused."""
    for name, value in settings.items():
        config = _replaced(config, name.split("."), value)
    try:
        check(config)
    except UserError:
        return None
    return config


def _replaced(section: Any, path: list[str], value: Any) -> Any:
    name, *rest = path
    return section.model_copy(update={name: _replaced(getattr(section, name), rest, value) if rest else value})


def _without_micro_batch(config: RunConfig) -> Iterator[dict[str, Any]]:
    """Changes that may be needed beside a smaller micro-batch."""
    for precision in ({}, {"training.precision": "bf16"}):
        if precision and config.training.precision not in (None, "no"):
            continue
        yield precision
        if config.teacher.placement not in ("auto", "cached"):
            yield {"teacher.placement": "auto", **precision}
        if config.teacher.source != "cached":
            yield {"teacher.source": "cached", **precision}


@dataclass(frozen=True)
class _Fitting:
    rows: int
    settings: Settings
    stages: list[Stage]


def _rows_of(fitting: _Fitting | None) -> int | None:
    return None if fitting is None else fitting.rows


def _largest_micro_batch(
    planner: Planner, config: RunConfig, strategy: Strategy, placement: Placement | None
) -> _Fitting | None:
    """The largest that divides the batch and fits. The whole share is asked first, since without accumulation it may
    take less than a part of it; of the parts, among which the search halves, a larger one never does."""
    share = config.training.batch_size // planner.machine.num_ranks
    sizes = [size for size in range(1, share + 1) if share % size == 0]

    def fitting(size: int) -> _Fitting | None:
        for settings in _of_micro_batch(planner, config, size):
            changed = with_settings(config, settings)
            if changed is None:
                continue
            stages = planner.stages(changed, strategy, placement)
            if planner.fits(stages):
                return _Fitting(size, settings, stages)
        return None

    if (whole := fitting(sizes[-1])) is not None:
        return whole
    best = fitting(sizes[0])
    low, high = 0, len(sizes) - 1
    while best is not None and high - low > 1:
        middle = (low + high) // 2
        found = fitting(sizes[middle])
        if found is None:
            high = middle
        else:
            low, best = middle, found
    return best


def _of_micro_batch(planner: Planner, config: RunConfig, size: int) -> Iterator[dict[str, Any]]:
    """Settings for `size` rows while training, and no more while the teacher is fine-tuned; then with no more while
    models are scored either."""
    ranks = planner.machine.num_ranks
    settings: dict[str, Any] = {}
    if size != config.training.batch_size // (accumulation_steps(config.training, ranks) * ranks):
        settings["training.micro_batch_size"] = size
    if config.teacher.finetune is not None:
        training = finetune_training(config.training, config.teacher.finetune)
        share = training.batch_size // ranks
        most = max(rows for rows in range(1, min(size, share) + 1) if share % rows == 0)
        # What is left out there is as in `training`.
        inherited = config.teacher.finetune.micro_batch_size or settings.get(
            "training.micro_batch_size", config.training.micro_batch_size
        )
        if (inherited or share) > most or share % (inherited or share):
            settings["teacher.finetune.micro_batch_size"] = most
    yield settings
    if config.evaluation.micro_batch_size > size:
        yield {**settings, "evaluation.micro_batch_size": size}
