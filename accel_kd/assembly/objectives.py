"""The `objective` section: the loss, and the same loss without its teacher."""

from __future__ import annotations

from accel_kd.config.objective_section import (
    ForwardKLTerm,
    HardLabelTerm,
    HiddenStatesTerm,
    JensenShannonTerm,
    LogitMSETerm,
    ObjectiveConfig,
    ReverseKLTerm,
    Term,
)
from accel_kd.objectives import (
    ForwardKL,
    HardLabel,
    HiddenStates,
    JensenShannon,
    LogitMSE,
    Objective,
    ReverseKL,
    WeightedSum,
    mixture,
)


def objective(section: ObjectiveConfig) -> WeightedSum:
    """The loss of the recipe."""
    if section.terms is not None:
        return WeightedSum([(term.weight, _term(term)) for term in section.terms], section.on_wrong_teacher)
    divergence: Objective
    match section.divergence:
        case "forward_kl":
            divergence = ForwardKL(section.temperature)
        case "reverse_kl":
            divergence = ReverseKL(section.temperature)
        case "jensen_shannon":
            divergence = JensenShannon(section.beta, section.temperature)
        case "logit_mse":
            divergence = LogitMSE()
    return mixture(section.alpha, divergence, section.label_smoothing, section.on_wrong_teacher)


def hard_labels_only(label_smoothing: float) -> WeightedSum:
    """What a teacher is fine-tuned with."""
    return WeightedSum([(1.0, HardLabel(label_smoothing))])


def without_teacher(section: ObjectiveConfig) -> WeightedSum:
    """The loss of the recipe without its teacher: what the control is trained with."""
    smoothing = section.label_smoothing
    for term in section.terms or ():
        if isinstance(term, HardLabelTerm):
            smoothing = term.label_smoothing
    return hard_labels_only(smoothing)


def describe(section: ObjectiveConfig) -> str:
    """The loss as a formula, for people."""
    parts = [f"{weight:g} * {part}" for weight, part in objective(section).terms if weight > 0]
    where_wrong = (
        "" if section.on_wrong_teacher == "keep" else f" (where the teacher is wrong: {section.on_wrong_teacher})"
    )
    return " + ".join(parts) + where_wrong


def _term(term: Term) -> Objective:
    match term:
        case HardLabelTerm():
            return HardLabel(term.label_smoothing)
        case ForwardKLTerm():
            return ForwardKL(term.temperature)
        case ReverseKLTerm():
            return ReverseKL(term.temperature)
        case JensenShannonTerm():
            return JensenShannon(term.beta, term.temperature)
        case LogitMSETerm():
            return LogitMSE()
        case HiddenStatesTerm():
            return HiddenStates(term.pairs, term.distance)
