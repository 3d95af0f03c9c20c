"""The divergences against the formulas in plain float64, in value and gradient."""

import math
from functools import partial

import pytest
import torch

from accel_kd.errors import UserError
from accel_kd.objectives import (
    ForwardKL,
    JensenShannon,
    ReverseKL,
    forward_kl,
    generalised_jensen_shannon,
    reverse_kl,
)
from accel_kd.signals import Signal, SignalNeeds, Targets, Unit

TEMPERATURES = [1.0, 2.0, 7.0]
BETAS = [0.0, 0.1, 0.5, 0.9, 1.0]
NUM_CLASSES = [2, 5, 151]
SPREADS = [1.0, 100.0]

DIVERGENCES = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    **{f"jensen_shannon_{beta}": partial(generalised_jensen_shannon, beta=beta) for beta in BETAS},
}


def plain_softmax(logits, temperature):
    powers = torch.exp((logits - logits.max(dim=-1, keepdim=True).values) / temperature)
    return powers / powers.sum(dim=-1, keepdim=True)


def plain_kl(left, right):
    return (left * (torch.log(left) - torch.log(right))).sum(dim=-1)


def plain_divergence(name, student_logits, teacher_logits, temperature):
    student, teacher = plain_softmax(student_logits, temperature), plain_softmax(teacher_logits, temperature)
    if name in ("forward_kl", "jensen_shannon_0.0"):
        return temperature**2 * plain_kl(teacher, student)
    if name in ("reverse_kl", "jensen_shannon_1.0"):
        return temperature**2 * plain_kl(student, teacher)
    beta = float(name.removeprefix("jensen_shannon_"))
    mixture = beta * teacher + (1 - beta) * student
    return temperature**2 * (beta * plain_kl(teacher, mixture) + (1 - beta) * plain_kl(student, mixture))


def random_logits(num_classes, spread=1.0, dtype=torch.float64, num_positions=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (2, num_positions, num_classes)
    student, teacher = (spread * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)
    return student.requires_grad_(), teacher


def value_and_gradient(divergence, student_logits, *arguments):
    """The values, and the gradient of a sum in which every position has a share of its own."""
    values = divergence(student_logits, *arguments)
    shares = torch.linspace(0.5, 1.5, len(values), dtype=values.dtype)
    (gradient,) = torch.autograd.grad((shares * values).sum(), student_logits)
    return values.detach(), gradient


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("num_classes", NUM_CLASSES)
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("name", DIVERGENCES)
def test_a_divergence_equals_its_formula_in_value_and_gradient(name, temperature, num_classes, spread):
    student, teacher = random_logits(num_classes, spread)
    value, gradient = value_and_gradient(DIVERGENCES[name], student, teacher, temperature)
    plain_value, plain_gradient = value_and_gradient(partial(plain_divergence, name), student, teacher, temperature)
    torch.testing.assert_close(value, plain_value, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(gradient, plain_gradient, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_the_gradient_of_forward_kl_is_temperature_times_the_difference_of_probabilities(temperature):
    student, teacher = random_logits(5)
    (gradient,) = torch.autograd.grad(forward_kl(student, teacher, temperature).sum(), student)
    expected = temperature * (plain_softmax(student.detach(), temperature) - plain_softmax(teacher, temperature))
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("name", DIVERGENCES)
def test_the_gradient_is_the_numerical_derivative(name, temperature):
    student, teacher = random_logits(5, num_positions=3)
    assert torch.autograd.gradcheck(lambda logits: DIVERGENCES[name](logits, teacher, temperature), (student,))


@pytest.mark.parametrize("name", DIVERGENCES)
def test_the_gradient_keeps_its_size_as_the_temperature_grows(name):
    student, teacher = random_logits(5)
    sizes = []
    for temperature in (200.0, 400.0):
        (gradient,) = torch.autograd.grad(DIVERGENCES[name](student, teacher, temperature).sum(), student)
        sizes.append(gradient.norm())
    torch.testing.assert_close(sizes[0], sizes[1], rtol=0.02, atol=0)


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("num_classes", NUM_CLASSES)
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("name", DIVERGENCES)
def test_float32_agrees_with_float64(name, temperature, num_classes, spread):
    student, teacher = random_logits(num_classes, spread, torch.float32, num_positions=64)
    wide_student = student.detach().double().requires_grad_()
    value, gradient = value_and_gradient(DIVERGENCES[name], student, teacher, temperature)
    wide_value, wide_gradient = value_and_gradient(DIVERGENCES[name], wide_student, teacher.double(), temperature)
    assert value.dtype is torch.float32 and wide_value.dtype is torch.float64
    # Of the sum, since a position where the models agree is a small difference of large logarithms. An entry of the
    # gradient is temperature times a difference of probabilities times, in reverse, logarithms as large as the spread.
    torch.testing.assert_close(value.double().sum(), wide_value.sum(), rtol=1e-5, atol=0)
    torch.testing.assert_close(gradient.double(), wide_gradient, rtol=1e-5, atol=1e-6 * temperature * spread)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", DIVERGENCES)
def test_half_types_are_raised_to_float32_before_anything_is_computed(name, dtype):
    student, teacher = random_logits(151, 3.0, dtype)
    raised_student = student.detach().float().requires_grad_()
    value, gradient = value_and_gradient(DIVERGENCES[name], student, teacher, 2.0)
    raised_value, raised_gradient = value_and_gradient(DIVERGENCES[name], raised_student, teacher.float(), 2.0)
    assert value.dtype is torch.float32
    assert torch.equal(value, raised_value)
    assert torch.equal(gradient, raised_gradient.to(dtype))


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("name", DIVERGENCES)
def test_models_that_agree_have_no_divergence_and_no_gradient(name, temperature, spread):
    _, teacher = random_logits(151, spread)
    student = (teacher + 3.0).requires_grad_()  # a constant on all logits changes no probability
    value, gradient = value_and_gradient(DIVERGENCES[name], student, teacher, temperature)
    torch.testing.assert_close(value, torch.zeros_like(value), rtol=0, atol=1e-11)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-12)


def test_beta_near_an_end_leads_to_that_kl_after_division_by_its_share():
    student, teacher = random_logits(5)
    near_forward = generalised_jensen_shannon(student, teacher, 2.0, 1e-6) / 1e-6
    near_reverse = generalised_jensen_shannon(student, teacher, 2.0, 1 - 1e-6) / 1e-6
    torch.testing.assert_close(near_forward, forward_kl(student, teacher, 2.0), rtol=1e-4, atol=0)
    torch.testing.assert_close(near_reverse, reverse_kl(student, teacher, 2.0), rtol=1e-4, atol=0)


@pytest.mark.parametrize("name", [name for name in DIVERGENCES if name not in ("reverse_kl", "jensen_shannon_1.0")])
def test_a_class_that_the_teacher_rules_out_stays_finite(name):
    student, teacher = random_logits(7)
    teacher[:, 3:5] = -math.inf
    value, gradient = value_and_gradient(DIVERGENCES[name], student, teacher, 2.0)
    # A logit of -2000 gives a probability that is 0 in float64: the same teacher without an infinity.
    teacher[:, 3:5] = -2000.0
    finite_value, finite_gradient = value_and_gradient(DIVERGENCES[name], student, teacher, 2.0)
    assert torch.isfinite(value).all() and torch.isfinite(gradient).all()
    torch.testing.assert_close(value, finite_value, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient, finite_gradient, rtol=1e-12, atol=1e-14)


def test_a_class_that_the_teacher_rules_out_adds_exactly_nothing_to_forward_kl():
    student, teacher = random_logits(7)
    teacher[:, 5:] = -math.inf
    kept_teacher, all_student = plain_softmax(teacher[:, :5], 2.0), plain_softmax(student, 2.0)
    expected = 4.0 * plain_kl(kept_teacher, all_student[:, :5])
    torch.testing.assert_close(forward_kl(student, teacher, 2.0), expected, rtol=1e-12, atol=0)


def test_reverse_kl_is_infinite_where_the_teacher_rules_out_what_the_student_does_not():
    student, teacher = random_logits(7)
    teacher[0, 3] = -math.inf
    value = reverse_kl(student, teacher, 2.0)
    assert value[0] == math.inf and torch.isfinite(value[1:]).all()


@pytest.mark.parametrize("name", DIVERGENCES)
def test_classes_that_both_models_rule_out_change_nothing(name):
    student, teacher = random_logits(5)
    gap = torch.full((len(teacher), 2), -math.inf, dtype=torch.float64)
    value, gradient = value_and_gradient(DIVERGENCES[name], student, teacher, 2.0)
    wide_student = torch.cat((student.detach(), gap), dim=1).requires_grad_()
    wide = value_and_gradient(DIVERGENCES[name], wide_student, torch.cat((teacher, gap), dim=1), 2.0)
    torch.testing.assert_close(wide[0], value, rtol=1e-12, atol=0)
    torch.testing.assert_close(wide[1][:, :5], gradient, rtol=1e-12, atol=1e-14)
    assert (wide[1][:, 5:] == 0).all()


@pytest.mark.parametrize("name", DIVERGENCES)
def test_the_teacher_never_gets_a_gradient(name):
    student, teacher = random_logits(5)
    teacher.requires_grad_()
    DIVERGENCES[name](student, teacher, 2.0).sum().backward()
    assert student.grad is not None and teacher.grad is None


@pytest.mark.parametrize(
    ("objective", "plain_name"),
    [
        (ForwardKL(temperature=2.0), "forward_kl"),
        (ReverseKL(temperature=2.0), "reverse_kl"),
        *((JensenShannon(beta=beta, temperature=2.0), f"jensen_shannon_{beta}") for beta in BETAS),
    ],
    ids=str,
)
def test_an_objective_sums_its_formula_over_positions_with_and_without_labels(objective, plain_name):
    student, teacher = random_logits(5)
    targets = Targets(labels=torch.full((6,), -100), counted=torch.ones(6, dtype=torch.bool))
    term = objective(Signal(student), Signal(teacher), targets)
    expected = plain_divergence(plain_name, student, teacher, 2.0).sum()
    torch.testing.assert_close(term.sum, expected, rtol=1e-12, atol=0)
    assert plain_name.startswith(term.name) and term.name == objective.name
    assert term.unit is Unit.POSITIONS and term.weight == 1.0
    exact = not isinstance(objective, ForwardKL)
    assert objective.needs == SignalNeeds(logits=True, exact=exact, temperatures=frozenset({2.0}))


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan])
@pytest.mark.parametrize("objective", [ForwardKL, ReverseKL, partial(JensenShannon, 0.5)])
def test_a_temperature_that_is_not_positive_and_finite_is_refused(objective, temperature):
    with pytest.raises(UserError, match="temperature"):
        objective(temperature=temperature)


@pytest.mark.parametrize("beta", [-0.1, 1.1, math.inf, math.nan])
def test_a_beta_outside_the_unit_interval_is_refused(beta):
    with pytest.raises(UserError, match="beta"):
        JensenShannon(beta=beta, temperature=1.0)
