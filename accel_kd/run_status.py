"""`status.json`: how far a run is and how it ended, for batch scripts and people.

A launcher turns the exit code of its workers into 1, so that only this file says whether a run wants to go on.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from accel_kd.run_directory import write_atomically

State = Literal["running", "stopped", "finished", "failed", "pruned"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Status:
    """What `status.json` holds."""

    state: State
    command: str
    """`distill`, `cache-teacher` or `search`."""
    attempt: int
    """1 for the first start of this command in the directory."""
    part: str = ""
    """Which model is worked on: `teacher`, `cache`, `control` or `student`."""
    step: int = 0
    """Optimizer steps of that part that are safe in a checkpoint."""
    total_steps: int = 0
    reason: str | None = None
    """Why it stopped, failed or was pruned."""
    attempts_without_progress: int = 0
    """How many attempts in a row ended no further than they began."""
    time: str = ""
    """When this was written, ISO 8601 in UTC."""


def status_file(directory: Path) -> Path:
    """Where the status of the run in `directory` is."""
    return directory / "status.json"


def read_status(directory: Path) -> Status | None:
    """The status of the run in `directory`; None where there is none that can be read."""
    try:
        content = json.loads(status_file(directory).read_text(encoding="utf-8"))
        known = {field.name for field in dataclasses.fields(Status)}
        return Status(**{name: value for name, value in content.items() if name in known})
    except (OSError, ValueError, TypeError, AttributeError):
        return None


class StatusWriter:
    """Keeps the status of one attempt up to date; only rank 0 has one with a `directory`."""

    def __init__(self, directory: Path | None, command: str) -> None:
        self._directory = directory
        # Checkpoints that are written in the background report from their own thread.
        self._one_at_a_time = threading.Lock()
        before = None if directory is None else read_status(directory)
        if before is not None and before.command != command:
            before = None
        self._began_at = (before.part, before.step) if before is not None else ("", 0)
        self._fruitless = 0 if before is None else before.attempts_without_progress
        self._status = Status("running", command, attempt=1 if before is None else before.attempt + 1)
        if before is not None:
            self._status = dataclasses.replace(self._status, part=before.part, step=before.step)
            self._status = dataclasses.replace(self._status, total_steps=before.total_steps)

    def begun(self) -> None:
        """The attempt has begun."""
        self._write({"attempts_without_progress": self._fruitless})

    def reached(self, part: str, step: int, total_steps: int) -> None:
        """`step` steps of `part` are safe."""
        fruitless = self._fruitless if (part, step) == self._began_at else 0
        self._write({"part": part, "step": step, "total_steps": total_steps, "attempts_without_progress": fruitless})

    def ended(self, state: State, reason: str | None = None) -> None:
        """The attempt is over."""
        has_progressed = (self._status.part, self._status.step) != self._began_at
        fruitless = 0 if has_progressed or state in ("finished", "pruned") else self._fruitless + 1
        self._write({"state": state, "reason": reason, "attempts_without_progress": fruitless})

    def _write(self, changes: Mapping[str, Any]) -> None:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        with self._one_at_a_time:
            self._status = dataclasses.replace(self._status, **changes, time=now)
            if self._directory is None:
                return
            try:
                text = json.dumps(dataclasses.asdict(self._status), indent=2, ensure_ascii=False) + "\n"
                write_atomically(status_file(self._directory), text)
            except OSError as error:  # a full disk must not hide what the run itself has to say
                logger.warning("%s cannot be written: %s", status_file(self._directory), error.strerror)
