"""Value types that cross packages, defined once at the bottom so that both sides of a seam import the same thing.

`N` is the number of scored positions of a micro-batch (one a row for a classifier), `V` the number of classes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

import torch
from torch import Tensor

IGNORED_LABEL = -100
"""The label of a position without a target; torch's cross-entropy skips it by default."""


@dataclass(frozen=True)
class SignalNeeds:
    """What an objective asks of a teacher, compared with what the teacher source provides before training starts."""

    logits: bool = False

    def missing_from(self, provided: SignalNeeds) -> list[str]:
        """Names of the parts needed here that `provided` lacks."""
        return ["logits"] if self.logits and not provided.logits else []


@dataclass(frozen=True)
class Signal:
    """What one model says about a micro-batch: logits `[N, V]`, before softmax and before temperature."""

    logits: Tensor


@dataclass(frozen=True)
class Targets:
    """What a micro-batch counts towards: `labels` `[N]` int64 (`IGNORED_LABEL` where there is none) and `counted`
    `[N]` bool, false for a row that only fills an otherwise empty micro-batch and must not enter any sum."""

    labels: Tensor
    counted: Tensor


class Unit(StrEnum):
    """What a loss term is a sum over, hence what the step divides it by, counted over all ranks."""

    TARGETS = "targets"
    POSITIONS = "positions"


@dataclass(frozen=True)
class LossTerm:
    """One part of the loss: a *sum* over this micro-batch (scalar), the unit it counts, and its weight in the loss."""

    name: str
    sum: Tensor
    unit: Unit
    weight: float = 1.0


@dataclass(frozen=True)
class GlobalCounts:
    """How many targets and positions one optimizer step holds over all ranks and all its micro-batches."""

    targets: int
    positions: int

    def of(self, unit: Unit) -> int:
        """The divisor of a term that counts `unit`; at least 1, since a sum over nothing is 0 whatever divides it."""
        return max(1, self.targets if unit is Unit.TARGETS else self.positions)


@dataclass(frozen=True)
class Batch:
    """One micro-batch on one device.

    `rows` `[N]` int64 numbers the examples within their split; `inputs` are the student's model inputs `[N, L]`;
    `teacher_inputs` the teacher's where it has a tokenizer of its own, else None: it reads `inputs` then.
    """

    rows: Tensor
    inputs: dict[str, Tensor]
    targets: Targets
    teacher_inputs: dict[str, Tensor] | None = None

    def to(self, device: torch.device) -> Batch:
        """The same batch on `device`; copies from pinned memory do not block the host."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=True)

        return self._each(move)

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory; `torch.utils.data.DataLoader` calls this by name."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: TensorMap) -> Batch:
        teacher_inputs = self.teacher_inputs
        return Batch(
            rows=change(self.rows),
            inputs={name: change(tensor) for name, tensor in self.inputs.items()},
            targets=Targets(change(self.targets.labels), change(self.targets.counted)),
            teacher_inputs=None if teacher_inputs is None else {k: change(v) for k, v in teacher_inputs.items()},
        )


@dataclass(frozen=True)
class StepBatches:
    """What one rank needs for one optimizer step: its micro-batches, and the counts over all ranks to divide by."""

    epoch: int
    micro_batches: list[Batch] = field(repr=False)
    global_counts: GlobalCounts


class TensorMap(Protocol):
    """A function from tensor to tensor."""

    def __call__(self, tensor: Tensor, /) -> Tensor: ...
