"""The `objective` section of a recipe: the loss."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from accel_kd.config.fields import Fraction, NonNegative, Number, Positive, Section


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


Term = Annotated[
    HardLabelTerm | ForwardKLTerm | ReverseKLTerm | JensenShannonTerm | LogitMSETerm, Field(discriminator="type")
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
