"""Whole numbers of a fixed number of bits each, packed into bytes.

The bits of a row follow one another from each byte's lowest bit upwards, each number's lowest bit first, and the last
byte is filled up with zeros, so that a row of `k` numbers takes `ceil(k * bits / 8)` bytes and can be read alone.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

MOST_BITS = 32


def bits_for(num_values: int) -> int:
    """How many bits tell `num_values` values apart: `ceil(log2(num_values))`, at least 1."""
    assert num_values >= 1, num_values
    return max(1, (num_values - 1).bit_length())


def packed_width(count: int, bits: int) -> int:
    """How many bytes a row of `count` numbers of `bits` bits takes."""
    return (count * bits + 7) // 8


def pack(numbers: Tensor, bits: int) -> Tensor:
    """Numbers `[n, k]` int64, each of at least 0 and below `2**bits`, to bytes `[n, ceil(k * bits / 8)]` uint8."""
    assert 1 <= bits <= MOST_BITS and numbers.dtype == torch.int64, f"{bits} bits, {numbers.dtype}"
    assert numbers.numel() == 0 or (numbers.min() >= 0 and numbers.max() < 1 << bits), f"not all fit {bits} bits"
    num_rows, count = numbers.shape
    packed = torch.zeros(num_rows, packed_width(count, bits), dtype=torch.uint8)
    shifts = _bit_offsets(count, bits) % 8
    for number, (columns, which) in enumerate(_touched_bytes(count, bits)):
        part = ((numbers[:, which] << shifts[which]) >> 8 * number) & 0xFF
        # Neighbours share bytes but no bits, so that adding is the bitwise or.
        packed.index_add_(1, columns, part.to(torch.uint8))
    return packed


def unpack(packed: Tensor, count: int, bits: int) -> Tensor:
    """The inverse of `pack`: bytes `[n, ceil(count * bits / 8)]` uint8 to `[n, count]` int64."""
    assert packed.dtype == torch.uint8 and packed.shape[1] == packed_width(count, bits), f"{packed.shape}"
    numbers = torch.zeros(len(packed), count, dtype=torch.int64)
    for number, (columns, which) in enumerate(_touched_bytes(count, bits)):
        numbers[:, which] |= packed[:, columns].long() << 8 * number
    return (numbers >> _bit_offsets(count, bits) % 8) & (1 << bits) - 1


def _bit_offsets(count: int, bits: int) -> Tensor:
    """The bit of its row that each of `count` numbers starts at."""
    return torch.arange(count) * bits


def _touched_bytes(count: int, bits: int) -> Iterator[tuple[Tensor, Tensor]]:
    """For the first, second, ... byte that a number's bits lie in: that byte of the row, and the numbers that have it.

    A number starts up to 7 bits into its first byte, so that 32 bits touch 5 bytes at most.
    """
    offsets = _bit_offsets(count, bits)
    first, last = offsets // 8, (offsets + bits - 1) // 8
    for number in range((7 + bits + 7) // 8):
        which = torch.nonzero(first + number <= last).flatten()
        yield first[which] + number, which
