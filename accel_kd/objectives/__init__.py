"""What the student is trained to minimise: each objective turns logits and targets into one term of the loss."""

from accel_kd.objectives.base import Objective
from accel_kd.objectives.combined import WeightedSum, mixture, total
from accel_kd.objectives.divergences import (
    ForwardKL,
    JensenShannon,
    ReverseKL,
    forward_kl,
    generalised_jensen_shannon,
    reverse_kl,
)
from accel_kd.objectives.features import HiddenStates, cosine_distance
from accel_kd.objectives.hard_label import HardLabel
from accel_kd.objectives.logit_regression import LogitMSE, mean_squared_difference
from accel_kd.objectives.wrong_teacher import OnWrongTeacher

__all__ = [
    "ForwardKL",
    "HardLabel",
    "HiddenStates",
    "JensenShannon",
    "LogitMSE",
    "Objective",
    "OnWrongTeacher",
    "ReverseKL",
    "WeightedSum",
    "cosine_distance",
    "forward_kl",
    "generalised_jensen_shannon",
    "mean_squared_difference",
    "mixture",
    "reverse_kl",
    "total",
]
