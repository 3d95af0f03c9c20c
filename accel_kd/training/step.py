"""One optimizer step: the only place that knows how ranks and accumulation share a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol

from accelerate import Accelerator
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from accel_kd.engines import Engine
from accel_kd.objectives import WeightedSum, total
from accel_kd.signals import Batch, DeviceCounts, GlobalCounts, Signal, StepBatches, TeacherSignal
from accel_kd.tasks.base import Task
from accel_kd.teachers.base import TeacherSource
from accel_kd.training.phases import Phases

Outcome = tuple[dict[str, Tensor], Tensor]
"""This rank's share of the loss and of each of its terms (scalars), whose sums over the ranks are the batch's, and the
norm of the whole gradient before clipping. All are on the device."""


class Step(Protocol):
    """A way of taking an optimizer step; all ways are one step."""

    @property
    def learning_rate(self) -> float:
        """The rate that the next step uses."""
        ...

    def __call__(self, batches: StepBatches) -> Outcome:
        """Takes the step; where its gradient is not finite, weights and optimizer stay as they were."""
        ...

    def rehearse(self, batches: StepBatches) -> None:
        """What a run that goes on in the middle does first; see `Engine.rehearse`."""
        ...


class EagerStep:
    """Forward, loss, backward and update as torch executes them, one operation after the other.

    The loss of the whole batch is the sum over all ranks and micro-batches of each term, divided once by the number
    of targets or positions that the whole batch holds. It does not depend on how the batch is split.
    """

    _is_compiled_or_recorded = False

    def __init__(
        self,
        accelerator: Accelerator,
        engine: Engine,
        schedule: LRScheduler,
        task: Task,
        objective: WeightedSum,
        teacher: TeacherSource | None,
        phases: Phases = Phases(),
    ) -> None:
        """`schedule` is of the engine's optimizer, and never went through `Accelerator.prepare`."""
        self._accelerator = accelerator
        self._engine = engine
        self._schedule = schedule
        self._task = task
        self._objective = objective
        self._reads_hidden_states = bool(objective.needs.hidden_states)
        self._teacher = teacher
        self._phases = phases
        if not self._is_compiled_or_recorded:
            engine.expect_eager_steps()

    @property
    def learning_rate(self) -> float:
        """The rate that the next step uses."""
        return float(self._schedule.get_last_lr()[0])

    @property
    def called_model(self) -> Callable[..., Any]:
        """What is called with a training batch."""
        return self._engine.model

    def __call__(self, batches: StepBatches) -> Outcome:
        """See `Step`."""
        outcome = self.compute(batches.micro_batches, batches.global_counts)
        if not self._engine.step_was_skipped:
            self._schedule.step()
        return outcome

    def compute(
        self,
        micro_batches: Sequence[Batch],
        counts: GlobalCounts | DeviceCounts,
        signals: Sequence[TeacherSignal] | None = None,
    ) -> Outcome:
        """All of a step but the schedule; in fp32 and bf16 with AdamW nothing of ours in it waits for the device.

        Args:
            micro_batches: this rank's.
            counts: over all ranks.
            signals: the teacher's for each of them, on the device; None: it is asked.
        """
        losses = self.differentiate(micro_batches, counts, signals)
        self._exchange_gradients()
        return losses, self._update()

    def _exchange_gradients(self) -> None:
        """Nothing: an engine's ranks do so in the backward pass."""

    def _update(self) -> Tensor:
        with self._phases("optimizer"):
            return self._engine.update()

    def differentiate(
        self,
        micro_batches: Sequence[Batch],
        counts: GlobalCounts | DeviceCounts,
        signals: Sequence[TeacherSignal] | None = None,
    ) -> dict[str, Tensor]:
        """The part of `compute` before the update: returns the losses, and leaves the gradients with the engine."""
        self._engine.model.train()
        losses: dict[str, Tensor] = {}
        last = len(micro_batches) - 1
        for number, micro_batch in enumerate(micro_batches):
            with self._engine.accumulating(is_last=number == last):
                self._accumulate(micro_batch, counts, None if signals is None else signals[number], losses)
        return losses

    def rehearse(self, batches: StepBatches) -> None:
        """See `Step`."""
        batch = batches.micro_batches[0].to(self._accelerator.device)
        self._engine.model.train()
        self._engine.rehearse(lambda: self._every_output(batch))

    def _every_output(self, batch: Batch) -> Tensor:
        student = self._student(batch)
        return student.logits.sum() + sum(states.sum() for states in (student.hidden_states or {}).values())

    def _student(self, batch: Batch) -> Signal:
        output = self.called_model(**batch.inputs)
        signal = self._task.score(batch, output)
        return replace(signal, hidden_states=output.hidden_states) if self._reads_hidden_states else signal

    def _accumulate(
        self,
        batch: Batch,
        counts: GlobalCounts | DeviceCounts,
        teacher: TeacherSignal | None,
        losses: dict[str, Tensor],
    ) -> None:
        batch = batch.to(self._accelerator.device)
        with self._phases("student forward"):
            student = self._student(batch)
        if teacher is None and self._teacher is not None:
            with self._phases("teacher"):
                teacher = self._teacher.signal(batch)
        targets = replace(batch.targets, tokens=batch.tokens) if self._reads_hidden_states else batch.targets
        with self._phases("loss"):
            terms = self._objective(student, teacher, targets)
            loss = total(terms, counts)
        with self._phases("student backward"):
            # Gradients are averaged over ranks; the loss is a sum over them. The last factor is 1, or NaN where the
            # loss is not finite: its gradient may be finite all the same, and the ranks hear of each other by gradients
            # alone.
            self._engine.backward(loss * (self._accelerator.num_processes * (1.0 + 0.0 * loss.detach())))
        for term in terms:
            share = term.sum.detach() / counts.of(term.unit)
            losses[f"loss_{term.name}"] = losses.get(f"loss_{term.name}", 0.0) + share
        losses["loss"] = losses.get("loss", 0.0) + loss.detach()
