"""Names every file of a search, and keeps parts of it for one process at a time."""

from __future__ import annotations

import fcntl
import logging
import os
from dataclasses import dataclass
from pathlib import Path

from accel_kd.config.schema import RunConfig
from accel_kd.errors import UserError
from accel_kd.locations import expanded
from accel_kd.run_directory import RunDirectory

logger = logging.getLogger(__name__)

_BESIDE = {"workers", "slurm"}
"""What may be there before the journal is."""


@dataclass(frozen=True)
class SearchDirectory:
    """The files of a search; every process that works at it has the same."""

    path: Path

    @property
    def name(self) -> str:
        """What the search is called."""
        return self.path.resolve().name

    @property
    def journal(self) -> Path:
        """What all processes tell each other of the trials: Optuna's journal."""
        return self.path / "study.journal"

    @property
    def shared(self) -> RunDirectory:
        """Where the teacher is that all trials share, if it is fine-tuned."""
        return RunDirectory(self.path / "shared")

    @property
    def results(self) -> Path:
        """All trials, for programs."""
        return self.path / "search.json"

    @property
    def table(self) -> Path:
        """All trials, for people."""
        return self.path / "search.md"

    @property
    def best(self) -> Path:
        """The recipe with the best settings."""
        return self.path / "best.yaml"

    def trial(self, number: int) -> RunDirectory:
        """The run of a trial, counted from 0."""
        return RunDirectory(self.path / f"trial-{number:04}")

    def final(self, number: int, seed: int) -> RunDirectory:
        """The run of the settings of trial `number`, when it is the best, with that seed."""
        return RunDirectory(self.path / f"best-trial-{number:04}-seed-{seed}")

    def worker(self, name: str) -> RunDirectory:
        """Where a process says how it goes: `status.json`, and `stop` to ask it to stop."""
        return RunDirectory(self.path / "workers" / name)

    def claim(self, name: str, *, wait: bool = False) -> Claim | None:
        """Keeps what is called `name` for this process; None where another one has it, unless it is to `wait`."""
        folder = self.path / ".claims"
        folder.mkdir(parents=True, exist_ok=True)
        return Claim.take(folder / name, wait=wait)


class Claim:
    """A lock that goes with its process, however that ends: who holds one is alive.

    As in `run_directory.in_use` the lock is `fcntl`'s, which NFS knows too, and which processes that are started from
    this one do not share. It belongs to the process: a second claim of the same name in one process is none.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @classmethod
    def take(cls, path: Path, *, wait: bool) -> Claim | None:
        """The claim that the file `path` stands for; None where another process has it."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except (BlockingIOError, PermissionError):
            os.close(descriptor)
            return None
        except OSError as error:
            logger.warning(
                "%s cannot be locked (%s): start no second process on this search", path.parent, error.strerror
            )
        return cls(descriptor)

    def release(self) -> None:
        """Leaves it to others."""
        os.close(self._descriptor)


def search_directory(config: RunConfig) -> SearchDirectory:
    """Where the search of `config` goes."""
    named = config.search.directory
    return SearchDirectory(expanded(named or f"{config.run.directory}-search", "search.directory").absolute())


def open_directory(directory: SearchDirectory) -> None:
    """Makes the directory.

    Raises:
        UserError: it cannot be made, or holds something else.
    """
    try:
        directory.path.mkdir(parents=True, exist_ok=True)
        there = {entry.name for entry in directory.path.iterdir() if not entry.name.startswith(".")}
    except OSError as error:
        raise UserError(f"search.directory: {directory.path} cannot be made or read: {error.strerror}") from error
    if there - _BESIDE and not directory.journal.is_file():
        raise UserError(
            f"search.directory: {directory.path} is not empty and holds no search; choose another search.directory"
        )
