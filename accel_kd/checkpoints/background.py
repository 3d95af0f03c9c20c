"""Writes checkpoints beside the training: one thread, one piece of work at a time, no failure lost, no collectives."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from accel_kd.checkpoints.writer import missing_parts
from accel_kd.errors import RunFailure

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.05


class BackgroundWriter:
    """Runs one piece of work at a time in a thread that does not keep a process from ending."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    def submit(self, work: Callable[[], None]) -> None:
        """Starts `work` when the work before it has ended.

        Raises:
            RunFailure: the work before it failed; `work` is not begun then.
        """
        self.wait()
        # A daemon: a process that is told to end must not wait for a slow disk. What is half written stays a draft.
        self._thread = threading.Thread(target=self._run, args=(work,), name="checkpoint writer", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Returns when nothing is under way; a failure is raised once.

        Raises:
            RunFailure: the last work failed.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        failure, self._failure = self._failure, None
        if isinstance(failure, RunFailure):
            raise failure
        if failure is not None:
            raise RunFailure(f"a checkpoint could not be written: {_told(failure)}") from failure

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # there is nobody above this thread who would see it
            self._failure = error
            # Now, too: the next checkpoint, at which it is raised, may be far, or never come.
            logger.error("a checkpoint could not be written: %s", _told(error))


def wait_for_parts(
    root: Path,
    name: str,
    parts: Sequence[str],
    timeout_seconds: float,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Returns when all `parts` of the draft of `name` are written, by whichever rank; looks at files alone.

    Threads of several ranks must not meet in collectives: those of the training run meanwhile.

    Raises:
        RunFailure: a part is missing after `timeout_seconds` of sleep, or the draft is gone since a rank failed.
    """
    waited = 0.0
    while missing := missing_parts(root, name, parts):
        if waited >= timeout_seconds:
            raise RunFailure(
                f"checkpoint {name} in {root} lacks the part {missing[0]} ({len(missing)} of {len(parts)} parts are "
                f"missing) after {timeout_seconds:g} seconds: its rank has ended, or its disk is slow"
            )
        sleep(_POLL_SECONDS)
        waited += _POLL_SECONDS


def _told(error: BaseException) -> str:
    return str(error) if isinstance(error, RunFailure) else f"{type(error).__name__}: {error}"
