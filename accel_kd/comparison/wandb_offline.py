"""Runs from the files that wandb writes offline, without a network."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accel_kd.comparison.read_run import ReadRun
from accel_kd.comparison.wandb_records import wandb_run, was_pruned
from accel_kd.tracking.wandb_files import read_records


@dataclass
class OfflineRun:
    """All parts of a run, one for each attempt at it, put together in the order of their starts."""

    run_id: str
    folders: list[Path] = field(default_factory=list)
    name: str = ""
    started: int = 0
    """Of its first attempt, in nanoseconds since the epoch."""
    job_type: str | None = None
    group: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    history: dict[int, dict[str, Any]] = field(default_factory=dict)
    exit_code: int | None = None
    """None while it goes on, and where it was killed."""

    @property
    def is_finished(self) -> bool:
        """Whether it has its final figures."""
        return self.exit_code == 0 and not was_pruned(self.job_type, self.summary)

    @property
    def progress(self) -> str:
        """How far an unfinished one is."""
        steps = [row["step"] for row in self.history.values() if "step" in row]
        how = {None: "running or killed", 0: "pruned", 85: "stopped"}.get(self.exit_code, "failed")
        return f"not finished: {how} at step {max(steps, default=0):g}"


def is_wandb_part(path: Path) -> bool:
    """Whether `path` is the folder of one attempt at a run."""
    return path.is_dir() and any(path.glob("run-*.wandb"))


def read_offline(files: Sequence[Path]) -> list[OfflineRun]:
    """The runs in `.wandb` files, in the order in which each was first started; a file may hold none, as a process
    leaves it that is killed at its start."""
    runs: dict[str, OfflineRun] = {}
    for file in sorted(files, key=lambda file: file.parent.name.removeprefix("offline-")):
        run_id = file.stem.removeprefix("run-")
        run = runs.setdefault(run_id, OfflineRun(run_id))
        run.folders.append(file.parent)
        run.exit_code = None
        for record, _ in read_records(file):
            _take(run, record)
    begun = [run for run in runs.values() if run.name]
    # The folders are named for the second, and the runs of a search may be shorter.
    return sorted(begun, key=lambda run: run.started)


def run_of(offline: OfflineRun, split: str) -> ReadRun:
    """As a run to compare."""
    return wandb_run(
        name=offline.name, origin=str(offline.folders[-1]), run_id=offline.run_id, job_type=offline.job_type,
        config=offline.config, summary=offline.summary,
        history=[offline.history[index] for index in sorted(offline.history)], split=split,
        read_table=lambda path: _table(offline.folders, path),
    )  # fmt: skip


def _take(run: OfflineRun, record: Any) -> None:
    if record.HasField("run"):
        run.name = record.run.display_name or run.run_id
        run.started = run.started or record.run.start_time.ToNanoseconds()
        run.job_type = record.run.job_type or None
        run.group = record.run.run_group or None
        _update(run.config, record.run.config.update)
    elif record.HasField("config"):
        _update(run.config, record.config.update)
    elif record.HasField("summary"):
        _update(run.summary, record.summary.update)
    elif record.HasField("history"):
        row: dict[str, Any] = {}
        _update(row, record.history.item)
        run.history[record.history.step.num] = row
    elif record.HasField("exit"):
        run.exit_code = record.exit.exit_code


def _update(target: dict[str, Any], items: Iterable[Any]) -> None:
    for item in items:
        *path, last = list(item.nested_key) or [item.key]
        inner = target
        for name in path:
            if not isinstance(inner.get(name), dict):
                inner[name] = {}
            inner = inner[name]
        inner[last] = json.loads(item.value_json)


def _table(folders: Sequence[Path], path: str) -> Mapping[str, Any] | None:
    for folder in reversed(folders):
        file = folder / "files" / path
        if file.is_file():
            content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            return content
    return None
