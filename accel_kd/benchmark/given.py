"""Steps of a given size: random texts, and a teacher whose answers cost nothing."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from accel_kd.models.loading import input_names
from accel_kd.signals import Batch, GlobalCounts, Signal, SignalNeeds, StepBatches, Targets
from accel_kd.teachers.base import WithoutMemory
from accel_kd.teachers.streaming import EVERY_LOGIT


class GivenLogits(WithoutMemory):
    """Reads the rows of a tensor that lies on the device."""

    def __init__(self, logits: Tensor) -> None:
        """`logits` `[n, V]`, a row for each example of the split."""
        self._logits = logits

    @property
    def provides(self) -> SignalNeeds:
        """All that a classifier's teacher can."""
        return EVERY_LOGIT

    def signal(self, batch: Batch) -> Signal:
        """See `TeacherSource`."""
        return Signal(self._logits[batch.rows])


def given_logits(num_rows: int, num_classes: int, device: torch.device) -> GivenLogits:
    """Random ones."""
    return GivenLogits(torch.randn(num_rows, num_classes, device=device))


def given_step(student: PreTrainedModel, batch_size: int, length: int) -> StepBatches:
    """Random texts that all have `length` tokens but one, since a batch without padding goes without a mask."""
    mask = torch.ones(batch_size, length, dtype=torch.long)
    mask[0, -1] = 0
    shape = (batch_size, length)
    inputs = {"input_ids": torch.randint(1, student.config.vocab_size, shape), "attention_mask": mask}
    if "token_type_ids" in input_names(student):
        inputs["token_type_ids"] = torch.zeros_like(mask)
    targets = Targets(torch.randint(student.config.num_labels, (batch_size,)), torch.ones(batch_size, dtype=torch.bool))
    counts = GlobalCounts(batch_size, batch_size, int(mask.sum()))
    return StepBatches(0, [Batch(torch.arange(batch_size), inputs, targets)], counts)
