"""One start of a command in a run's directory: what asks it to stop, how far it is, and how it ended."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass

from accelerate import Accelerator

from accel_kd.config.schema import RunConfig
from accel_kd.distributed.lost_ranks import explained_loss
from accel_kd.distributed.stop_requests import StopRequests, deadline, stop_file
from accel_kd.errors import StopRequested, TrialPruned
from accel_kd.run_directory import RunDirectory
from accel_kd.run_status import StatusWriter

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Attempt:
    """What every part of a run needs to know of it."""

    stop: StopRequests
    status: StatusWriter


@contextlib.contextmanager
def attempt(
    config: RunConfig,
    accelerator: Accelerator,
    directory: RunDirectory,
    command: str,
    within: StopRequests | None = None,
) -> Iterator[Attempt]:
    """Listens to requests to stop, and leaves `status.json` as the run ended.

    `within` are the requests of a command that this run is a part of, and listens already; a request that comes at the
    very end of the run is then there for what comes after it.

    Raises:
        RunFailure: another rank no longer answers.
    """
    is_main = accelerator.is_main_process
    status = StatusWriter(directory.path if is_main else None, command)
    requests = within or StopRequests(
        accelerator,
        stop_file(directory.path),
        deadline=deadline(config.run.stop_before),
        rank_timeout_seconds=config.run.rank_timeout,
    )
    status.begun()
    with (
        contextlib.nullcontext() if within else requests.listening()
    ):  # to the end: a launcher sends SIGTERM as soon as another rank has stopped
        try:
            with explained_loss(accelerator, config.run.rank_timeout):
                yield Attempt(requests, status)
        except StopRequested as request:
            status.ended("stopped", str(request))
            if is_main and within is None:
                requests.obeyed()
            raise
        except TrialPruned as verdict:
            status.ended("pruned", str(verdict))
            raise
        except BaseException as error:
            status.ended("failed", " ".join(str(error).split()) or type(error).__name__)
            raise
        status.ended("finished")
        if is_main and within is None:
            requests.obeyed()  # a request that came too late must not stop the next start
