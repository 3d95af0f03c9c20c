"""What a run does about gradients that are not finite, and what it says when the device has no memory left."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch

from accel_kd.errors import SettingsFailure

logger = logging.getLogger(__name__)

_MOST_IDS = 64


class NonFiniteSteps:
    """Counts the steps that changed nothing because their gradient was not finite, and ends the run at one too many.

    Rows are the same on all ranks, so that all end it alike. Under fp16 a gradient overflows now and then until the
    loss scale suits it; there a step counts only once the scale has sunk to 1.
    """

    def __init__(
        self, allowed: int, ids_of_step: Callable[[int], Sequence[str]], loss_scale: Callable[[], float] | None = None
    ) -> None:
        """`allowed` steps of the whole run may be passed over; `ids_of_step` names the examples of a step; `loss_scale`
        is given under fp16."""
        self.num_steps = 0
        """Steps passed over so far, those before a resume among them."""
        self._allowed = allowed
        self._ids_of_step = ids_of_step
        self._loss_scale = loss_scale

    def examine(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Looks over the rows of training steps.

        Raises:
            SettingsFailure: more steps were passed over than are allowed; names the step and its examples.
        """
        for row in rows:
            if math.isfinite(row["train/gradient_norm"]) and math.isfinite(row["train/loss"]):
                continue
            if self._loss_scale is not None and math.isfinite(row["train/loss"]) and self._loss_scale() > 1:
                continue
            self.num_steps += 1
            found = (
                f"train/loss is {row['train/loss']} and train/gradient_norm {row['train/gradient_norm']} at step "
                f"{row['step']}"
            )
            examples = _listed(self._ids_of_step(int(row["step"])))
            if self.num_steps > self._allowed:
                raise SettingsFailure(
                    f"{found}; the step changed no weight (training.max_nonfinite_steps is {self._allowed}); look at "
                    f"its examples ({examples}), the teacher's logits for them, and training.learning_rate",
                    on_all_ranks=True,
                )
            logger.warning(
                "%s; the step changed no weight (%d of %d such steps that are allowed; examples %s)",
                found, self.num_steps, self._allowed, examples,
            )  # fmt: skip


@contextlib.contextmanager
def explained_lack_of_memory(micro_batch_size: int, evaluation_batch_size: int, section: str) -> Iterator[None]:
    """Says which settings lower the need for memory where the device has too little; `section` has that of the
    micro-batch.

    Raises:
        SettingsFailure: in place of the allocator's own error, with its figures.
    """
    try:
        yield
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if not _is_lack_of_memory(error):
            raise
        half = max(1, micro_batch_size // 2)
        raise SettingsFailure(
            f"out of memory on the device: {_first_line(error)}; {section}.micro_batch_size={half} halves what a step "
            f"holds and changes no result but by dropout's draws (it is {micro_batch_size} here), "
            f"evaluation.micro_batch_size={max(1, evaluation_batch_size // 2)} does so for scoring (this run goes on "
            "with both); data.max_length, training.precision=bf16 and teacher.source=cached lower it too, in a new "
            "run.directory",
            on_all_ranks=False,
        ) from error


def _is_lack_of_memory(error: BaseException) -> bool:
    # The allocator of the CPU raises a plain RuntimeError.
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return (text[0] if text else type(error).__name__).rstrip(". ")


def _listed(ids: Sequence[str]) -> str:
    shown = ", ".join(ids[:_MOST_IDS])
    return shown if len(ids) <= _MOST_IDS else f"{shown} and {len(ids) - _MOST_IDS} more"
