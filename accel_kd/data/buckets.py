"""Lengths that micro-batches are padded to where their shapes are to repeat: for graphs, and for compiled models."""

from __future__ import annotations

from collections.abc import Callable

PadTo = Callable[[int], int]
"""From the tokens of a micro-batch's longest text to the length that the micro-batch is padded to: no less, never
falling, and never above the positions that the model has."""

_STEPS = ((64, 8), (128, 16), (256, 32))
"""Up to which length, in steps of how many tokens."""
_LONGEST_STEP = 64


def bucket_length(length: int, most: int) -> int:
    """`length` rounded up to a multiple of 8 (up to 64), of 16 (up to 128), of 32 (up to 256), or of 64.

    From 33 tokens on that is less than a quarter more. It never gives more than `most`, the longest text that there can
    be (`data.max_length`), since a model may have no position beyond.
    """
    assert 1 <= length <= most, f"{length} tokens, of at most {most}"
    step = next((step for up_to, step in _STEPS if length <= up_to), _LONGEST_STEP)
    return min(-(-length // step) * step, most)
