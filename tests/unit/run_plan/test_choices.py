from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from accel_kd.assembly import models
from accel_kd.config import load_recipe
from accel_kd.planning.memory import Placement, Strategy
from accel_kd.run_plan.choices import advice, largest_micro_batches, with_settings
from accel_kd.run_plan.stages import RESERVE_BYTES, Machine, Planner


@pytest.fixture
def planner(tiny_data: Path, tiny_teacher: Path) -> Planner:
    return _planner(tiny_data, tiny_teacher, "teacher.finetune=null")


def _planner(data: Path, teacher: Path, *more: str) -> Planner:
    settings = [
        f"data.path={data}", f"teacher.model={teacher}", "student.layers=1", "training.batch_size=16",
        "evaluation.micro_batch_size=1", *more,
    ]  # fmt: skip
    return Planner(load_recipe("clinc150_minilm", settings), Machine(2, 0))


def _with_memory(planner: Planner, beyond_reserve: float) -> Planner:
    planner.machine = replace(planner.machine, memory_bytes=RESERVE_BYTES + int(beyond_reserve))
    return planner


def _need(planner: Planner, strategy: Strategy = Strategy.DDP) -> int:
    return max(stage.total for stage in planner.stages(planner.config, strategy))


@pytest.mark.parametrize(
    ("settings", "ranks", "placement"),
    [
        ([], 2, Placement.REPLICATED),
        (["teacher.placement=sharded"], 2, Placement.SHARDED),
        (["teacher.placement=sharded"], 1, Placement.REPLICATED),
        (["teacher.placement=offloaded"], 1, Placement.OFFLOADED),
        (["teacher.placement=sharded", "teacher.source=cached"], 2, Placement.CACHED),
    ],
)
def test_the_teacher_is_where_the_recipe_puts_it(
    tiny_data: Path, tiny_teacher: Path, settings: list[str], ranks: int, placement: Placement
) -> None:
    planner = _planner(tiny_data, tiny_teacher, "teacher.finetune=null", *settings)
    planner.machine = replace(planner.machine, num_ranks=ranks)
    assert planner.placements(planner.config)[0] is placement
    assert len(planner.placements(planner.config)) == (1 if settings else 3), "auto tries one after the other"


def test_left_to_itself_the_teacher_is_planned_where_a_run_would_put_it(planner: Planner) -> None:
    def need(placement: Placement) -> int:
        return max(stage.total for stage in planner.stages(planner.config, Strategy.DDP, placement))

    needs = {placement: need(placement) for placement in planner.placements(planner.config)}
    assert list(needs) == [Placement.REPLICATED, Placement.SHARDED, Placement.OFFLOADED]
    for memory in needs.values():
        _with_memory(planner, memory)
        assert _need(planner) == next(needed for needed in needs.values() if needed <= memory)
    _with_memory(planner, 1000)
    assert _need(planner) == needs[Placement.REPLICATED], "where nothing fits, what was asked for first"


def test_the_largest_micro_batch_is_the_last_one_that_fits(planner: Planner) -> None:
    def need(size: int) -> int:
        config = with_settings(planner.config, {"training.micro_batch_size": size})
        assert config is not None
        return max(stage.total for stage in planner.stages(config, Strategy.ZERO3))

    needs = {size: need(size) for size in (1, 2, 4, 8)}
    assert needs[4] < needs[8]
    _with_memory(planner, (needs[4] + needs[8]) / 2)
    assert largest_micro_batches(planner)[Strategy.ZERO3][Placement.REPLICATED] == 4
    _with_memory(planner, needs[8])
    assert largest_micro_batches(planner)[Strategy.ZERO3][Placement.REPLICATED] == 8
    _with_memory(planner, 1000)
    assert largest_micro_batches(planner)[Strategy.ZERO3][Placement.REPLICATED] is None


def test_what_is_advised_fits_and_changes_no_more_than_it_must(planner: Planner) -> None:
    whole = _need(planner)
    _with_memory(planner, 0.8 * whole)
    small = advice(planner, Strategy.DDP)
    assert small is not None and small.strategy is None
    assert "teacher.source" not in small.settings and "training.precision" not in small.settings
    changed = with_settings(planner.config, small.settings)
    assert changed is not None
    assert planner.fits(planner.stages(changed, Strategy.DDP))
    # The same answer, from a planner that starts with the settings that were advised.
    assert planner.fits(Planner(changed, planner.machine).stages(changed, Strategy.DDP))


def test_where_a_smaller_micro_batch_does_not_do_the_ranks_share_the_model(planner: Planner) -> None:
    smallest = with_settings(planner.config, {"training.micro_batch_size": 1, "evaluation.micro_batch_size": 1})
    assert smallest is not None

    def need(strategy: Strategy) -> int:
        return min(
            max(stage.total for stage in planner.stages(smallest, strategy, placement))
            for placement in (Placement.REPLICATED, Placement.SHARDED, Placement.OFFLOADED, Placement.CACHED)
        )

    needs = {strategy: need(strategy) for strategy in (Strategy.DDP, Strategy.ZERO3)}
    assert needs[Strategy.ZERO3] < needs[Strategy.DDP]
    _with_memory(planner, needs[Strategy.ZERO3] + 1)
    found = advice(planner, Strategy.DDP)
    assert found is not None and found.strategy is not None and found.strategy.shards_optimizer
    _with_memory(planner, 1000)
    assert advice(planner, Strategy.DDP) is None


def test_a_stored_teacher_takes_no_memory_while_the_student_trains(planner: Planner) -> None:
    streamed, cached = (
        {stage.name: stage for stage in planner.stages(planner.config, Strategy.DDP, placement)}["training"]
        for placement in (Placement.REPLICATED, Placement.CACHED)
    )
    assert (cached.teacher_weights, cached.teacher_forward) == (0, 0)
    assert streamed.teacher_weights > 0 and streamed.total > cached.total
    assert (streamed.weights, streamed.optimizer) == (cached.weights, cached.optimizer)


def test_a_teacher_that_is_fine_tuned_is_a_stage_of_its_own(tiny_data: Path, tiny_teacher: Path) -> None:
    planner = _planner(tiny_data, tiny_teacher)
    stages = {stage.name: stage for stage in planner.stages(planner.config, Strategy.ONE)}
    assert list(stages) == ["teacher.finetune", "teacher scored", "training", "evaluation"]
    teacher = planner.shapes.teacher
    assert teacher is not None
    assert stages["teacher.finetune"].optimizer == 8 * teacher.num_parameters()
    assert stages["training"].optimizer == 8 * planner.shapes.student.num_parameters()


@pytest.mark.parametrize("has_bf16", [False, True])
def test_a_teacher_beside_a_student_in_bf16_is_planned_in_what_this_cpu_has(
    tiny_data: Path, tiny_teacher: Path, has_bf16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "multiplies_bf16", lambda: has_bf16)
    planner = _planner(tiny_data, tiny_teacher, "teacher.finetune=null", "training.precision=bf16")
    planner.machine = replace(planner.machine, device="cpu")
    weights = {stage.teacher_weights for stage in planner.stages(planner.config, Strategy.DDP, Placement.REPLICATED)}
    parameters = sum(parameter.numel() for parameter in planner.shapes.teacher.parameters())
    assert max(weights) == pytest.approx(parameters * (2 if has_bf16 else 4), rel=0.05), "and some buffers"
