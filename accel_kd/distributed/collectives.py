"""What ranks say to each other, beyond the gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor

from accel_kd.errors import RunFailure, UserError

Result = TypeVar("Result")


def gather_ragged(accelerator: Accelerator, rows: Tensor) -> Tensor:
    """All ranks' `rows` `[n_rank, ...]` one after the other, in rank order, on every rank, with nothing padded."""
    if accelerator.num_processes == 1:
        return rows
    counts = accelerator.gather(torch.tensor([len(rows)], device=rows.device)).tolist()
    padded = rows.new_zeros((max(counts), *rows.shape[1:]))
    padded[: len(rows)] = rows
    gathered = accelerator.gather(padded)
    parts = [gathered[rank * max(counts) :][:count] for rank, count in enumerate(counts)]
    return torch.cat(parts)


def true_on_every_rank(accelerator: Accelerator, here: bool) -> bool:
    """Whether `here` is true on all ranks; the same answer on each."""
    return here if accelerator.num_processes == 1 else all(gather_object([here]))


def refuse_other_data_on_other_ranks(digest: str) -> None:
    """Raises `UserError` on all ranks where one has read other data than rank 0; `digest` is of this one's, and of the
    order of its rows."""
    digests = gather_object([digest])
    others = [rank for rank, other in enumerate(digests) if other != digests[0]]
    if others:
        raise UserError(
            f"data.path: rank {others[0]} reads other examples or labels than rank 0, or in another order; give all "
            "machines the same copy, or data.revision where it is on the Hub"
        )


def on_every_rank(accelerator: Accelerator, work: Callable[[], object]) -> None:
    """Runs `work` on each rank; where it failed on one, all raise what the first of them met, when all are done.

    Raises:
        UserError, RunFailure: as `work` raised it; any other error as a `RunFailure` that names it and its rank.
    """
    message: tuple[bool, str] | None = None
    failure: Exception | None = None
    try:
        work()
    except Exception as error:  # the other ranks wait for this one: they must hear of whatever it is
        failure = error
        rank = f" (rank {accelerator.process_index})" if accelerator.num_processes > 1 else ""
        known = isinstance(error, (UserError, RunFailure))
        message = (isinstance(error, UserError), f"{error}{rank}" if known else f"{error!r}{rank}")
    outcomes = [message] if accelerator.num_processes == 1 else gather_object([message])
    if failure is not None:
        raise failure
    for outcome in outcomes:
        if outcome is not None:
            is_user_error, text = outcome
            raise UserError(text) if is_user_error else RunFailure(text)


def on_main_rank(accelerator: Accelerator, work: Callable[[], Result]) -> Result:
    """Runs `work` on rank 0 alone; every rank gets its result, or raises the error that it ended with.

    Raises:
        UserError, RunFailure: as `work` raised it on rank 0; any other error is raised as it is there, and as a
            `RunFailure` elsewhere, so that no rank waits for one that is gone.
    """
    outcome: list[Any] = [None, None]
    failure: Exception | None = None
    if accelerator.is_main_process:
        try:
            outcome[0] = work()
        except Exception as error:  # whatever it is, the other ranks must hear of it before it is raised again
            failure = error
            outcome[1] = (
                isinstance(error, UserError),
                f"{error}" if isinstance(error, (UserError, RunFailure)) else repr(error),
            )
    if accelerator.num_processes > 1:
        broadcast_object_list(outcome)
    if failure is not None:
        raise failure
    if outcome[1] is not None:
        is_user_error, message = outcome[1]
        raise UserError(message) if is_user_error else RunFailure(f"rank 0 failed: {message}")
    result: Result = outcome[0]
    return result
