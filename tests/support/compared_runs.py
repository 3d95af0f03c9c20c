"""Finished runs without a training: what a run leaves, through the program's own writers, with planted answers."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from accel_kd.comparison.compared import Predictions
from accel_kd.comparison.read_run import Part, ReadRun
from accel_kd.config import load_recipe
from accel_kd.config.load import to_yaml
from accel_kd.export.predictions import write_predictions
from accel_kd.metrics.fidelity import fidelity_metrics
from accel_kd.metrics.scored_rows import ScoredRows
from accel_kd.run_directory import RunDirectory
from accel_kd.tracking import JsonlTracker, RunRecord, RunStatus

NAMES = ["alarm", "bank", "music", "oos"]


def ids(count: int) -> list[str]:
    return [f"row{number:05d}" for number in range(count)]


def scored(is_right: NDArray[np.bool_], teacher_right: NDArray[np.bool_] | None = None) -> ScoredRows:
    """Rows whose labels go round, with the next label where the answer is to be wrong."""
    labels = np.arange(len(is_right)) % len(NAMES)

    def answers(right: NDArray[np.bool_]) -> NDArray[np.int64]:
        return np.where(right, labels, (labels + 1) % len(NAMES))

    confidence = np.where(is_right, 0.9, 0.4)
    return ScoredRows(
        labels,
        answers(is_right),
        confidence,
        -np.log(confidence),
        None if teacher_right is None else answers(teacher_right),
        None if teacher_right is None else np.full(len(labels), 0.25),
    )


def summary_of(rows: ScoredRows) -> dict[str, Any]:
    outside = rows.labels == NAMES.index("oos")
    right = rows.labels == rows.argmax
    figures = {
        "accuracy": float(right.mean()),
        "in_scope_accuracy": float(right[~outside].mean()),
        "out_of_scope_recall": float(right[outside].mean()),
        **fidelity_metrics(rows),
    }
    return {
        **{f"test/{name}": value for name, value in figures.items()},
        "num_parameters": 1000,
        "perf/seconds": 1800.0,
        "world_size": 2,
        "num_examples": {"test": len(right)},
        "train/steps": 20,
    }


def write_run(
    directory: Path,
    is_right: NDArray[np.bool_],
    *overrides: str,
    teacher_right: NDArray[np.bool_] | None = None,
    control_right: NDArray[np.bool_] | None = None,
    is_finished: bool = True,
    row_ids: Sequence[str] | None = None,
    names: Sequence[str] = NAMES,
) -> Path:
    """The directory of a run of the demo recipe with `overrides`, whose student has those rows right; with a control
    and with a teacher that was given, if so asked."""
    config = load_recipe("demo", ["teacher.finetune=null", f"run.directory={directory}", *overrides])
    parts: list[tuple[RunDirectory, NDArray[np.bool_]]] = [(RunDirectory(directory), is_right)]
    if control_right is not None:
        parts.append((RunDirectory(directory).part("control"), control_right))
    for part, right in parts:
        part.path.mkdir(parents=True)
        tracker = JsonlTracker(part.metrics)
        tracker.start(
            RunRecord(
                directory.name,
                "control" if part.path.name == "control" else "distill",
                None,
                (),
                None,
                config.model_dump(mode="json"),
                {},
            )
        )
        for step in range(1, 21):
            tracker.log({"train/loss": 1 / step, **({"eval/accuracy": step / 100} if step % 10 == 0 else {})}, step)
        tracker.finish(RunStatus.FINISHED if is_finished else RunStatus.STOPPED)
        if not is_finished:
            continue
        rows = scored(right, teacher_right)
        write_predictions(part.predictions / "test.parquet", row_ids or ids(len(right)), rows, names)
        summary = summary_of(rows)
        if teacher_right is not None:
            of_teacher = summary_of(scored(teacher_right))
            summary |= {
                f"teacher/test_{name}": of_teacher[f"test/{name}"] for name in ("accuracy", "in_scope_accuracy")
            }
            summary["teacher/num_parameters"] = 2000
        part.write_summary(summary)
    (directory / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    return directory


def write_measurements(directory: Path, **row: Any) -> None:
    """What `benchmark model` leaves in a run directory."""
    measured = {
        "form": "torch", "device": "cpu", "threads": 1, "accuracy": 0.5, "latency_mean": 2.0, "latency_p50": 1.5,
        "latency_p95": 3.5, "latency_p99": 4.0, "batch_size": 32, "examples_per_second": 100.0, "megabytes": 69.7,
        "num_parameters": 1000, "a_figure_of_later": 1,
    }  # fmt: skip
    (directory / "model_benchmark.json").write_text(json.dumps({"rows": [measured | row]}), encoding="utf-8")


def accuracies(seed: int, count: int, *chances: float) -> list[NDArray[np.bool_]]:
    """Answers of models that find the same rows hard: each has a row right if its own chance is above the row's."""
    generator = np.random.default_rng(seed)
    hardness = generator.random(count)
    return [hardness + generator.normal(0, 0.03, count) < chance for chance in chances]


def read_run(
    label: str = "run", *, part: Part = "student", config: dict[str, Any] | None = None,
    is_right: NDArray[np.bool_] | None = None, row_ids: Sequence[str] | None = None, **changes: Any,
) -> ReadRun:  # fmt: skip
    """A run in memory; `changes` of its other fields."""
    predictions = None
    if is_right is not None:
        rows = scored(is_right)
        predictions = Predictions(
            "test", tuple(row_ids or ids(len(is_right))), tuple(NAMES), rows.labels, rows.argmax, rows.confidence
        )
    run = ReadRun(label, f"/runs/{label}", label, part, config or {}, {}, predictions, "nothing there", None)
    return dataclasses.replace(run, **changes)
