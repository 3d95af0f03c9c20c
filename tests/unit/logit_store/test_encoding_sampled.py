"""Classes drawn from the teacher, beside the distribution that they are drawn from."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from accel_kd.logit_store.encoding import Sampled
from accel_kd.logit_store.encodings.sampled import distinct, draw, uniform_numbers


def keys(num_rows, start=0):
    return np.arange(start, start + num_rows, dtype=np.uint64)


def shares(encoding, logits, noise_keys):
    """Decoded probabilities of all classes, `[n, V]`."""
    signal = encoding.decode(encoding.encode(logits, noise_keys))
    found = signal.log_probs_at(encoding.temperature).double().exp()
    return torch.zeros(logits.shape, dtype=torch.float64).scatter_add_(1, signal.ids, found)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_mean_over_many_positions_is_the_teachers_distribution(temperature):
    num_positions, num_samples = 20_000, 5
    row = torch.tensor([2.0, -1.0, 0.5, 0.0, 1.5, -20.0, 1.0])
    exact = (row.double() / temperature).softmax(dim=0)
    found = shares(Sampled(7, num_samples, temperature, 11), row.expand(num_positions, 7), keys(num_positions))
    deviation = (exact * (1 - exact) / (num_positions * num_samples)).sqrt()
    assert ((found.mean(dim=0) - exact).abs() <= 4 * deviation + 1e-9).all()
    # The draws of a position scatter as independent ones do: neither all alike nor spread evenly on purpose.
    expected_variance = exact * (1 - exact) / num_samples
    torch.testing.assert_close(found.var(dim=0), expected_variance, rtol=0.06, atol=1e-4)


def test_a_share_is_a_count_over_the_number_of_draws():
    encoding = Sampled(50, 16, 2.0, 0)
    logits = torch.randn(40, 50, generator=torch.Generator().manual_seed(0)) * 3
    draws = draw(logits, 2.0, torch.from_numpy(uniform_numbers(keys(40), 0, 16)))
    expected = torch.stack([torch.bincount(row, minlength=50) for row in draws]) / 16
    torch.testing.assert_close(shares(encoding, logits, keys(40)), expected.double(), rtol=1e-5, atol=0)


def test_slots_without_a_draw_hold_other_classes_and_no_mass():
    logits = torch.randn(40, 50, generator=torch.Generator().manual_seed(0)) * 6
    encoding = Sampled(50, 16, 1.0, 0)
    signal = encoding.decode(encoding.encode(logits, keys(40)))
    assert signal.log_tails is None and signal.ids.shape == (40, 16)
    assert all(len(set(row)) == 16 for row in signal.ids.tolist())
    assert (signal.ids >= 0).all() and (signal.ids < 50).all()
    empty = signal.log_probs == float("-inf")
    assert empty.any() and not empty.all(dim=1).any()


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_distinct_classes_and_their_counts_are_those_of_a_plain_count(data):
    num_classes = data.draw(st.integers(1, 9))
    num_samples = data.draw(st.integers(1, 12))
    some = st.lists(st.integers(0, num_classes - 1), min_size=num_samples, max_size=num_samples).map(sorted)
    rows = data.draw(st.lists(some, min_size=1, max_size=4))
    ids, counts = distinct(torch.tensor(rows), num_classes)
    for row, row_ids, row_counts in zip(rows, ids.tolist(), counts.tolist(), strict=True):
        assert len(set(row_ids)) == len(row_ids) == min(num_samples, num_classes)
        assert set(row_ids) <= set(range(num_classes))
        assert dict(zip(row_ids, row_counts, strict=True)) == {number: row.count(number) for number in row_ids}
        assert sum(row_counts) == num_samples


def test_draws_follow_from_seed_and_key_and_from_nothing_else():
    logits = torch.zeros(3, 1000)
    twice = np.array([7, 8, 7], dtype=np.uint64)
    first = Sampled(1000, 32, 1.0, 5).encode(logits, twice)["draws"]
    assert torch.equal(first[0], first[2]) and not torch.equal(first[0], first[1])
    assert torch.equal(first, Sampled(1000, 32, 1.0, 5).encode(logits, twice)["draws"])
    other_seed = Sampled(1000, 32, 1.0, 6).encode(logits, twice)["draws"]
    assert not any(torch.equal(*rows) for rows in zip(first, other_seed, strict=True))


def test_uniform_numbers_are_uniform_and_neighbouring_keys_seeds_and_draws_independent():
    many = uniform_numbers(keys(4000), 0, 25)
    assert many.min() >= 0 and many.max() < 1
    filled = np.histogram(many, bins=20, range=(0, 1))[0]
    # Chi squared with 19 degrees of freedom: 1 in 1000 is above 43.8.
    assert ((filled - 5000.0) ** 2 / 5000).sum() < 43.8
    pairs = [
        (many[:-1], many[1:]),
        (many[:, :-1], many[:, 1:]),
        (many, uniform_numbers(keys(4000), 1, 25)),
        (many, uniform_numbers(keys(4000, start=1) << np.uint64(32), 0, 25)),
    ]
    for left, right in pairs:
        assert abs(np.corrcoef(left.ravel(), right.ravel())[0, 1]) < 4 / np.sqrt(left.size)
        assert not (left == right).any()
    assert len(np.unique(many)) == many.size


def test_the_numbers_of_a_seed_stay_what_they_are():
    """Stores that were written before are filled up later, so a change here is a change of format."""
    found = uniform_numbers(np.array([0, 2**64 - 1], dtype=np.uint64), 2**64 - 1, 2)
    assert found.tolist() == plain_uniform_numbers([0, 2**64 - 1], 2**64 - 1, 2)


def plain_uniform_numbers(noise_keys, seed, count):
    """Splitmix64 with Python's unbounded integers."""
    below = (1 << 64) - 1

    def mixed(number):
        number = (number ^ number >> 30) * 0xBF58476D1CE4E5B9 & below
        number = (number ^ number >> 27) * 0x94D049BB133111EB & below
        return number ^ number >> 31

    golden = 0x9E3779B97F4A7C15
    starts = [mixed(key ^ mixed(seed + golden & below)) for key in noise_keys]
    return [[(mixed(start + draw * golden & below) >> 11) / 2**53 for draw in range(1, count + 1)] for start in starts]


def test_no_draw_falls_on_a_class_without_mass_or_beyond_the_last():
    logits = torch.tensor([[-3e38, 0.0, -3e38, 0.0, -3e38]])
    ends = torch.tensor([[0.0, 0.25, 0.5, 0.75, 1 - 2.0**-53]], dtype=torch.float64)
    assert draw(logits, 1.0, ends).tolist() == [[1, 1, 3, 3, 3]]
    many = torch.randn(50, 1000, generator=torch.Generator().manual_seed(0))
    for shift in torch.linspace(0, 1, 50).tolist():  # totals of many sizes
        assert (draw(many * shift, 1.0, ends[:, -1:].expand(50, 1)) < 1000).all()


def test_draws_sit_where_the_cumulative_distribution_passes_the_uniform_number():
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(30, 40, generator=generator) * 2
    uniform = torch.rand(30, 12, generator=generator, dtype=torch.float64)
    found = draw(logits, 2.0, uniform)
    probs = (logits.double() / 2).softmax(dim=1)
    for row in range(30):
        for number, class_id in zip(uniform[row].tolist(), found[row].tolist(), strict=True):
            below = probs[row, :class_id].sum().item()
            assert below - 1e-12 <= number <= below + probs[row, class_id].item() + 1e-12


def test_what_a_position_takes():
    assert Sampled(131072, 64, 1.0, 0).bytes_per_position == 136
    assert Sampled(151, 64, 1.0, 0).bytes_per_position == 64
