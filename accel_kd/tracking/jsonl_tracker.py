"""The record of a run: a file of JSON lines that is always written, and that comparisons read.

A line is one of six objects, told apart by a key that only it has:

    {"run": {...}}             one for each attempt, so a resumed run has several; with what it is made from (`inputs`)
    {"step": 7, "train/loss": 0.5, ...}
    {"summary": {...}}
    {"table": "name", "columns": [...], "rows": [[...], ...]}
    {"produced": {...}}        what the run made, by name, place and digest
    {"status": "finished"}     the end of an attempt, unless its process was killed

A resumed run logs the rows after its checkpoint again: those of the attempt before are cut off, so that each row is
here once. What ends an attempt (`status`) and begins one (`run`) stays.

Numbers that are not finite are written as `null`: JSON has no NaN, and readers refuse or misread the bare word.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from accel_kd.errors import RunFailure, UserError
from accel_kd.tracking.base import ArtifactRecord, RunRecord, RunStatus
from accel_kd.tracking.jsonl_file import keep_rows, lines_of

_logger = logging.getLogger(__name__)


class JsonlTracker:
    """Appends to `path`, handing every line to the system, so that a killed process loses at most the last one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None

    def start(self, run: RunRecord, num_rows: int = 0) -> None:
        """Open the file, cut to its first `num_rows` rows and mended where a killed writer left half a line.

        Fewer rows than that, as a power failure may leave, are a warning. Raises `UserError` if it is not writable.
        """
        assert self._file is None, "start() was called twice"
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            num_kept = keep_rows(self._path, num_rows)
            self._file = self._path.open("ab")
        except OSError as error:
            raise UserError(
                f"The metrics file {self._path} cannot be written: {error.strerror}. Choose a writable run directory."
            ) from error
        if num_kept < num_rows:
            _logger.warning(
                "%s holds %d of the %d rows before the checkpoint: it has a gap", self._path, num_kept, num_rows
            )
        self._append({"run": dataclasses.asdict(run)})

    def log(self, metrics: Mapping[str, float | int], step: int) -> None:
        """Append one row. Raises `RunFailure` if the disk refuses it, `TypeError` for a value that is no number."""
        assert "step" not in metrics, "the step is an argument, not a metric"
        self._append({"step": step, **metrics})

    def summarise(self, metrics: Mapping[str, Any]) -> None:
        """Append values that hold for the whole run. Raises as `log` does."""
        self._append({"summary": dict(metrics)})

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Append a table. Raises as `log` does."""
        self._append({"table": name, "columns": list(columns), "rows": [list(row) for row in rows]})

    def show(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Do nothing: the run has these rows in a file beside this one."""

    def show_confusions(
        self, name: str, labels: Sequence[int], argmax: Sequence[int], label_names: Sequence[str]
    ) -> None:
        """Do nothing: they follow from the predictions, which lie in a file beside this one."""

    def produced(self, artifact: ArtifactRecord) -> None:
        """Append what the run made. Raises as `log` does."""
        self._append({"produced": dataclasses.asdict(artifact)})

    def flush(self) -> None:
        """Wait until the disk has the file. Raises `RunFailure` if it does not take it."""
        assert self._file is not None, "start() comes first"
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._refused(error) from error

    def finish(self, status: RunStatus) -> None:
        """Append the status and wait until the disk has the file. Raises `RunFailure` if it does not take it."""
        if self._file is None:
            return
        try:
            self._append({"status": status.value})
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._refused(error) from error
        finally:
            with contextlib.suppress(OSError):  # closing tries once more to write what was refused
                self._file.close()
            self._file = None

    def _append(self, line: dict[str, Any]) -> None:
        assert self._file is not None, "start() comes first"
        encoded = json.dumps(_with_null_for_non_finite(line), allow_nan=False).encode() + b"\n"
        try:
            self._file.write(encoded)
            self._file.flush()
        except OSError as error:
            raise self._refused(error) from error

    def _refused(self, error: OSError) -> RunFailure:
        # Unlike a lost W&B row this ends the run: comparisons read this file, and a disk that refuses a line of text
        # would refuse the next checkpoint too.
        return RunFailure(f"The metrics file {self._path} can no longer be written: {error.strerror}.")


@dataclass(frozen=True)
class JsonlRecord:
    """What a file of JSON lines says about a run."""

    run: dict[str, Any] | None
    """The fields of `RunRecord` as the last start gave them; None where no start was written."""
    rows: list[dict[str, Any]]
    """One row a step, in the order of steps."""
    summary: dict[str, Any]
    status: RunStatus | None
    """None while the run goes on, and for ever where it was killed."""


def read_record(path: Path) -> JsonlRecord:
    """Read a whole file. A torn last line is passed over, and so are the older values of a metric that a resumed
    run logged again at the same step: the last value counts.

    Raises `FileNotFoundError`, and `UserError` for a line inside the file that is not JSON.
    """
    run: dict[str, Any] | None = None
    rows: dict[int, dict[str, Any]] = {}
    summary: dict[str, Any] = {}
    status: RunStatus | None = None
    for line in lines_of(path):
        if "step" in line:
            # Merged rather than replaced: training and evaluation may log the same step in two rows.
            rows.setdefault(line["step"], {}).update(line)
        elif "run" in line:
            run, status = line["run"], None
        elif "summary" in line:
            summary.update(line["summary"])
        elif "status" in line:
            status = RunStatus(line["status"])
    return JsonlRecord(run, [rows[step] for step in sorted(rows)], summary, status)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows alone, one a step. Raises as `read_record` does."""
    return read_record(path).rows


def _with_null_for_non_finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _with_null_for_non_finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_with_null_for_non_finite(item) for item in value]
    return value
