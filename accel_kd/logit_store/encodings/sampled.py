"""Classes drawn at random from the teacher's distribution, which is right on average however few are drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from accel_kd.errors import UserError
from accel_kd.logit_store.bits import bits_for, pack, packed_width, unpack
from accel_kd.logit_store.encodings.base import SETTING, Layout, assert_encodable, bytes_of, slices
from accel_kd.signals import SignalNeeds, SparseSignal

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
"""2**64 over the golden ratio, odd: the step of splitmix64."""


@dataclass(frozen=True)
class Sampled:
    """`num_samples` classes a position, drawn with replacement from `softmax(logits / temperature)`.

    Random sampling knowledge distillation (Anshumann et al. 2025, "Sparse Logit Sampling", arXiv 2503.16870) with the
    softened distribution itself as the proposal, so that all draws weigh the same: a class's share of the draws is an
    unbiased estimate of its probability, and forward KL with it has an unbiased gradient. The paper's proposals `p^t`
    with importance weights are not implemented.

    The draws are kept sorted, a class as often as it was drawn, `ceil(log2 V)` bits each: a row has room for
    `num_samples` different classes anyhow, and repeating a class is cheaper than to count it in a field beside it.
    The draws of a position follow from `seed` and its noise key alone.

    Raises `UserError` for fewer than 1 sample, a temperature that is not positive and a negative or too long seed.
    """

    num_classes: int
    num_samples: int
    temperature: float
    seed: int

    def __post_init__(self) -> None:
        if self.num_samples < 1:
            raise UserError(f"{SETTING}.num_samples is {self.num_samples}: give at least 1")
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise UserError(f"{SETTING}.temperature is {self.temperature}: give a positive finite number")
        if not 0 <= self.seed < 2**64:
            raise UserError(f"{SETTING}.seed is {self.seed}: give a number from 0 to 2**64 - 1")
        object.__setattr__(self, "temperature", float(self.temperature))

    def describe(self) -> dict[str, Any]:
        """See `Encoding`."""
        return {
            "type": "sampled",
            "num_samples": self.num_samples,
            "temperature": self.temperature,
            "seed": self.seed,
        }

    @property
    def provides(self) -> SignalNeeds:
        """Probabilities that are right on average, at the one temperature that they were drawn at."""
        return SignalNeeds(logits=True, exact=False, temperatures=frozenset({self.temperature}))

    def layout(self) -> Layout:
        """`draws`: ids in ascending order, packed."""
        return {"draws": (torch.uint8, packed_width(self.num_samples, self._id_bits))}

    @property
    def bytes_per_position(self) -> int:
        """See `Encoding`."""
        return bytes_of(self.layout())

    def encode(self, logits: Tensor, noise_keys: NDArray[np.uint64]) -> dict[str, Tensor]:
        """See `Encoding`."""
        assert_encodable(logits, noise_keys, self.num_classes)
        uniform = torch.from_numpy(uniform_numbers(noise_keys, self.seed, self.num_samples))
        parts, start = [], 0
        for rows in slices(logits):
            draws = draw(rows, self.temperature, uniform[start : start + len(rows)])
            parts.append(pack(draws.sort(dim=1).values, self._id_bits))
            start += len(rows)
        return {"draws": torch.cat(parts)}

    def decode(self, tensors: Mapping[str, Tensor]) -> SparseSignal:
        """`min(num_samples, V)` classes a position: those that were drawn in ascending order, then others of log-prob
        minus infinity. `log_probs` is `temperature * log(share of the draws)`, which softens to the log of the share.
        """
        ids, counts = distinct(unpack(tensors["draws"], self.num_samples, self._id_bits), self.num_classes)
        log_probs = self.temperature * (counts.float() / self.num_samples).log()
        return SparseSignal(ids, log_probs, None, self.num_classes)

    @property
    def _id_bits(self) -> int:
        return bits_for(self.num_classes)


def draw(logits: Tensor, temperature: float, uniform: Tensor) -> Tensor:
    """Classes `[n, m]` drawn from `softmax(logits / temperature)`, for logits `[n, V]` and `uniform` numbers `[n, m]`
    of at least 0 and below 1, by the inverse of the cumulative distribution in float64."""
    softened = logits.double() / temperature
    cumulative = (softened - softened.amax(dim=1, keepdim=True)).exp().cumsum(dim=1)
    # A float64 below 1 times the total is below the total, rounded or not, so that some class is always found.
    return torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True)


def distinct(draws: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """The different classes of sorted `draws` `[n, m]` and how often each was drawn, both `[n, min(m, V)]` int64.

    Rows with fewer classes are filled up with classes that were not drawn, so that ids are distinct within a row.
    """
    num_samples = draws.shape[1]
    num_slots = min(num_samples, num_classes)
    is_new = torch.ones_like(draws)
    is_new[:, 1:] = draws[:, 1:] != draws[:, :-1]
    slots = is_new.cumsum(dim=1) - 1
    counts = torch.zeros_like(draws).scatter_add_(1, slots, torch.ones_like(draws))[:, :num_slots]
    ids = torch.zeros_like(draws).scatter_(1, slots, draws)[:, :num_slots]
    # Among as many classes as a row has slots, whichever they are, enough were not drawn: here the first ones.
    drawn = torch.zeros(len(draws), num_slots + 1, dtype=torch.uint8).scatter_(1, draws.clamp(max=num_slots), 1)
    free = drawn[:, :num_slots].argsort(dim=1, stable=True)
    nth_free = (torch.arange(num_slots) - slots[:, -1:] - 1).clamp(min=0)
    return torch.where(counts > 0, ids, free.gather(1, nth_free)), counts


def uniform_numbers(noise_keys: NDArray[np.uint64], seed: int, count: int) -> NDArray[np.float64]:
    """`count` numbers of at least 0 and below 1 for each of `noise_keys` `[n]`: `[n, count]`, from key and seed alone.

    The generator splitmix64 (Steele et al. 2014, "Fast splittable pseudorandom number generators", fig. 18) started
    at a hash of seed and key. It is a function of a counter, hence all numbers can be computed at once.
    """
    start = _mixed(noise_keys ^ _mixed(np.array([seed], dtype=np.uint64) + _GOLDEN))
    counter = np.arange(1, count + 1, dtype=np.uint64)
    numbers = _mixed(start[:, None] + counter[None, :] * _GOLDEN)
    return (numbers >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mixed(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A one-to-one map of 64-bit numbers in which each output bit depends on all input bits."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))
