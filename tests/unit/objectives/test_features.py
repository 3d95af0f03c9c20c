"""Distances of hidden states against their formulas in plain float64, over tokens of texts of unlike length."""

import math
from itertools import pairwise

import pytest
import torch

from accel_kd.objectives import HardLabel, HiddenStates, LogitMSE, WeightedSum, total
from accel_kd.signals import IGNORED_LABEL, GlobalCounts, Signal, SparseSignal, Targets, Unit

LENGTHS = [4, 1, 6, 3, 5]
WIDTH, NUM_CLASSES = 7, 3
PAIRS = ((0, 2), (1, 2), (-1, -1))

every_distance = pytest.mark.parametrize("distance", ["mse", "cosine"])


def random_batch(dtype=torch.float64):
    """Logits and hidden states of both models, and the tokens that count."""
    generator = torch.Generator().manual_seed(0)
    shape = (len(LENGTHS), max(LENGTHS), WIDTH)

    def states(layers):
        draws = {layer: 2 * torch.randn(shape, generator=generator, dtype=torch.float64) for layer in layers}
        return {layer: draw.to(dtype) for layer, draw in draws.items()}

    student = {layer: each.requires_grad_() for layer, each in states({s for s, _ in PAIRS}).items()}
    teacher = states({t for _, t in PAIRS})
    logits = torch.randn(len(LENGTHS), NUM_CLASSES, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    tokens = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS).unsqueeze(-1)
    return Signal(logits, student), Signal(logits.detach().clone(), teacher), targets_of(tokens)


def targets_of(tokens):
    return Targets(torch.full((len(tokens),), IGNORED_LABEL), torch.ones(len(tokens), dtype=torch.bool), tokens)


def part_of(signal, rows, length=None):
    return Signal(signal.logits[rows], {n: states[rows, :length] for n, states in signal.hidden_states.items()})


def plain_sum(distance, student, teacher):
    """Token by token, pair by pair, in float64."""
    terms = []
    for ours, theirs in PAIRS:
        for row, length in enumerate(LENGTHS):
            for token in range(length):
                s = student.hidden_states[ours][row, token].double()
                t = teacher.hidden_states[theirs][row, token].double()
                if distance == "mse":
                    terms.append(sum((s[i] - t[i]) ** 2 for i in range(WIDTH)) / WIDTH)
                else:
                    terms.append(1 - (s * t).sum() / ((s * s).sum().sqrt() * (t * t).sum().sqrt()))
    return torch.stack(terms).sum()


def gradients(value, student):
    return torch.autograd.grad(value, list(student.hidden_states.values()), retain_graph=True)


@every_distance
def test_the_distance_equals_its_formula_in_value_and_gradient(distance):
    student, teacher, targets = random_batch()
    term = HiddenStates(PAIRS, distance)(student, teacher, targets)
    expected = plain_sum(distance, student, teacher)
    torch.testing.assert_close(term.sum, expected, rtol=1e-12, atol=0)
    for found, plain in zip(gradients(term.sum, student), gradients(expected, student), strict=True):
        torch.testing.assert_close(found, plain, rtol=1e-10, atol=1e-14)
    assert (term.name, term.unit, term.weight) == ("hidden_states", Unit.TOKENS, 1.0)


@every_distance
@pytest.mark.parametrize("filler", [50.0, math.nan, math.inf])
@pytest.mark.parametrize("side", ["student", "teacher", "both"])
def test_padding_changes_neither_value_nor_gradient_whatever_it_holds(distance, side, filler):
    student, teacher, targets = random_batch()
    objective = HiddenStates(PAIRS, distance)
    value = objective(student, teacher, targets).sum
    before = gradients(value, student)
    models = {"student": [student], "teacher": [teacher], "both": [student, teacher]}[side]
    with torch.no_grad():
        for states in (states for model in models for states in model.hidden_states.values()):
            states[~targets.tokens] = filler
    padded = objective(student, teacher, targets).sum
    assert torch.equal(padded, value)
    for found, expected in zip(gradients(padded, student), before, strict=True):
        assert torch.equal(found, expected) and (found[~targets.tokens] == 0).all()


@every_distance
def test_less_padding_and_smaller_parts_in_another_order_give_the_same_sum(distance):
    student, teacher, targets = random_batch()
    objective = HiddenStates(PAIRS, distance)
    whole = objective(student, teacher, targets).sum
    order = [3, 0, 4, 1, 2]
    parts = []
    for start, stop in pairwise([0, 2, 3, 5]):
        rows = torch.tensor(order[start:stop])
        length = max(LENGTHS[row] for row in order[start:stop])
        tokens = targets_of(targets.tokens[rows, :length])
        parts.append(objective(part_of(student, rows, length), part_of(teacher, rows, length), tokens).sum)
    torch.testing.assert_close(sum(parts), whole, rtol=1e-12, atol=0)
    for found, expected in zip(gradients(sum(parts), student), gradients(whole, student), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


@every_distance
def test_the_loss_is_the_mean_over_the_tokens_of_the_whole_batch(distance):
    student, teacher, targets = random_batch()
    terms = WeightedSum([(0.5, HiddenStates(PAIRS, distance))])(student, teacher, targets)
    tokens = sum(LENGTHS)
    expected = 0.5 * plain_sum(distance, student, teacher) / tokens
    counts = GlobalCounts(targets=0, positions=len(LENGTHS), tokens=tokens)
    torch.testing.assert_close(total(terms, counts), expected, rtol=1e-12, atol=0)
    with pytest.raises(AssertionError, match="tokens of this step were not counted"):
        total(terms, GlobalCounts(targets=0, positions=len(LENGTHS)))


@every_distance
def test_every_logit_has_a_gradient_and_it_is_zero_even_where_the_logits_are_not_finite(distance):
    student, teacher, targets = random_batch()
    with torch.no_grad():
        student.logits[0] = math.nan
    value = HiddenStates(PAIRS, distance)(student, teacher, targets).sum
    assert torch.isfinite(value)
    (gradient,) = torch.autograd.grad(value, student.logits)
    assert (gradient == 0).all()


@every_distance
def test_equal_states_have_no_distance_and_the_teacher_no_gradient(distance):
    student, _, targets = random_batch()
    teacher = Signal(student.logits, {n: states.detach().clone() for n, states in student.hidden_states.items()})
    for states in teacher.hidden_states.values():
        states.requires_grad_()
    value = HiddenStates(((0, 0), (-1, -1)), distance)(student, teacher, targets).sum
    torch.testing.assert_close(value, torch.zeros_like(value), rtol=0, atol=1e-12)
    value.backward()
    assert all(states.grad is None for states in teacher.hidden_states.values())


def test_the_length_of_a_state_matters_to_mse_and_not_to_the_cosine():
    student, teacher, targets = random_batch()
    longer = Signal(teacher.logits, {n: 3 * states for n, states in teacher.hidden_states.items()})
    value = {
        (distance, name): HiddenStates(PAIRS, distance)(student, model, targets).sum.item()
        for distance in ("mse", "cosine")
        for name, model in (("as it is", teacher), ("longer", longer))
    }
    assert value["cosine", "longer"] == pytest.approx(value["cosine", "as it is"], rel=1e-12)
    assert value["mse", "longer"] > 2 * value["mse", "as it is"]


@every_distance
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_are_raised_to_float32_before_anything_is_computed(distance, dtype):
    student, teacher, targets = random_batch(dtype)
    objective = HiddenStates(PAIRS, distance)
    value = objective(student, teacher, targets).sum

    def widened(signal):
        return Signal(signal.logits.float(), {n: states.float() for n, states in signal.hidden_states.items()})

    assert value.dtype is torch.float32
    assert torch.equal(value, objective(widened(student), widened(teacher), targets).sum)


@pytest.mark.parametrize("on_wrong_teacher", ["skip", "correct"])
def test_what_is_done_where_the_teacher_is_wrong_leaves_its_hidden_states_alone(on_wrong_teacher):
    student, teacher, targets = random_batch()
    teacher = Signal(teacher.logits.flip(-1), teacher.hidden_states)
    labels = Targets(teacher.logits.argmin(dim=-1), targets.counted, targets.tokens)
    terms = [(1.0, HardLabel()), (1.0, LogitMSE()), (1.0, HiddenStates(PAIRS))]
    plain, treated = (WeightedSum(terms, answer)(student, teacher, labels) for answer in ("keep", on_wrong_teacher))
    assert treated[1].sum != plain[1].sum
    assert torch.equal(treated[2].sum, plain[2].sum)


def test_what_is_missing_is_a_mistake_of_ours():
    student, teacher, targets = random_batch()
    objective = HiddenStates(PAIRS)
    sparse = SparseSignal(torch.zeros(5, 1, dtype=torch.int64), torch.zeros(5, 1), None, NUM_CLASSES)
    for theirs in (None, sparse, Signal(teacher.logits)):
        with pytest.raises(AssertionError, match="teacher"):
            objective(student, theirs, targets)
    with pytest.raises(AssertionError, match="student"):
        objective(Signal(student.logits), teacher, targets)
    with pytest.raises(AssertionError, match="tokens"):
        objective(student, teacher, Targets(targets.labels, targets.counted))
    wider = Signal(
        teacher.logits, {n: torch.cat([states, states], dim=-1) for n, states in teacher.hidden_states.items()}
    )
    with pytest.raises(AssertionError, match="14"):
        objective(student, wider, targets)
