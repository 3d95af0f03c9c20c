"""A plan for people, as text, and for programs, as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from accel_kd.planning.memory import Placement, Strategy
from accel_kd.run_plan.choices import Advice
from accel_kd.run_plan.stages import RESERVE_BYTES, Planner, Stage
from accel_kd.run_plan.work import TeacherWork, Work

_PARTS = (
    "weights", "gradients", "optimizer", "exchange", "activations", "teacher_weights", "teacher_forward", "logits",
    "total",
)  # fmt: skip
_MARGIN = 0.15
"""What a plan may be off by: closer than this to the limit it says so."""


def text(
    planner: Planner,
    strategy: Strategy,
    stages: Sequence[Stage],
    work: Work,
    largest: dict[Strategy, dict[Placement, int | None]],
    verdict: str,
) -> str:
    """The whole plan, the verdict last."""
    blocks = [
        "\n".join(_facts(planner, strategy, work)),
        _memory(stages),
        "\n".join(_work(work)),
        _largest(planner, largest),
        verdict,
    ]
    return "\n\n".join(block for block in blocks if block)


def verdict(planner: Planner, stages: Sequence[Stage], advice: Advice | None) -> str:
    """One line: fits, or what to change; `advice` is read where it does not fit."""
    worst = max(stages, key=lambda stage: stage.total)
    there = planner.machine.memory_bytes
    need = f"{worst.name} takes {_size(worst.total)} and {_size(RESERVE_BYTES)} are kept free, of {_size(there)} a GPU"
    if worst.total + RESERVE_BYTES <= there:
        is_close = worst.total * (1 + _MARGIN) + RESERVE_BYTES > there
        return f"fits: {need}" + (f"; closely, a plan may be off by {_MARGIN:.0%}" if is_close else "")
    if advice is None:
        return (
            f"does not fit: {need}; no micro-batch, placement, store, precision or strategy helps: take a smaller model"
        )
    changes = [f"{name}={value}" for name, value in advice.settings.items()]
    if advice.strategy is not None:
        changes.append(f"--strategy {advice.strategy}")
    then = _size(max(stage.total for stage in advice.stages))
    return f"does not fit: {need}; it fits ({then}) with {' '.join(changes)}"


def record(
    planner: Planner, strategy: Strategy, stages: Sequence[Stage], work: Work, largest: Any, is_fitting: bool
) -> dict[str, Any]:
    """The plan as JSON; bytes and operations."""
    return {
        "fits": is_fitting,
        "strategy": str(strategy),
        "num_ranks": planner.machine.num_ranks,
        "memory_bytes": planner.machine.memory_bytes,
        "reserve_bytes": RESERVE_BYTES,
        "parameters": _parameters(planner),
        "stages": [asdict(stage) | {"total": stage.total} for stage in stages],
        "work": asdict(work) | {"share_saved_by_store": work.share_saved},
        "largest_micro_batch_size": {str(s): {str(p): size for p, size in row.items()} for s, row in largest.items()},
    }


def _parameters(planner: Planner) -> dict[str, int]:
    models = {"student": planner.shapes.student, "teacher": planner.shapes.teacher}
    return {name: model.num_parameters() for name, model in models.items() if model is not None}


def _facts(planner: Planner, strategy: Strategy, work: Work) -> list[str]:
    training, ranks = planner.config.training, planner.machine.num_ranks
    precision = training.precision or "no (training.precision is not set)"
    gpus = f"{ranks} GPU{'s' if ranks > 1 else ''} of {_size(planner.machine.memory_bytes)}"
    lines = [f"launch       {gpus}, {strategy}, batch_size {training.batch_size}, precision {precision}"]
    lines.append("parameters   " + ", ".join(f"{name} {number:,}" for name, number in _parameters(planner).items()))
    lengths = planner.lengths
    if lengths.rows is None:
        lines.append(f"texts        unknown, so each is taken to have data.max_length {lengths.max_length} tokens")
        lines.append(f"             ({lengths.missing})")
        return lines
    padded = planner.batches.student_lengths
    middle, most, longest = (int(np.quantile(padded, share)) for share in (0.5, 0.95, 1.0))
    rows = ", ".join(f"{number:,} {split}" for split, number in lengths.rows.items())
    lines.append(f"texts        {rows}; batches padded to {middle} tokens (median), {most} (95 %), {longest} (longest)")
    lines.append(f"steps        {work.steps_per_epoch:,} an epoch, {work.epochs:g} epochs")
    return lines


def _memory(stages: Sequence[Stage]) -> str:
    unit, divisor = ("GB", 1e9) if max(stage.total for stage in stages) >= 10e9 else ("MB", 1e6)
    rows = [[f"memory of a rank, {unit}", *(stage.name for stage in stages)]]
    rows.append(["rows x tokens", *(f"{stage.rows} x {stage.length}" for stage in stages)])
    for part in _PARTS:
        values = [getattr(stage, part) for stage in stages]
        if any(values):
            shown = [f"{value / divisor:,.1f}" if value else "-" for value in values]
            rows.append([part.replace("_", " "), *shown])
    return _aligned(rows)


def _work(work: Work) -> list[str]:
    lines = [f"student      {_flops(work.student_step_flops)} a step, forward and backward, over all ranks"]
    if work.teacher is None:
        return [*lines, "teacher      none is asked"]
    lines.append(f"teacher      {_flops(work.teacher.step_flops)} a step where it streams")
    for place, store in enumerate(work.teacher.stores):
        total = "" if store.total_bytes is None else f", {_size(store.total_bytes)} in all"
        lines.append(f"{'store' if place == 0 else '':<12} {store.encoding}: {store.row_bytes:,} bytes a row{total}")
    return [*lines, f"source       {_source(work, work.teacher)}"]


def _source(work: Work, teacher: TeacherWork) -> str:
    relative = teacher.fill_flops / teacher.epoch_flops
    filling = f"to fill a store takes the teacher's work of {relative:.2f} epochs, so that it pays from epoch "
    filling += f"{teacher.pays_from_epoch} on"
    if work.epochs < teacher.pays_from_epoch:
        return f"streaming: {filling}, and this run has {work.epochs:g} (a second run with the same teacher would gain)"
    return f"cached: {filling}; over {work.epochs:g} epochs it saves {work.share_saved:.0%} of all operations"


def _largest(planner: Planner, largest: dict[Strategy, dict[Placement, int | None]]) -> str:
    share = planner.config.training.batch_size // planner.machine.num_ranks
    placements = list(next(iter(largest.values())))
    names = [f"teacher {placement}" for placement in placements] if planner.streams else ["no teacher"]
    rows = [[f"largest micro_batch_size (of {share})", *names]]
    for strategy, sizes in largest.items():
        shown = ["none fits" if sizes[placement] is None else str(sizes[placement]) for placement in placements]
        rows.append([str(strategy), *shown])
    return _aligned(rows)


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for first, *others in rows:
        cells = [f"{cell:>{width}}" for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([f"{first:<{widths[0]}}", *cells]))
    return "\n".join(lines)


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:,.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:,.1f} MB"


def _flops(count: float) -> str:
    for unit, size in (("PFLOP", 1e15), ("TFLOP", 1e12)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count / 1e9:,.1f} GFLOP"
