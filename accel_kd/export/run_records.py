"""What a finished run says of itself on the disk, read once for whoever writes about it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from accel_kd.export.results import figures_of
from accel_kd.run_directory import RunDirectory
from accel_kd.tracking.jsonl_file import starts_of


@dataclass(frozen=True)
class SplitRows:
    """The predictions of a model on a split, from its file: `ids`, whether each is right `[n]`, whether its label is
    the out-of-scope one `[n]`, `confidence` `[n]`, and whether the teacher is right `[n]` (None without a teacher)."""

    ids: list[str]
    is_right: NDArray[np.bool_]
    is_outside: NDArray[np.bool_]
    confidence: NDArray[np.float64]
    teacher_is_right: NDArray[np.bool_] | None


@dataclass(frozen=True)
class RunRecords:
    """All of it; what an older version of the program did not keep is empty or None."""

    title: str
    config: Mapping[str, Any]
    """The resolved recipe, with the defaults of today for what it does not set."""
    recipe: str
    """The recipe as it lies in the run's directory."""
    models: dict[str, dict[str, Any]]
    """The figures of each model by name, the student's last; see `figures_of`."""
    summary: dict[str, Any]
    finetuning: dict[str, Any] | None
    """The summary of the teacher's fine-tuning, where this run did it."""
    control: dict[str, Any] | None
    fillings: list[dict[str, Any]]
    """What each attempt at filling the store cost; see `measured_filling`."""
    num_starts: int
    """How often the student's training was begun or gone on with."""
    environment: dict[str, Any]
    """As the first start described it."""
    architecture: dict[str, Any]
    """The student's `config.json`."""
    rows: dict[str, SplitRows]
    """The student's predictions, by split."""
    control_rows: dict[str, SplitRows]

    @property
    def weights_were_chosen(self) -> bool:
        """Whether validation chose them, and not the last step."""
        return bool(self.config["evaluation"]["keep"] == "best")


def read_records(directory: RunDirectory, config: Mapping[str, Any]) -> RunRecords:
    """The records of the finished run in `directory`; `config` is its resolved recipe."""
    teacher, control = directory.part("teacher"), directory.part("control")
    starts = starts_of(directory.metrics)
    outside = config["data"]["out_of_scope"]
    return RunRecords(
        title=directory.path.resolve().name,
        config=config,
        recipe=_text(directory.config),
        models=figures_of(directory),
        summary=directory.read_summary(),
        finetuning=teacher.read_summary() if teacher.is_finished else None,
        control=control.read_summary() if control.is_finished else None,
        fillings=directory.read_fillings(),
        num_starts=len(starts),
        environment=starts[0].get("environment", {}) if starts else {},
        architecture=json.loads(_text(directory.model / "config.json") or "{}"),
        rows=_rows(directory, outside),
        control_rows=_rows(control, outside),
    )


def _rows(directory: RunDirectory, outside: str | None) -> dict[str, SplitRows]:
    found = {}
    for split in ("validation", "test"):
        path = directory.predictions / f"{split}.parquet"
        if not path.is_file():
            continue
        table = pq.read_table(path)
        labels, argmax, teacher = (table[name].to_numpy() for name in ("label", "argmax", "teacher_argmax"))
        has_teacher = table["teacher_argmax"].null_count == 0
        found[split] = SplitRows(
            ids=table["id"].to_pylist(),
            is_right=np.equal(labels, argmax),
            is_outside=np.array([name == outside for name in table["label_name"].to_pylist()], dtype=np.bool_),
            confidence=table["confidence"].to_numpy(),
            teacher_is_right=np.equal(labels, teacher) if has_teacher else None,
        )
    return found


def _text(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text(encoding="utf-8")
    return ""
