"""The scores of a split, one row an example, collected from all ranks exactly once each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor

from accel_kd.distributed.collectives import gather_ragged
from accel_kd.errors import RunFailure

_NONE = -1


@dataclass(frozen=True)
class ScoredRows:
    """All `n` examples of a split, in its order: `labels` and `argmax` `[n]` int64, `confidence` `[n]` (the largest
    probability) and `loss` `[n]` (cross-entropy, nats) float64; with a teacher its argmax and
    KL(teacher || student), likewise."""

    labels: NDArray[np.int64]
    argmax: NDArray[np.int64]
    confidence: NDArray[np.float64]
    loss: NDArray[np.float64]
    teacher_argmax: NDArray[np.int64] | None = None
    teacher_kl: NDArray[np.float64] | None = None


class RowCollector:
    """Keeps this rank's scores on the device as integers and floats; logits never leave the batch."""

    def __init__(self) -> None:
        self._integers: list[Tensor] = []
        self._floats: list[Tensor] = []
        self._counted: list[Tensor] = []
        self._with_teacher = False

    def add(self, rows: Tensor, counted: Tensor, labels: Tensor, logits: Tensor, teacher_logits: Tensor | None) -> None:
        """Scores a micro-batch: `rows`, `counted`, `labels` `[N]`, logits `[N, V]`."""
        log_probabilities = torch.log_softmax(logits.double(), dim=-1)
        confidence, argmax = log_probabilities.max(dim=-1)
        loss = torch.nn.functional.nll_loss(log_probabilities, labels, reduction="none")
        teacher_argmax, teacher_kl = torch.full_like(argmax, _NONE), torch.zeros_like(confidence)
        if teacher_logits is not None:
            self._with_teacher = True
            teacher_log_probabilities = torch.log_softmax(teacher_logits.double(), dim=-1)
            teacher_argmax = teacher_log_probabilities.argmax(dim=-1)
            difference = teacher_log_probabilities - log_probabilities
            teacher_kl = (teacher_log_probabilities.exp() * difference).sum(dim=-1)
        # Rows that do not count are left out at the end: to pick the others here, the host would wait for the device.
        self._integers.append(torch.stack([rows, labels, argmax, teacher_argmax], dim=1))
        self._floats.append(torch.stack([confidence.exp(), loss, teacher_kl], dim=1))
        self._counted.append(counted)

    def gather(self, accelerator: Accelerator, num_rows: int) -> ScoredRows:
        """The whole split on every rank: gathered, each example kept once, the count checked.

        Raises:
            RunFailure: the examples that arrived are not those of the split.
        """
        counted = torch.cat(self._counted)
        integers = gather_ragged(accelerator, torch.cat(self._integers)[counted]).cpu().numpy()
        floats = gather_ragged(accelerator, torch.cat(self._floats)[counted]).cpu().numpy()
        rows, first = np.unique(integers[:, 0], return_index=True)
        if not np.array_equal(rows, np.arange(num_rows)):
            raise RunFailure(f"evaluation gathered {len(rows)} different examples of a split that has {num_rows}")
        integers, floats = integers[first], floats[first]
        return ScoredRows(
            labels=integers[:, 1],
            argmax=integers[:, 2],
            confidence=floats[:, 0],
            loss=floats[:, 1],
            teacher_argmax=integers[:, 3] if self._with_teacher else None,
            teacher_kl=floats[:, 2] if self._with_teacher else None,
        )
