"""The seam between the training step and what it minimises."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from accel_kd.signals import LossTerm, Signal, SignalNeeds, SparseSignal, Targets, TeacherSignal


class Objective(Protocol):
    """One part of the loss of a micro-batch.

    An objective returns a *sum* over the rows that count, never a mean: the step divides once, by the count over all
    ranks. A row that does not count may hold anything, NaN included, and changes neither the sum nor the gradient.
    Where no row counts the sum is 0 and its gradient exactly 0, and it still reaches the student's logits, so that
    the backward pass of every rank runs. Nothing waits for the device, so that a step can be captured as a CUDA graph.
    """

    @property
    def name(self) -> str:
        """The name of the term, as it appears in the metrics."""
        ...

    @property
    def needs(self) -> SignalNeeds:
        """What the teacher has to provide."""
        ...

    def __call__(self, student: Signal, teacher: TeacherSignal | None, targets: Targets) -> LossTerm:
        """The term for the student's logits `[N, V]`, what the teacher says about the same `N` positions and `V`
        classes, and targets `[N]`, with a scalar sum and weight 1.

        `teacher` may be None where `needs` asks for nothing. That it provides what `needs` asks for is checked before
        training starts; here it is taken for granted.
        """
        ...


class PerPosition(Protocol):
    """A loss for each position: `[N, V]` student logits and `[N, V]` teacher logits, or some of them, to `[N]`."""

    def __call__(self, student_logits: Tensor, teacher: Tensor | SparseSignal, /) -> Tensor: ...
