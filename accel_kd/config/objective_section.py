"""The `objective` section of a recipe: the loss."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from accel_kd.config.fields import Fraction, Integer, NonNegative, Number, Positive, Section


class HardLabelTerm(Section):
    type: Literal["hard_label"]
    """Cross-entropy with the labels."""
    weight: NonNegative = 1.0
    """Weight in the loss."""
    label_smoothing: Annotated[Number, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of the target that is spread evenly over all labels."""


class ForwardKLTerm(Section):
    type: Literal["forward_kl"]
    """T² KL(teacher || student)."""
    weight: NonNegative = 1.0
    """Weight in the loss."""
    temperature: Positive = 2.0
    """Softens both distributions."""


class ReverseKLTerm(Section):
    type: Literal["reverse_kl"]
    """T² KL(student || teacher)."""
    weight: NonNegative = 1.0
    """Weight in the loss."""
    temperature: Positive = 2.0
    """Softens both distributions."""


class JensenShannonTerm(Section):
    type: Literal["jensen_shannon"]
    """T² times the generalised Jensen-Shannon divergence."""
    weight: NonNegative = 1.0
    """Weight in the loss."""
    temperature: Positive = 2.0
    """Softens both distributions."""
    beta: Fraction = 0.5
    """The teacher's share of the mixture: 0 is forward KL, 1 reverse KL."""


class LogitMSETerm(Section):
    type: Literal["logit_mse"]
    """Mean squared difference of the logits."""
    weight: NonNegative = 1.0
    """Weight in the loss."""


class HiddenStatesTerm(Section):
    type: Literal["hidden_states"]
    """Distance of the hidden states at every token; both models must read the same tokens."""
    weight: NonNegative = 1.0
    """Weight in the loss."""
    layers: dict[Integer, Integer] = Field(default={-1: -1}, min_length=1)
    """A layer of the teacher for each of some layers of the student: 0 is the embeddings, 1 the first layer, -1 the
    last; their distances are added up."""
    distance: Literal["mse", "cosine"] = "mse"
    """Mean squared difference over the width, or 1 less the cosine."""
    projection: Literal["auto", "always", "never"] = "auto"
    """A linear map of the student's states, learnt beside it and not exported: `auto`: where the widths differ."""

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """`layers`, in an order that does not depend on how they were written."""
        return tuple(sorted(self.layers.items()))


Term = Annotated[
    HardLabelTerm | ForwardKLTerm | ReverseKLTerm | JensenShannonTerm | LogitMSETerm | HiddenStatesTerm,
    Field(discriminator="type"),
]


class ObjectiveConfig(Section):
    alpha: Fraction = 0.5
    """Weight of the hard labels: alpha * CE + (1 - alpha) * T² * KL(teacher || student); 1 asks no teacher."""
    temperature: Positive = 2.0
    """Softens both distributions; its square is multiplied back."""
    divergence: Literal["forward_kl", "reverse_kl", "jensen_shannon", "logit_mse"] = "forward_kl"
    """What stands beside the hard labels."""
    beta: Fraction = 0.5
    """The teacher's share of the Jensen-Shannon mixture: 0 is forward KL, 1 reverse KL."""
    label_smoothing: Annotated[Number, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of a hard target that is spread evenly over all labels."""
    terms: Annotated[list[Term], Field(min_length=1)] | None = None
    """A list of weighted terms, each type once, in place of all the settings above."""
    on_wrong_teacher: Literal["keep", "skip", "correct"] = "keep"
    """What the divergence does with an example whose label is known and is not the teacher's answer: `keep`: nothing;
    `skip`: leaves it out; `correct`: the logits of the label and of the answer change places."""


def hidden_states_term(objective: ObjectiveConfig) -> HiddenStatesTerm | None:
    """The term that reads hidden states, if the loss has one with a weight above 0."""
    for term in objective.terms or ():
        if isinstance(term, HiddenStatesTerm) and term.weight > 0:
            return term
    return None
