"""How much of what the teacher said its encoding keeps, measured where the logits themselves are still at hand."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from accel_kd.logit_store.encodings.base import Encoding, slices
from accel_kd.signals import Signal, SparseSignal


@dataclass(frozen=True)
class Fidelity:
    """The decoded signal beside the teacher's logits, over some positions; divergences in nats.

    KL(teacher || decoded) is None for an encoding that is right only on average: it is infinite wherever the teacher
    gives mass to a class that was not drawn. Look at `total_variation_mean` and `kl_to_teacher_mean` there, which are
    finite: they tell how far the draws of one position scatter, not a bias, and an objective averages that out.
    """

    num_positions: int
    """Positions that were looked at."""
    temperature: float
    """What both sides are softened with: 1, or the only temperature that the encoding has."""
    mass_kept_mean: float
    """Mean of the teacher's mass on the classes that are kept one by one; 1 where all are."""
    mass_kept_min: float
    """The least of any position."""
    kl_mean: float | None
    """Mean KL(teacher || decoded) over the outcomes that the encoding tells apart: each kept class, and one for all
    others together."""
    kl_max: float | None
    """The greatest of any position."""
    kl_full_mean: float | None
    """Mean KL(teacher || decoded) over all classes, with the decoded tail spread evenly over those that were not kept:
    what a reader loses who takes the signal for a distribution over all classes."""
    total_variation_mean: float
    """Mean of half the sum over the outcomes of how far teacher and decoded are apart: from 0 to 1. Where there is no
    outcome for the others, their classes count one by one with 0 decoded mass."""
    kl_to_teacher_mean: float
    """Mean KL(decoded || teacher) over the outcomes."""
    argmax_agreement: float
    """Share of positions whose most probable class is the same; the first of equally probable ones counts, by id in
    the teacher's logits, by column in the decoded signal."""


class FidelityMeter:
    """Gathers a `Fidelity` over batches of positions, all in float64."""

    def __init__(self, encoding: Encoding) -> None:
        self._encoding = encoding
        temperatures = encoding.provides.temperatures
        self._temperature = 1.0 if temperatures is None or 1.0 in temperatures else min(temperatures)
        self._seen: list[dict[str, Tensor]] = []

    def add(self, logits: Tensor, tensors: Mapping[str, Tensor]) -> None:
        """Takes positions in: the teacher's `logits` `[n, V]` on the CPU and what the encoding made of them."""
        assert all(len(tensor) == len(logits) for tensor in tensors.values()), "tensors of other positions"
        seen: list[dict[str, Tensor]] = []
        start = 0
        for rows in slices(logits):
            part = {name: tensor[start : start + len(rows)] for name, tensor in tensors.items()}
            decoded = self._encoding.decode(part)
            seen.append(compared(rows.double() / self._temperature, decoded, self._temperature))
            start += len(rows)
        self._seen.append(joined(seen))

    def result(self) -> Fidelity:
        """Over all positions so far, of which there must be one at least."""
        assert any(len(part["agrees"]) for part in self._seen), "the fidelity of no position"
        seen = joined(self._seen)
        exact = self._encoding.provides.exact

        def mean(name: str) -> float:
            return float(seen[name].mean())

        return Fidelity(
            num_positions=len(seen["agrees"]),
            temperature=self._temperature,
            mass_kept_mean=mean("mass_kept"),
            mass_kept_min=float(seen["mass_kept"].min()),
            kl_mean=mean("kl") if exact else None,
            kl_max=float(seen["kl"].max()) if exact else None,
            kl_full_mean=mean("kl_full") if exact else None,
            total_variation_mean=mean("total_variation"),
            kl_to_teacher_mean=mean("kl_to_teacher"),
            argmax_agreement=mean("agrees"),
        )


def joined(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The values of several batches of positions as those of one."""
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def compared(softened: Tensor, decoded: Signal | SparseSignal, temperature: float) -> dict[str, Tensor]:
    """What `Fidelity` sums up, each `[n]` float64, for the teacher's logits over the temperature, `[n, V]` float64."""
    teacher = softened.log_softmax(dim=1)
    if isinstance(decoded, Signal):
        every_class = torch.arange(teacher.shape[1]).expand_as(teacher)
        decoded = SparseSignal(every_class, decoded.logits, None, teacher.shape[1])
    ids, tails = decoded.ids, decoded.log_tails
    tails = None if tails is None else {temperature: tails[temperature].double()}
    ours = SparseSignal(ids, decoded.log_probs.double(), tails, decoded.num_classes).log_probs_at(temperature)
    theirs = decoded.coarsen(teacher)
    kept = teacher.gather(1, ids)
    others = teacher.scatter(1, ids, float("-inf"))
    # A slot of a sample that no class was drawn into holds one that was not drawn.
    empty = decoded.log_probs == float("-inf")
    divergence = kl(theirs, ours)
    apart = (theirs.exp() - ours.exp()).abs().sum(dim=1)
    spread = 0.0 if tails is None else spread_tail_kl(others, num_others=decoded.num_classes - ids.shape[1])
    others_mass = others.exp().sum(dim=1)
    best = decoded.ids.gather(1, decoded.log_probs.argmax(dim=1, keepdim=True)).squeeze(1)
    return {
        "mass_kept": 1.0 - others_mass - torch.where(empty, kept.exp(), 0.0).sum(dim=1),
        "kl": divergence,
        "kl_full": divergence + spread,
        "total_variation": (apart if tails is not None else apart + others_mass) / 2,
        "kl_to_teacher": kl(ours, theirs),
        "agrees": (best == teacher.argmax(dim=1)).double(),
    }


def kl(left_log_probs: Tensor, right_log_probs: Tensor) -> Tensor:
    """KL(left || right) `[n]` from log-probabilities `[n, m]`; never below 0, which only rounding could bring about."""
    left = left_log_probs.exp()
    return torch.where(left > 0, left * (left_log_probs - right_log_probs), 0.0).sum(dim=1).clamp(min=0.0)


def spread_tail_kl(others: Tensor, num_others: int) -> Tensor:
    """What KL over all classes has beyond that over the outcomes, if the tail is spread evenly over the `num_others`
    classes that were not kept: the tail's mass times KL(teacher within the tail || even), `[n]`.

    By the chain rule of KL. `others`: the teacher's log-probabilities `[n, V]`, minus infinity for the kept classes.
    """
    mass = others.logsumexp(dim=1)
    within = others - mass.unsqueeze(1)
    even = torch.full_like(within, -math.log(num_others))
    return torch.where(mass.exp() > 0, mass.exp() * kl(within, even), 0.0)
