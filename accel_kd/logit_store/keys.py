"""The keys of stored rows: what an example is and which tokens the teacher saw of it, short enough to store.

A row's key is 32 bytes: a 128-bit digest of the example's content and one of its token ids. A shard keeps 52 or 60 bits
of it, sorted and in Elias-Fano form (Elias 1974, Fano 1971): the upper 12 bits as a bitmap, the lower ones as they are.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

KEY_BYTES = 32
"""Bytes of a whole key: half of them for the content, half for the tokens."""
_UPPER_BITS = 12
"""Sorted keys of some thousand rows, which a shard has, differ in about this many leading bits."""
LOW_BYTES_OF_SMALL_ROWS, LOW_BYTES = 5, 6
"""How many further bytes of a key are kept where a row is small, and else."""

_SMALL_ROW = 512
"""Bytes below which a row's key must not cost much beside it."""

Keys = NDArray[np.uint8]
"""Whole keys `[n, KEY_BYTES]`."""


def low_bytes_beside(bytes_per_position: int) -> int:
    """How many further bytes of its key a row of that size keeps."""
    return LOW_BYTES_OF_SMALL_ROWS if bytes_per_position < _SMALL_ROW else LOW_BYTES


def stored_bytes(num_rows: int, bytes_per_position: int) -> int:
    """What a store of as many rows takes, its keys among them, and not what a shard's file has once."""
    return num_rows * (bytes_per_position + low_bytes_beside(bytes_per_position) + 1)


def short_keys(keys: Keys, low_bytes: int) -> NDArray[np.uint64]:
    """The `12 + 8 * low_bytes` leading bits of each key's two digests, joined by exclusive or: `[n, 32]` -> `[n]`."""
    assert keys.dtype == np.uint8 and keys.shape[1:] == (KEY_BYTES,), f"{keys.dtype} {keys.shape}"
    half = KEY_BYTES // 2
    mixed = np.ascontiguousarray(keys[:, :8] ^ keys[:, half : half + 8])
    whole = mixed.view(">u8").astype(np.uint64).reshape(-1)
    return whole >> np.uint64(64 - _UPPER_BITS - 8 * low_bytes)


@dataclass(frozen=True)
class CodedKeys:
    """The sorted short keys of a shard: `upper` a bitmap `[bytes]`, `lower` `[n, low_bytes]`, both uint8."""

    upper: NDArray[np.uint8]
    lower: NDArray[np.uint8]

    @classmethod
    def of(cls, sorted_keys: NDArray[np.uint64], low_bytes: int) -> CodedKeys:
        """Codes short keys `[n]` in rising order."""
        assert (np.diff(sorted_keys.astype(np.int64)) > 0).all(), "short keys must rise without repeats"
        high = (sorted_keys >> np.uint64(8 * low_bytes)).astype(np.int64)
        bits = np.zeros(len(sorted_keys) + (1 << _UPPER_BITS), dtype=np.uint8)
        # The i-th one stands at i + high[i]: the zeros before it count the upper part.
        bits[high + np.arange(len(high))] = 1
        lower = sorted_keys.astype("<u8").reshape(-1, 1).view(np.uint8)[:, :low_bytes]
        return cls(np.packbits(bits), np.ascontiguousarray(lower))

    def decoded(self) -> NDArray[np.uint64]:
        """The short keys `[n]`."""
        num_rows, low_bytes = self.lower.shape
        ones = np.flatnonzero(np.unpackbits(self.upper))
        high = (ones - np.arange(num_rows)).astype(np.uint64)
        padded = np.zeros((num_rows, 8), dtype=np.uint8)
        padded[:, :low_bytes] = self.lower
        return (high << np.uint64(8 * low_bytes)) | padded.view("<u8").reshape(-1).astype(np.uint64)


def digest_of(keys: Keys) -> str:
    """SHA-256, in hex, of whole keys `[n, 32]` in rising order: what a shard is named for, and the proof that rows
    which were found by their short keys are the ones that were stored."""
    return hashlib.sha256(in_order(keys).tobytes()).hexdigest()


def in_order(keys: Keys) -> Keys:
    """The whole keys in rising order."""
    return keys[np.lexsort(keys.T[::-1])]
