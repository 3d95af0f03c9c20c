"""The ordinary supervised loss: cross-entropy with the label of the data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn import functional

from accel_kd.errors import UserError
from accel_kd.objectives.counted_rows import blank_uncounted
from accel_kd.objectives.precision import at_least_float32, autocast_disabled
from accel_kd.signals import IGNORED_LABEL, LossTerm, Signal, SignalNeeds, Targets, TeacherSignal, Unit


@dataclass(frozen=True)
class HardLabel:
    """Cross-entropy of the student with the labels, summed over the counted rows that have one.

    With `label_smoothing` the target is `1 - label_smoothing` on the label plus `label_smoothing / V` on every class
    (Szegedy et al. 2015, arXiv 1512.00567). It knows no temperature. Raises `UserError` for a `label_smoothing`
    outside [0, 1).
    """

    label_smoothing: float = 0.0
    name: ClassVar[str] = "hard_label"
    needs: ClassVar[SignalNeeds] = SignalNeeds()

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise UserError(
                f"label_smoothing is {self.label_smoothing}: give a number of at least 0 (no smoothing) and below 1"
            )

    def __call__(self, student: Signal, teacher: TeacherSignal | None, targets: Targets) -> LossTerm:
        """The sum (scalar) for student logits `[N, V]` and labels `[N]`; `teacher` is not looked at."""
        is_target = targets.counted & (targets.labels != IGNORED_LABEL)
        labels = torch.where(is_target, targets.labels, IGNORED_LABEL)
        with autocast_disabled(student.logits):
            cross_entropy = functional.cross_entropy(
                at_least_float32(blank_uncounted(student.logits, is_target)),
                labels,
                ignore_index=IGNORED_LABEL,
                reduction="sum",
                label_smoothing=self.label_smoothing,
            )
        return LossTerm(name=self.name, sum=cross_entropy, unit=Unit.TARGETS)
