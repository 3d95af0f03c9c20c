"""Runs from their directories: student, control or teacher, finished or, if that is asked for, not."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import yaml

from accel_kd.comparison.compared import Measured, Predictions
from accel_kd.comparison.measurements import read_measured
from accel_kd.comparison.read_run import Part, ReadRun, curve_of
from accel_kd.comparison.rows_table import NEEDED, predictions_of_columns
from accel_kd.comparison.wandb_records import is_model, part_of
from accel_kd.errors import UserError
from accel_kd.export.results import figures_of
from accel_kd.run_directory import PARTS, RunDirectory, is_part_of_run, owner_of
from accel_kd.run_status import read_status
from accel_kd.tracking.jsonl_tracker import JsonlRecord, read_record


def is_run(path: Path) -> bool:
    """Whether a run has begun in `path`, or a part of one."""
    return any((path / name).is_file() for name in ("config.yaml", "metrics.jsonl", "summary.json"))


def is_finished(path: Path) -> bool:
    """Whether the run's summary is there, or its part is read from the run's own predictions."""
    return RunDirectory(path).is_finished or (is_part_of_run(path) and not is_run(path) and is_finished(path.parent))


def progress(path: Path) -> str:
    """How far an unfinished run is, in words."""
    status = read_status(owner_of(path).path)
    if status is None:
        return "not finished"
    at = f" at step {status.step} of {status.total_steps} ({status.part})" if status.part else ""
    return f"not finished: {status.command} {status.state}{at}"


def read_run_directory(path: Path, split: str) -> ReadRun:
    """The run, or part of a run, in `path`; an unfinished one with what its log has.

    Raises:
        UserError: its files cannot be read, or there is no teacher where one was named.
    """
    is_part, directory = is_part_of_run(path), RunDirectory(path)
    if is_part and not is_run(path):
        if path.name == "teacher":
            return _teacher_by_its_student(path, split)
        raise UserError(f"compare: the run in {path.parent} trained no control (run.control); name another")
    record = _read(directory.metrics, read_record) if directory.metrics.is_file() else JsonlRecord(None, [], {}, None)
    part = _part(directory, record)
    directory = RunDirectory(path, PARTS.get(part, "student"))
    predictions, why = _predictions(directory, split)
    return ReadRun(
        label=path.resolve().parent.name if is_part else path.resolve().name,
        origin=str(path),
        identity=identity_of(path),
        part=part,
        config=_config(owner_of(path).config, record),
        summary=_read_json(directory.summary) if directory.is_finished else _latest(record),
        predictions=predictions,
        no_predictions=why,
        curve=curve_of(record.rows),
        measured=_measured(directory, split),
    )


def companions(path: Path, split: str) -> list[ReadRun]:
    """The control and the teacher of the run in `path`, those that there are."""
    found = []
    if is_run(path / "control") and is_finished(path / "control"):
        found.append(read_run_directory(path / "control", split))
    if is_finished(path) and "teacher" in figures_of(RunDirectory(path)):
        found.append(read_run_directory(path / "teacher", split))
    return found


def _teacher_by_its_student(path: Path, split: str) -> ReadRun:
    """A teacher that was not trained here: its figures and its answers, as its student's records have them."""
    student = read_run_directory(path.parent, split)
    figures = figures_of(RunDirectory(path.parent)) if is_finished(path.parent) else {}
    if "teacher" not in figures:
        raise UserError(f"compare: {path} is no run, and the run beside it had no teacher; name another")
    predictions, why = student.predictions, student.no_predictions
    if predictions is not None and predictions.teacher_argmax is None:
        predictions, why = None, "its student's predictions do not hold its answers"
    if predictions is not None:
        assert predictions.teacher_argmax is not None
        predictions = dataclasses.replace(
            predictions, argmax=predictions.teacher_argmax, confidence=0 * predictions.confidence + float("nan"),
            loss=None, teacher_argmax=None, teacher_kl=None,
        )  # fmt: skip
    return ReadRun(
        label=student.label, origin=str(path), identity=f"{student.identity} teacher", part="teacher",
        config=student.config, summary=figures["teacher"], predictions=predictions, no_predictions=why, curve=None,
    )  # fmt: skip


def _part(directory: RunDirectory, record: JsonlRecord) -> Part:
    """By the place; a part that was carried away from its run says itself what it is."""
    if is_part_of_run(directory.path):
        return "teacher" if directory.path.name == "teacher" else "control"
    job_type = (record.run or {}).get("job_type")
    if not is_model(job_type):
        raise UserError(f"compare: {directory.path} holds no model, but a run of the type {job_type}; name another")
    return part_of(job_type)


def identity_of(path: Path) -> str:
    """W&B's id, by which its copy of the run is known too, else the path."""
    directory = RunDirectory(path)
    if directory.wandb_run_id.is_file():
        return directory.wandb_run_id.read_text(encoding="utf-8").strip()
    return str(directory.path.resolve())


def _config(file: Path, record: JsonlRecord) -> dict[str, Any]:
    if file.is_file():
        config = _read(file, lambda file: yaml.safe_load(file.read_text(encoding="utf-8")))
        if isinstance(config, dict):
            return config
        raise UserError(f"compare: {file} holds no recipe; name another run")
    return dict((record.run or {}).get("config") or {})


def _latest(record: JsonlRecord) -> dict[str, Any]:
    """Of an unfinished run, the newest value of each figure of its evaluations."""
    latest: dict[str, Any] = {}
    for row in record.rows:
        latest.update((name, value) for name, value in row.items() if name.startswith("eval/"))
    return latest


def _predictions(directory: RunDirectory, split: str) -> tuple[Predictions | None, str]:
    file = directory.predictions / f"{split}.parquet"
    if not file.is_file():
        return None, f"there is no {file}"
    columns = _read(file, _columns)
    missing = [name for name in NEEDED if name not in columns]
    if missing:
        raise UserError(f"compare: {file} has no column {missing[0]!r}; name another run")
    return predictions_of_columns(split, columns, _label_names(directory.model / "config.json")), ""


def _columns(file: Path) -> dict[str, Any]:
    import pyarrow.parquet as pq

    columns: dict[str, Any] = pq.read_table(file).to_pydict()
    return columns


def _label_names(file: Path) -> dict[int, str]:
    """As the exported model has them, which may have been taken away to save space."""
    if not file.is_file():
        return {}
    return {int(number): str(name) for number, name in _read_json(file).get("id2label", {}).items()}


def _measured(directory: RunDirectory, split: str) -> tuple[Measured, ...]:
    try:
        return read_measured(directory, split)
    except Exception as error:  # a row without a figure, or a torn file
        said = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise UserError(
            f"compare: {directory.measurements} cannot be read ({said}); measure again with `accel-kd benchmark model`"
        ) from error


def _read_json(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = _read(file, lambda file: json.loads(file.read_text(encoding="utf-8")))
    return content


def _read(file: Path, read: Any) -> Any:
    try:
        return read(file)
    except UserError:
        raise
    except Exception as error:  # a torn or foreign file, which each library has its own words for
        raise UserError(f"compare: {file} cannot be read ({' '.join(str(error).split())}); name another run") from error
