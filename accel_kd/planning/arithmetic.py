"""How much is computed over an epoch, and from which epoch on it is less work to read the teacher from a store."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class FlopsOfLength:
    """Floating-point operations of one row padded to `L` tokens, `constant + per_token * L + per_pair * L**2`: exact
    for a Transformer whose tokens all attend to each other."""

    constant: float
    per_token: float
    per_pair: float

    @classmethod
    def through(cls, flops: Callable[[int], int], longest: int) -> FlopsOfLength:
        """The parabola through `flops` at three lengths up to `longest`."""
        lengths = sorted({max(1, longest // 4), max(2, longest // 2), max(3, longest)})
        per_pair, per_token, constant = np.polyfit(lengths, [flops(length) for length in lengths], 2)
        return cls(float(constant), float(per_token), float(per_pair))

    def of(self, rows: NDArray[np.int64], lengths: NDArray[np.int64]) -> float:
        """All operations of batches of so many `rows` `[n]`, padded to `lengths` `[n]`."""
        padded = lengths.astype(np.float64)
        return float((rows * (self.constant + self.per_token * padded + self.per_pair * padded**2)).sum())


def store_pays_from_epoch(flops_to_fill: float, flops_per_streamed_epoch: float) -> int:
    """The first epoch at whose end the streaming teacher has computed more than filling the store took.

    Never the first: while it lasts a store has at best saved what it costs. Reading and writing are not counted.
    """
    return max(2, int(flops_to_fill / flops_per_streamed_epoch) + 1)
