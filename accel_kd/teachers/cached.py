"""The teacher as a store remembers it: no model, rows by their number."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from accel_kd.logit_store.reader import StoreReader
from accel_kd.signals import Batch, Signal, SignalNeeds, SparseSignal, TeacherSignal
from accel_kd.teachers.base import WithoutMemory


class CachedTeacher(WithoutMemory):
    """Reads the rows that `Batch.teacher_rows` numbers."""

    def __init__(self, reader: StoreReader, places: NDArray[np.int64], columns: Sequence[int] | None = None) -> None:
        """`places` `[n]` gives the row of the store for each row that the teacher reads; `columns` the stored column of
        each of the data's labels, where the order differs."""
        self._reader = reader
        self._places = places
        self._columns = None if columns is None else torch.tensor(list(columns))

    @property
    def provides(self) -> SignalNeeds:
        """What the store's encoding kept."""
        return self._reader.encoding.provides

    @torch.no_grad()
    def signal(self, batch: Batch) -> TeacherSignal:
        """The stored signal of the batch's rows, on the device of its inputs."""
        assert batch.teacher_rows is not None, "the data were not matched with the store"
        rows = self._places[batch.teacher_rows.numpy()]
        signal = in_label_order(self._reader.signal(rows), self._columns)
        return _on(signal, batch.targets.labels.device)


def in_label_order(signal: TeacherSignal, columns: Tensor | None) -> TeacherSignal:
    """`signal` with its classes numbered as the data number them; `columns` `[V]` as in `CachedTeacher`."""
    if columns is None:
        return signal
    if isinstance(signal, Signal):
        return Signal(signal.logits[:, columns])
    label_of_column = torch.argsort(columns)
    return SparseSignal(label_of_column[signal.ids], signal.log_probs, signal.log_tails, signal.num_classes)


def _on(signal: TeacherSignal, device: torch.device) -> TeacherSignal:
    if device.type == "cpu":
        return signal

    def move(tensor: Tensor) -> Tensor:
        return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)

    if isinstance(signal, Signal):
        return Signal(move(signal.logits))
    tails = signal.log_tails
    moved = None if tails is None else {temperature: move(tail) for temperature, tail in tails.items()}
    return SparseSignal(move(signal.ids), move(signal.log_probs), moved, signal.num_classes)
