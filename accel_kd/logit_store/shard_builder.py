"""Collects rows with the teacher's logits until they make a shard; what cannot be right is refused here."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from accel_kd.errors import RunFailure
from accel_kd.logit_store.encoding import Encoding
from accel_kd.logit_store.encodings.base import are_finite
from accel_kd.logit_store.fidelity import FidelityMeter
from accel_kd.logit_store.keys import Keys
from accel_kd.logit_store.shard import ShardRows
from accel_kd.signals import Signal, TeacherSignal

SAMPLED_POSITIONS = 256
"""Positions of each shard that the fidelity is taken over."""
_NEXT_POSITION = np.uint64(0x9E3779B97F4A7C15)
UNLABELLED = -1


class ShardBuilder:
    """Encodes rows as they come; their order does not matter, since a shard is sorted by key."""

    def __init__(self, encoding: Encoding) -> None:
        self._encoding = encoding
        self._empty()

    def _empty(self) -> None:
        self._meter = FidelityMeter(self._encoding)
        self._metered = 0
        self._keys: list[Keys] = []
        self._tensors: list[dict[str, Tensor]] = []
        self._num_positions: list[NDArray[np.int64]] = []
        self._labelled: list[NDArray[np.bool_]] = []
        self._correct: list[NDArray[np.bool_]] = []

    def __len__(self) -> int:
        return sum(map(len, self._keys))

    def add(
        self,
        keys: Keys,
        logits: Tensor,
        label_columns: NDArray[np.int64],
        num_positions: NDArray[np.int64] | None = None,
    ) -> None:
        """Takes rows.

        Args:
            keys: whole keys `[n, 32]`.
            logits: raw logits `[positions, V]`, float32 on the CPU, the rows' positions one after the other.
            label_columns: the column of each row's label `[n]`, -1 where it has none.
            num_positions: positions of each row `[n]`; None: one each.

        Raises:
            RunFailure: a logit is not finite; the message has the example's id.
        """
        counts = np.ones(len(keys), dtype=np.int64) if num_positions is None else num_positions
        assert logits.dtype == torch.float32 and len(logits) == counts.sum(), f"{logits.dtype}, {len(logits)} rows"
        refuse_non_finite(keys, logits, counts)
        tensors = self._encoding.encode(logits, noise_keys(keys, counts))
        if self._metered < SAMPLED_POSITIONS:
            part = slice(0, SAMPLED_POSITIONS - self._metered)
            self._meter.add(logits[part], {name: tensor[part] for name, tensor in tensors.items()})
            self._metered += len(logits[part])
        labelled = label_columns != UNLABELLED
        correct = np.zeros(len(keys), dtype=np.bool_)
        if num_positions is None:
            # Of what a reader will see; a sample may have missed the most probable class.
            seen = self._encoding.decode(tensors) if self._encoding.provides.exact else Signal(logits)
            correct = labelled & (argmax_of(seen) == label_columns)
        self._keys.append(keys)
        self._tensors.append(tensors)
        self._num_positions.append(counts)
        self._labelled.append(labelled)
        self._correct.append(correct)

    def build(self) -> tuple[ShardRows, dict[str, Any]]:
        """The rows of one shard, and how faithful their encoding is; the builder is empty afterwards."""
        rows = ShardRows(
            keys=np.concatenate(self._keys),
            tensors={name: torch.cat([part[name] for part in self._tensors]) for name in self._tensors[0]},
            num_positions=np.concatenate(self._num_positions),
            labelled=np.concatenate(self._labelled),
            correct=np.concatenate(self._correct),
        )
        measured = dataclasses.asdict(self._meter.result())
        fidelity = {name: value for name, value in measured.items() if value is not None}
        self._empty()
        return rows, fidelity


def argmax_of(signal: TeacherSignal) -> NDArray[np.int64]:
    """The most probable class of each position `[n]`, the first one among equals."""
    argmax: NDArray[np.int64]
    if isinstance(signal, Signal):
        argmax = np.argmax(signal.logits.numpy(), axis=-1)
    else:
        best = np.argmax(signal.log_probs.numpy(), axis=-1)
        argmax = np.take_along_axis(signal.ids.numpy(), best[:, None], axis=-1)[:, 0]
    return argmax


def noise_keys(keys: Keys, num_positions: NDArray[np.int64]) -> NDArray[np.uint64]:
    """A number a position `[positions]` that depends on the row's key and the position alone."""
    first = np.ascontiguousarray(keys[:, :8] ^ keys[:, 16:24]).view("<u8").reshape(-1).astype(np.uint64)
    starts = np.cumsum(num_positions) - num_positions
    within = np.arange(num_positions.sum()) - np.repeat(starts, num_positions)
    return np.repeat(first, num_positions) + within.astype(np.uint64) * _NEXT_POSITION


def refuse_non_finite(keys: Keys, logits: Tensor, num_positions: NDArray[np.int64]) -> None:
    """Raises `RunFailure` where a logit `[positions, V]` is not finite, with the id of the first such example."""
    if are_finite(logits):
        return
    wrong = np.flatnonzero(~torch.isfinite(logits).all(dim=-1).numpy())
    owner = np.repeat(np.arange(len(keys)), num_positions)[wrong]
    example = keys[owner[0], :16].tobytes().hex()
    raise RunFailure(
        f"teacher.model: its logits for the example {example} are not finite ({len(np.unique(owner))} such "
        "examples in this batch), so they are not stored; try teacher.dtype=float32, or look at the checkpoint"
    )
