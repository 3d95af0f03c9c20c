"""The teacher in this process: frozen, in evaluation mode, its forward beside the student's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from accel_kd.signals import Batch, Signal, SignalNeeds
from accel_kd.tasks.base import Task


class StreamingTeacher:
    """Never goes through `Accelerator.prepare`: a checkpoint would carry it, and FSDP2 refuses a second model."""

    provides = SignalNeeds(logits=True)

    def __init__(
        self, model: PreTrainedModel, task: Task, device: torch.device, columns: Sequence[int] | None = None
    ) -> None:
        """`columns` gives the model's logit column of each of the data's labels, where the order differs."""
        self.model = model.to(device).eval().requires_grad_(False)
        self._task = task
        self._columns = None if columns is None else torch.tensor(list(columns), device=device)

    @torch.no_grad()
    def signal(self, batch: Batch) -> Signal:
        """The teacher's logits `[N, V]` in the data's label order, in fp32 whatever the model's precision."""
        assert not self.model.training, "the teacher was put into training mode"
        inputs = batch.inputs if batch.teacher_inputs is None else batch.teacher_inputs
        logits = self._task.score(batch, self.model(**inputs)).logits.float()
        return Signal(logits if self._columns is None else logits[:, self._columns])
