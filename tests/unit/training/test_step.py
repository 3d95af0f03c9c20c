"""The gradient of a step is that of the whole batch, however it is cut, and nothing else learns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedModel

from accel_kd.data.examples import Examples
from accel_kd.data.loaders import TrainingLoader
from accel_kd.data.preprocessing import TokenisedSplit, tokenise_split
from accel_kd.engines import start_engine
from accel_kd.models.loading import Checkpoint, input_names, load_classifier
from accel_kd.models.student import from_teacher_layers
from accel_kd.objectives import ForwardKL, HardLabel, LogitMSE, WeightedSum, mixture
from accel_kd.signals import IGNORED_LABEL, GlobalCounts, StepBatches
from accel_kd.tasks.sequence_classification import SequenceClassification
from accel_kd.teachers.streaming import StreamingTeacher
from accel_kd.training.optimizer import learning_rate_schedule
from accel_kd.training.step import EagerStep
from tests.support.tiny import LABELS, rows, tokenizer

LEARNING_RATE = 0.5
ALPHA, TEMPERATURE = 0.3, 3.0


@pytest.fixture
def student(teacher: PreTrainedModel) -> PreTrainedModel:
    """Two of the teacher's layers, disturbed so that its head agrees with nothing."""
    student = from_teacher_layers(teacher, LABELS, layers=2, dropout=0.0)
    with torch.no_grad():
        student.classifier.weight.add_(torch.randn(student.classifier.weight.shape))
    return student


def split_of(model: PreTrainedModel, size: int, unlabelled: Sequence[int] = ()) -> TokenisedSplit:
    some = rows(size, seed=3)
    labels = np.array([LABELS.index(row["label"]) for row in some])
    labels[list(unlabelled)] = IGNORED_LABEL
    examples = Examples([f"{n:03}" for n in range(size)], [row["text"] for row in some], None, labels)
    return tokenise_split(examples, (tokenizer(), input_names(model)), None, 32)


def step_of(
    accelerator: Accelerator,
    student: PreTrainedModel,
    teacher: PreTrainedModel | None,
    *,
    objective: WeightedSum | None = None,
    columns: Sequence[int] | None = None,
    max_grad_norm: float | None = None,
) -> EagerStep:
    """Plain gradient descent: unlike Adam it does not hide a constant factor."""
    raw_optimizer = torch.optim.SGD(student.parameters(), lr=LEARNING_RATE)
    schedule = learning_rate_schedule(raw_optimizer, "constant", 10, 0.0)
    engine = start_engine(accelerator, student, raw_optimizer, max_grad_norm)
    task = SequenceClassification(LABELS)
    source = None if teacher is None else StreamingTeacher(teacher, task, accelerator.device, columns)
    loss = mixture(ALPHA, ForwardKL(TEMPERATURE)) if objective is None else objective
    return EagerStep(accelerator, engine, schedule, task, loss, source)


def weights(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def gradient_of(student: PreTrainedModel, step: EagerStep, batches: StepBatches) -> tuple[dict[str, Tensor], float]:
    """What one step of plain gradient descent moved, as a gradient, and the loss that the step told."""
    before = weights(student)
    losses, _ = step(batches)
    after = weights(student)
    gradient = {name: (before[name] - after[name]) / LEARNING_RATE for name in before}
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            parameter.copy_(before[name])
    return gradient, float(losses["loss"])


def plain_gradient(
    student: PreTrainedModel, teacher: PreTrainedModel, split: TokenisedSplit, row_numbers: Sequence[int]
) -> tuple[dict[str, Tensor], float]:
    """alpha * mean CE over the labelled rows + (1 - alpha) * T**2 * mean KL over all rows, one text at a time."""
    student, teacher = student.double().train(), teacher.double().eval()
    cross_entropies, divergences = [], []
    for row in row_numbers:
        inputs = split.batch(np.array([row])).inputs
        q = torch.softmax(student(**inputs).logits[0], dim=0)
        soft_q = torch.softmax(student(**inputs).logits[0] / TEMPERATURE, dim=0)
        soft_p = torch.softmax(teacher(**inputs).logits[0].detach() / TEMPERATURE, dim=0)
        divergences.append((soft_p * (soft_p / soft_q).log()).sum())
        if split.labels[row] != IGNORED_LABEL:
            cross_entropies.append(-q[int(split.labels[row])].log())
    loss = (1 - ALPHA) * TEMPERATURE**2 * torch.stack(divergences).mean()
    if cross_entropies:
        loss = loss + ALPHA * torch.stack(cross_entropies).mean()
    named = dict(student.named_parameters())
    gradients = torch.autograd.grad(loss, list(named.values()))
    student.float(), teacher.float()
    return {name: gradient.float() for name, gradient in zip(named, gradients, strict=True)}, loss.item()


def assert_close(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    largest = max(float(tensor.abs().max()) for tensor in other.values())
    assert largest > 1e-3, "a gradient worth comparing"
    for name, tensor in other.items():
        torch.testing.assert_close(
            one[name], tensor, rtol=1e-3, atol=3e-6 * max(1.0, largest), msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("unlabelled", [(), (0, 3, 4), tuple(range(1, 13))], ids=["all", "some", "one"])
@pytest.mark.parametrize(("size", "accumulation"), [(12, 1), (12, 2), (12, 4), (13, 4), (7, 2), (3, 4)])
def test_the_gradient_is_that_of_the_whole_batch_however_it_is_cut(
    accelerator: Accelerator,
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    size: int,
    accumulation: int,
    unlabelled: tuple[int, ...],
) -> None:
    """3 rows in 4 micro-batches leave one that only fills; 13 and 7 leave uneven ones."""
    split = split_of(student, size, [row for row in unlabelled if row < size])
    expected, expected_loss = plain_gradient(student, teacher, split, range(size))
    step = step_of(accelerator, student, teacher)
    (batches,) = TrainingLoader(split, batch_size=16, accumulation=accumulation).epoch(0)
    gradient, loss = gradient_of(student, step, batches)
    assert_close(gradient, expected)
    assert loss == pytest.approx(expected_loss, rel=1e-5)


def test_a_ragged_last_batch_weighs_each_of_its_examples_by_its_own_count(
    accelerator: Accelerator, student: PreTrainedModel, teacher: PreTrainedModel
) -> None:
    split = split_of(student, 21, unlabelled=[2, 11])
    step = step_of(accelerator, student, teacher)
    loader = TrainingLoader(split, batch_size=8, accumulation=2)
    sizes = []
    for row_numbers, batches in zip(loader.global_batches(0), list(loader.epoch(0)), strict=True):
        expected, expected_loss = plain_gradient(student, teacher, split, row_numbers.tolist())
        gradient, loss = gradient_of(student, step, batches)
        assert_close(gradient, expected)
        assert loss == pytest.approx(expected_loss, rel=1e-5)
        sizes.append(len(row_numbers))
    assert sorted(sizes) == [5, 8, 8]


def test_rows_without_a_label_enter_the_divergence_alone(
    accelerator: Accelerator, student: PreTrainedModel, teacher: PreTrainedModel
) -> None:
    (batches,) = TrainingLoader(split_of(student, 6, unlabelled=range(6)), batch_size=8).epoch(0)
    losses, _ = step_of(accelerator, student, teacher)(batches)
    assert float(losses["loss_hard_label"]) == 0.0
    assert float(losses["loss"]) == pytest.approx((1 - ALPHA) * float(losses["loss_forward_kl"]), rel=1e-6)
    assert float(losses["loss_forward_kl"]) > 0


def test_the_terms_that_are_told_are_means_over_what_they_count(
    accelerator: Accelerator, student: PreTrainedModel, teacher: PreTrainedModel
) -> None:
    split = split_of(student, 11, unlabelled=[1, 2, 8])
    inputs = split.batch(np.arange(11)).inputs
    with torch.no_grad():
        student_logits, teacher_logits = student.eval()(**inputs).logits, teacher.eval()(**inputs).logits
    labelled = split.labels != IGNORED_LABEL
    cross_entropy = torch.nn.functional.cross_entropy(
        student_logits[labelled], torch.from_numpy(split.labels[labelled])
    )
    squares = (student_logits - teacher_logits).square().mean(dim=1).mean()
    step = step_of(accelerator, student, teacher, objective=mixture(0.5, LogitMSE()))
    (batches,) = TrainingLoader(split, batch_size=16, accumulation=4).epoch(0)
    losses, norm = step(batches)
    assert float(losses["loss_hard_label"]) == pytest.approx(float(cross_entropy), rel=1e-5)
    assert float(losses["loss_logit_mse"]) == pytest.approx(float(squares), rel=1e-5)
    assert float(losses["loss"]) == pytest.approx(0.5 * float(cross_entropy) + 0.5 * float(squares), rel=1e-5)
    assert float(norm) > 0 and not any(loss.requires_grad for loss in losses.values())


def test_the_teacher_gets_no_gradient_no_dropout_and_stays_as_it_is(
    accelerator: Accelerator, student: PreTrainedModel, teacher: PreTrainedModel
) -> None:
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    step = step_of(accelerator, student, teacher)
    told = []
    for _ in range(2):
        for batches in TrainingLoader(split_of(student, 8), batch_size=8).epoch(0):
            told.append(gradient_of(student, step, batches)[1])
    assert told[0] == told[1], "a teacher that drops units would tell another loss"
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in teacher.parameters())
    assert not teacher.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())


def test_the_teachers_columns_are_put_into_the_datas_order(
    accelerator: Accelerator, student: PreTrainedModel, teacher: PreTrainedModel
) -> None:
    split = split_of(student, 5)
    columns = [4, 2, 0, 1, 3]
    source = StreamingTeacher(teacher, SequenceClassification(LABELS), accelerator.device, columns)
    batch = split.batch(np.arange(5))
    with torch.no_grad():
        expected = teacher(**batch.inputs).logits[:, columns]
    assert torch.equal(source.signal(batch).logits, expected)


def test_a_teacher_in_half_precision_gives_its_signal_in_full(accelerator: Accelerator, tiny_teacher: Path) -> None:
    half = load_classifier(Checkpoint(str(tiny_teacher), "teacher.model"), dtype=torch.bfloat16)
    source = StreamingTeacher(half, SequenceClassification(LABELS), accelerator.device)
    assert source.signal(split_of(half, 3).batch(np.arange(3))).logits.dtype == torch.float32


def test_a_long_gradient_is_shortened_and_its_length_before_is_told(
    accelerator: Accelerator, student: PreTrainedModel, teacher: PreTrainedModel
) -> None:
    split = split_of(student, 9)
    (batches,) = TrainingLoader(split, batch_size=16, accumulation=2).epoch(0)
    whole, _ = gradient_of(student, step_of(accelerator, student, teacher), batches)
    length = float(torch.stack([tensor.square().sum() for tensor in whole.values()]).sum().sqrt())
    step = step_of(accelerator, student, teacher, max_grad_norm=length / 4)
    before = weights(student)
    _, norm = step(batches)
    assert float(norm) == pytest.approx(length, rel=1e-3)
    for name, parameter in student.named_parameters():
        moved = (before[name] - parameter.detach()) / LEARNING_RATE
        torch.testing.assert_close(moved, whole[name] / 4, rtol=1e-2, atol=1e-5 * max(1.0, length))


def test_no_gradient_is_left_over_for_the_next_step(
    accelerator: Accelerator, student: PreTrainedModel, teacher: PreTrainedModel
) -> None:
    step = step_of(accelerator, student, teacher)
    (batches,) = TrainingLoader(split_of(student, 6), batch_size=8, accumulation=2).epoch(0)
    first, _ = gradient_of(student, step, batches)
    second, _ = gradient_of(student, step, batches)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(parameter.grad is None for parameter in student.parameters())


def test_the_learning_rate_advances_once_a_step_and_not_once_a_micro_batch(
    accelerator: Accelerator, student: PreTrainedModel
) -> None:
    raw_optimizer = torch.optim.SGD(student.parameters(), lr=1.0)
    schedule = learning_rate_schedule(raw_optimizer, "linear", 4, 0.0)
    engine = start_engine(accelerator, student, raw_optimizer, None)
    alone = mixture(1.0, ForwardKL(1.0))
    task = SequenceClassification(LABELS)
    step = EagerStep(accelerator, engine, schedule, task, alone, None)
    rates = []
    for batches in TrainingLoader(split_of(student, 12), batch_size=4, accumulation=4).epoch(0):
        rates.append(step.learning_rate)
        step(batches)
    assert [*rates, step.learning_rate] == [1.0, 0.75, 0.5, 0.25]


def test_the_student_is_in_training_mode_during_a_step(accelerator: Accelerator, student: PreTrainedModel) -> None:
    student.eval()
    batches = StepBatches(0, [split_of(student, 2).batch(np.arange(2))], GlobalCounts(2, 2))
    step_of(accelerator, student, None, objective=mixture(1.0, ForwardKL(1.0)))(batches)
    assert student.training


def test_the_norm_of_the_gradient_is_told_with_and_without_clipping(
    accelerator: Accelerator, student: PreTrainedModel, teacher: PreTrainedModel
) -> None:
    split = split_of(student, 11)
    before = weights(student)
    norms = []
    for max_grad_norm in (None, 1e9):
        student.load_state_dict(before, strict=False)
        step = step_of(accelerator, student, teacher, max_grad_norm=max_grad_norm)
        (batches,) = TrainingLoader(split, batch_size=16).epoch(0)
        norms.append(float(step(batches)[1]))
    moved = torch.cat([(weights(student)[name] - before[name]).flatten() for name in before])
    assert norms == [pytest.approx(float(moved.norm()) / LEARNING_RATE, rel=1e-4)] * 2


@pytest.mark.parametrize("fused", [False, True])
def test_a_gradient_that_is_not_finite_changes_neither_weights_nor_what_the_optimizer_remembers(
    accelerator: Accelerator, student: PreTrainedModel, fused: bool
) -> None:
    raw_optimizer = torch.optim.AdamW(student.parameters(), lr=0.1, fused=fused)
    schedule = learning_rate_schedule(raw_optimizer, "constant", 10, 0.0)
    engine = start_engine(accelerator, student, raw_optimizer, 1.0)
    labels_only, task = WeightedSum([(1.0, HardLabel(0.0))]), SequenceClassification(LABELS)
    step = EagerStep(accelerator, engine, schedule, task, labels_only, None)
    (batches,) = TrainingLoader(split_of(student, 11), batch_size=16).epoch(0)
    step(batches)

    def everything() -> list[Tensor]:
        states = [value.clone() for state in raw_optimizer.state.values() for value in state.values()]
        return [*weights(student).values(), *states]

    before = everything()
    spoilt = student.classifier.register_forward_hook(lambda module, inputs, output: output * float("nan"))
    _, norm = step(batches)
    assert not torch.isfinite(norm)
    assert all(map(torch.equal, everything(), before))
    spoilt.remove()
    _, norm = step(batches)
    assert torch.isfinite(norm) and not all(map(torch.equal, everything(), before))
    assert schedule.last_epoch == 3


def test_a_loss_that_is_not_finite_has_no_finite_gradient(
    accelerator: Accelerator, student: PreTrainedModel, teacher: PreTrainedModel
) -> None:
    """A divergence drops classes that the teacher rules out, and with them what a NaN of the teacher's would do."""
    torch.nn.init.constant_(teacher.classifier.bias, float("nan"))
    step = step_of(accelerator, student, teacher)
    before = weights(student)
    (batches,) = TrainingLoader(split_of(student, 11), batch_size=16).epoch(0)
    losses, norm = step(batches)
    assert not torch.isfinite(losses["loss"]) and not torch.isfinite(norm)
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(student).items())
