"""Distances between the hidden states of the student, projected to the teacher's width, and those of the teacher.

The projections are the student's side of it, and trained with it: see `accel_kd.models.projected_student`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional

from accel_kd.objectives.counted_rows import blank_uncounted, sum_counted
from accel_kd.objectives.logit_regression import mean_squared_difference
from accel_kd.objectives.precision import at_least_float32, autocast_disabled
from accel_kd.signals import LossTerm, Signal, SignalNeeds, Targets, TeacherSignal, Unit

Distance = Literal["mse", "cosine"]


def cosine_distance(student_states: Tensor, teacher_states: Tensor) -> Tensor:
    """One minus the cosine of the angle between the states of each token: `[B, L, H]`, `[B, L, H]` -> `[B, L]`."""
    assert student_states.shape == teacher_states.shape, f"{student_states.shape} and {teacher_states.shape}"
    with autocast_disabled(student_states):
        student, teacher = at_least_float32(student_states), at_least_float32(teacher_states.detach())
        return 1.0 - functional.cosine_similarity(student, teacher, dim=-1)


@dataclass(frozen=True)
class HiddenStates:
    """The distance of the hidden states at each token that counts, summed over the tokens and over pairs of layers.

    `mse` is the mean over the width of the squared difference (TinyBERT, Jiao et al. 2019, arXiv 1909.10351; after the
    hints of FitNets, Romero et al. 2014, arXiv 1412.6550), `cosine` is 1 less the cosine (DistilBERT, Sanh et al. 2019,
    arXiv 1910.01108). `layers` pairs a layer of the student with one of the teacher, numbered as in `Signal`.
    """

    layers: tuple[tuple[int, int], ...] = ((-1, -1),)
    distance: Distance = "mse"
    name: ClassVar[str] = "hidden_states"

    @property
    def needs(self) -> SignalNeeds:
        """The teacher's layers, and nothing of its logits."""
        return SignalNeeds(hidden_states=frozenset(of_teacher for _, of_teacher in self.layers))

    def __call__(self, student: Signal, teacher: TeacherSignal | None, targets: Targets) -> LossTerm:
        """The sum (scalar) for hidden states `[B, L, H]` of both models, over `targets.tokens` `[B, L]`.

        Its gradient in the logits is 0, and is there: where no other term reads them, the head has one all the same.
        """
        assert teacher is not None, f"{self.name} compares the student with a teacher, but was called without one"
        assert isinstance(teacher, Signal) and teacher.hidden_states is not None, "a teacher without hidden states"
        assert student.hidden_states is not None, "a student without hidden states"
        assert targets.tokens is not None, "it is not known which tokens count"
        distance = mean_squared_difference if self.distance == "mse" else cosine_distance
        # What the teacher says elsewhere need not be blanked: the student's blanked states stop its gradient.
        per_token = [
            distance(
                blank_uncounted(student.hidden_states[of_student], targets.tokens), teacher.hidden_states[of_teacher]
            )
            for of_student, of_teacher in self.layers
        ]
        in_tokens = sum_counted(torch.stack(per_token).sum(dim=0), targets.tokens)
        in_logits = blank_uncounted(student.logits, torch.zeros_like(targets.counted)).sum()
        return LossTerm(name=self.name, sum=in_tokens + in_logits, unit=Unit.TOKENS)
