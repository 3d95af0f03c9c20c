"""Cross-entropy with the labels against its formula in plain float64."""

import math

import pytest
import torch

from accel_kd.errors import UserError
from accel_kd.objectives import HardLabel
from accel_kd.signals import IGNORED_LABEL, Signal, SignalNeeds, Targets, Unit


def plain_cross_entropy(logits, labels, label_smoothing):
    """The sum over labelled rows, one at a time."""
    num_classes = logits.shape[1]
    total = torch.zeros((), dtype=torch.float64)
    for row, label in zip(logits, labels.tolist(), strict=True):
        if label == IGNORED_LABEL:
            continue
        powers = torch.exp(row - row.max())
        log_probs = torch.log(powers / powers.sum())
        for each in range(num_classes):
            share = label_smoothing / num_classes + (1 - label_smoothing if each == label else 0.0)
            total = total - share * log_probs[each]
    return total


def labelled_logits(num_classes, spread=1.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    logits = (spread * torch.randn(6, num_classes, generator=generator, dtype=torch.float64)).to(dtype)
    labels = torch.randint(num_classes, (6,), generator=generator)
    labels[torch.tensor([1, 4])] = IGNORED_LABEL
    return logits.requires_grad_(), Targets(labels=labels, counted=torch.ones(6, dtype=torch.bool))


@pytest.mark.parametrize("spread", [1.0, 100.0])
@pytest.mark.parametrize("num_classes", [2, 5, 151])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 0.9])
def test_the_hard_label_loss_equals_its_formula_in_value_and_gradient(label_smoothing, num_classes, spread):
    logits, targets = labelled_logits(num_classes, spread)
    value = HardLabel(label_smoothing)(Signal(logits), None, targets).sum
    expected = plain_cross_entropy(logits, targets.labels, label_smoothing)
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-12)
    gradients = (torch.autograd.grad(loss, logits)[0] for loss in (value, expected))
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_the_gradient_is_the_numerical_derivative(label_smoothing):
    logits, targets = labelled_logits(5)
    objective = HardLabel(label_smoothing)
    assert torch.autograd.gradcheck(lambda student: objective(Signal(student), None, targets).sum, (logits,))


@pytest.mark.parametrize("num_classes", [2, 5, 151])
@pytest.mark.parametrize("spread", [1.0, 100.0])
def test_float32_agrees_with_float64(spread, num_classes):
    logits, targets = labelled_logits(num_classes, spread, torch.float32)
    value = HardLabel(0.1)(Signal(logits), None, targets).sum
    wide_value = HardLabel(0.1)(Signal(logits.double()), None, targets).sum
    torch.testing.assert_close(value.double(), wide_value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_are_raised_to_float32_before_anything_is_computed(dtype):
    logits, targets = labelled_logits(151, 3.0, dtype)
    value = HardLabel(0.1)(Signal(logits), None, targets).sum
    assert value.dtype is torch.float32
    assert torch.equal(value, HardLabel(0.1)(Signal(logits.float()), None, targets).sum)


def test_rows_without_a_label_change_nothing_and_get_no_gradient():
    logits, targets = labelled_logits(5)
    value = HardLabel()(Signal(logits), None, targets).sum
    is_labelled = targets.labels != IGNORED_LABEL
    labelled = Targets(targets.labels[is_labelled], targets.counted[is_labelled])
    torch.testing.assert_close(value, HardLabel()(Signal(logits[is_labelled]), None, labelled).sum)
    (gradient,) = torch.autograd.grad(value, logits)
    assert (gradient[~is_labelled] == 0).all() and (gradient[is_labelled] != 0).all()


def test_the_label_of_a_row_that_does_not_count_is_not_looked_at():
    logits, targets = labelled_logits(5)
    counted = torch.tensor([True, True, True, True, True, False])
    ignored = torch.where(counted, targets.labels, IGNORED_LABEL)
    impossible = torch.where(counted, targets.labels, 10**9)
    values = [HardLabel()(Signal(logits), None, Targets(labels, counted)).sum for labels in (ignored, impossible)]
    assert torch.equal(*values)


def test_the_term_counts_targets_and_needs_no_teacher():
    logits, targets = labelled_logits(5)
    term = HardLabel()(Signal(logits), None, targets)
    assert (term.name, term.unit, term.weight) == ("hard_label", Unit.TARGETS, 1.0)
    assert HardLabel().needs == SignalNeeds(logits=False)


@pytest.mark.parametrize("label_smoothing", [-0.1, 1.0, math.inf, math.nan])
def test_a_label_smoothing_outside_its_interval_is_refused(label_smoothing):
    with pytest.raises(UserError, match="label_smoothing"):
        HardLabel(label_smoothing)
