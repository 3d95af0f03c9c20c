"""Names every file of a run, and decides whether a directory is a new run, one to go on with, or a finished one."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from accel_kd.errors import UserError

logger = logging.getLogger(__name__)

PARTS = {"control": "student", "teacher": "model"}
"""The models that a run trains beside its student, each in a part of its directory; the name of each one's folder."""
_OF_TEACHER = {"teacher", "cache"}
"""Parts of a run that no student had a share in."""
_BESIDE = {"status.json", "stop", "slurm"}
"""What batch scripts and people put beside a run, or read; a directory with nothing else holds none."""


class InUse(UserError):
    """Another process works in a directory."""


class RunState(StrEnum):
    """What a directory holds."""

    NEW = "new"
    UNFINISHED = "unfinished"
    FINISHED = "finished"


@dataclass(frozen=True)
class RunDirectory:
    """The files of one trained model; a run has one for its student, and within it one for each model beside."""

    path: Path
    model_name: str = "student"

    @property
    def config(self) -> Path:
        """The resolved recipe."""
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        """One JSON object a step or evaluation."""
        return self.path / "metrics.jsonl"

    @property
    def summary(self) -> Path:
        """The final figures; it is written last, so that a run is finished where it stands."""
        return self.path / "summary.json"

    @property
    def model(self) -> Path:
        """The exported model with its tokenizer."""
        return self.path / self.model_name

    @property
    def predictions(self) -> Path:
        """One parquet file an evaluated split."""
        return self.path / "predictions"

    @property
    def profile(self) -> Path:
        """Where the time of the training went, if that was asked for."""
        return self.path / "profile"

    @property
    def fillings(self) -> Path:
        """One JSON object for each attempt of this run at filling the store of its teacher's logits."""
        return self.path / "cache" / "fillings.jsonl"

    def read_fillings(self) -> list[dict[str, Any]]:
        """The attempts at filling a store; none where the run filled none. A torn last line is passed over."""
        attempts = []
        with contextlib.suppress(OSError, ValueError):
            for line in self.fillings.read_text(encoding="utf-8").splitlines():
                attempts.append(json.loads(line))
        return attempts

    @property
    def checkpoints(self) -> Path:
        """What an unfinished training goes on from."""
        return self.path / "checkpoints"

    @property
    def wandb_run_id(self) -> Path:
        """The id under which Weights & Biases knows this run."""
        return self.path / "wandb_run_id"

    @property
    def is_finished(self) -> bool:
        """Whether the summary, which is written last, is there."""
        return self.summary.is_file()

    def part(self, name: str) -> RunDirectory:
        """The directory of a model beside the student, `teacher` or `control`, or of another part, such as `cache`."""
        return RunDirectory(self.path / name, PARTS.get(name, "student"))

    def reopen(self) -> None:
        """Makes a finished run an unfinished one, to be given more steps; its student stays for the time being.

        Raises:
            UserError: it, or its control, has no checkpoint to go on from.
        """
        for part in (self, self.part("control")):
            if part.is_finished and not any(part.checkpoints.glob("step-*")):
                raise UserError(
                    f"training.epochs: {part.path} holds a finished run without a checkpoint to go on from "
                    "(checkpoint.when_finished); choose another run.directory"
                )
        logger.info("%s holds this very run, finished, and is given more steps", self.path)
        self.summary.replace(self.shorter_summary)

    @property
    def shorter_summary(self) -> Path:
        """The final figures before the run was given more steps."""
        return self.path / "summary_before.json"

    def read_summary(self) -> dict[str, Any]:
        """The final figures."""
        content: dict[str, Any] = json.loads(self.summary.read_text(encoding="utf-8"))
        return content

    @property
    def measurements(self) -> Path:
        """What `benchmark model` measured of the exported model: a row a form, device and setting."""
        return self.path / "model_benchmark.json"

    def read_measurements(self) -> list[dict[str, Any]]:
        """The rows that are of the weights that are there. The run may have been given more steps since some were
        measured; those of before rows named their weights are taken as they are, and none of an unfinished run."""
        if not self.is_finished or not self.measurements.is_file():
            return []
        rows: list[dict[str, Any]] = json.loads(self.measurements.read_text(encoding="utf-8"))["rows"]
        weights = self.read_summary().get("weights_sha256")
        return [row for row in rows if None in (weights, row.get("weights_sha256")) or row["weights_sha256"] == weights]

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Marks the run as finished."""
        write_atomically(self.summary, json.dumps(summary, indent=2, ensure_ascii=False) + "\n")


def is_part_of_run(path: Path) -> bool:
    """Whether `path` is, or would be, a run's `control` or `teacher`. A run and the folder of a model are none,
    whatever they are called and whatever is beside them."""
    is_itself = any((path / name).is_file() for name in ("config.yaml", "config.json"))
    return path.name in PARTS and (path.parent / "config.yaml").is_file() and not is_itself


def through_links(path: Path) -> Path:
    """`path`, or where its links and dots lead, if only that tells that it is a part of a run."""
    resolved = path.resolve()
    return resolved if is_part_of_run(resolved) and not is_part_of_run(path) else path


def owner_of(path: Path) -> RunDirectory:
    """The run of which `path` is a part, else that in `path` itself."""
    path = through_links(path)
    return RunDirectory(path.parent if is_part_of_run(path) else path)


def open_run(
    directory: RunDirectory,
    *,
    config_text: str,
    settings: Mapping[str, Any],
    old_settings: Callable[[str], Mapping[str, Any]],
    resume: str,
    of_teacher: Callable[[Any], Mapping[str, Any]] = lambda settings: settings,
    lengthened: Callable[[Any, Any], Mapping[str, Any]] = lambda old, new: old,
    may_reopen: bool = True,
) -> RunState:
    """Decides what `directory`, which is there and `in_use`, is to this run; writes the recipe unless it is finished.

    Args:
        directory: the run's own.
        config_text: the resolved recipe as it is written.
        settings: what must agree with a run that is there already, nested.
        old_settings: reads the same of a recipe text that is there.
        resume: `never` refuses an unfinished run; that `must` finds one is for the caller to see to.
        of_teacher: what of the settings makes the teacher; the rest may differ where no student was begun.
        lengthened: the old settings with the new length, where the new ones ask for more of the same; else as they are.
        may_reopen: whether a finished run that is to be longer becomes an unfinished one; else it is left as it is.

    Raises:
        UserError: the directory holds something else, a run with other settings, or not what `resume` asks for.
    """
    path = directory.path
    there = set(path.iterdir())
    known = {directory.config.name, *_BESIDE}
    beside_recipe = {entry for entry in there if entry.name not in known and not entry.name.startswith(".")}
    # A recipe alone is what a run leaves that was refused before it began: the next attempt takes its place.
    if not beside_recipe or not directory.config.is_file():
        if beside_recipe:
            raise UserError(f"run.directory: {path} is not empty and holds no run; choose another run.directory")
        write_atomically(directory.config, config_text)
        return RunState.NEW
    state = RunState.FINISHED if directory.is_finished else RunState.UNFINISHED
    if resume == "never":
        raise UserError(f"run.directory: {path} holds a run that is {state}; choose another (run.resume is never)")
    there_before = old_settings(directory.config.read_text(encoding="utf-8"))
    old = lengthened(there_before, settings)
    is_longer = old != there_before
    if {entry.name for entry in beside_recipe} <= _OF_TEACHER:
        old, settings = of_teacher(old), of_teacher(settings)
    differences = differing(old, settings)
    if differences:
        raise UserError(
            f"run.directory: {path} holds a run that is {state} with other settings ({'; '.join(differences)}); "
            "choose another run.directory"
        )
    if state is RunState.FINISHED and is_longer and may_reopen:
        directory.reopen()
        state = RunState.UNFINISHED
    if state is RunState.UNFINISHED:
        write_atomically(directory.config, config_text)  # what may differ is now as this start says
    return state


@contextmanager
def in_use(directory: RunDirectory) -> Iterator[None]:
    """Keeps `directory` for this process; the lock goes with the process, however it ends.

    Raises:
        InUse: another process has it.
        UserError: it cannot be made.
    """
    path = directory.path
    if path.exists() and not path.is_dir():
        raise UserError(f"run.directory: {path} is a file")
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = (path / ".lock").open("w")
    except OSError as error:
        raise UserError(f"run.directory: {path} cannot be made or written: {error.strerror}") from error
    with lock:
        try:
            # Not `flock`: processes that this one starts would share it, and outlive it by seconds where it is killed.
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            raise InUse(f"run.directory: {path} is in use by a run that is going on; choose another") from error
        except OSError as error:  # some network file systems have no locks
            logger.warning("%s cannot be locked (%s): start no second run in it", path, error.strerror)
        yield


def write_atomically(path: Path, text: str) -> None:
    """Writes `text` under a temporary name, flushes it to the disk and renames it: readers see all of it or nothing."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def differing(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The settings that differ, as `section.setting: old value there, new value here`."""
    found = []
    for key in sorted({*old, *new}):
        before, now = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(now, dict):
            found += differing(before, now, f"{prefix}{key}.")
        elif before != now:
            found.append(f"{prefix}{key}: {before} there, {now} here")
    return found
