"""Requests to stop: signals, a file, the end of the job's time. All ranks stop at the same place or none does.

A handler only remembers that it was called. Ranks tell each other between two steps, in a group of their own on the
CPU, so that no device is waited for; what they say at one look is heard at the next.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from accel_kd.errors import StopRequested, UserError

logger = logging.getLogger(__name__)

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
_SECONDS_BETWEEN_LOOKS = 1.0
"""How often the disk is asked for the stop file."""
_ECHO_SECONDS = 1.0
"""A terminal sends Ctrl-C to the launcher too, which hands it on: within this time it is the same keystroke."""
_REASONS = ("", "SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2", "the stop file", "the end of the job's time")


class StopRequests:
    """Listens while it is entered; `check` and `check_now` raise as soon as all ranks know of a request."""

    def __init__(
        self,
        accelerator: Accelerator,
        stop_file: Path,
        *,
        deadline: float | None = None,
        rank_timeout_seconds: float = 1800.0,
    ) -> None:
        """Args:
        accelerator: of the ranks.
        stop_file: a file whose presence asks to stop; it is removed when that was obeyed.
        deadline: seconds since 1970 after which the run is to stop; None: never.
        rank_timeout_seconds: how long a rank waits for the others.
        """
        self._accelerator = accelerator
        self._stop_file = stop_file
        self._deadline = deadline
        self._reason = 0
        self._interrupted_at: float | None = None
        self._looked_at = -float("inf")
        self._under_way: tuple[dist.Work, torch.Tensor] | None = None
        self._group: Any = None
        # Between ranks that are not at the same place, in a loop where each has work of its own.
        (token,) = broadcast_object_list([secrets.token_hex(4)]) if accelerator.num_processes > 1 else ("",)
        self._among_ranks = stop_file.with_name(f".stop-{token}")
        if accelerator.num_processes > 1:
            timeout = timedelta(seconds=rank_timeout_seconds)
            self._group = dist.new_group(backend="gloo", timeout=timeout)

    @contextlib.contextmanager
    def listening(self) -> Iterator[StopRequests]:
        """Remembers signals until it is left; then the former handlers are back."""
        if threading.current_thread() is not threading.main_thread():
            yield self  # Python gives signals to the main thread alone; the stop file and the deadline remain
            return
        former = {number: signal.signal(number, self._remember) for number in _SIGNALS}
        try:
            yield self
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)

    def is_wanted(self) -> bool:
        """Whether this rank knows of a request; asks nobody, so that ranks may differ."""
        return self._own_reason() > 0

    def check(self) -> None:
        """To be called by all ranks at the same places.

        Raises:
            StopRequested: on all ranks at the same call, at the latest at the second after the request.
        """
        if self._group is None:
            _stop_for(self._own_reason())
            return
        self._hear()
        self._say()

    def check_now(self) -> None:
        """As `check`, and waits for what the others have to say now.

        Raises:
            StopRequested: any rank knows of a request.
        """
        self.check()
        if self._group is not None:
            self._hear()

    def obeyed(self) -> None:
        """The run has stopped: the request is not there for the next one. On rank 0."""
        for file in (self._stop_file, self._among_ranks):
            with contextlib.suppress(OSError):
                file.unlink(missing_ok=True)

    def _say(self) -> None:
        flag = torch.tensor([self._own_reason()])
        work = dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=self._group, async_op=True)
        assert work is not None
        self._under_way = (work, flag)

    def _hear(self) -> None:
        if self._under_way is not None:
            work, flag = self._under_way
            self._under_way = None
            work.wait()
            _stop_for(int(flag))

    def _own_reason(self) -> int:
        if self._reason == 0 and self._deadline is not None and time.time() >= self._deadline:
            self._reason = _REASONS.index("the end of the job's time")
        now = time.monotonic()
        if self._reason == 0 and now - self._looked_at >= _SECONDS_BETWEEN_LOOKS:
            self._looked_at = now
            with contextlib.suppress(OSError):  # a network file system that hiccups is asked again
                if self._stop_file.exists() or (self._group is not None and self._among_ranks.exists()):
                    self._reason = _REASONS.index("the stop file")
        return self._reason

    def tell_ranks(self) -> None:
        """Lets ranks that are busy with work of their own know by a file, where this one was asked to stop."""
        if self._group is not None and self.is_wanted():
            with contextlib.suppress(OSError):  # they hear of it at the end of that work
                self._among_ranks.touch()

    def _remember(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if number == signal.SIGINT and self._interrupted_at is not None and now - self._interrupted_at > _ECHO_SECONDS:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        if number == signal.SIGINT and self._interrupted_at is None:
            self._interrupted_at = now
        self._reason = self._reason or _REASONS.index(signal.Signals(number).name)


def stop_file(run_directory: Path, environment: Mapping[str, str] = os.environ) -> Path:
    """The file whose presence asks the run to stop: `ACCEL_KD_STOP_FILE`, else `stop` in the run's directory."""
    named = environment.get("ACCEL_KD_STOP_FILE")
    return Path(named) if named else run_directory / "stop"


def deadline(seconds_before: float | None, environment: Mapping[str, str] = os.environ) -> float | None:
    """When to stop, in seconds since 1970: that long before the end of the job as `ACCEL_KD_END_TIME` or SLURM give it.

    Raises:
        UserError: the end is not given as a number of seconds.
    """
    if seconds_before is None:
        return None
    for variable in ("ACCEL_KD_END_TIME", "SLURM_JOB_END_TIME"):
        value = environment.get(variable)
        if value:
            try:
                return float(value) - seconds_before
            except ValueError as error:
                raise UserError(f"{variable}: {value!r} is no number of seconds since 1970") from error
    logger.info(
        "run.stop_before: the end of this job is not known (ACCEL_KD_END_TIME, SLURM_JOB_END_TIME): no deadline"
    )
    return None


def _stop_for(reason: int) -> None:
    if reason:
        raise StopRequested(_REASONS[reason])
