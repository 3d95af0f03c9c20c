"""The most probable classes and the tail, beside plain float64 sums over all classes."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from accel_kd.logit_store.encoding import TopK
from accel_kd.logit_store.encodings.top_k import half_log_tails, largest

HALF = 2.0**-11
"""Relative error of float16's rounding, for normal numbers."""


def keys(num_rows):
    return np.zeros(num_rows, dtype=np.uint64)


def round_trip(encoding, logits):
    return encoding.decode(encoding.encode(logits, keys(len(logits))))


def plain_outcomes(row, ids, temperature):
    """Log-probabilities of the classes `ids` of one row, and of all others together, summed exactly."""
    best = max(row)
    masses = [Fraction(math.exp((logit - best) / temperature)) for logit in row]
    total = sum(masses)
    others = total - sum(masses[number] for number in ids)
    return [(row[number] - best) / temperature - math.log(total) for number in ids], others / total


def peaked_logits(num_rows, num_classes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    falling = -2.0 * torch.arange(1, num_classes + 1).log()
    noise = torch.randn(num_rows, num_classes, generator=generator)
    return (falling + noise)[:, torch.randperm(num_classes, generator=generator)] + 3.0


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_the_largest_logits_are_those_that_a_sort_by_logit_and_id_puts_first(data):
    num_classes = data.draw(st.integers(1, 12))
    k = data.draw(st.integers(1, num_classes))
    few = st.sampled_from([-1.5, -0.0, 0.0, 0.25, 3.0])
    rows = data.draw(st.lists(st.lists(few, min_size=num_classes, max_size=num_classes), min_size=1, max_size=4))
    expected = [sorted(range(num_classes), key=lambda number, row=row: (-row[number], number))[:k] for row in rows]
    assert largest(torch.tensor(rows), k).tolist() == expected


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0, 8.0])
@pytest.mark.parametrize(("num_classes", "k"), [(10, 1), (10, 9), (151, 8), (3000, 64)])
def test_kept_classes_and_tail_are_the_teachers_at_every_promised_temperature(num_classes, k, temperature):
    logits = peaked_logits(3, num_classes)
    signal = round_trip(TopK(num_classes, k, 16, (0.5, 2.0, 8.0)), logits)
    outcomes = signal.log_probs_at(temperature)
    assert outcomes.shape == (3, k + 1)
    torch.testing.assert_close(outcomes.exp().sum(dim=1), torch.ones(3), rtol=1e-5, atol=0)
    for row, found in enumerate(outcomes.double().tolist()):
        ids = signal.ids[row].tolist()
        kept, tail = plain_outcomes(logits[row].double().tolist(), ids, temperature)
        # A value's rounding at temperature 1, divided by the temperature, once for it and once for the normaliser, and
        # the tail's, by how much log(1 - tail) changes with log(tail).
        largest_value = max(abs(value) for value in plain_outcomes(logits[row].tolist(), ids, 1.0)[0])
        rounding = 2 * largest_value / temperature + abs(math.log(tail)) * tail / (1 - tail)
        assert found[:-1] == pytest.approx(kept, abs=1.1 * HALF * float(rounding))
        assert found[-1] == pytest.approx(math.log(tail), rel=1.5 * HALF)


@pytest.mark.parametrize("value_bits", [8, 16])
def test_ids_are_the_top_classes_and_values_fall(value_bits):
    logits = peaked_logits(20, 300)
    signal = round_trip(TopK(300, 40, value_bits, (1.0,)), logits)
    assert signal.ids.dtype == torch.int64 and signal.num_classes == 300
    assert torch.equal(signal.ids, logits.argsort(dim=1, descending=True, stable=True)[:, :40])
    assert (signal.log_probs.diff(dim=1) <= 0).all()


def test_values_in_float16_are_the_log_probabilities_themselves():
    logits = peaked_logits(20, 300)
    signal = round_trip(TopK(300, 40, 16, (1.0,)), logits)
    exact = logits.double().log_softmax(dim=1).gather(1, signal.ids)
    torch.testing.assert_close(signal.log_probs.double(), exact, rtol=HALF, atol=1e-7)


@pytest.mark.parametrize("k", [40, 300])
def test_codes_of_8_bits_are_at_most_half_a_step_off(k):
    logits = peaked_logits(20, 300)
    encoding = TopK(300, k, 8, (1.0,))
    signal = round_trip(encoding, logits)
    exact = logits.double().log_softmax(dim=1).gather(1, signal.ids)
    found = signal.log_probs.double()
    step = (exact[:, :1] - exact[:, -1:]).clamp(max=16.0) / 255
    below_best = (exact[:, :1] - exact).clamp(max=16.0)
    assert ((found[:, :1] - found - below_best).abs() <= 0.51 * step * (1 + 255 * HALF)).all()
    # What is given to the kept classes together is right, whatever the single codes lose.
    tail_mass = 0.0 if k == 300 else signal.log_tails[1.0].double().exp()
    torch.testing.assert_close(found.exp().sum(dim=1), torch.ones(20).double() - tail_mass, rtol=1e-5, atol=0)
    assert (found[:, 0] - exact[:, 0]).abs().max() < 0.02


@pytest.mark.parametrize("value_bits", [8, 16])
def test_a_class_that_is_far_below_the_others_spoils_nothing(value_bits):
    logits = torch.tensor([[3.0, -1e9, 2.0, 1.0, -3e38, 0.5]])
    for k in (5, 6):
        signal = round_trip(TopK(6, k, value_bits, (1.0, 2.0)), logits)
        assert signal.ids[0, :4].tolist() == [0, 2, 3, 5]
        # Minus infinity would say that the slot is empty.
        assert signal.log_probs.isfinite().all()
        for temperature in (1.0, 2.0):
            exact = (logits.double() / temperature).softmax(dim=1).gather(1, signal.ids)
            found = signal.log_probs_at(temperature).exp()[:, :k].double()
            torch.testing.assert_close(found, exact, rtol=0.04 if value_bits == 8 else 0.002, atol=1e-6)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0, 10.0])
def test_all_classes_kept_are_all_logits(temperature):
    logits = peaked_logits(6, 151)
    signal = round_trip(TopK(151, 151, 16, (1.0,)), logits)
    assert signal.log_tails is None
    found = torch.empty(6, 151).scatter_(1, signal.ids, signal.log_probs_at(temperature))
    expected = (logits / temperature).log_softmax(dim=1)
    spread = logits.log_softmax(dim=1).abs().max() / temperature
    torch.testing.assert_close(found, expected, rtol=0, atol=float(2 * HALF * spread))


def test_a_tail_without_mass_and_one_with_nearly_all_stay_numbers():
    none = torch.tensor([[0.0, -1.0, -2e5, -2e5]])
    tail = round_trip(TopK(4, 2, 16, (1.0,)), none).log_tails[1.0]
    assert tail.tolist() == [-65504.0]
    nearly_all = torch.zeros(1, 1 << 20)
    signal = round_trip(TopK(1 << 20, 1, 16, (1.0,)), nearly_all)
    kept, rest = signal.log_probs_at(1.0)[0].tolist()
    assert kept == pytest.approx(-20 * math.log(2), abs=0.05) and rest < 0
    # Beyond what float16 tells from 0 the kept classes still have some mass.
    extremes = half_log_tails(torch.tensor([-math.inf, -1e6, -1e-9, 0.0], dtype=torch.float64))
    assert extremes.dtype == torch.float16 and extremes.tolist() == [-65504.0, -65504.0, -(2.0**-24), -(2.0**-24)]


@pytest.mark.parametrize("value_bits", [8, 16])
def test_equal_logits_are_equally_probable_and_lowest_ids_are_kept(value_bits):
    signal = round_trip(TopK(8, 3, value_bits, (1.0,)), torch.full((1, 8), 0.7))
    assert signal.ids.tolist() == [[0, 1, 2]]
    torch.testing.assert_close(signal.log_probs_at(1.0).exp(), torch.tensor([[1, 1, 1, 5]]) / 8, rtol=1e-3, atol=0)


def test_a_small_tail_keeps_its_precision():
    """In float32 the mass of the kept classes is 1 here, and a tail of 1 minus it would be none."""
    logits = torch.tensor([[30.0, 29.0, 0.0, -1.0, -2.0]])
    found = round_trip(TopK(5, 2, 16, (1.0,)), logits).log_tails[1.0].item()
    row = logits[0].tolist()
    exact = math.log(sum(math.exp(it) for it in row[2:])) - math.log(sum(math.exp(it) for it in row))
    assert exact < -29 and found == pytest.approx(exact, rel=HALF)


@pytest.mark.parametrize(
    ("num_classes", "k", "value_bits", "temperatures", "num_bytes"),
    [
        (131072, 46, 8, (1.0, 2.0), 98 + 46 + 2 + 4),
        (131072, 36, 16, (1.0,), 77 + 72 + 2),
        (151, 8, 16, (2.0,), 8 + 16 + 4),
        (151, 151, 16, (2.0,), 151 + 302),
    ],
)
def test_what_a_position_takes(num_classes, k, value_bits, temperatures, num_bytes):
    assert TopK(num_classes, k, value_bits, temperatures).bytes_per_position == num_bytes


@pytest.mark.parametrize("value_bits", [8, 16])
def test_150_bytes_lose_less_than_a_thousandth_of_a_nat_in_a_vocabulary_of_128k(value_bits):
    encoding = TopK(131072, 46 if value_bits == 8 else 35, value_bits, (1.0, 2.0))
    assert encoding.bytes_per_position <= 150
    logits = peaked_logits(8, 131072)
    signal = round_trip(encoding, logits)
    for temperature in (1.0, 2.0):
        teacher = signal.coarsen((logits.double() / temperature).log_softmax(dim=1))
        divergence = (teacher.exp() * (teacher - signal.log_probs_at(temperature).double())).sum(dim=1)
        assert divergence.max() < 1e-3
