"""One optimizer step: the only place that knows how ranks and accumulation share a batch."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from accel_kd.objectives import WeightedSum, total
from accel_kd.signals import Batch, Signal, StepBatches
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
        self._reads_hidden_states = bool(objective.needs.hidden_states)
        self._teacher = teacher
        self._max_grad_norm = max_grad_norm

    @property
    def learning_rate(self) -> float:
        """The rate that the next step uses."""
        return float(self._schedule.get_last_lr()[0])

    def __call__(self, batches: StepBatches) -> tuple[dict[str, Tensor], Tensor]:
        """Takes the step; where its gradient is not finite, weights and optimizer stay as they were.

        Returns:
            This rank's share of the loss and of each of its terms, whose sums over the ranks are the batch's, and the
            norm of the whole gradient before clipping. All stay on the device.
        """
        self.model.train()
        losses: dict[str, Tensor] = {}
        last = len(batches.micro_batches) - 1
        for number, micro_batch in enumerate(batches.micro_batches):
            # Ranks exchange gradients once a step, with the last micro-batch.
            with nullcontext() if number == last else self._accelerator.no_sync(self.model):
                self._accumulate(micro_batch, batches, losses)
        gradient_norm = self._clip()
        self._update(gradient_norm)
        if not self._accelerator.optimizer_step_was_skipped:
            self._schedule.step()
        self._optimizer.zero_grad(set_to_none=True)
        return losses, gradient_norm

    def rehearse(self, batches: StepBatches) -> None:
        """A forward and a backward pass that leave no gradient: DDP arranges its buckets after the first of them, and
        from three ranks on the arrangement decides in which order gradients are added up. A run that goes on in the
        middle must not add them up as a first step does."""
        batch = batches.micro_batches[0].to(self._accelerator.device)
        self.model.train()
        student = self._student(batch)
        loss = student.logits.sum() + sum(states.sum() for states in (student.hidden_states or {}).values())
        self._accelerator.backward(0.0 * loss)
        self._optimizer.zero_grad(set_to_none=True)

    def _clip(self) -> Tensor:
        if self._max_grad_norm is not None:
            norm: Tensor = self._accelerator.clip_grad_norm_(self.model.parameters(), self._max_grad_norm)
            return norm
        self._accelerator.unscale_gradients()
        return nn.utils.get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None])

    def _update(self, gradient_norm: Tensor) -> None:
        """Every rank has the whole gradient, so that all of them take the step or none does."""
        raw: Any = getattr(self._optimizer, "optimizer", self._optimizer)
        is_finite = torch.isfinite(gradient_norm)
        if self._accelerator.scaler is not None:
            self._optimizer.step()  # the scaler looks for itself
        elif raw.param_groups[0].get("fused"):
            # The kernel looks at this and changes nothing; the host need not wait to know.
            raw.found_inf = (~is_finite).to(torch.float32)
            self._optimizer.step()
        elif bool(is_finite):
            self._optimizer.step()

    def _student(self, batch: Batch) -> Signal:
        output = self.model(**batch.inputs)
        signal = self._task.score(batch, output)
        return replace(signal, hidden_states=output.hidden_states) if self._reads_hidden_states else signal

    def _accumulate(self, batch: Batch, batches: StepBatches, losses: dict[str, Tensor]) -> None:
        batch = batch.to(self._accelerator.device)
        student = self._student(batch)
        teacher = None if self._teacher is None else self._teacher.signal(batch)
        terms = self._objective(student, teacher, batch.targets)
        loss = total(terms, batches.global_counts)
        # Gradients are averaged over ranks; the loss is a sum over them. The last factor is 1, or NaN where the loss is
        # not finite: its gradient may be finite all the same, and the ranks hear of each other by gradients alone.
        self._accelerator.backward(loss * (self._accelerator.num_processes * (1.0 + 0.0 * loss.detach())))
        for term in terms:
            share = term.sum.detach() / batches.global_counts.of(term.unit)
            losses[f"loss_{term.name}"] = losses.get(f"loss_{term.name}", 0.0) + share
        losses["loss"] = losses.get("loss", 0.0) + loss.detach()
