"""The most probable classes of a position, and the mass of all others together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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

_LOWEST = torch.finfo(torch.float16).min
"""What a log-probability below float16's range, the tail's too, is kept as: either is a probability of 0."""
_HIGHEST_LOG_TAIL = -(2.0**-24)
"""Float16's number next to 0. A log tail of 0 would leave the kept classes no mass, which is never so: they have at
least `k / V` of it."""
_WIDEST = 16.0
"""How far 8-bit codes reach below the best class at the highest temperature, in nats: what is given a mass of e^-16 of
the best one's though it has less does not matter, and a step of the code stays small whatever else is in the row."""
_LAST_CODE = 255


@dataclass(frozen=True)
class TopK:
    """The `k` largest logits as log-probabilities, and for each of `temperatures` the log-mass of the other classes.

    Classes are sorted by probability, equal ones by id, and their ids take `ceil(log2 V)` bits each. `value_bits` 16
    keeps log-probabilities at temperature 1 in float16, down to -65504. 8 keeps how far each is below the best one in
    255 equal steps, to which one float16 number a position gives the scale: the row's lowest kept one, at most 16
    times the highest of the temperatures below the best. The log-mass at each temperature is computed from all logits
    in float64 and kept in float16, between -65504 (no mass) and -2**-24. Temperature 1 is always among them.

    With `k = V` there is no tail, and float16 values serve any temperature. The kept values are log-probabilities,
    which do not say what constant the teacher added to its logits: hence they are never `every_logit`.

    Raises `UserError` for a `k` that is not from 1 to `V`, other `value_bits`, and temperatures that are not positive.
    """

    num_classes: int
    k: int
    value_bits: int
    temperatures: Sequence[float]

    def __post_init__(self) -> None:
        if self.k < 1 or self.k > self.num_classes:
            raise UserError(
                f"{SETTING}.k is {self.k}, but the teacher has {self.num_classes} classes: "
                f"give a number from 1 to {self.num_classes}"
            )
        if self.value_bits not in (8, 16):
            raise UserError(f"{SETTING}.value_bits is {self.value_bits}: use 8 or 16")
        for temperature in self.temperatures:
            if not (math.isfinite(temperature) and temperature > 0):
                raise UserError(f"{SETTING}.temperatures has {temperature}: give positive finite numbers")
        object.__setattr__(self, "temperatures", tuple(sorted({1.0, *map(float, self.temperatures)})))

    def describe(self) -> dict[str, Any]:
        """See `Encoding`."""
        return {
            "type": "top_k",
            "k": self.k,
            "value_bits": self.value_bits,
            "temperatures": list(self.temperatures),
        }

    @property
    def provides(self) -> SignalNeeds:
        """Exact probabilities at the promised temperatures; at any where nothing was left out or cut short."""
        any_temperature = not self._has_tail and self.value_bits == 16
        return SignalNeeds(
            logits=True, exact=True, temperatures=None if any_temperature else frozenset(self.temperatures)
        )

    def layout(self) -> Layout:
        """Packed `ids`, the values as `log_probs` or as `codes` and their `ranges`, and a `log_tails` a temperature."""
        layout: Layout = {"ids": (torch.uint8, packed_width(self.k, self._id_bits))}
        if self.value_bits == 16:
            layout["log_probs"] = (torch.float16, self.k)
        else:
            layout |= {"codes": (torch.uint8, self.k), "ranges": (torch.float16, 1)}
        if self._has_tail:
            layout["log_tails"] = (torch.float16, len(self.temperatures))
        return layout

    @property
    def bytes_per_position(self) -> int:
        """See `Encoding`."""
        return bytes_of(self.layout())

    def encode(self, logits: Tensor, noise_keys: NDArray[np.uint64]) -> dict[str, Tensor]:
        """See `Encoding`; nothing here is random."""
        assert_encodable(logits, noise_keys, self.num_classes)
        parts = [self._encode(rows) for rows in slices(logits)]
        return {name: torch.cat([part[name] for part in parts]) for name in self.layout()}

    def decode(self, tensors: Mapping[str, Tensor]) -> SparseSignal:
        """`k` classes a position, the most probable first."""
        ids = unpack(tensors["ids"], self.k, self._id_bits)
        log_tails = None
        if self._has_tail:
            columns = tensors["log_tails"].float().unbind(dim=1)
            log_tails = dict(zip(self.temperatures, columns, strict=True))
        if self.value_bits == 16:
            return SparseSignal(ids, tensors["log_probs"].float(), log_tails, self.num_classes)
        steps = tensors["ranges"].float() / _LAST_CODE
        below_best = SparseSignal(ids, -steps * tensors["codes"].float(), log_tails, self.num_classes)
        # How probable the best one is follows from the tail: what the tail leaves is shared among the kept classes.
        log_probs = below_best.log_probs_at(1.0)[:, : self.k]
        return SparseSignal(ids, log_probs, log_tails, self.num_classes)

    @property
    def _has_tail(self) -> bool:
        return self.k < self.num_classes

    @property
    def _id_bits(self) -> int:
        return bits_for(self.num_classes)

    def _encode(self, logits: Tensor) -> dict[str, Tensor]:
        """The tensors for some rows, `[n, V]` float32."""
        ids = largest(logits, self.k)
        tensors = {"ids": pack(ids, self._id_bits)}
        exact = logits.double()
        kept = exact.gather(1, ids)
        normaliser = kept.logsumexp(dim=1, keepdim=True)
        if self._has_tail:
            others = exact.scatter_(1, ids, float("-inf"))
            log_tails = [log_tail(kept / temperature, others / temperature) for temperature in self.temperatures]
            tensors["log_tails"] = half_log_tails(torch.stack(log_tails, dim=1))
            normaliser = normaliser.logaddexp(others.logsumexp(dim=1, keepdim=True))
        if self.value_bits == 16:
            tensors["log_probs"] = (kept - normaliser).clamp(min=_LOWEST).half()
        else:
            tensors["codes"], tensors["ranges"] = self._coded(kept[:, :1] - kept)
        return tensors

    def _coded(self, below_best: Tensor) -> tuple[Tensor, Tensor]:
        """Codes `[n, k]` uint8 and ranges `[n, 1]` float16 of how far each class is below the best one, `[n, k]`."""
        widest = min(_WIDEST * max(self.temperatures), -_LOWEST)
        ranges = below_best[:, -1:].clamp(max=widest).half()
        # By the range as it is kept, so that its own rounding does no harm. Where that is 0 all classes are equal.
        codes = torch.where(ranges > 0, below_best / ranges.double() * _LAST_CODE, 0.0).round().clamp(max=_LAST_CODE)
        return codes.to(torch.uint8), ranges


def largest(logits: Tensor, k: int) -> Tensor:
    """The ids `[n, k]` of the `k` largest of `logits` `[n, V]`, sorted by logit, equal ones by id.

    `torch.topk` sorts too, but which of several equal logits it takes, and in what order, depends on more than the
    row; logits that a teacher computed in bfloat16 are often equal.
    """
    values, ids = logits.topk(k, dim=1)
    lowest = values[:, -1:]
    ambiguous = torch.nonzero((logits == lowest).sum(dim=1) > (values == lowest).sum(dim=1)).flatten()
    if len(ambiguous):
        some, bound = logits[ambiguous], lowest[ambiguous]
        above, equal = some > bound, some == bound
        room = k - above.sum(dim=1, keepdim=True)
        chosen = above | (equal & (equal.cumsum(dim=1) <= room))
        ids[ambiguous] = chosen.nonzero()[:, 1].view(-1, k)
    ids = ids.sort(dim=1).values
    order = logits.gather(1, ids).argsort(dim=1, descending=True, stable=True)
    return ids.gather(1, order)


def log_tail(kept: Tensor, others: Tensor) -> Tensor:
    """The log of the mass `[n]` that the `others` (logits `[n, V]`, minus infinity for the kept) have beside the
    `kept` `[n, k]`: `-log(1 + kept mass / other mass)`, as precise for a tail close to 0 as for one close to 1."""
    ratio = kept.logsumexp(dim=1) - others.logsumexp(dim=1)
    return -torch.logaddexp(ratio, torch.zeros_like(ratio))


def half_log_tails(log_tails: Tensor) -> Tensor:
    """Log tails in float16, in which no mass is -65504 and all but all of it the number next to 0."""
    return log_tails.clamp(min=_LOWEST, max=_HIGHEST_LOG_TAIL).half()
