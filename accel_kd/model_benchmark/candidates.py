"""The models that are measured, as the command line names them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any

from accel_kd.assembly.scored_models import data_read_whole, is_run, read_run, student_of, teacher_of
from accel_kd.config.schema import RunConfig
from accel_kd.errors import UserError
from accel_kd.models.loading import Checkpoint
from accel_kd.run_directory import RunDirectory

_TEACHER = "teacher of "


@dataclass(frozen=True)
class Candidate:
    """A model, what tables call it, and, if it is one that a run trained, that run, the digest of its weights (None in
    a run of before there was one), and the run's own settings of what a whole split of its data is."""

    name: str
    checkpoint: Checkpoint
    run: RunDirectory | None = None
    weights_sha256: str | None = None
    own_data: Mapping[str, Any] | None = None


def find_candidates(
    paths: Sequence[str], config: RunConfig | None, *, with_teacher: bool
) -> tuple[list[Candidate], RunConfig]:
    """The models at `paths`, and the recipe whose data they are scored on: `config`, else that of the first run.

    Args:
        paths: run directories, RUN/control or RUN/teacher, folders of models, Hub ids.
        config: the recipe that was asked for.
        with_teacher: put the teacher of each run before its student; one that several runs share, once.

    Raises:
        UserError: a run that is not finished, an export that is not torch's, or no recipe anywhere.
    """
    found: list[Candidate] = []
    for path in paths:
        if not is_run(path):
            _refuse_export(path)
            found.append(Candidate(path, Checkpoint(path, "model")))
            continue
        directory, own = read_run(path)
        config = config or own
        student = student_of(directory)
        if with_teacher:
            teacher = teacher_of(directory, own)
            if teacher not in [student, *(candidate.checkpoint for candidate in found)]:
                found.append(Candidate(f"{_TEACHER}{path}", teacher))
        # A teacher that is named itself is measured under that name alone.
        found = [one for one in found if one.checkpoint != student or not one.name.startswith(_TEACHER)]
        weights = directory.read_summary().get("weights_sha256")
        found.append(Candidate(path, student, directory, weights, data_read_whole(own)))
    if config is None:
        raise UserError(f"--recipe: {paths[0]!r} is no run directory; name the recipe whose data are used")
    names = [candidate.name for candidate in found]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"{twice[0]!r} is named twice")
    return _shortly_named(found), config


def _shortly_named(found: list[Candidate]) -> list[Candidate]:
    """With the last part of each path for a name, where that tells them apart."""
    short = [_TEACHER * candidate.name.startswith(_TEACHER) + PurePath(candidate.name).name for candidate in found]
    if len(set(short)) < len(short):
        return found
    return [replace(candidate, name=name) for candidate, name in zip(found, short, strict=True)]


def _refuse_export(path: str) -> None:
    record = Path(path) / "export.json"
    if record.is_file():
        form = json.loads(record.read_text(encoding="utf-8"))["form"]
        if form != "safetensors":
            raise UserError(f"{path}: is an export ({form}); name the model, of which --forms makes all of them")
