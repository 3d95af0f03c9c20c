"""What is done where the teacher is wrong, against plain float64 lines, in value and gradient."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from accel_kd.errors import UserError
from accel_kd.objectives import (
    ForwardKL,
    HardLabel,
    JensenShannon,
    LogitMSE,
    ReverseKL,
    WeightedSum,
    mixture,
    total,
)
from accel_kd.objectives.wrong_teacher import is_wrong, with_corrected_answers, without_wrong_positions
from accel_kd.signals import IGNORED_LABEL, GlobalCounts, Signal, SignalNeeds, SparseSignal, Targets

NUM_ROWS, NUM_CLASSES = 8, 5
COMPARISONS = [ForwardKL(2.0), ReverseKL(2.0), JensenShannon(0.3, 2.0), LogitMSE()]
BATCHES = ["some wrong", "all wrong", "none wrong", "no label"]

every_comparison = pytest.mark.parametrize("comparison", COMPARISONS, ids=str)
every_batch = pytest.mark.parametrize("batch", BATCHES)
every_treatment = pytest.mark.parametrize("on_wrong_teacher", ["skip", "correct"])


def random_rows(batch="some wrong", seed=0):
    """Student logits, teacher logits and labels; the first and the sixth row have no label."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = 2 * torch.randn(2, NUM_ROWS, NUM_CLASSES, generator=generator, dtype=torch.float64)
    answers = teacher.argmax(dim=-1)
    shift = {"some wrong": torch.arange(NUM_ROWS) % 2, "all wrong": 1, "none wrong": 0, "no label": 1}[batch]
    labels = (answers + shift) % NUM_CLASSES
    labels[slice(None) if batch == "no label" else [0, 5]] = IGNORED_LABEL
    return student, teacher, labels


def all_counted(labels):
    return Targets(labels, torch.ones(len(labels), dtype=torch.bool))


def most_probable(logits, num_kept):
    log_probs, ids = torch.log_softmax(logits, dim=-1).sort(dim=-1, descending=True)
    log_tails = {2.0: torch.log_softmax(logits / 2, dim=-1).scatter(-1, ids[:, :num_kept], -math.inf).logsumexp(-1)}
    return SparseSignal(ids[:, :num_kept], log_probs[:, :num_kept], log_tails, logits.shape[-1])


def wrong_rows(teacher, labels):
    """One row at a time."""
    rows = []
    for row, (logits, label) in enumerate(zip(teacher.tolist(), labels.tolist(), strict=True)):
        if label != IGNORED_LABEL and logits[label] != max(logits):
            rows.append(row)
    return rows


def loss_and_gradient(objective, student, teacher, targets, counts=None):
    student = student.detach().clone().requires_grad_()
    teacher = Signal(teacher) if isinstance(teacher, torch.Tensor) else teacher
    terms = objective(Signal(student), teacher, targets)
    loss = total(terms, counts or GlobalCounts(targets=6, positions=NUM_ROWS))
    (gradient,) = torch.autograd.grad(loss, student)
    return loss.detach(), gradient


def plain_loss(comparison, alpha, student, teacher, labels, left_out=()):
    """`alpha` times the mean cross-entropy of 6 labels + `1 - alpha` times a sum over rows divided by all 8 of them."""

    def softmax(logits, temperature=1.0):
        return torch.exp(logits / temperature) / torch.exp(logits / temperature).sum()

    def kl(left, right):
        return (left * torch.log(left / right)).sum()

    loss = torch.zeros((), dtype=torch.float64)
    for row, label in enumerate(labels.tolist()):
        if label != IGNORED_LABEL:
            loss = loss - alpha * torch.log(softmax(student[row])[label]) / 6
        if row in left_out:
            continue
        p, q = softmax(teacher[row], 2.0), softmax(student[row], 2.0)
        m = 0.3 * p + 0.7 * q
        value = {
            "forward_kl": 4 * kl(p, q),
            "reverse_kl": 4 * kl(q, p),
            "jensen_shannon": 4 * (0.3 * kl(p, m) + 0.7 * kl(q, m)),
            "logit_mse": ((student[row] - teacher[row]) ** 2).sum() / NUM_CLASSES,
        }[comparison.name]
        loss = loss + (1 - alpha) * value / NUM_ROWS
    return loss


@every_batch
@pytest.mark.parametrize("alpha", [0.0, 0.3])
@every_comparison
def test_to_skip_leaves_wrong_rows_out_of_the_comparison_alone_and_keeps_the_divisor(comparison, alpha, batch):
    student, teacher, labels = random_rows(batch)
    objective = mixture(alpha, comparison, on_wrong_teacher="skip")
    loss, gradient = loss_and_gradient(objective, student, teacher, all_counted(labels))
    student.requires_grad_()
    expected = plain_loss(comparison, alpha, student, teacher, labels, left_out=wrong_rows(teacher, labels))
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-12, atol=0)
    if expected.requires_grad:
        torch.testing.assert_close(gradient, torch.autograd.grad(expected, student)[0], rtol=1e-10, atol=1e-14)


@every_batch
@pytest.mark.parametrize("alpha", [0.0, 0.3])
@every_comparison
def test_to_correct_exchanges_the_logits_of_label_and_answer(comparison, alpha, batch):
    student, teacher, labels = random_rows(batch)
    objective = mixture(alpha, comparison, on_wrong_teacher="correct")
    loss, gradient = loss_and_gradient(objective, student, teacher, all_counted(labels))
    student.requires_grad_()
    corrected = teacher.clone()
    for row in wrong_rows(teacher, labels):
        answer, label = teacher[row].argmax(), labels[row]
        corrected[row, answer], corrected[row, label] = teacher[row, label], teacher[row, answer]
    expected = plain_loss(comparison, alpha, student, corrected, labels)
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, student)[0], rtol=1e-10, atol=1e-14)


def test_the_batches_of_these_tests_are_what_they_are_called():
    num_wrong = {batch: len(wrong_rows(*random_rows(batch)[1:])) for batch in BATCHES}
    assert num_wrong == {"some wrong": 3, "all wrong": 6, "none wrong": 0, "no label": 0}


@pytest.mark.parametrize("num_kept", [1, 2, NUM_CLASSES])
@every_batch
def test_a_sparse_teacher_is_wrong_where_the_dense_one_is(batch, num_kept):
    _, teacher, labels = random_rows(batch)
    expected = torch.tensor([row in wrong_rows(teacher, labels) for row in range(NUM_ROWS)])
    assert torch.equal(is_wrong(Signal(teacher), all_counted(labels)), expected)
    assert torch.equal(is_wrong(most_probable(teacher, num_kept), all_counted(labels)), expected)


@pytest.mark.parametrize("comparison", [ForwardKL(2.0), ReverseKL(2.0), JensenShannon(0.3, 2.0)], ids=str)
def test_to_skip_with_a_sparse_teacher_leaves_the_same_rows_out(comparison):
    student, teacher, labels = random_rows()
    signal = most_probable(teacher, 2)
    skipped = loss_and_gradient(mixture(0.3, comparison, on_wrong_teacher="skip"), student, signal, all_counted(labels))
    cross_entropy = loss_and_gradient(WeightedSum([(0.3, HardLabel())]), student, None, all_counted(labels))
    right = [row for row in range(NUM_ROWS) if row not in wrong_rows(teacher, labels)]
    compared = loss_and_gradient(
        WeightedSum([(0.7, comparison)]), student[right], most_probable(teacher[right], 2), all_counted(labels[right])
    )
    torch.testing.assert_close(skipped[0], cross_entropy[0] + compared[0], rtol=1e-12, atol=0)
    expected = cross_entropy[1].clone()
    expected[right] += compared[1]
    torch.testing.assert_close(skipped[1], expected, rtol=1e-12, atol=1e-14)


@every_treatment
@pytest.mark.parametrize("batch", ["none wrong", "no label"])
@every_comparison
def test_where_the_teacher_is_never_wrong_nothing_changes_bit_for_bit(comparison, batch, on_wrong_teacher):
    student, teacher, labels = random_rows(batch)
    kept = loss_and_gradient(mixture(0.3, comparison), student, teacher, all_counted(labels))
    treated = loss_and_gradient(
        mixture(0.3, comparison, on_wrong_teacher=on_wrong_teacher), student, teacher, all_counted(labels)
    )
    assert torch.equal(treated[0], kept[0]) and torch.equal(treated[1], kept[1])


@every_treatment
def test_the_hard_labels_are_learnt_from_every_row_all_the_same(on_wrong_teacher):
    student, teacher, labels = random_rows("all wrong")
    terms = mixture(0.3, LogitMSE(), 0.1, on_wrong_teacher)(Signal(student), Signal(teacher), all_counted(labels))
    assert torch.equal(terms[0].sum, HardLabel(0.1)(Signal(student), None, all_counted(labels)).sum)


@every_comparison
def test_a_batch_in_which_every_row_is_skipped_has_a_term_and_a_gradient_of_zero(comparison):
    student, teacher, _ = random_rows()
    labels = (teacher.argmax(dim=-1) + 1) % NUM_CLASSES
    objective = mixture(0.0, comparison, on_wrong_teacher="skip")
    loss, gradient = loss_and_gradient(objective, student, teacher, all_counted(labels))
    assert loss == 0 and gradient.shape == student.shape and (gradient == 0).all()


def test_a_label_that_shares_the_highest_score_is_right():
    teacher = torch.tensor([[1.0, 3.0, 3.0, 0.0, 2.0], [3.0, 3.0, 3.0, 0.0, 2.0]])
    targets = all_counted(torch.tensor([2, 4]))
    assert is_wrong(Signal(teacher), targets).tolist() == [False, True]
    assert is_wrong(most_probable(teacher, 3), targets).tolist() == [False, True]
    corrected = with_corrected_answers(Signal(teacher), targets).logits
    assert torch.equal(corrected[0], teacher[0])
    assert corrected[1, 4] == 3.0 and sorted(corrected[1].tolist()) == sorted(teacher[1].tolist())


def test_a_corrected_teacher_answers_every_label_and_has_the_probabilities_it_had():
    _, teacher, labels = random_rows("all wrong")
    corrected = with_corrected_answers(Signal(teacher), all_counted(labels)).logits
    has_label = labels != IGNORED_LABEL
    assert torch.equal(corrected.argmax(dim=-1)[has_label], labels[has_label])
    assert torch.equal(corrected.sort(dim=-1).values, teacher.sort(dim=-1).values)
    assert torch.equal(corrected[~has_label], teacher[~has_label])


@every_treatment
@pytest.mark.parametrize("filler", [0.0, math.nan, math.inf, -math.inf])
def test_rows_that_do_not_count_change_nothing_whatever_they_hold(on_wrong_teacher, filler):
    student, teacher, labels = random_rows()
    counted = torch.tensor([True, False, True, True, False, True, True, True])
    objective = mixture(0.3, ForwardKL(2.0), on_wrong_teacher=on_wrong_teacher)
    alone = loss_and_gradient(objective, student[counted], teacher[counted], all_counted(labels[counted]))
    student[~counted], teacher[~counted], labels[~counted] = filler, filler, 10**9
    loss, gradient = loss_and_gradient(objective, student, teacher, Targets(labels, counted))
    torch.testing.assert_close(loss, alone[0], rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient[counted], alone[1], rtol=1e-12, atol=1e-14)
    assert (gradient[~counted] == 0).all()


def test_a_row_that_does_not_count_is_not_made_to_count():
    _, teacher, labels = random_rows()
    counted = torch.tensor([False, True] * 4)
    compared = without_wrong_positions(Signal(teacher), Targets(labels, counted))
    assert not compared.counted[~counted].any()
    assert torch.equal(compared.labels, labels)


@pytest.mark.parametrize("comparison", [ForwardKL(2.0), LogitMSE()], ids=str)
@every_treatment
def test_a_teacher_that_is_not_a_number_is_not_hidden(on_wrong_teacher, comparison):
    student, teacher, labels = random_rows("all wrong")
    teacher[1, 2] = math.nan
    objective = mixture(0.3, comparison, on_wrong_teacher=on_wrong_teacher)
    assert loss_and_gradient(objective, student, teacher, all_counted(labels))[0].isnan()


@every_treatment
@settings(deadline=None, max_examples=20)
@given(cuts=st.lists(st.integers(0, NUM_ROWS), max_size=4).map(sorted))
def test_the_totals_of_uneven_parts_add_up_to_the_loss_and_gradient_of_the_whole_batch(on_wrong_teacher, cuts):
    student, teacher, labels = random_rows()
    objective = mixture(0.3, ForwardKL(2.0), on_wrong_teacher=on_wrong_teacher)
    whole_loss, whole_gradient = loss_and_gradient(objective, student, teacher, all_counted(labels))
    parts = [
        loss_and_gradient(objective, student[start:stop], teacher[start:stop], all_counted(labels[start:stop]))
        for start, stop in pairwise([0, *cuts, NUM_ROWS])
    ]
    torch.testing.assert_close(sum(loss for loss, _ in parts), whole_loss, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(torch.cat([gradient for _, gradient in parts]), whole_gradient, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@every_treatment
def test_half_types_are_raised_to_float32_under_autocast_too(on_wrong_teacher, dtype):
    student, teacher, labels = random_rows()
    student, teacher = student.to(dtype), teacher.float()
    # One term alone: the gradients of two would be added up in the half type.
    objective = mixture(0.0, ForwardKL(2.0), on_wrong_teacher=on_wrong_teacher)
    raised = loss_and_gradient(objective, student.float(), teacher, all_counted(labels))
    with torch.autocast("cpu", torch.bfloat16):
        loss, gradient = loss_and_gradient(objective, student, teacher, all_counted(labels))
    assert loss.dtype is torch.float32
    assert torch.equal(loss, raised[0]) and torch.equal(gradient, raised[1].to(dtype))


@every_treatment
def test_no_value_on_the_device_is_asked_for(on_wrong_teacher):
    """Under `vmap` a tensor's values are out of reach, so that `.item()`, `if tensor` and boolean indices all raise."""
    objective = mixture(0.3, ForwardKL(2.0), on_wrong_teacher=on_wrong_teacher)
    batches = [random_rows(seed=seed) for seed in range(3)]

    def batch_loss(student, teacher, labels):
        return total(objective(Signal(student), Signal(teacher), all_counted(labels)), GlobalCounts(6, NUM_ROWS))

    losses = torch.func.vmap(batch_loss)(*(torch.stack(tensors) for tensors in zip(*batches, strict=True)))
    each = torch.stack([batch_loss(*rows) for rows in batches])
    torch.testing.assert_close(losses, each, rtol=1e-12, atol=0)


def test_what_is_done_where_the_teacher_is_wrong_adds_to_what_is_needed():
    def needs(on_wrong_teacher, alpha=0.3):
        return mixture(alpha, ForwardKL(2.0), on_wrong_teacher=on_wrong_teacher).needs

    temperatures = frozenset({2.0})
    assert needs("keep") == SignalNeeds(logits=True, temperatures=temperatures)
    assert needs("skip") == SignalNeeds(logits=True, exact=True, temperatures=temperatures)
    assert needs("correct") == SignalNeeds(logits=True, every_logit=True, temperatures=temperatures)


def test_what_is_done_where_the_teacher_is_wrong_is_said_in_the_representation():
    assert "on_wrong_teacher='skip'" in repr(mixture(0.3, ForwardKL(2.0), on_wrong_teacher="skip"))


@every_treatment
def test_a_loss_that_compares_with_no_teacher_is_refused(on_wrong_teacher):
    with pytest.raises(UserError, match=f"on_wrong_teacher is {on_wrong_teacher}.*no term.*keep"):
        mixture(1.0, ForwardKL(2.0), on_wrong_teacher=on_wrong_teacher)
    with pytest.raises(UserError, match=f"on_wrong_teacher is {on_wrong_teacher}.*no term.*keep"):
        WeightedSum([(1.0, HardLabel()), (0.0, LogitMSE())], on_wrong_teacher)


def test_an_unknown_choice_is_refused_with_those_there_are():
    with pytest.raises(UserError, match="on_wrong_teacher is ignore: give keep, skip or correct"):
        mixture(0.3, ForwardKL(2.0), on_wrong_teacher="ignore")


@every_treatment
def test_models_with_different_numbers_of_classes_are_refused_before_a_label_is_looked_up(on_wrong_teacher):
    student, teacher, labels = random_rows()
    labels[1] = NUM_CLASSES - 1  # no class of the narrower teacher
    objective = mixture(0.3, ForwardKL(2.0), on_wrong_teacher=on_wrong_teacher)
    with pytest.raises(UserError, match=r"\(8, 5\).*\(8, 4\)"):
        loss_and_gradient(objective, student, teacher[:, :4], all_counted(labels))


def test_some_of_the_logits_cannot_be_corrected():
    student, teacher, labels = random_rows()
    objective = mixture(0.3, ForwardKL(2.0), on_wrong_teacher="correct")
    with pytest.raises(AssertionError, match="each of its logits"):
        loss_and_gradient(objective, student, most_probable(teacher, NUM_CLASSES), all_counted(labels))
