"""A rank that died or hangs: the others notice in a collective, and say which one it was as far as they can know."""

from __future__ import annotations

import contextlib
import logging
import re
import time
from collections.abc import Iterator

import torch.distributed as dist
from accelerate import Accelerator

from accel_kd.errors import RunFailure

logger = logging.getLogger(__name__)

_ROLL_CALL = "accel_kd/alive/"
_ROLL_CALL_SECONDS = 5.0
_LONGEST_REASON = 160
_SIGNS = re.compile(r"gloo|nccl|connection (closed|reset)|timed out|broken pipe|socket|watchdog", re.IGNORECASE)


@contextlib.contextmanager
def explained_loss(accelerator: Accelerator, rank_timeout_seconds: float) -> Iterator[None]:
    """Turns the error of a collective into one that says what it means.

    Raises:
        RunFailure: a rank no longer answers; in place of the transport's own error.
    """
    try:
        yield
    except RunFailure:
        raise
    except (RuntimeError, OSError) as error:
        if accelerator.num_processes == 1 or not _SIGNS.search(str(error)):
            raise
        silent = _silent_ranks(accelerator.process_index, accelerator.num_processes)
        reason = " ".join(str(error).split())[:_LONGEST_REASON]
        raise RunFailure(
            f"rank {accelerator.process_index} does not hear {silent} any more: a rank ended, or did not answer for "
            f"{rank_timeout_seconds:g} s (run.rank_timeout); what it logged last says why ({reason})"
        ) from error


def _silent_ranks(rank: int, world_size: int) -> str:
    """Those that do not answer to a roll call: each rank that notices comes here and says so where ranks first met.

    Not by a collective, nor from rank to rank: a group that has lost one member no longer connects the others. Of more
    than two ranks some may still wait for this one, so that they are named beside the one that is gone.
    """
    missing = [other for other in range(world_size) if other != rank]
    try:
        store = dist.distributed_c10d._get_default_store()
        store.set(f"{_ROLL_CALL}{rank}", "here")
        until = time.monotonic() + _ROLL_CALL_SECONDS
        while missing and time.monotonic() < until:
            missing = [other for other in missing if not store.check([f"{_ROLL_CALL}{other}"])]
            time.sleep(0.1)
    except RuntimeError:  # rank 0 may have kept it, and be gone
        return "rank 0"
    return f"rank{'s' if len(missing) > 1 else ''} {', '.join(map(str, missing))}" if missing else "one of the others"
