"""A step that compares hidden states: its gradient, projections included, is that of all tokens of the whole batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import PreTrainedModel

from accel_kd.data.examples import Examples
from accel_kd.data.loaders import TrainingLoader
from accel_kd.data.preprocessing import TokenisedSplit, tokenise_split
from accel_kd.engines import start_engine
from accel_kd.models.loading import Checkpoint, input_names, load_classifier
from accel_kd.models.projected_student import ProjectedStudent, Projection
from accel_kd.objectives import HardLabel, HiddenStates, WeightedSum
from accel_kd.signals import StepBatches
from accel_kd.tasks.sequence_classification import SequenceClassification
from accel_kd.teachers.streaming import StreamingTeacher
from accel_kd.training.optimizer import learning_rate_schedule
from accel_kd.training.step import EagerStep
from tests.support.tiny import LABELS, rows, tokenizer, write_model

LEARNING_RATE = 0.5
PAIRS = ((0, 0), (1, 2), (-1, -1))
WEIGHT = 0.4


@pytest.fixture
def student(tmp_path: Path) -> ProjectedStudent:
    """Two layers of 16 units."""
    folder = write_model(tmp_path / "student", layers=2, width=16, dropout=0.0, seed=1)
    model = load_classifier(Checkpoint(str(folder), "student.model"))
    return ProjectedStudent(model, [Projection(layer, 16, 32) for layer, _ in PAIRS])


def split_of(model: PreTrainedModel, size: int) -> TokenisedSplit:
    some = rows(size, seed=3)
    labels = np.array([LABELS.index(row["label"]) for row in some])
    examples = Examples([f"{n:03}" for n in range(size)], [row["text"] for row in some], None, labels)
    return tokenise_split(examples, (tokenizer(), input_names(model)), None, 32)


def step_of(
    accelerator: Accelerator, student: nn.Module, teacher: PreTrainedModel, objective: WeightedSum
) -> EagerStep:
    """Plain gradient descent: unlike Adam it does not hide a constant factor."""
    raw_optimizer = torch.optim.SGD(student.parameters(), lr=LEARNING_RATE)
    schedule = learning_rate_schedule(raw_optimizer, "constant", 10, 0.0)
    engine = start_engine(accelerator, student, raw_optimizer, None)
    task = SequenceClassification(LABELS)
    layers = objective.needs.hidden_states
    source = StreamingTeacher(teacher, task, accelerator.device, hidden_states=layers)
    return EagerStep(accelerator, engine, schedule, task, objective, source)


def gradient_of(student: nn.Module, step: EagerStep, batches: StepBatches) -> tuple[dict[str, Tensor], float]:
    """What one step of plain gradient descent moved, as a gradient, and the loss that the step told."""
    before = {name: parameter.detach().clone() for name, parameter in student.named_parameters()}
    losses, _ = step(batches)
    after = dict(student.named_parameters())
    return {n: (before[n] - after[n].detach()) / LEARNING_RATE for n in before}, float(losses["loss"])


def plain_gradient(
    student: ProjectedStudent, teacher: PreTrainedModel, split: TokenisedSplit, distance: str
) -> tuple[dict[str, Tensor], float]:
    """Mean CE over the texts + WEIGHT * mean over all tokens of the distances, one text at a time, in float64."""
    student, teacher = student.double().train(), teacher.double().eval()
    cross_entropies, distances = [], []
    for row in range(len(split)):
        inputs = split.batch(np.array([row])).inputs
        ours = student.student(**inputs, output_hidden_states=True)
        theirs = teacher(**inputs, output_hidden_states=True).hidden_states
        cross_entropies.append(-torch.log_softmax(ours.logits[0], dim=0)[int(split.labels[row])])
        for projection, (of_student, of_teacher) in zip(student.projections, PAIRS, strict=True):
            for token in range(int(split.lengths[row])):
                s = projection.weight @ ours.hidden_states[of_student][0, token]
                t = theirs[of_teacher][0, token].detach()
                cosine = (s @ t) / (s @ s).sqrt() / (t @ t).sqrt()
                distances.append((s - t).square().mean() if distance == "mse" else 1 - cosine)
    loss = torch.stack(cross_entropies).mean() + WEIGHT * torch.stack(distances).sum() / split.lengths.sum()
    named = dict(student.named_parameters())
    gradients = torch.autograd.grad(loss, list(named.values()))
    student.float(), teacher.float()
    return {name: gradient.float() for name, gradient in zip(named, gradients, strict=True)}, loss.item()


@pytest.mark.parametrize("distance", ["mse", "cosine"])
@pytest.mark.parametrize(("size", "accumulation"), [(12, 1), (12, 4), (7, 2), (3, 4)])
def test_the_gradient_is_that_of_all_tokens_of_the_whole_batch_however_it_is_cut(
    accelerator: Accelerator,
    student: ProjectedStudent,
    teacher: PreTrainedModel,
    size: int,
    accumulation: int,
    distance: str,
) -> None:
    """3 rows in 4 micro-batches leave one that only fills; 7 leave uneven ones, and texts are of unlike length."""
    split = split_of(teacher, size)
    expected, expected_loss = plain_gradient(student, teacher, split, distance)
    objective = WeightedSum([(1.0, HardLabel()), (WEIGHT, HiddenStates(PAIRS, distance))])
    (batches,) = TrainingLoader(split, batch_size=16, accumulation=accumulation).epoch(0)
    gradient, loss = gradient_of(student, step_of(accelerator, student, teacher, objective), batches)
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    largest = max(float(tensor.abs().max()) for tensor in expected.values())
    assert set(gradient) == set(expected) and float(expected["projections.0.weight"].abs().max()) > 1e-3
    for name, tensor in expected.items():
        torch.testing.assert_close(
            gradient[name], tensor, rtol=1e-3, atol=3e-6 * max(1.0, largest), msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("accumulation", [1, 4])
def test_every_parameter_has_a_gradient_in_every_micro_batch_though_hidden_states_are_all_that_counts(
    accelerator: Accelerator, student: ProjectedStudent, teacher: PreTrainedModel, accumulation: int
) -> None:
    """Ranks wait for one another's gradients: one that stays away would end the run."""
    arrived = dict.fromkeys(dict(student.named_parameters()), 0)
    for name, parameter in student.named_parameters():

        def count(gradient: Tensor, name: str = name) -> None:
            arrived[name] += 1

        parameter.register_hook(count)
    step = step_of(accelerator, student, teacher, WeightedSum([(1.0, HiddenStates(((1, 2), (0, 0), (-1, 1))))]))
    (batches,) = TrainingLoader(split_of(teacher, 3), batch_size=4, accumulation=accumulation).epoch(0)
    step(batches)
    assert set(arrived.values()) == {accumulation}
    step.rehearse(batches)
    assert set(arrived.values()) == {accumulation + 1}
    assert all(parameter.grad is None for parameter in student.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_teacher_gives_the_layers_that_it_is_asked_for_in_full_precision_and_no_others(
    accelerator: Accelerator, tiny_teacher: Path, dtype: torch.dtype
) -> None:
    model = load_classifier(Checkpoint(str(tiny_teacher), "teacher.model"), dtype=dtype)
    task = SequenceClassification(LABELS)
    source = StreamingTeacher(model, task, accelerator.device, [4, 2, 0, 1, 3], hidden_states=frozenset({-1, 2}))
    assert source.provides.hidden_states == {-1, 2}
    batch = split_of(model, 1).batch(np.arange(1))  # filled up to two rows, which must not be seen
    signal = source.signal(batch)
    with torch.no_grad():
        expected = model(**{n: t.repeat(2, 1) for n, t in batch.inputs.items()}, output_hidden_states=True)
    assert signal.hidden_states is not None and signal.hidden_states.keys() == {-1, 2}
    for layer, states in signal.hidden_states.items():
        assert states.dtype == torch.float32 and not states.requires_grad
        assert torch.equal(states, expected.hidden_states[layer][:1].float())
    assert torch.equal(signal.logits, expected.logits[:1, [4, 2, 0, 1, 3]].float())
    alone = source.without_hidden_states()
    assert alone.signal(batch).hidden_states is None and not alone.provides.hidden_states
    assert torch.equal(alone.signal(batch).logits, signal.logits)
    assert source.signal(batch).hidden_states is not None, "the one that was asked still gives them"


def test_without_such_a_term_neither_model_is_asked_for_hidden_states(
    accelerator: Accelerator, teacher: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    split, asked = split_of(teacher, 6), []
    plain = type(teacher).forward

    def forward(self: PreTrainedModel, *arguments: object, **options: object) -> object:
        asked.append(options.get("output_hidden_states"))
        return plain(self, *arguments, **options)

    monkeypatch.setattr(type(teacher), "forward", forward)
    student = type(teacher)(teacher.config)
    step = step_of(accelerator, student, teacher, WeightedSum([(1.0, HardLabel())]))
    (batches,) = TrainingLoader(split, batch_size=8, accumulation=2).epoch(0)
    step(batches)
    assert asked == [None] * 4
