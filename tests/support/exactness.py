"""Whether two runs did the very same thing, bit for bit: weights, optimizer, generators, rows, predictions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from tests.support.processes import summary


def recipe(data: Path, teacher: Path, directory: Path, *more: str) -> list[str]:
    """A student with dropout, three epochs of thirteen steps, a checkpoint every fourth; seconds on one core."""
    return [
        "distill", "clinc150_minilm",
        f"data.path={data}", "data.max_length=32",
        f"teacher.model={teacher}", "teacher.finetune=null", "teacher.accept_chance_accuracy=true",
        "student.layers=2", "objective.alpha=0.3", "objective.temperature=2",
        "training.epochs=3", "training.batch_size=16", "training.learning_rate=2e-3",
        "tracking.mode=disabled", "tracking.log_every_steps=3", "checkpoint.every_steps=4",
        f"run.directory={directory}", *more,
    ]  # fmt: skip


def rows(directory: Path) -> list[dict[str, Any]]:
    """Every row of `metrics.jsonl`, of steps and evaluations, in the order of the file."""
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "step" in line]


def differences(one: Path, other: Path) -> list[str]:
    """What differs between two finished runs, beside times and where they lie."""
    found = []
    files = ["student/model.safetensors"]
    files += [
        str(file.relative_to(one)) for file in sorted(one.glob("checkpoints/*/*")) if file.name != "manifest.json"
    ]
    for file in files:
        if not (other / file).is_file() or (one / file).read_bytes() != (other / file).read_bytes():
            found.append(file)
    if rows(one) != rows(other):
        found.append("metrics.jsonl")
    for split in sorted((one / "predictions").iterdir()):
        if not pq.read_table(split).equals(pq.read_table(other / "predictions" / split.name)):
            found.append(f"predictions/{split.name}")
    if _lasting(summary(one)) != _lasting(summary(other)):
        found.append("summary.json")
    return found


def _lasting(figures: dict[str, Any]) -> dict[str, Any]:
    """All but times and places; how much was padded is the same however often a run was begun."""
    return {
        name: value
        for name, value in figures.items()
        if name == "perf/padding_fraction" or not (name.startswith("perf/") or name == "store/path")
    }
