"""Objectives put together: weights on terms, and the loss that a step differentiates."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from accel_kd.errors import UserError
from accel_kd.objectives.base import Objective
from accel_kd.objectives.hard_label import HardLabel
from accel_kd.signals import GlobalCounts, LossTerm, Signal, SignalNeeds, Targets


@dataclass(frozen=True)
class WeightedSum:
    """Several objectives, each with its weight. One of weight 0 is not computed and needs nothing.

    Raises `UserError` for a weight that is negative or not finite, for two terms of one name (their metrics would
    overwrite each other), and if no term has a weight above 0.
    """

    terms: Sequence[tuple[float, Objective]]

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

    @property
    def _active(self) -> list[tuple[float, Objective]]:
        return [(weight, objective) for weight, objective in self.terms if weight > 0]

    @property
    def needs(self) -> SignalNeeds:
        """Whatever any term with a weight above 0 needs of a teacher."""
        # By field, so that a part added to `SignalNeeds` is not forgotten here.
        return SignalNeeds(
            **{
                part.name: any(getattr(objective.needs, part.name) for _, objective in self._active)
                for part in fields(SignalNeeds)
            }
        )

    def __call__(self, student: Signal, teacher: Signal | None, targets: Targets) -> list[LossTerm]:
        """The terms for logits `[N, V]` and targets `[N]`, each an unweighted sum that carries its weight."""
        return [replace(objective(student, teacher, targets), weight=weight) for weight, objective in self._active]


def mixture(alpha: float, divergence: Objective, label_smoothing: float = 0.0) -> WeightedSum:
    """`alpha * HardLabel + (1 - alpha) * divergence`.

    `alpha` weights the hard labels: 1 is plain fine-tuning and needs no teacher, 0 is pure distillation and looks at
    no label (the mixture of Hinton et al. 2015, arXiv 1503.02531; some libraries weight the other term by `alpha`).
    Raises `UserError` for an alpha outside [0, 1] and a `label_smoothing` outside [0, 1).
    """
    if not 0 <= alpha <= 1:
        raise UserError(f"alpha is {alpha}: give a number from 0 (pure distillation) to 1 (hard labels alone)")
    return WeightedSum([(alpha, HardLabel(label_smoothing)), (1 - alpha, divergence)])


def total(terms: Sequence[LossTerm], counts: GlobalCounts) -> Tensor:
    """The loss (scalar): the sum over the terms of `weight * sum / count`, with the global count of the term's unit.

    Over all micro-batches of all ranks these losses add up to the loss of the whole batch.
    """
    assert len(terms) > 0, "a loss needs at least one term"
    return torch.stack([term.weight * term.sum / counts.of(term.unit) for term in terms]).sum()
