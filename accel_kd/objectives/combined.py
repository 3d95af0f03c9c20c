"""Objectives put together: weights on terms, and the loss that a step differentiates."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import get_args

import torch
from torch import Tensor

from accel_kd.errors import UserError
from accel_kd.objectives.base import Objective
from accel_kd.objectives.counted_rows import refuse_different_classes
from accel_kd.objectives.hard_label import HardLabel
from accel_kd.objectives.wrong_teacher import NEEDS, OnWrongTeacher, with_corrected_answers, without_wrong_positions
from accel_kd.signals import DeviceCounts, GlobalCounts, LossTerm, Signal, SignalNeeds, Targets, TeacherSignal


@dataclass(frozen=True)
class WeightedSum:
    """Several objectives, each with its weight. One of weight 0 is not computed and needs nothing.

    `on_wrong_teacher` says what the terms that compare logits with a teacher's do where it is wrong (see
    `accel_kd.objectives.wrong_teacher`); the others see every position as it is.

    Raises `UserError` for a weight that is negative or not finite, for two terms of one name (their metrics would
    overwrite each other), if no term has a weight above 0, and for an `on_wrong_teacher` that is unknown or that no
    term would heed.
    """

    terms: Sequence[tuple[float, Objective]]
    on_wrong_teacher: OnWrongTeacher = "keep"

    def __post_init__(self) -> None:
        object.__setattr__(self, "terms", tuple(self.terms))
        for weight, objective in self.terms:
            if not (math.isfinite(weight) and weight >= 0):
                raise UserError(f"the weight of {objective.name} is {weight}: give a finite number of at least 0")
        for name, num_terms in Counter(objective.name for _, objective in self.terms).items():
            if num_terms > 1:
                raise UserError(f"the loss has {num_terms} terms named {name}: keep one of them")
        if not self._active:
            raise UserError(
                "the loss has no term with a weight above 0, so nothing would be learnt: give a weight to one"
            )
        if self.on_wrong_teacher not in get_args(OnWrongTeacher):
            raise UserError(f"on_wrong_teacher is {self.on_wrong_teacher}: give keep, skip or correct")
        if self.on_wrong_teacher != "keep" and not any(objective.needs.logits for _, objective in self._active):
            raise UserError(
                f"on_wrong_teacher is {self.on_wrong_teacher}, but no term with a weight above 0 compares the "
                "student's logits with a teacher's: leave it at keep, or give a weight to such a term"
            )

    @property
    def _active(self) -> list[tuple[float, Objective]]:
        return [(weight, objective) for weight, objective in self.terms if weight > 0]

    @property
    def needs(self) -> SignalNeeds:
        """Whatever any term with a weight above 0, or what is done where the teacher is wrong, needs of a teacher."""
        needs = [objective.needs for _, objective in self._active] + [NEEDS[self.on_wrong_teacher]]
        return SignalNeeds(
            logits=any(part.logits for part in needs),
            every_logit=any(part.every_logit for part in needs),
            exact=any(part.exact for part in needs),
            temperatures=frozenset().union(*(part.temperatures or () for part in needs)),
            hidden_states=frozenset().union(*(part.hidden_states for part in needs)),
        )

    def __call__(self, student: Signal, teacher: TeacherSignal | None, targets: Targets) -> list[LossTerm]:
        """The terms for `N` positions, `V` classes and targets `[N]`, each an unweighted sum that carries its weight.

        Raises `UserError` if the two models score different numbers of classes.
        """
        compared = targets
        if self.on_wrong_teacher != "keep":
            assert teacher is not None, "the student is compared with a teacher, but there is none"
            refuse_different_classes("on_wrong_teacher", student, teacher)
            if self.on_wrong_teacher == "skip":
                compared = without_wrong_positions(teacher, targets)
            else:
                teacher = with_corrected_answers(teacher, targets)
        return [
            replace(objective(student, teacher, compared if objective.needs.logits else targets), weight=weight)
            for weight, objective in self._active
        ]


def mixture(
    alpha: float, divergence: Objective, label_smoothing: float = 0.0, on_wrong_teacher: OnWrongTeacher = "keep"
) -> WeightedSum:
    """`alpha * HardLabel + (1 - alpha) * divergence`.

    `alpha` weights the hard labels: 1 is plain fine-tuning and needs no teacher, 0 is pure distillation and looks at
    no label (the mixture of Hinton et al. 2015, arXiv 1503.02531; some libraries weight the other term by `alpha`),
    unless `on_wrong_teacher` makes the divergence do so, by anything but `keep`.
    Raises `UserError` for an alpha outside [0, 1], a `label_smoothing` outside [0, 1), and an `on_wrong_teacher` other
    than `keep` with an alpha of 1.
    """
    if not 0 <= alpha <= 1:
        raise UserError(f"alpha is {alpha}: give a number from 0 (pure distillation) to 1 (hard labels alone)")
    return WeightedSum([(alpha, HardLabel(label_smoothing)), (1 - alpha, divergence)], on_wrong_teacher)


def total(terms: Sequence[LossTerm], counts: GlobalCounts | DeviceCounts) -> Tensor:
    """The loss (scalar): the sum over the terms of `weight * sum / count`, with the global count of the term's unit.

    Over all micro-batches of all ranks these losses add up to the loss of the whole batch.
    """
    assert len(terms) > 0, "a loss needs at least one term"
    return torch.stack([term.weight * term.sum / counts.of(term.unit) for term in terms]).sum()
