"""Keeps rows that do not count out of every sum and every gradient.

Masks, never boolean indices: the number of counted rows is known to the device alone, and asking for it would make
the host wait and rule out CUDA graphs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from accel_kd.errors import UserError
from accel_kd.objectives.base import PerPosition
from accel_kd.signals import LossTerm, Signal, Targets, Unit


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
    name: str, per_position: PerPosition, student: Signal, teacher: Signal | None, targets: Targets
) -> LossTerm:
    """The term `name`: the sum of `per_position` over the counted rows of student and teacher logits, both `[N, V]`.

    Raises `UserError` if the two models score different numbers of classes.
    """
    assert teacher is not None, f"{name} compares the student with a teacher, but was called without one"
    refuse_different_classes(name, student.logits, teacher.logits)
    values = per_position(
        blank_uncounted(student.logits, targets.counted), blank_uncounted(teacher.logits, targets.counted)
    )
    return LossTerm(name=name, sum=sum_counted(values, targets.counted), unit=Unit.POSITIONS)


def refuse_different_classes(name: str, student_logits: Tensor, teacher_logits: Tensor) -> None:
    """Raises `UserError` unless both logits, `[N, V]`, have the same V; another N is a mistake of the caller's."""
    student_shape, teacher_shape = tuple(student_logits.shape), tuple(teacher_logits.shape)
    if student_shape[-1] != teacher_shape[-1]:
        raise UserError(
            f"{name}: the student's logits have shape {student_shape} but the teacher's {teacher_shape}, and the last "
            "numbers, the classes, must agree: choose a teacher and a student with the same labels or vocabulary"
        )
    assert student_shape == teacher_shape, f"{name}: positions differ: {student_shape} and {teacher_shape}"
