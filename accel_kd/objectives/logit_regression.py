"""Regression of the student's logits on the teacher's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from accel_kd.objectives.counted_rows import compare_positions
from accel_kd.objectives.precision import at_least_float32, autocast_disabled
from accel_kd.signals import LossTerm, Signal, SignalNeeds, SparseSignal, Targets, TeacherSignal


def mean_squared_difference(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """The mean over the classes of the squared difference of the logits: `[N, V]`, `[N, V]` -> `[N]`."""
    assert student_logits.shape == teacher_logits.shape, f"{student_logits.shape} and {teacher_logits.shape}"
    with autocast_disabled(student_logits):
        difference = at_least_float32(student_logits) - at_least_float32(teacher_logits.detach())
        return difference.square().mean(dim=-1)


@dataclass(frozen=True)
class LogitMSE:
    """The mean squared difference of the logits at each counted position, summed (Kim et al. 2021, arXiv 2105.08919).

    It compares logits, not distributions: it knows no temperature, sees a constant added to all logits, and is
    infinite where the teacher rules a class out with a logit of minus infinity. Raises `UserError` when called for
    models that score different numbers of classes.
    """

    name: ClassVar[str] = "logit_mse"
    needs: ClassVar[SignalNeeds] = SignalNeeds(logits=True, every_logit=True)

    def __call__(self, student: Signal, teacher: TeacherSignal | None, targets: Targets) -> LossTerm:
        """The sum (scalar) for logits `[N, V]`, over the rows of `targets` that count."""

        def per_position(student_logits: Tensor, teacher: Tensor | SparseSignal) -> Tensor:
            assert isinstance(teacher, Tensor), f"{self.name} compares each logit, and the teacher gives some classes"
            return mean_squared_difference(student_logits, teacher)

        return compare_positions(self.name, per_position, student, teacher, targets)
