"""A tokenised split that lives on the device: its batches are cut out there, and the host waits for none of them.

texts -> planes [features + 1, n, longest] on the device, once -> the rows of many micro-batches, one copy -> all
inputs of a batch, one kernel
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from accel_kd.data.buckets import PadTo
from accel_kd.data.preprocessing import TokenisedSplit, TokenisedTexts
from accel_kd.data.shares import Share
from accel_kd.signals import IGNORED_LABEL, Batch, Targets

_INT64_BYTES = torch.int64.itemsize
_CHUNK = 16_384
"""Rows that are padded at once."""


class ResidentSplit:
    """Gives the batches of `TokenisedSplit.batch`, value for value, on a device."""

    def __init__(self, split: TokenisedSplit, device: torch.device, pad_to: PadTo | None = None) -> None:
        """`pad_to` as in `TokenisedSplit.batch`, the same for all batches."""
        self._split = split
        self._device = device
        self._pad_to = pad_to
        self._labels = torch.from_numpy(split.labels).to(device)
        self._student = _Planes(split.student, device, pad_to)
        self._teacher = None if split.teacher is None else _Planes(split.teacher, device, pad_to)

    def batch(self, rows: NDArray[np.int64], *, counted: bool = True) -> Batch:
        """One micro-batch; a copy to the device goes ahead of it."""
        return next(self.batches([Share(rows, counted)]))

    def batches(self, shares: Sequence[Share]) -> Iterator[Batch]:
        """The micro-batches of `shares`; all their row numbers go to the device in one copy, ahead of the first."""
        if not shares:
            return
        every_row = _sent(torch.from_numpy(np.concatenate([share.rows for share in shares])), self._device)
        ends = np.cumsum([len(share.rows) for share in shares]).tolist()
        for share, end in zip(shares, ends, strict=True):
            yield self._batch(share, every_row[end - len(share.rows) : end])

    def _batch(self, share: Share, rows: Tensor) -> Batch:
        """`rows` are those of `share`, on the device."""
        numbers = self._split.teacher_rows
        labels = self._labels.index_select(0, rows) if share.counted else torch.full_like(rows, IGNORED_LABEL)
        return Batch(
            rows=rows,
            inputs=self._student.inputs(share.rows, rows),
            targets=Targets(labels, torch.full_like(rows, share.counted, dtype=torch.bool)),
            teacher_inputs=None if self._teacher is None else self._teacher.inputs(share.rows, rows),
            teacher_rows=None if numbers is None else torch.from_numpy(numbers[share.rows]),
        )


class _Planes:
    """One model's features and its attention mask for all rows, `[features + 1, n, width]`.

    They are int64, as models read them, so that a batch takes one kernel for all its inputs.
    """

    def __init__(self, texts: TokenisedTexts, device: torch.device, pad_to: PadTo | None) -> None:
        self._texts = texts
        self._pad_to = pad_to
        every_row = np.arange(len(texts.lengths))
        width = texts.padded_length(every_row, pad_to)
        self._names = list(texts.inputs(every_row[:1], width))
        self._values = torch.empty(len(self._names), len(every_row), width, dtype=torch.int64, device=device)
        for start in range(0, len(every_row), _CHUNK):  # what is copied is never there twice as a whole
            rows = every_row[start : start + _CHUNK]
            for plane, values in zip(self._values, texts.inputs(rows, width).values(), strict=True):
                plane[start : start + len(rows)].copy_(values)

    def inputs(self, host_rows: NDArray[np.int64], rows: Tensor) -> dict[str, Tensor]:
        """Model inputs `[N, L]` of the rows, which the caller has on both sides; `L` is known on the host."""
        length = self._texts.padded_length(host_rows, self._pad_to)
        # Not `index_select`, which on a CPU takes thirty times as long across planes.
        picked = self._values[:, :, :length][:, rows].contiguous()
        return dict(zip(self._names, picked.unbind(), strict=True))


def resident_bytes(split: TokenisedSplit, pad_to: PadTo | None = None) -> int:
    """What a `ResidentSplit` of `split` takes on its device."""
    every_row = np.arange(len(split))
    models = [texts for texts in (split.student, split.teacher) if texts is not None]
    planes = sum((len(texts.features) + 1) * texts.padded_length(every_row, pad_to) for texts in models)
    return _INT64_BYTES * len(split) * (planes + 1)


def _sent(rows: Tensor, device: torch.device) -> Tensor:
    """`rows` on `device`, without a wait for what the device has still to do."""
    return rows.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else rows.to(device)
