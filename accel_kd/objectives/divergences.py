"""Divergences between the softened distributions of teacher and student.

Written `KL(left || right)` throughout. Every one is 0 where the models agree, takes logits before temperature,
computes in float32 at least, and treats the teacher as fixed.

A teacher is its logits or a `SparseSignal`. Of a sparse one the outcomes are the classes that it keeps and, as one
more, all others together, and both models' distributions are compared on these. Such a divergence is never above the
one over all classes, since it tells less apart, and equals it where every class is kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from accel_kd.errors import UserError
from accel_kd.objectives.counted_rows import compare_positions
from accel_kd.objectives.precision import at_least_float32, autocast_disabled
from accel_kd.signals import LossTerm, Signal, SignalNeeds, SparseSignal, Targets, TeacherSignal


def forward_kl(student_logits: Tensor, teacher: Tensor | SparseSignal, temperature: float) -> Tensor:
    """`temperature**2 * KL(teacher || student)` at each position: `[N, V]`, `[N, V]` -> `[N]`.

    Hinton et al. 2015, arXiv 1503.02531, less the teacher's entropy, which has no gradient. A class that the teacher
    rules out (a logit of minus infinity) contributes 0. Of a teacher of whom a sample of classes is known the value
    says little, but its gradient is on average the one over all classes (Anshumann et al. 2025, arXiv 2503.16870).
    """

    def divergence(student_log_probs: Tensor, teacher_log_probs: Tensor) -> Tensor:
        return kl(teacher_log_probs, student_log_probs)

    return _soften_and_rescale(divergence, student_logits, teacher, temperature)


def reverse_kl(student_logits: Tensor, teacher: Tensor | SparseSignal, temperature: float) -> Tensor:
    """`temperature**2 * KL(student || teacher)` at each position: `[N, V]`, `[N, V]` -> `[N]`.

    Gu et al. 2023, arXiv 2306.08543. It is infinite where the teacher rules out (a logit of minus infinity) a class
    that the student does not.
    """
    _assert_every_outcome(teacher)

    def divergence(student_log_probs: Tensor, teacher_log_probs: Tensor) -> Tensor:
        return kl(student_log_probs, teacher_log_probs)

    return _soften_and_rescale(divergence, student_logits, teacher, temperature)


def generalised_jensen_shannon(
    student_logits: Tensor, teacher: Tensor | SparseSignal, temperature: float, beta: float
) -> Tensor:
    """`temperature**2 * (beta * KL(teacher || m) + (1 - beta) * KL(student || m))` at each position, where
    `m = beta * teacher + (1 - beta) * student`: `[N, V]`, `[N, V]` -> `[N]`.

    Agarwal et al. 2024, arXiv 2306.13649. `beta` 0 means the forward and 1 the reverse KL. By the formula both would
    be 0: they are its limits *after division* by `beta` and by `1 - beta`. Hence the jump: close to 0 the value is
    about `beta` times the forward KL, close to 1 about `1 - beta` times the reverse KL, and a learning rate tuned for
    an end does not suit a `beta` beside it.
    """
    if beta == 0:
        return forward_kl(student_logits, teacher, temperature)
    if beta == 1:
        return reverse_kl(student_logits, teacher, temperature)
    _assert_every_outcome(teacher)

    def divergence(student_log_probs: Tensor, teacher_log_probs: Tensor) -> Tensor:
        # Where both models rule a class out the gradient of logaddexp is NaN at minus infinity and 0 at the lowest
        # finite number of float32, the narrowest type here; elsewhere the clamp changes nothing.
        lowest = torch.finfo(torch.float32).min
        mixture_log_probs = torch.logaddexp(
            (teacher_log_probs + math.log(beta)).clamp(min=lowest),
            (student_log_probs + math.log1p(-beta)).clamp(min=lowest),
        )
        teacher_part = kl(teacher_log_probs, mixture_log_probs)
        student_part = kl(student_log_probs, mixture_log_probs)
        return beta * teacher_part + (1 - beta) * student_part

    return _soften_and_rescale(divergence, student_logits, teacher, temperature)


def kl(left_log_probs: Tensor, right_log_probs: Tensor) -> Tensor:
    """KL(left || right) at each position, from log-probabilities: `[N, V]`, `[N, V]` -> `[N]`."""
    left_probs = left_log_probs.exp()
    # By convention 0 * log(0 / anything) is 0. The mask is on the difference, not on the product: 0 times an
    # infinite difference would still be NaN in the gradient.
    log_ratio = torch.where(left_probs > 0, left_log_probs - right_log_probs, 0.0)
    return (left_probs * log_ratio).sum(dim=-1)


def _soften_and_rescale(
    divergence: Callable[[Tensor, Tensor], Tensor],
    student_logits: Tensor,
    teacher: Tensor | SparseSignal,
    temperature: float,
) -> Tensor:
    """`temperature**2` times the divergence of both models' log-probabilities at `temperature`, `[N]`.

    The only place where the square is multiplied back: softening divides the gradient by about `temperature**2`.
    """
    with autocast_disabled(student_logits):
        student_log_probs = torch.log_softmax(at_least_float32(student_logits) / temperature, dim=-1)
        if isinstance(teacher, SparseSignal):
            # Softened over all V classes first: the mass of the others at a temperature does not follow from that
            # at another.
            student_log_probs = teacher.coarsen(student_log_probs)
            teacher_log_probs = teacher.log_probs_at(temperature).detach()
        else:
            teacher_log_probs = torch.log_softmax(at_least_float32(teacher.detach()) / temperature, dim=-1)
        assert student_log_probs.shape == teacher_log_probs.shape, (
            f"{student_log_probs.shape}, {teacher_log_probs.shape}"
        )
        return temperature**2 * divergence(student_log_probs, teacher_log_probs)


def _assert_every_outcome(teacher: Tensor | SparseSignal) -> None:
    """A sample of classes is no set of outcomes: what the student gives to the classes beside it would be left out."""
    if isinstance(teacher, SparseSignal) and teacher.log_tails is None:
        num_kept = teacher.ids.shape[-1]
        assert num_kept == teacher.num_classes, (
            f"{num_kept} of {teacher.num_classes} classes, and no mass of the others"
        )


@dataclass(frozen=True)
class ForwardKL:
    """`temperature**2 * KL(teacher || student)`, summed over the counted positions; see `forward_kl`.

    Raises `UserError` for a temperature that is not a positive finite number and, when called, for models that score
    different numbers of classes.
    """

    temperature: float
    name: ClassVar[str] = "forward_kl"

    def __post_init__(self) -> None:
        _refuse_temperature(self.temperature)

    @property
    def needs(self) -> SignalNeeds:
        """The logits, or a sample of them, at one temperature."""
        return SignalNeeds(logits=True, temperatures=frozenset({self.temperature}))

    def __call__(self, student: Signal, teacher: TeacherSignal | None, targets: Targets) -> LossTerm:
        """The sum (scalar) for `N` positions and `V` classes, over the rows of `targets` that count."""

        def per_position(student_logits: Tensor, teacher: Tensor | SparseSignal) -> Tensor:
            return forward_kl(student_logits, teacher, self.temperature)

        return compare_positions(self.name, per_position, student, teacher, targets)


@dataclass(frozen=True)
class ReverseKL:
    """`temperature**2 * KL(student || teacher)`, summed over the counted positions; see `reverse_kl`.

    Raises `UserError` for a temperature that is not a positive finite number and, when called, for models that score
    different numbers of classes.
    """

    temperature: float
    name: ClassVar[str] = "reverse_kl"

    def __post_init__(self) -> None:
        _refuse_temperature(self.temperature)

    @property
    def needs(self) -> SignalNeeds:
        """The probabilities of every class or group of classes, at one temperature."""
        return SignalNeeds(logits=True, exact=True, temperatures=frozenset({self.temperature}))

    def __call__(self, student: Signal, teacher: TeacherSignal | None, targets: Targets) -> LossTerm:
        """The sum (scalar) for `N` positions and `V` classes, over the rows of `targets` that count."""

        def per_position(student_logits: Tensor, teacher: Tensor | SparseSignal) -> Tensor:
            return reverse_kl(student_logits, teacher, self.temperature)

        return compare_positions(self.name, per_position, student, teacher, targets)


@dataclass(frozen=True)
class JensenShannon:
    """The generalised Jensen-Shannon divergence times `temperature**2`, summed over the counted positions; see
    `generalised_jensen_shannon` for what `beta` means and how it jumps at 0 and 1.

    Raises `UserError` for a beta outside [0, 1], for a temperature that is not a positive finite number and, when
    called, for models that score different numbers of classes.
    """

    beta: float
    temperature: float
    name: ClassVar[str] = "jensen_shannon"

    def __post_init__(self) -> None:
        if not 0 <= self.beta <= 1:
            raise UserError(f"beta is {self.beta}: give a number from 0 (forward KL) to 1 (reverse KL)")
        _refuse_temperature(self.temperature)

    @property
    def needs(self) -> SignalNeeds:
        """The probabilities of every class or group of classes, at one temperature."""
        return SignalNeeds(logits=True, exact=True, temperatures=frozenset({self.temperature}))

    def __call__(self, student: Signal, teacher: TeacherSignal | None, targets: Targets) -> LossTerm:
        """The sum (scalar) for `N` positions and `V` classes, over the rows of `targets` that count."""

        def per_position(student_logits: Tensor, teacher: Tensor | SparseSignal) -> Tensor:
            return generalised_jensen_shannon(student_logits, teacher, self.temperature, self.beta)

        return compare_positions(self.name, per_position, student, teacher, targets)


def _refuse_temperature(temperature: float) -> None:
    if not (math.isfinite(temperature) and temperature > 0):
        raise UserError(
            f"temperature is {temperature}: give a positive finite number, 1 to leave the logits as they are"
        )
