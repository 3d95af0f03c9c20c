"""The stored signal of one split's rows on the device: decoded once, then each batch an `index_select`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from accel_kd.logit_store.reader import StoreReader
from accel_kd.signals import Batch, Signal, SignalNeeds, SparseSignal, TeacherSignal
from accel_kd.teachers.base import WithoutMemory
from accel_kd.teachers.cached import in_label_order

_CHUNK = 16_384
"""Rows that are decoded at once."""


class ResidentTeacher(WithoutMemory):
    """Gives what a `CachedTeacher` gives, to the last bit, for the batches of the one split that it was made for: it
    finds rows by `Batch.rows`, which are on the device, so that the host neither looks anything up nor copies."""

    is_recordable = True

    def __init__(
        self,
        reader: StoreReader,
        places: NDArray[np.int64],
        device: torch.device,
        columns: Sequence[int] | None = None,
    ) -> None:
        """`places` `[n]` gives the row of the store, which has one position, for each row of the split; `columns` as in
        `CachedTeacher`."""
        assert has_one_position_each(reader, places), "rows of several positions"
        self.provides: SignalNeeds = reader.encoding.provides
        in_order = None if columns is None else torch.tensor(list(columns))
        chunks = [places[start : start + _CHUNK] for start in range(0, len(places), _CHUNK)]
        parts = [in_label_order(reader.signal(rows), in_order) for rows in chunks]
        # Joined in host memory, so that the device never holds it twice.
        whole = [torch.cat(tensors).to(device) for tensors in zip(*map(_tensors, parts), strict=True)]
        self._signal = _with_tensors(parts[0], whole)

    @torch.no_grad()
    def signal(self, batch: Batch) -> TeacherSignal:
        """The stored signal of the batch's rows, on their device."""
        return _with_tensors(self._signal, [whole.index_select(0, batch.rows) for whole in _tensors(self._signal)])


def has_one_position_each(reader: StoreReader, places: NDArray[np.int64]) -> bool:
    """Whether the store has one position for each of its rows `places` `[n]`, as for classifiers."""
    return bool((reader.num_positions(places) == 1).all())


def resident_bytes(reader: StoreReader, places: NDArray[np.int64]) -> int:
    """What a `ResidentTeacher` of `places` `[n]`, each of one position, takes on its device."""
    return len(places) * sum(tensor.nbytes for tensor in _tensors(reader.signal(places[:1])))


def _tensors(signal: TeacherSignal) -> list[Tensor]:
    """All that has a row a position."""
    if isinstance(signal, Signal):
        return [signal.logits]
    return [signal.ids, signal.log_probs, *(signal.log_tails or {}).values()]


def _with_tensors(signal: TeacherSignal, tensors: list[Tensor]) -> TeacherSignal:
    """`signal` with others in place of its `_tensors`."""
    if isinstance(signal, Signal):
        return Signal(tensors[0])
    ids, log_probs, *tails = tensors
    log_tails = None if signal.log_tails is None else dict(zip(signal.log_tails, tails, strict=True))
    return SparseSignal(ids, log_probs, log_tails, signal.num_classes)
