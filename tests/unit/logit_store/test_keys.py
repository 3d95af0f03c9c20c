from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from accel_kd.logit_store.keys import CodedKeys, digest_of, short_keys
from tests.support import stores


@given(st.sets(st.integers(0, 2**52 - 1), min_size=1, max_size=300))
def test_sorted_keys_come_back_from_their_code(keys: set[int]) -> None:
    ordered = np.array(sorted(keys), dtype=np.uint64)
    np.testing.assert_array_equal(CodedKeys.of(ordered, 5).decoded(), ordered)


@pytest.mark.parametrize(("low_bytes", "bits"), [(5, 52), (6, 60)])
def test_a_short_key_is_the_leading_bits_of_both_digests(low_bytes: int, bits: int) -> None:
    keys = stores.keys(50)
    for key, short in zip(keys, short_keys(keys, low_bytes), strict=True):
        content, tokens = (int.from_bytes(half[:8].tobytes(), "big") for half in (key[:16], key[16:]))
        assert int(short) == (content ^ tokens) >> (64 - bits)


def test_the_digest_of_rows_does_not_depend_on_their_order_and_changes_with_each_byte() -> None:
    keys = stores.keys(20)
    assert digest_of(keys) == digest_of(keys[::-1])
    changed = keys.copy()
    changed[7, 31] ^= 1
    assert digest_of(changed) != digest_of(keys)


def test_coded_keys_take_less_than_six_bytes_each() -> None:
    ordered = np.sort(short_keys(stores.keys(4096), 5))
    coded = CodedKeys.of(ordered, 5)
    assert (coded.upper.nbytes + coded.lower.nbytes) / 4096 < 5.3
