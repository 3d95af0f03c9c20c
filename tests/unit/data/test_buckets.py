"""Few lengths, none shorter than what it is for, and none that a model has no position for."""

from __future__ import annotations

import pytest

from accel_kd.data.buckets import bucket_length


@pytest.mark.parametrize(
    ("length", "padded"),
    [(1, 8), (8, 8), (9, 16), (64, 64), (65, 80), (128, 128), (129, 160), (256, 256), (257, 320), (512, 512)],
)
def test_a_length_is_rounded_up_to_a_multiple_that_grows_with_it(length: int, padded: int) -> None:
    assert bucket_length(length, most=512) == padded


def test_no_length_is_cut_falls_or_exceeds_the_most_that_there_can_be() -> None:
    for most in (1, 7, 64, 100, 509, 512):
        padded = [bucket_length(length, most) for length in range(1, most + 1)]
        assert padded == sorted(padded) and padded[-1] == most
        assert all(length <= bucket <= most for length, bucket in enumerate(padded, 1))


def test_shapes_are_few_and_from_33_tokens_on_less_than_a_quarter_is_added() -> None:
    assert len({bucket_length(length, 512) for length in range(1, 513)}) == 8 + 4 + 4 + 4
    assert all(bucket_length(length, 512) < 1.25 * length for length in range(33, 513))
