"""What every objective promises about its rows: sums that split, padding that is not seen, float32 under autocast."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from accel_kd.errors import UserError
from accel_kd.objectives import ForwardKL, HardLabel, HiddenStates, JensenShannon, LogitMSE, ReverseKL
from accel_kd.signals import IGNORED_LABEL, Signal, Targets

COMPARISONS = [
    ForwardKL(temperature=2.0),
    ReverseKL(temperature=2.0),
    *(JensenShannon(beta=beta, temperature=2.0) for beta in (0.0, 0.1, 0.5, 1.0)),
    LogitMSE(),
]
FEATURES = [HiddenStates(distance="mse"), HiddenStates(distance="cosine")]
OBJECTIVES = [*COMPARISONS, HardLabel(), HardLabel(label_smoothing=0.1), *FEATURES]
NUM_ROWS, NUM_CLASSES = 8, 5

every_objective = pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
every_comparison = pytest.mark.parametrize("objective", COMPARISONS, ids=str)


def random_rows(dtype=torch.float64, seed=0):
    """Student logits, teacher logits and labels of rows that all count; every fourth row has no label."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (3 * torch.randn(2, NUM_ROWS, NUM_CLASSES, generator=generator, dtype=torch.float64)).to(dtype)
    labels = torch.randint(NUM_CLASSES, (NUM_ROWS,), generator=generator)
    labels[::4] = IGNORED_LABEL
    return student, teacher, labels


def signal_of(rows):
    """The rows as logits, and as the last hidden states of texts of one token."""
    return Signal(rows, {-1: rows.unsqueeze(-2)})


def targets_of(labels, counted):
    return Targets(labels, counted, counted.unsqueeze(-1))


def sum_and_gradient(objective, student, teacher, labels, counted=None):
    student = student.detach().clone().requires_grad_()
    counted = torch.ones(len(student), dtype=torch.bool) if counted is None else counted
    value = objective(signal_of(student), signal_of(teacher), targets_of(labels, counted)).sum
    assert value.shape == ()
    (gradient,) = torch.autograd.grad(value, student)
    return value.detach(), gradient


@every_objective
@settings(deadline=None, max_examples=20)
@given(cuts=st.lists(st.integers(0, NUM_ROWS), max_size=4).map(sorted))
def test_the_sum_over_a_batch_is_the_sum_of_the_sums_over_its_parts(objective, cuts):
    rows = random_rows()
    whole_sum, whole_gradient = sum_and_gradient(objective, *rows)
    edges = [0, *cuts, NUM_ROWS]
    parts = [sum_and_gradient(objective, *(tensor[start:stop] for tensor in rows)) for start, stop in pairwise(edges)]
    torch.testing.assert_close(sum(value for value, _ in parts), whole_sum, rtol=1e-12, atol=1e-12)
    # Not bit for bit: the vectorised part of a loop rounds otherwise than its remainder.
    torch.testing.assert_close(torch.cat([gradient for _, gradient in parts]), whole_gradient, rtol=1e-12, atol=1e-14)


@every_objective
def test_the_order_of_the_rows_does_not_matter(objective):
    rows = random_rows()
    order = torch.randperm(NUM_ROWS, generator=torch.Generator().manual_seed(1))
    value, gradient = sum_and_gradient(objective, *rows)
    permuted_value, permuted_gradient = sum_and_gradient(objective, *(tensor[order] for tensor in rows))
    torch.testing.assert_close(permuted_value, value, rtol=1e-12, atol=0)
    torch.testing.assert_close(permuted_gradient, gradient[order], rtol=1e-12, atol=1e-14)


@every_objective
@pytest.mark.parametrize("filler", [0.0, 50.0, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side", ["student", "teacher", "both"])
def test_rows_that_do_not_count_change_nothing_whatever_they_hold(objective, side, filler):
    student, teacher, labels = random_rows()
    counted = torch.tensor([True, False, True, True, False, False, True, True])
    value, gradient = sum_and_gradient(objective, student[counted], teacher[counted], labels[counted])
    for logits in {"student": [student], "teacher": [teacher], "both": [student, teacher]}[side]:
        logits[~counted, ::2] = filler
    padded_value, padded_gradient = sum_and_gradient(objective, student, teacher, labels, counted)
    torch.testing.assert_close(padded_value, value, rtol=1e-12, atol=0)
    torch.testing.assert_close(padded_gradient[counted], gradient, rtol=1e-12, atol=1e-14)
    assert (padded_gradient[~counted] == 0).all()


@every_objective
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_rows", [0, 1, NUM_ROWS])
def test_a_batch_without_a_counted_row_has_sum_and_gradient_zero(objective, num_rows, dtype):
    rows = [tensor[:num_rows] for tensor in random_rows(dtype)]
    rows[0][:, 0] = math.nan
    value, gradient = sum_and_gradient(objective, *rows, torch.zeros(num_rows, dtype=torch.bool))
    assert value == 0
    assert gradient.shape == rows[0].shape and (gradient == 0).all()


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_a_batch_without_a_label_has_hard_label_sum_and_gradient_zero(label_smoothing):
    student, teacher, labels = random_rows()
    value, gradient = sum_and_gradient(
        HardLabel(label_smoothing), student, teacher, torch.full_like(labels, IGNORED_LABEL)
    )
    assert value == 0 and (gradient == 0).all()


@every_comparison
def test_the_labels_play_no_part_in_a_comparison_with_the_teacher(objective):
    student, teacher, labels = random_rows()
    value, gradient = sum_and_gradient(objective, student, teacher, labels)
    without = sum_and_gradient(objective, student, teacher, torch.full_like(labels, IGNORED_LABEL))
    assert torch.equal(without[0], value) and torch.equal(without[1], gradient)
    assert (gradient != 0).any(dim=1).all()


@every_objective
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_autocast_does_not_lower_the_arithmetic(objective, dtype):
    rows = random_rows(dtype)
    value, gradient = sum_and_gradient(objective, *rows)
    with torch.autocast("cpu", torch.bfloat16):
        autocast_value, autocast_gradient = sum_and_gradient(objective, *rows)
    assert autocast_value.dtype is value.dtype
    assert torch.equal(autocast_value, value) and torch.equal(autocast_gradient, gradient)


@every_objective
def test_no_value_on_the_device_is_asked_for(objective):
    """Under `vmap` a tensor's values are out of reach, so that `.item()`, `if tensor` and boolean indices all raise."""
    batches = [random_rows(seed=seed) for seed in range(3)]
    counted = torch.arange(NUM_ROWS).remainder(torch.tensor([[2], [3], [9]])) > 0

    def batch_sum(student, teacher, labels, counted):
        return objective(signal_of(student), signal_of(teacher), targets_of(labels, counted)).sum

    stacked = [torch.stack(tensors) for tensors in zip(*batches, strict=True)]
    sums = torch.func.vmap(batch_sum)(*stacked, counted)
    each = torch.stack([batch_sum(*rows, mask) for rows, mask in zip(batches, counted, strict=True)])
    torch.testing.assert_close(sums, each, rtol=1e-12, atol=0)


@every_comparison
def test_models_with_different_numbers_of_classes_are_refused_with_both_shapes(objective):
    student, teacher, labels = random_rows()
    with pytest.raises(UserError, match=rf"{objective.name}.*\(8, 5\).*\(8, 4\)"):
        sum_and_gradient(objective, student, teacher[:, :4], labels)
    with pytest.raises(UserError, match=rf"{objective.name}.*\(8, 5\).*\(8, 1\)"):
        sum_and_gradient(objective, student, teacher[:, :1], labels)


@every_comparison
def test_a_missing_teacher_or_one_with_other_positions_is_a_mistake_of_ours(objective):
    student, teacher, labels = random_rows()
    targets = Targets(labels, torch.ones(NUM_ROWS, dtype=torch.bool))
    with pytest.raises(AssertionError, match=f"{objective.name}.*teacher"):
        objective(Signal(student), None, targets)
    with pytest.raises(AssertionError, match=f"{objective.name}.*positions"):
        objective(Signal(student), Signal(teacher[:1]), targets)
