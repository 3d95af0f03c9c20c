"""Weighted sums of objectives, and the one division that turns sums into a loss."""

import math
from dataclasses import fields
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from accel_kd.errors import UserError
from accel_kd.objectives import (
    ForwardKL,
    HardLabel,
    HiddenStates,
    JensenShannon,
    LogitMSE,
    ReverseKL,
    WeightedSum,
    mixture,
    total,
)
from accel_kd.signals import IGNORED_LABEL, GlobalCounts, LossTerm, Signal, SignalNeeds, Targets, Unit

NUM_ROWS, NUM_CLASSES = 9, 5


class NeverCalled:
    """An objective that must not be computed."""

    name = "never_called"
    needs = SignalNeeds(logits=True)

    def __call__(self, student, teacher, targets):
        raise AssertionError("computed though its weight is 0")


def random_batch():
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, NUM_ROWS, NUM_CLASSES, generator=generator, dtype=torch.float64)
    labels = torch.randint(NUM_CLASSES, (NUM_ROWS,), generator=generator)
    labels[torch.tensor([0, 3, 4])] = IGNORED_LABEL
    return student.requires_grad_(), teacher, Targets(labels, torch.ones(NUM_ROWS, dtype=torch.bool))


def plain_mixture_loss(alpha, temperature, student, teacher, labels):
    """alpha * mean CE over labelled rows + (1 - alpha) * T**2 * mean KL over all rows."""

    def softmax(logits):
        return torch.exp(logits) / torch.exp(logits).sum(dim=1, keepdim=True)

    labelled = [row for row, label in enumerate(labels.tolist()) if label != IGNORED_LABEL]
    cross_entropy = sum(-torch.log(softmax(student)[row, labels[row]]) for row in labelled) / len(labelled)
    soft_student, soft_teacher = softmax(student / temperature), softmax(teacher / temperature)
    kl = (soft_teacher * torch.log(soft_teacher / soft_student)).sum() / len(labels)
    return alpha * cross_entropy + (1 - alpha) * temperature**2 * kl


@pytest.mark.parametrize("temperature", [1.0, 2.0, 7.0])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_the_mixture_equals_its_formula_in_value_and_gradient(alpha, temperature):
    student, teacher, targets = random_batch()
    terms = mixture(alpha, ForwardKL(temperature))(Signal(student), Signal(teacher), targets)
    loss = total(terms, GlobalCounts(targets=6, positions=NUM_ROWS))
    expected = plain_mixture_loss(alpha, temperature, student, teacher, targets.labels)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    gradients = (torch.autograd.grad(value, student)[0] for value in (loss, expected))
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-14)


def test_terms_are_unweighted_sums_that_carry_their_weight():
    student, teacher, targets = random_batch()
    terms = mixture(0.25, ReverseKL(2.0), label_smoothing=0.1)(Signal(student), Signal(teacher), targets)
    assert [(term.name, term.unit, term.weight) for term in terms] == [
        ("hard_label", Unit.TARGETS, 0.25),
        ("reverse_kl", Unit.POSITIONS, 0.75),
    ]
    alone = [HardLabel(0.1), ReverseKL(2.0)]
    for term, objective in zip(terms, alone, strict=True):
        assert torch.equal(term.sum, objective(Signal(student), Signal(teacher), targets).sum)


def test_alpha_one_needs_no_teacher():
    student, _, targets = random_batch()
    objective = mixture(1.0, NeverCalled())
    assert objective.needs == SignalNeeds(logits=False)
    assert [term.name for term in objective(Signal(student), None, targets)] == ["hard_label"]


def test_alpha_zero_looks_at_no_label():
    student, teacher, targets = random_batch()
    impossible = Targets(torch.full_like(targets.labels, 10**9), targets.counted)
    terms = mixture(0.0, ForwardKL(1.0))(Signal(student), Signal(teacher), impossible)
    assert [term.name for term in terms] == ["forward_kl"]


def test_needs_are_those_of_the_terms_with_a_weight():
    assert WeightedSum([(1.0, HardLabel()), (0.5, LogitMSE())]).needs == LogitMSE().needs
    assert WeightedSum([(1.0, HardLabel()), (0.0, LogitMSE())]).needs == SignalNeeds()
    terms = [(1.0, ForwardKL(2.0)), (1.0, ReverseKL(4.0)), (0.0, JensenShannon(0.5, 8.0))]
    assert WeightedSum(terms).needs == SignalNeeds(logits=True, exact=True, temperatures=frozenset({2.0, 4.0}))
    features = WeightedSum([(1.0, HardLabel()), (0.5, HiddenStates(((1, 2), (-1, 4))))])
    assert features.needs == SignalNeeds(hidden_states=frozenset({2, 4}))
    assert WeightedSum([(1.0, HardLabel()), (0.0, HiddenStates())]).needs == SignalNeeds()


def test_what_a_teacher_does_not_provide_is_named():
    needs = WeightedSum([(1.0, HiddenStates(((1, 2), (2, 4)))), (1.0, ForwardKL(3.0))]).needs
    assert needs.missing_from(SignalNeeds(hidden_states=frozenset({4}))) == [
        "logits", "temperature 3", "hidden states of layer 2",
    ]  # fmt: skip
    enough = SignalNeeds(logits=True, temperatures=None, hidden_states=frozenset({0, 2, 4}))
    assert needs.missing_from(enough) == []


@pytest.mark.parametrize("part", [part.name for part in fields(SignalNeeds)])
def test_no_part_of_what_a_term_needs_is_forgotten(part):
    """Holds for a part that `SignalNeeds` gains later, too."""
    demanding = NeverCalled()
    sets = {"temperatures": frozenset({3.0}), "hidden_states": frozenset({3})}
    demanding.needs = SignalNeeds(**{part: sets.get(part, True)})
    assert WeightedSum([(1.0, HardLabel()), (1.0, demanding)]).needs == demanding.needs


def test_a_term_of_weight_zero_is_left_out_and_not_computed():
    student, teacher, targets = random_batch()
    objective = WeightedSum([(0.0, NeverCalled()), (2.0, LogitMSE())])
    assert [term.name for term in objective(Signal(student), Signal(teacher), targets)] == ["logit_mse"]


@pytest.mark.parametrize("terms", [[], [(0.0, HardLabel())]])
def test_a_sum_of_nothing_is_refused(terms):
    with pytest.raises(UserError, match="weight above 0"):
        WeightedSum(terms)


@pytest.mark.parametrize("weight", [-0.5, math.inf, math.nan])
def test_a_weight_that_is_negative_or_not_finite_is_refused(weight):
    with pytest.raises(UserError, match=r"weight of forward_kl"):
        WeightedSum([(1.0, HardLabel()), (weight, ForwardKL(1.0))])


def test_two_terms_of_one_name_are_refused():
    with pytest.raises(UserError, match="2 terms named forward_kl"):
        WeightedSum([(1.0, ForwardKL(1.0)), (1.0, HardLabel()), (1.0, ForwardKL(2.0))])


@pytest.mark.parametrize("alpha", [-0.1, 1.1, math.inf, math.nan])
def test_an_alpha_outside_the_unit_interval_is_refused(alpha):
    with pytest.raises(UserError, match="alpha"):
        mixture(alpha, ForwardKL(1.0))


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_a_label_smoothing_outside_its_interval_is_refused(alpha):
    with pytest.raises(UserError, match="label_smoothing"):
        mixture(alpha, ForwardKL(1.0), label_smoothing=1.0)


def test_the_total_weights_each_sum_and_divides_it_by_the_count_of_its_unit():
    terms = [
        LossTerm("hard_label", torch.tensor(6.0), Unit.TARGETS, weight=0.5),
        LossTerm("forward_kl", torch.tensor(8.0), Unit.POSITIONS, weight=3.0),
    ]
    assert total(terms, GlobalCounts(targets=2, positions=4)) == 0.5 * 6 / 2 + 3 * 8 / 4


@settings(deadline=None, max_examples=30)
@given(cuts=st.lists(st.integers(0, NUM_ROWS), max_size=4).map(sorted))
def test_the_totals_of_uneven_parts_add_up_to_the_loss_and_gradient_of_the_whole_batch(cuts):
    student, teacher, targets = random_batch()
    objective = mixture(0.3, ForwardKL(2.0), label_smoothing=0.1)
    counts = GlobalCounts(targets=6, positions=NUM_ROWS)
    whole = total(objective(Signal(student), Signal(teacher), targets), counts)
    (whole_gradient,) = torch.autograd.grad(whole, student)

    edges = [0, *cuts, NUM_ROWS]
    added = torch.zeros((), dtype=torch.float64)
    for start, stop in pairwise(edges):
        part = slice(start, stop)
        part_targets = Targets(targets.labels[part], targets.counted[part])
        loss = total(objective(Signal(student[part]), Signal(teacher[part]), part_targets), counts)
        loss.backward()  # accumulates in `student.grad`, as micro-batches do
        added += loss.detach()
    torch.testing.assert_close(added, whole.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(student.grad, whole_gradient, rtol=1e-12, atol=1e-16)


def test_a_step_without_a_label_divides_by_one_and_not_by_zero():
    student, teacher, targets = random_batch()
    unlabelled = Targets(torch.full_like(targets.labels, IGNORED_LABEL), targets.counted)
    loss = total(
        mixture(1.0, ForwardKL(1.0))(Signal(student), Signal(teacher), unlabelled), GlobalCounts(targets=0, positions=9)
    )
    assert loss == 0
    assert (torch.autograd.grad(loss, student)[0] == 0).all()
