"""The seam between a store of teacher logits and the way in which it keeps them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from accel_kd.signals import SignalNeeds, TeacherSignal

SETTING = "teacher.store.encoding"
"""Where a recipe says how the logits are kept, for messages."""

Layout = dict[str, tuple[torch.dtype, int]]
"""The dtype and the width of each tensor that an encoding keeps, by name: it is stored as `[n, width]`."""

_SLICE_ELEMENTS = 1 << 18
"""Logits that are turned into float64 at once: 2 MB, which a core's cache holds."""


class Encoding(Protocol):
    """One way to keep the teacher's logits of each position: an example of a classifier, a token of a language model.

    What is kept of a position depends on its logits and its noise key alone, not on the positions beside it.
    """

    @property
    def num_classes(self) -> int:
        """How many logits, `V`, a position has."""
        ...

    @property
    def provides(self) -> SignalNeeds:
        """What the decoded signal has to offer to an objective."""
        ...

    @property
    def bytes_per_position(self) -> int:
        """What one position takes, without the shard's own bookkeeping."""
        ...

    def describe(self) -> dict[str, Any]:
        """What `encoding_of` makes this encoding from, as JSON, without the number of classes."""
        ...

    def layout(self) -> Layout:
        """The tensors that a position is kept in."""
        ...

    def encode(self, logits: Tensor, noise_keys: NDArray[np.uint64]) -> dict[str, Tensor]:
        """Tensors of this `layout` for logits `[n, V]`: finite, float32, on the CPU, before softmax and temperature.

        `noise_keys` `[n]`: what, with the encoding's own seed, the random numbers of a position follow from.
        """
        ...

    def decode(self, tensors: Mapping[str, Tensor]) -> TeacherSignal:
        """What `tensors`, each `[n, width]`, say of `n` positions, in float32."""
        ...


def bytes_of(layout: Layout) -> int:
    """How many bytes one position of this layout takes."""
    return sum(dtype.itemsize * width for dtype, width in layout.values())


def assert_encodable(logits: Tensor, noise_keys: NDArray[np.uint64], num_classes: int) -> None:
    """What every encoding expects of `logits` `[n, V]` and `noise_keys` `[n]`; the caller has checked them."""
    assert logits.ndim == 2 and logits.shape[1] == num_classes, f"{tuple(logits.shape)}, {num_classes} classes"
    assert logits.dtype == torch.float32 and logits.device.type == "cpu", f"{logits.dtype} on {logits.device}"
    assert noise_keys.shape == (len(logits),) and noise_keys.dtype == np.uint64, f"{noise_keys.shape}"
    assert are_finite(logits), "logits that are not finite"


def are_finite(logits: Tensor) -> bool:
    """Whether all of them are, in one pass: the least and the greatest are NaN where any is."""
    return not logits.numel() or bool(torch.stack(torch.aminmax(logits)).isfinite().all())


def slices(logits: Tensor) -> Iterator[Tensor]:
    """`logits` `[n, V]`, some rows at a time, of a size that can be computed with in float64; one slice at least."""
    yield from torch.split(logits, max(1, _SLICE_ELEMENTS // logits.shape[1]))
