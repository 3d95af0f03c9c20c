"""One optimizer step: the only place that knows how ranks and accumulation share a batch."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from accel_kd.objectives import WeightedSum, total
from accel_kd.signals import Batch, StepBatches
from accel_kd.tasks.base import Task
from accel_kd.teachers.base import TeacherSource


class EagerStep:
    """Forward, loss, backward and update as torch executes them, one operation after the other.

    The loss of the whole batch is the sum over all ranks and micro-batches of each term, divided once by the number
    of targets or positions that the whole batch holds. It does not depend on how the batch is split.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        schedule: LRScheduler,
        task: Task,
        objective: WeightedSum,
        teacher: TeacherSource | None,
        max_grad_norm: float | None,
    ) -> None:
        """`model` and `optimizer` are what `Accelerator.prepare` returned; `schedule` never went there."""
        self.model = model
        self._accelerator = accelerator
        self._optimizer = optimizer
        self._schedule = schedule
        self._task = task
        self._objective = objective
        self._teacher = teacher
        self._max_grad_norm = max_grad_norm

    @property
    def learning_rate(self) -> float:
        """The rate that the next step uses."""
        return float(self._schedule.get_last_lr()[0])

    def __call__(self, batches: StepBatches) -> tuple[dict[str, Tensor], Tensor | None]:
        """Takes the step.

        Returns:
            This rank's share of the loss and of each of its terms, whose sums over the ranks are the batch's, and the
            norm of the whole gradient before clipping (None without clipping). All stay on the device.
        """
        self.model.train()
        losses: dict[str, Tensor] = {}
        last = len(batches.micro_batches) - 1
        for number, micro_batch in enumerate(batches.micro_batches):
            # Ranks exchange gradients once a step, with the last micro-batch.
            with nullcontext() if number == last else self._accelerator.no_sync(self.model):
                self._accumulate(micro_batch, batches, losses)
        gradient_norm = None
        if self._max_grad_norm is not None:
            gradient_norm = self._accelerator.clip_grad_norm_(self.model.parameters(), self._max_grad_norm)
        self._optimizer.step()
        if not self._accelerator.optimizer_step_was_skipped:
            self._schedule.step()
        self._optimizer.zero_grad(set_to_none=True)
        return losses, gradient_norm

    def _accumulate(self, batch: Batch, batches: StepBatches, losses: dict[str, Tensor]) -> None:
        batch = batch.to(self._accelerator.device)
        output = self.model(**batch.inputs)
        student = self._task.score(batch, output)
        teacher = None if self._teacher is None else self._teacher.signal(batch)
        terms = self._objective(student, teacher, batch.targets)
        loss = total(terms, batches.global_counts)
        # Gradients are averaged over ranks; the loss is a sum over them.
        self._accelerator.backward(loss * self._accelerator.num_processes)
        for term in terms:
            share = term.sum.detach() / batches.global_counts.of(term.unit)
            losses[f"loss_{term.name}"] = losses.get(f"loss_{term.name}", 0.0) + share
        losses["loss"] = losses.get("loss", 0.0) + loss.detach()
