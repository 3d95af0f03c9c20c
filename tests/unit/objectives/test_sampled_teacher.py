"""Forward KL given a sample of the teacher's classes: right on average, and no other divergence takes one."""

import math
from dataclasses import replace

import pytest
import torch

from accel_kd.objectives import ForwardKL, JensenShannon, ReverseKL, forward_kl
from accel_kd.signals import Signal, SparseSignal, Targets

NUM_ROWS, NUM_CLASSES = 8, 7


def random_logits(num_positions=NUM_ROWS):
    generator = torch.Generator().manual_seed(0)
    return 1.5 * torch.randn((2, num_positions, NUM_CLASSES), generator=generator, dtype=torch.float64)


def values_and_gradient(student, teacher, temperature):
    student = student.detach().clone().requires_grad_()
    values = forward_kl(student, teacher, temperature)
    (gradient,) = torch.autograd.grad(values.sum(), student)
    return values.detach(), gradient


def sampled(teacher_probs, num_samples, temperature, seed=0):
    """Counts of `num_samples` draws with replacement, in `num_samples` slots of which those not used are empty."""
    generator = torch.Generator().manual_seed(seed)
    draws = torch.multinomial(teacher_probs, num_samples, replacement=True, generator=generator)
    counts = torch.zeros_like(teacher_probs).scatter_add(-1, draws, torch.ones_like(draws, dtype=teacher_probs.dtype))
    slots, ids = counts.topk(num_samples, dim=-1)
    # `log_probs_at(temperature)` is the logarithm of the shares then.
    return SparseSignal(ids, temperature * torch.log(slots / num_samples), None, teacher_probs.shape[-1])


def test_the_gradient_is_temperature_times_the_difference_of_the_probabilities_and_the_shares_of_the_sample():
    student, teacher = random_logits()
    signal = sampled(torch.softmax(teacher / 2, dim=-1), 4, 2.0)
    _, gradient = values_and_gradient(student, signal, 2.0)
    for row in range(NUM_ROWS):
        powers = torch.exp(student[row] / 2)
        expected = 2 * powers / powers.sum()
        for each, log_prob in zip(signal.ids[row].tolist(), signal.log_probs[row].tolist(), strict=True):
            expected[each] -= 2 * math.exp(log_prob / 2)
        torch.testing.assert_close(gradient[row], expected, rtol=1e-12, atol=1e-14)


def test_an_empty_slot_adds_exactly_nothing_whatever_class_it_names():
    student, teacher = random_logits()
    signal = sampled(torch.softmax(teacher / 2, dim=-1), 4, 2.0)
    is_empty = signal.log_probs == -math.inf
    assert is_empty.any()
    value, gradient = values_and_gradient(student, signal, 2.0)
    assert torch.isfinite(value).all() and torch.isfinite(gradient).all()
    for filler in (0, NUM_CLASSES - 1):
        refilled = replace(signal, ids=torch.where(is_empty, filler, signal.ids))
        other_value, other_gradient = values_and_gradient(student, refilled, 2.0)
        assert torch.equal(other_value, value) and torch.equal(other_gradient, gradient)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 0.5])
def test_the_gradient_of_forward_kl_from_a_sample_is_that_from_all_logits_on_average(temperature):
    num_samples, num_repeats = 4, 40_000
    student, teacher = random_logits(num_positions=1)
    student = student.detach().expand(num_repeats, -1).clone().requires_grad_()
    teacher_probs = torch.softmax(teacher / temperature, dim=-1)
    signal = sampled(teacher_probs.expand(num_repeats, -1), num_samples, temperature)
    (gradients,) = torch.autograd.grad(forward_kl(student, signal, temperature).sum(), student)
    assert gradients.dtype is torch.float64

    student_probs = torch.exp(student[0].detach() / temperature)
    expected = temperature * (student_probs / student_probs.sum() - teacher_probs[0])
    standard_errors = gradients.std(dim=0) / num_repeats**0.5
    deviations = (gradients.mean(dim=0) - expected) / standard_errors
    assert (deviations.abs() < 4.5).all(), deviations
    # Sharp enough: what a bias of a hundredth of the probabilities would do is seen.
    assert (standard_errors < 0.01 * temperature).all()
    # The likeliest classes alone, their probabilities made to add up to 1, are far off.
    log_probs, ids = torch.log_softmax(teacher, dim=-1).topk(num_samples)
    biased = SparseSignal(ids, log_probs, None, NUM_CLASSES)
    _, biased_gradient = values_and_gradient(student[:1], biased, temperature)
    assert ((biased_gradient[0] / 0.5 - expected) / standard_errors).abs().max() > 10


@pytest.mark.parametrize("objective", [ReverseKL(2.0), JensenShannon(0.5, 2.0), JensenShannon(1.0, 2.0)], ids=str)
def test_a_sample_is_no_set_of_outcomes_for_the_other_divergences(objective):
    student, teacher = random_logits()
    signal = sampled(torch.softmax(teacher / 2, dim=-1), 4, 2.0)
    with pytest.raises(AssertionError, match="4 of 7 classes"):
        objective(Signal(student), signal, Targets(torch.zeros(NUM_ROWS), torch.ones(NUM_ROWS, dtype=torch.bool)))


def test_rows_that_do_not_count_change_nothing_whatever_they_hold():
    student, teacher = random_logits()
    student.requires_grad_()
    signal = sampled(torch.softmax(teacher / 2, dim=-1), 4, 2.0)
    counted = torch.tensor([True, False, True, True, False, False, True, True])
    labels = torch.zeros(NUM_ROWS, dtype=torch.int64)
    value, gradient = values_and_gradient(student, signal, 2.0)
    signal.ids[~counted], signal.log_probs[~counted] = 10**9, -math.inf
    term = ForwardKL(2.0)(Signal(student), signal, Targets(labels, counted))
    (padded_gradient,) = torch.autograd.grad(term.sum, student)
    torch.testing.assert_close(term.sum, value[counted].sum(), rtol=1e-12, atol=0)
    torch.testing.assert_close(padded_gradient, gradient * counted.unsqueeze(-1), rtol=1e-12, atol=0)
