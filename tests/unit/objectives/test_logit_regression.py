"""The squared difference of logits against its formula in plain float64."""

import pytest
import torch

from accel_kd.objectives import LogitMSE
from accel_kd.signals import Signal, SignalNeeds, Targets, Unit

TARGETS = Targets(labels=torch.full((6,), -100), counted=torch.ones(6, dtype=torch.bool))


def random_logits(num_classes, spread=1.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    student, teacher = (spread * torch.randn(2, 6, num_classes, generator=generator, dtype=torch.float64)).to(dtype)
    return student.requires_grad_(), teacher


@pytest.mark.parametrize("spread", [1.0, 100.0])
@pytest.mark.parametrize("num_classes", [2, 5, 151])
def test_the_logit_loss_equals_its_formula_in_value_and_gradient(num_classes, spread):
    student, teacher = random_logits(num_classes, spread)
    term = LogitMSE()(Signal(student), Signal(teacher), TARGETS)
    (gradient,) = torch.autograd.grad(term.sum, student)
    difference = student.detach() - teacher
    torch.testing.assert_close(term.sum, (difference * difference).sum() / num_classes, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient, 2 * difference / num_classes, rtol=1e-12, atol=0)
    assert (term.name, term.unit, term.weight) == ("logit_mse", Unit.POSITIONS, 1.0)


def test_the_gradient_is_the_numerical_derivative():
    student, teacher = random_logits(5)
    assert torch.autograd.gradcheck(lambda logits: LogitMSE()(Signal(logits), Signal(teacher), TARGETS).sum, (student,))


def test_float32_agrees_with_float64():
    student, teacher = random_logits(151, dtype=torch.float32)
    value = LogitMSE()(Signal(student), Signal(teacher), TARGETS).sum
    wide_value = LogitMSE()(Signal(student.double()), Signal(teacher.double()), TARGETS).sum
    torch.testing.assert_close(value.double(), wide_value, rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_are_raised_to_float32_before_anything_is_computed(dtype):
    student, teacher = random_logits(151, 3.0, dtype)
    value = LogitMSE()(Signal(student), Signal(teacher), TARGETS).sum
    assert value.dtype is torch.float32
    assert torch.equal(value, LogitMSE()(Signal(student.float()), Signal(teacher.float()), TARGETS).sum)


def test_equal_logits_have_no_loss_and_no_gradient():
    _, teacher = random_logits(5)
    student = teacher.clone().requires_grad_()
    value = LogitMSE()(Signal(student), Signal(teacher), TARGETS).sum
    assert value == 0
    assert (torch.autograd.grad(value, student)[0] == 0).all()


def test_the_teacher_never_gets_a_gradient():
    student, teacher = random_logits(5)
    LogitMSE()(Signal(student), Signal(teacher.requires_grad_()), TARGETS).sum.backward()
    assert student.grad is not None and teacher.grad is None


def test_the_term_needs_every_logit_of_a_teacher_and_no_temperature():
    assert LogitMSE().needs == SignalNeeds(logits=True, every_logit=True)
