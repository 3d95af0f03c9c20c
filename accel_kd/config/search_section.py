"""The `search` section of a recipe: which of its settings are varied, and how the best are looked for."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, PlainValidator, Tag

from accel_kd.config.fields import A_LIST, A_RANGE, Count, Integer, Section, Seed


def _number(value: Any) -> Any:
    """A number as it is written, so that a range of whole ones can be told from another."""
    if isinstance(value, str):  # to YAML 1e-5 is a text
        with contextlib.suppress(ValueError):
            value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError("must be a number")
    return value


Bound = Annotated[float, PlainValidator(_number)]


class RangeConfig(Section):
    low: Bound
    """The least value that is tried."""
    high: Bound
    """The greatest value that is tried."""
    log: bool = False
    """Whether small values are tried as often as large ones: evenly by their logarithm."""
    step: Bound | None = None
    """Tried are `low` and what is a multiple of this above it; default: 1 for whole numbers, none for others."""


def _flattened(value: Any) -> Any:
    """`{training: {epochs: ...}}`, as overrides write it, as `{training.epochs: ...}`."""
    return dict(_leaves(value, "")) if isinstance(value, dict) else value


def _leaves(value: dict[Any, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, inner in value.items():
        name = f"{prefix}{key}"
        is_range = isinstance(inner, dict) and inner.keys() & RangeConfig.model_fields.keys()
        if isinstance(inner, dict) and not is_range:
            yield from _leaves(inner, f"{name}.")
        elif is_range or isinstance(inner, list):
            yield name, inner
        else:
            raise ValueError(f"{name} takes a range {{low, high}} or a list of choices; found {inner!r}")


Tried = Annotated[
    Annotated[RangeConfig, Tag(A_RANGE)] | Annotated[list[Any], Field(min_length=1), Tag(A_LIST)],
    Discriminator(lambda value: A_LIST if isinstance(value, list) else A_RANGE),
]
Space = Annotated[dict[str, Tried], BeforeValidator(_flattened), Field(min_length=1)]

SEED_SPACE: dict[str, RangeConfig | list[Any]] = {
    "training.epochs": RangeConfig(low=5, high=10),
    "objective.alpha": RangeConfig(low=0.0, high=1.0),
    "objective.temperature": RangeConfig(low=2, high=20, step=1),
}
"""What is searched where a recipe does not say."""


class SearchConfig(Section):
    space: Space | None = None
    """Settings of this recipe by their dotted names, each with `{low, high, log, step}` or a list of choices; default:
    `training.epochs` from 5 to 10, `objective.alpha` from 0 to 1, `objective.temperature` from 2 to 20 by 1."""
    num_trials: Count = 20
    """Trials of all processes that work at this search together; more of them go on with a search that is finished."""
    metric: str | None = None
    """The validation metric that trials are judged by; default `evaluation.metric`. The larger the better, but for
    `loss`, `calibration_error` and `teacher_kl`."""
    sampler: Literal["tpe", "random", "grid"] = "tpe"
    """How settings are chosen: `tpe`: by what earlier trials brought (Optuna's multivariate TPE); `random`; `grid`:
    every combination once, for choices and for ranges with steps."""
    pruner: Literal["none", "median", "hyperband"] = "none"
    """Which trials are ended early, at their evaluations: `median`: those that are worse than half of the others so
    far, after five complete ones; `hyperband`: as many as successive halving wants to be ended."""
    seed: Seed = 0
    """Seed of the choice of settings."""
    final_seeds: Annotated[Integer, Field(ge=0)] = 3
    """The best settings are trained anew with so many seeds that no trial had, those after `training.seed`; 0: not at
    all."""
    max_failed_trials: Annotated[Integer, Field(ge=0)] = 5
    """Trials that may fail by their own settings (a loss that is not finite, too little memory); one more ends the
    search."""
    directory: str | None = None
    """Where trials and results go; default the run directory's name with `-search` behind it. All processes that are
    started on one directory work at one search."""

    @property
    def searched(self) -> dict[str, RangeConfig | list[Any]]:
        """The space in force."""
        return dict(SEED_SPACE) if self.space is None else dict(self.space)
