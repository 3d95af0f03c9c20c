"""Objectives given some of the teacher's classes, against the formulas over these classes and one for all others."""

import math
from dataclasses import replace
from functools import partial
from itertools import pairwise

import pytest
import torch

from accel_kd.errors import UserError
from accel_kd.objectives import (
    ForwardKL,
    JensenShannon,
    LogitMSE,
    ReverseKL,
    forward_kl,
    generalised_jensen_shannon,
    reverse_kl,
)
from accel_kd.signals import Signal, SparseSignal, Targets

TEMPERATURES = [1.0, 2.0, 0.5]
NUM_ROWS, NUM_CLASSES = 8, 7

DIVERGENCES = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    **{f"jensen_shannon_{beta}": partial(generalised_jensen_shannon, beta=beta) for beta in (0.0, 0.1, 0.5, 1.0)},
}
OBJECTIVES = [
    ForwardKL(temperature=2.0),
    ReverseKL(temperature=2.0),
    *(JensenShannon(beta=beta, temperature=2.0) for beta in (0.0, 0.1, 0.5, 1.0)),
]

every_divergence = pytest.mark.parametrize("name", DIVERGENCES)
every_temperature = pytest.mark.parametrize("temperature", TEMPERATURES)
every_objective = pytest.mark.parametrize("objective", OBJECTIVES, ids=str)


def random_logits(num_classes=NUM_CLASSES, spread=1.5, num_positions=NUM_ROWS, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (2, num_positions, num_classes)
    student, teacher = spread * torch.randn(shape, generator=generator, dtype=torch.float64)
    return student.requires_grad_(), teacher


def most_probable(logits, num_kept):
    """The sparse signal of the `num_kept` most probable classes at each position, in the precision of the logits."""
    ids = logits.argsort(dim=-1, descending=True)[:, :num_kept]
    log_tails = {}
    for temperature in TEMPERATURES:
        others = torch.log_softmax(logits / temperature, dim=-1).scatter(-1, ids, -math.inf)
        log_tails[temperature] = others.logsumexp(dim=-1)
    num_classes = logits.shape[-1]
    log_probs = torch.log_softmax(logits, dim=-1).gather(-1, ids)
    return SparseSignal(ids, log_probs, None if num_kept == num_classes else log_tails, num_classes)


def plain_kl(left, right):
    return sum(p * (torch.log(p) - torch.log(q)) for p, q in zip(left, right, strict=True))


def plain_divergence(name, student_logits, teacher_logits, num_kept, temperature):
    """Position by position: softened probabilities, those of all but the `num_kept` likeliest classes added up."""

    def outcomes(logits, kept):
        powers = torch.exp(logits / temperature)
        probs = powers / powers.sum()
        return [probs[each] for each in kept] + [sum(probs[each] for each in range(len(logits)) if each not in kept)]

    values = []
    for student_row, teacher_row in zip(student_logits, teacher_logits, strict=True):
        kept = sorted(range(len(teacher_row)), key=lambda each: -teacher_row[each])[:num_kept]
        student, teacher = outcomes(student_row, kept), outcomes(teacher_row, kept)
        if name in ("forward_kl", "jensen_shannon_0.0"):
            value = plain_kl(teacher, student)
        elif name in ("reverse_kl", "jensen_shannon_1.0"):
            value = plain_kl(student, teacher)
        else:
            beta = float(name.removeprefix("jensen_shannon_"))
            mixture = [beta * p + (1 - beta) * q for p, q in zip(teacher, student, strict=True)]
            value = beta * plain_kl(teacher, mixture) + (1 - beta) * plain_kl(student, mixture)
        values.append(temperature**2 * value)
    return torch.stack(values)


def value_and_gradient(divergence, student_logits, *arguments):
    """The values, and the gradient of a sum in which every position has a share of its own."""
    student_logits = student_logits.detach().clone().requires_grad_()
    values = divergence(student_logits, *arguments)
    shares = torch.linspace(0.5, 1.5, len(values), dtype=values.dtype)
    (gradient,) = torch.autograd.grad((shares * values).sum(), student_logits)
    return values.detach(), gradient


def sum_and_gradient(objective, student, teacher, counted=None):
    student = student.detach().clone().requires_grad_()
    counted = torch.ones(len(student), dtype=torch.bool) if counted is None else counted
    labels = torch.zeros(len(student), dtype=torch.int64)
    value = objective(Signal(student), teacher, Targets(labels, counted)).sum
    (gradient,) = torch.autograd.grad(value, student)
    return value.detach(), gradient


def rows_of(signal, rows):
    tails = None if signal.log_tails is None else {t: tail[rows] for t, tail in signal.log_tails.items()}
    return replace(signal, ids=signal.ids[rows], log_probs=signal.log_probs[rows], log_tails=tails)


@every_temperature
@every_divergence
def test_a_signal_that_keeps_every_class_says_what_the_logits_say(name, temperature):
    student, teacher = random_logits()
    kept = value_and_gradient(DIVERGENCES[name], student, most_probable(teacher, NUM_CLASSES), temperature)
    dense = value_and_gradient(DIVERGENCES[name], student, teacher, temperature)
    torch.testing.assert_close(kept[0], dense[0], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(kept[1], dense[1], rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("num_kept", [1, 3, 6])
@every_temperature
@every_divergence
def test_a_divergence_equals_its_formula_over_the_kept_classes_and_one_for_all_others(name, temperature, num_kept):
    student, teacher = random_logits()
    sparse = value_and_gradient(DIVERGENCES[name], student, most_probable(teacher, num_kept), temperature)
    plain = value_and_gradient(partial(plain_divergence, name), student, teacher, num_kept, temperature)
    torch.testing.assert_close(sparse[0], plain[0], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(sparse[1], plain[1], rtol=1e-10, atol=1e-12)


@every_temperature
@every_divergence
def test_to_tell_fewer_classes_apart_never_raises_a_divergence(name, temperature):
    student, teacher = random_logits(num_positions=200, spread=3.0)
    values = [
        DIVERGENCES[name](student, most_probable(teacher, num_kept), temperature) for num_kept in range(1, NUM_CLASSES)
    ]
    values.append(DIVERGENCES[name](student, teacher, temperature))
    assert (values[0] >= -1e-12).all()
    for fewer, more in pairwise(values):
        assert (fewer <= more + 1e-12).all()
    assert values[0].sum() < 0.9 * values[-1].sum()  # far from equal, or the comparison would prove little


@pytest.mark.parametrize("num_kept", [2, NUM_CLASSES])
@every_divergence
def test_the_gradient_is_the_numerical_derivative(name, num_kept):
    student, teacher = random_logits(num_positions=3)
    signal = most_probable(teacher, num_kept)
    assert torch.autograd.gradcheck(lambda logits: DIVERGENCES[name](logits, signal, 2.0), (student,))


@pytest.mark.parametrize("num_kept", [8, 151])
@every_temperature
@every_divergence
def test_float32_agrees_with_float64(name, temperature, num_kept):
    student, teacher = random_logits(151, spread=3.0, num_positions=64)
    student, teacher = student.float(), teacher.float()
    narrow = value_and_gradient(DIVERGENCES[name], student, most_probable(teacher, num_kept), temperature)
    wide_signal = most_probable(teacher.double(), num_kept)
    wide = value_and_gradient(DIVERGENCES[name], student.double(), wide_signal, temperature)
    assert narrow[0].dtype is torch.float32
    torch.testing.assert_close(narrow[0].double().sum(), wide[0].sum(), rtol=1e-5, atol=0)
    torch.testing.assert_close(narrow[1].double(), wide[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@every_divergence
def test_a_student_in_a_half_type_is_raised_to_float32_under_autocast_too(name, dtype):
    student, teacher = random_logits(151, spread=3.0)
    student, signal = student.detach().to(dtype), most_probable(teacher.float(), 8)
    with torch.autocast("cpu", torch.bfloat16):
        value, gradient = value_and_gradient(DIVERGENCES[name], student, signal, 2.0)
    raised_value, raised_gradient = value_and_gradient(DIVERGENCES[name], student.float(), signal, 2.0)
    assert value.dtype is torch.float32
    assert torch.equal(value, raised_value)
    assert torch.equal(gradient, raised_gradient.to(dtype))


@every_divergence
def test_a_float64_student_can_be_compared_with_what_a_store_gives_in_float32(name):
    student, teacher = random_logits()
    wide = value_and_gradient(DIVERGENCES[name], student, most_probable(teacher, 3), 2.0)
    mixed = value_and_gradient(DIVERGENCES[name], student, most_probable(teacher.float(), 3), 2.0)
    torch.testing.assert_close(mixed[0].double(), wide[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(mixed[1], wide[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("num_kept", [5, NUM_CLASSES])
@pytest.mark.parametrize("student_rules_out", [[], [2], [2, 3]])
@pytest.mark.parametrize("name", [name for name in DIVERGENCES if name not in ("reverse_kl", "jensen_shannon_1.0")])
def test_classes_that_the_teacher_rules_out_change_nothing_kept_or_not(name, student_rules_out, num_kept):
    student, teacher = random_logits()
    student = student.detach()
    teacher[:, 2:4] = -math.inf
    student[:, student_rules_out] = -math.inf
    signal = most_probable(teacher, num_kept)
    is_nothing = signal.log_probs if num_kept == NUM_CLASSES else signal.log_tails[2.0]
    assert (is_nothing == -math.inf).sum() == NUM_ROWS * (2 if num_kept == NUM_CLASSES else 1)
    value, gradient = value_and_gradient(DIVERGENCES[name], student, signal, 2.0)
    dense_value, dense_gradient = value_and_gradient(DIVERGENCES[name], student, teacher, 2.0)
    assert torch.isfinite(value).all() and torch.isfinite(gradient).all()
    torch.testing.assert_close(value, dense_value, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(gradient, dense_gradient, rtol=1e-12, atol=1e-14)


def test_a_comparison_of_logits_does_not_take_some_of_them():
    student, teacher = random_logits()
    with pytest.raises(AssertionError, match="logit_mse"):
        sum_and_gradient(LogitMSE(), student, most_probable(teacher, NUM_CLASSES))


@pytest.mark.parametrize("cuts", [[4], [1, 6], [0, 3, 3, NUM_ROWS]])
@every_objective
def test_the_sum_over_a_batch_is_the_sum_of_the_sums_over_its_parts(objective, cuts):
    student, teacher = random_logits()
    signal = most_probable(teacher, 3)
    whole_sum, whole_gradient = sum_and_gradient(objective, student, signal)
    parts = [slice(start, stop) for start, stop in pairwise([0, *cuts, NUM_ROWS])]
    each = [sum_and_gradient(objective, student[part], rows_of(signal, part)) for part in parts]
    torch.testing.assert_close(sum(value for value, _ in each), whole_sum, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(torch.cat([gradient for _, gradient in each]), whole_gradient, rtol=1e-12, atol=1e-14)


@every_objective
@pytest.mark.parametrize("filler_id", [0, -1, 10**9])
@pytest.mark.parametrize("filler", [0.0, 50.0, math.nan, math.inf, -math.inf])
def test_rows_that_do_not_count_change_nothing_whatever_they_hold(objective, filler, filler_id):
    student, teacher = random_logits()
    student = student.detach()
    counted = torch.tensor([True, False, True, True, False, False, True, True])
    signal = most_probable(teacher, 3)
    value, gradient = sum_and_gradient(objective, student[counted], rows_of(signal, counted))
    for held in (student, signal.log_probs, *signal.log_tails.values()):
        held[~counted] = filler
    signal.ids[~counted] = filler_id
    padded_value, padded_gradient = sum_and_gradient(objective, student, signal, counted)
    torch.testing.assert_close(padded_value, value, rtol=1e-12, atol=0)
    torch.testing.assert_close(padded_gradient[counted], gradient, rtol=1e-12, atol=1e-14)
    assert (padded_gradient[~counted] == 0).all()


@every_objective
def test_a_batch_without_a_counted_row_has_sum_and_gradient_zero(objective):
    student, teacher = random_logits()
    signal = most_probable(teacher, 3)
    signal.log_probs[:] = math.nan
    value, gradient = sum_and_gradient(objective, student, signal, torch.zeros(NUM_ROWS, dtype=torch.bool))
    assert value == 0 and (gradient == 0).all()


@every_objective
def test_no_value_on_the_device_is_asked_for(objective):
    """Under `vmap` a tensor's values are out of reach, so that `.item()`, `if tensor` and boolean indices all raise."""
    batches = [random_logits(seed=seed) for seed in range(3)]
    counted = torch.arange(NUM_ROWS).remainder(torch.tensor([[2], [3], [9]])) > 0
    signals = [most_probable(teacher, 3) for _, teacher in batches]

    def batch_sum(student, ids, log_probs, log_tail, counted):
        signal = SparseSignal(ids, log_probs, {2.0: log_tail}, NUM_CLASSES)
        return objective(Signal(student), signal, Targets(torch.zeros(NUM_ROWS, dtype=torch.int64), counted)).sum

    rows = [
        (student, signal.ids, signal.log_probs, signal.log_tails[2.0], mask)
        for (student, _), signal, mask in zip(batches, signals, counted, strict=True)
    ]
    sums = torch.func.vmap(batch_sum)(*(torch.stack(tensors) for tensors in zip(*rows, strict=True)))
    torch.testing.assert_close(sums, torch.stack([batch_sum(*each) for each in rows]), rtol=1e-12, atol=0)


@every_objective
def test_the_teacher_never_gets_a_gradient(objective):
    student, teacher = random_logits()
    signal = most_probable(teacher.requires_grad_(), 3)
    objective(
        Signal(student), signal, Targets(torch.zeros(NUM_ROWS), torch.ones(NUM_ROWS, dtype=torch.bool))
    ).sum.backward()
    assert student.grad is not None and teacher.grad is None


@every_objective
def test_models_with_different_numbers_of_classes_or_positions_are_refused(objective):
    student, teacher = random_logits()
    with pytest.raises(UserError, match=rf"{objective.name}.*\(8, 7\).*\(8, 6\)"):
        sum_and_gradient(objective, student, most_probable(teacher[:, :6], 3))
    with pytest.raises(AssertionError, match=f"{objective.name}.*positions"):
        sum_and_gradient(objective, student, most_probable(teacher[:1], 3))
