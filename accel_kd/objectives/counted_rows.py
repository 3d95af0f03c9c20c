"""Keeps rows that do not count out of every sum and every gradient.

Masks, never boolean indices: the number of counted rows is known to the device alone, and asking for it would make
the host wait and rule out CUDA graphs.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from accel_kd.errors import UserError
from accel_kd.objectives.base import PerPosition
from accel_kd.signals import LossTerm, Signal, SparseSignal, Targets, TeacherSignal, Unit


def blank_uncounted(logits: Tensor, counted: Tensor) -> Tensor:
    """Logits `[N, V]` with zeros in the rows where `counted` `[N]` is false.

    To mask the loss alone is not enough: its gradient in such a row is 0 times that of whatever the row holds, which
    is NaN if the row holds NaN or infinity.
    """
    return torch.where(counted.unsqueeze(-1), logits, 0.0)


def sum_counted(per_position: Tensor, counted: Tensor) -> Tensor:
    """The sum (scalar) of the values `[N]` whose row is `counted` `[N]`."""
    return torch.where(counted, per_position, 0.0).sum()


def compare_positions(
    name: str, per_position: PerPosition, student: Signal, teacher: TeacherSignal | None, targets: Targets
) -> LossTerm:
    """The term `name`: the sum of `per_position` over the counted rows of two models that score `N` positions and `V`
    classes.

    Raises `UserError` if the two models score different numbers of classes.
    """
    assert teacher is not None, f"{name} compares the student with a teacher, but was called without one"
    refuse_different_classes(name, student, teacher)
    values = per_position(blank_uncounted(student.logits, targets.counted), _blank_teacher(teacher, targets.counted))
    return LossTerm(name=name, sum=sum_counted(values, targets.counted), unit=Unit.POSITIONS)


def _blank_teacher(teacher: TeacherSignal, counted: Tensor) -> Tensor | SparseSignal:
    """What the teacher says, with something harmless in the rows where `counted` `[N]` is false."""
    if isinstance(teacher, Signal):
        return blank_uncounted(teacher.logits, counted)
    # What such a row says need not be blanked, since the student's blanked logits stop its gradient; but the student
    # is looked up at its ids, and they must be classes. Class 0 is one whatever V is.
    return replace(teacher, ids=torch.where(counted.unsqueeze(-1), teacher.ids, 0))


def refuse_different_classes(name: str, student: Signal, teacher: TeacherSignal) -> None:
    """Raises `UserError` unless both models score the same V classes; another N is a mistake of the caller's."""
    student_shape = tuple(student.logits.shape)
    if isinstance(teacher, Signal):
        teacher_shape = tuple(teacher.logits.shape)
    else:
        teacher_shape = (*teacher.ids.shape[:-1], teacher.num_classes)
    if student_shape[-1] != teacher_shape[-1]:
        raise UserError(
            f"{name}: the student's logits have shape {student_shape} but the teacher's {teacher_shape}, and the last "
            "numbers, the classes, must agree: choose a teacher and a student with the same labels or vocabulary"
        )
    assert student_shape == teacher_shape, f"{name}: positions differ: {student_shape} and {teacher_shape}"
