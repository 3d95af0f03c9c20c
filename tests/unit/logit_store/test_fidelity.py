"""Fidelity of an encoding, beside plain sums in float64."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch

from accel_kd.logit_store.encoding import Full, Sampled, TopK
from accel_kd.logit_store.fidelity import FidelityMeter

NUM_ROWS, NUM_CLASSES = 12, 30
KEYS = np.arange(NUM_ROWS, dtype=np.uint64)


def logits_of(seed=0):
    return torch.randn(NUM_ROWS, NUM_CLASSES, generator=torch.Generator().manual_seed(seed)) * 3


def measured(encoding, logits, *, batches=1):
    meter = FidelityMeter(encoding)
    for rows in torch.arange(len(logits)).chunk(batches):
        meter.add(logits[rows], encoding.encode(logits[rows], KEYS[rows.numpy()]))
    return meter.result()


def plain_kl(left, right):
    return sum(p * math.log(p / q) for p, q in zip(left, right, strict=True) if p > 0)


@pytest.mark.parametrize("value_bits", [8, 16])
def test_top_k_is_measured_over_its_outcomes_and_over_all_classes(value_bits):
    encoding, logits = TopK(NUM_CLASSES, 4, value_bits, (2.0,)), logits_of()
    signal = encoding.decode(encoding.encode(logits, KEYS))
    masses, coarse, full, reverse, variation = [], [], [], [], []
    for row in range(NUM_ROWS):
        probs = logits[row].double().softmax(dim=0).tolist()
        ids = signal.ids[row].tolist()
        tail = math.exp(signal.log_tails[1.0][row].item())
        kept = (signal.log_probs[row].double().softmax(dim=0) * (1 - tail)).tolist()
        others = [number for number in range(NUM_CLASSES) if number not in ids]
        theirs = [probs[number] for number in ids]
        masses.append(sum(theirs))
        teacher_outcomes = [*theirs, sum(probs[number] for number in others)]
        coarse.append(plain_kl(teacher_outcomes, [*kept, tail]))
        reverse.append(plain_kl([*kept, tail], teacher_outcomes))
        variation.append(sum(abs(p - q) for p, q in zip(teacher_outcomes, [*kept, tail], strict=True)) / 2)
        even = [tail / len(others)] * len(others)
        full.append(plain_kl(theirs + [probs[number] for number in others], kept + even))
    found = measured(encoding, logits)
    assert found.num_positions == NUM_ROWS and found.temperature == 1.0
    assert found.mass_kept_mean == pytest.approx(sum(masses) / NUM_ROWS, rel=1e-10)
    assert found.mass_kept_min == pytest.approx(min(masses), rel=1e-10)
    assert found.kl_mean == pytest.approx(sum(coarse) / NUM_ROWS, rel=1e-6)
    assert found.kl_max == pytest.approx(max(coarse), rel=1e-6)
    assert found.kl_full_mean == pytest.approx(sum(full) / NUM_ROWS, rel=1e-6)
    assert found.kl_to_teacher_mean == pytest.approx(sum(reverse) / NUM_ROWS, rel=1e-6)
    assert found.total_variation_mean == pytest.approx(sum(variation) / NUM_ROWS, rel=1e-6)
    assert found.kl_full_mean > 100 * found.kl_mean > 0


def test_sampled_is_measured_by_what_is_finite_and_at_its_temperature():
    encoding, logits = Sampled(NUM_CLASSES, 10, 2.0, 0), logits_of()
    signal = encoding.decode(encoding.encode(logits, KEYS))
    shares = torch.zeros(NUM_ROWS, NUM_CLASSES).double()
    shares.scatter_add_(1, signal.ids, signal.log_probs_at(2.0).double().exp())
    probs = (logits.double() / 2).softmax(dim=1)
    found = measured(encoding, logits)
    assert found.temperature == 2.0 and found.kl_mean is found.kl_max is found.kl_full_mean is None
    mass = (probs * (shares > 0)).sum(dim=1)
    assert found.mass_kept_mean == pytest.approx(mass.mean().item()) and found.mass_kept_min == pytest.approx(
        mass.min()
    )
    assert found.total_variation_mean == pytest.approx((probs - shares).abs().sum(dim=1).mean().item() / 2)
    to_teacher = [plain_kl(left, right) for left, right in zip(shares.tolist(), probs.tolist(), strict=True)]
    assert found.kl_to_teacher_mean == pytest.approx(sum(to_teacher) / NUM_ROWS, rel=1e-6)


def test_more_draws_come_closer_to_the_teacher():
    few, many = (measured(Sampled(NUM_CLASSES, count, 1.0, 0), logits_of()) for count in (8, 2000))
    assert many.total_variation_mean < few.total_variation_mean / 4
    assert many.kl_to_teacher_mean < few.kl_to_teacher_mean / 4
    assert many.argmax_agreement > few.argmax_agreement


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_full_keeps_all_mass_and_loses_what_the_dtype_rounds(dtype):
    encoding, logits = Full(NUM_CLASSES, dtype), logits_of()
    found = measured(encoding, logits)
    assert found.mass_kept_mean == found.mass_kept_min == 1.0
    rounded = encoding.decode(encoding.encode(logits, KEYS)).logits.double().softmax(dim=1)
    pairs = zip(logits.double().softmax(dim=1).tolist(), rounded.tolist(), strict=True)
    expected = sum(plain_kl(left, right) for left, right in pairs) / NUM_ROWS
    assert found.kl_mean == found.kl_full_mean == pytest.approx(expected, abs=1e-12)
    assert (found.kl_mean == 0) == (dtype == "float32")


@pytest.mark.parametrize(
    "encoding", [Full(NUM_CLASSES, "float16"), TopK(NUM_CLASSES, 4, 8, (1.0,)), Sampled(NUM_CLASSES, 10, 2.0, 0)]
)
def test_batches_change_nothing_and_the_result_is_plain_json(encoding):
    whole, split = (measured(encoding, logits_of(), batches=batches) for batches in (1, 5))
    assert json.loads(json.dumps(dataclasses.asdict(whole), allow_nan=False)) == dataclasses.asdict(whole)
    for name, value in dataclasses.asdict(whole).items():
        other = getattr(split, name)
        assert other is None if value is None else other == pytest.approx(value, rel=1e-12)


def test_a_large_vocabulary_is_worked_off_in_parts_that_change_nothing():
    encoding = TopK(150_000, 5, 16, (1.0,))
    logits = torch.randn(3, 150_000, generator=torch.Generator().manual_seed(0)) * torch.tensor([[2.0], [4.0], [9.0]])
    whole, split = (measured(encoding, logits, batches=batches) for batches in (1, 3))
    assert dataclasses.astuple(whole) == pytest.approx(dataclasses.astuple(split), rel=1e-12)
    assert whole.argmax_agreement == 1


def test_agreement_is_the_share_of_equal_answers():
    encoding, logits = Full(NUM_CLASSES, "float32"), logits_of()
    tensors = encoding.encode(logits, KEYS)
    tensors["logits"][:3] = -tensors["logits"][:3]
    meter = FidelityMeter(encoding)
    meter.add(logits, tensors)
    assert meter.result().argmax_agreement == (NUM_ROWS - 3) / NUM_ROWS


def test_masked_classes_leave_finite_numbers():
    logits = logits_of()
    logits[:, 6:] = -1e9
    for encoding in (TopK(NUM_CLASSES, 8, 8, (1.0,)), TopK(NUM_CLASSES, 5, 16, (1.0,)), TopK(NUM_CLASSES, 7, 16, ())):
        found = measured(encoding, logits)
        assert found.kl_max < 1e-3 and found.kl_full_mean < math.inf and found.mass_kept_min > 0


def test_a_meter_takes_no_positions_and_has_nothing_to_say_of_none():
    encoding = TopK(NUM_CLASSES, 4, 8, (1.0,))
    meter = FidelityMeter(encoding)
    with pytest.raises(AssertionError, match="no position"):
        meter.result()
    meter.add(torch.zeros(0, NUM_CLASSES), encoding.encode(torch.zeros(0, NUM_CLASSES), KEYS[:0]))
    with pytest.raises(AssertionError, match="no position"):
        meter.result()
