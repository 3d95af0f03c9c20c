"""Numbers of some bits each in bytes, beside the bits written out one by one."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from accel_kd.logit_store.bits import bits_for, pack, packed_width, unpack


def plain_bytes(row, bits):
    """The row as one string of bits, each number's lowest first, cut into bytes."""
    string = "".join(str(number >> bit & 1) for number in row for bit in range(bits))
    return [int(string[start : start + 8][::-1], 2) for start in range(0, len(string), 8)]


@st.composite
def number_rows(draw):
    bits = draw(st.integers(1, 32))
    count = draw(st.integers(1, 20))
    number = st.one_of(st.just(2**bits - 1), st.integers(0, 2**bits - 1))
    rows = draw(st.lists(st.lists(number, min_size=count, max_size=count), max_size=4))
    return bits, torch.tensor(rows, dtype=torch.int64).reshape(len(rows), count)


@settings(deadline=None, max_examples=300)
@given(number_rows())
def test_numbers_of_any_width_come_back_from_the_bytes_that_plain_code_writes(bits_and_numbers):
    bits, numbers = bits_and_numbers
    packed = pack(numbers, bits)
    assert packed.dtype == torch.uint8 and packed.shape == (len(numbers), packed_width(numbers.shape[1], bits))
    assert packed.is_contiguous()
    assert packed.tolist() == [plain_bytes(row, bits) for row in numbers.tolist()]
    assert torch.equal(unpack(packed, numbers.shape[1], bits), numbers)


@pytest.mark.parametrize(
    ("num_values", "bits"), [(1, 1), (2, 1), (3, 2), (151, 8), (256, 8), (257, 9), (131072, 17), (131073, 18)]
)
def test_the_number_of_bits_is_the_logarithm_rounded_up(num_values, bits):
    assert bits_for(num_values) == bits
    assert packed_width(3, bits) == -(-3 * bits // 8)


@pytest.mark.parametrize("number", [-1, 8])
def test_a_number_that_does_not_fit_is_not_cut_short(number):
    with pytest.raises(AssertionError, match="fit 3 bits"):
        pack(torch.tensor([[0, number]]), bits=3)
