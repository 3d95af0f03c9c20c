"""A step that is recorded and replayed is the step that is taken operation by operation, whatever texts, counts and
rates the later steps have."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedModel

from accel_kd.data.examples import Examples
from accel_kd.data.loaders import Shard, TrainingLoader
from accel_kd.data.preprocessing import TokenisedSplit, tokenise_split
from accel_kd.engines import start_engine
from accel_kd.errors import UserError
from accel_kd.models.loading import input_names
from accel_kd.models.projected_student import ProjectedStudent, Projection
from accel_kd.models.student import from_teacher_layers
from accel_kd.objectives import ForwardKL, HardLabel, HiddenStates, WeightedSum, mixture
from accel_kd.signals import IGNORED_LABEL, Batch, Signal, StepBatches
from accel_kd.tasks.sequence_classification import SequenceClassification
from accel_kd.teachers.base import TeacherSource, WithoutMemory
from accel_kd.teachers.streaming import EVERY_LOGIT, StreamingTeacher
from accel_kd.training.graphed_step import GraphedStep
from accel_kd.training.optimizer import learning_rate_schedule, make_optimizer
from accel_kd.training.step import EagerStep
from tests.support.op_tape import OpTape
from tests.support.tiny import LABELS, rows, tokenizer

NUM_STEPS = 12
TASK = SequenceClassification(LABELS)
MIXTURE = mixture(0.3, ForwardKL(3.0))


def make_student(teacher: PreTrainedModel, dropout: float = 0.0) -> PreTrainedModel:
    torch.manual_seed(0)
    student = from_teacher_layers(teacher, LABELS, layers=2, dropout=dropout)
    with torch.no_grad():
        student.classifier.weight.add_(torch.randn(student.classifier.weight.shape))
    return student


def batches_of(
    model: PreTrainedModel, *, accumulation: int = 1, unlabelled: int = 5, shard: Shard = Shard()
) -> list[StepBatches]:
    """Two epochs of 41 texts, 8 at once: the last batch of each has one, lengths repeat, some texts have no label."""
    some = rows(41, seed=3)
    labels = np.array([LABELS.index(row["label"]) for row in some])
    labels[:unlabelled] = IGNORED_LABEL
    examples = Examples([f"{n:03}" for n in range(41)], [row["text"] for row in some], None, labels)
    split: TokenisedSplit = tokenise_split(examples, (tokenizer(), input_names(model)), None, 32)
    loader = TrainingLoader(split, batch_size=8, accumulation=accumulation, shard=shard)
    return [*loader.epoch(0), *loader.epoch(1)][:NUM_STEPS]


def parts(
    accelerator: Accelerator,
    student: torch.nn.Module,
    teacher: TeacherSource | None,
    objective: WeightedSum = MIXTURE,
) -> tuple[torch.optim.Optimizer, tuple[Any, ...]]:
    optimizer = make_optimizer("adamw", student, 1e-2, 0.01)
    schedule = learning_rate_schedule(optimizer, "linear", NUM_STEPS, 0.3)
    engine = start_engine(accelerator, student, optimizer, 1.0)
    return optimizer, (accelerator, engine, schedule, TASK, objective, teacher)


def state_of(student: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Callable[[], list[Tensor]]:
    def state() -> list[Tensor]:
        moments = [tensor for values in optimizer.state.values() for tensor in values.values()]
        return [*student.parameters(), *moments]

    return state


def run(
    accelerator: Accelerator,
    student: torch.nn.Module,
    teacher: TeacherSource | None,
    batches: list[StepBatches],
    *,
    objective: WeightedSum = MIXTURE,
    graphed: bool,
    **options: Any,
) -> tuple[list[dict[str, float]], dict[str, Tensor], GraphedStep | EagerStep]:
    """What each step tells, the last weights, and the step itself."""
    optimizer, given = parts(accelerator, student, teacher, objective)
    step: GraphedStep | EagerStep
    if not graphed:
        step = EagerStep(*given)
    else:
        recorder = OpTape(state_of(student, optimizer))
        step = GraphedStep(*given, optimizer=optimizer, recorder=recorder, is_asked_for=True, **options)
    told = []
    torch.manual_seed(7)
    outcomes = [(step.learning_rate, step(batch)) for batch in batches]  # kept, as the log keeps them
    for rate, (losses, norm) in outcomes:
        told.append({"rate": rate, "norm": float(norm), **{name: float(loss) for name, loss in losses.items()}})
    return told, {name: p.detach().clone() for name, p in student.named_parameters()}, step


class Remembered(WithoutMemory):
    """A teacher that reads the host's memory, as one with a store does."""

    provides = EVERY_LOGIT

    def __init__(self, source: StreamingTeacher) -> None:
        self._source = source
        self.num_calls = 0

    def signal(self, batch: Batch) -> Signal:
        self.num_calls += 1
        return self._source.signal(batch)


def assert_same(one: tuple[Any, ...], other: tuple[Any, ...]) -> None:
    for number, (expected, found) in enumerate(zip(one[0], other[0], strict=True)):
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-7), f"step {number}"
    for name, tensor in one[1].items():
        if name.endswith("key.bias"):
            continue  # attention does not change with it: its gradient is rounding, of which Adam makes whole steps
        torch.testing.assert_close(other[1][name], tensor, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("source", ["streaming", "remembered", "none"])
def test_what_is_replayed_is_what_is_taken_step_by_step(
    accelerator: Accelerator, teacher: PreTrainedModel, source: str, accumulation: int
) -> None:
    batches = batches_of(teacher, accumulation=accumulation)
    streaming = StreamingTeacher(teacher, TASK, accelerator.device)
    remembered = Remembered(streaming)
    chosen = {"streaming": streaming, "remembered": remembered, "none": None}[source]
    objective = MIXTURE if chosen is not None else WeightedSum([(1.0, HardLabel())])
    eager = run(accelerator, make_student(teacher), chosen, batches, objective=objective, graphed=False)
    remembered.num_calls = 0
    graphed = run(accelerator, make_student(teacher), chosen, batches, objective=objective, graphed=True)
    assert isinstance(graphed[2], GraphedStep) and graphed[2].num_recorded >= 2
    assert_same(eager, graphed)
    assert len({row["rate"] for row in graphed[0]}) > 5, "the rate changed while steps were replayed"
    if source == "remembered":
        assert remembered.num_calls == NUM_STEPS * accumulation, "it is asked in every step, also in replayed ones"


def test_projections_and_hidden_states_are_replayed_too(accelerator: Accelerator, teacher: PreTrainedModel) -> None:
    layers = ((1, 2), (-1, -1))
    objective = WeightedSum([(1.0, HardLabel()), (0.4, HiddenStates(layers, "mse"))])
    source = StreamingTeacher(teacher, TASK, accelerator.device, hidden_states=objective.needs.hidden_states)
    batches = batches_of(teacher)

    def student() -> ProjectedStudent:
        return ProjectedStudent(make_student(teacher), [Projection(layer, 32, 32) for layer, _ in layers])

    eager = run(accelerator, student(), source, batches, objective=objective, graphed=False)
    graphed = run(accelerator, student(), source, batches, objective=objective, graphed=True)
    assert isinstance(graphed[2], GraphedStep) and graphed[2].num_recorded >= 2
    assert_same(eager, graphed)


def test_dropout_is_drawn_anew_in_every_replay_and_as_without_a_recording(
    accelerator: Accelerator, teacher: PreTrainedModel
) -> None:
    """The same batch again and again: equal losses would be one mask for all steps."""
    batches = [batches_of(teacher)[0]] * 6
    streaming = StreamingTeacher(teacher, TASK, accelerator.device)
    # Not an `EagerStep`: on a CPU that draws dropout in a way of its own.
    eager = run(accelerator, make_student(teacher, 0.3), streaming, batches, graphed=True, most_shapes=0)
    graphed = run(accelerator, make_student(teacher, 0.3), streaming, batches, graphed=True)
    assert isinstance(eager[2], GraphedStep) and eager[2].num_recorded == 0
    assert isinstance(graphed[2], GraphedStep) and graphed[2].num_recorded == 1
    assert_same(eager, graphed)
    still = run(accelerator, make_student(teacher, 0.0), streaming, batches, graphed=True)
    assert [row["norm"] for row in still[0]] != pytest.approx([row["norm"] for row in graphed[0]], rel=1e-2)


def test_a_step_whose_gradient_is_not_finite_changes_nothing_when_it_is_replayed(
    accelerator: Accelerator, teacher: PreTrainedModel
) -> None:
    batches = [batches_of(teacher)[0]] * 5
    student = make_student(teacher)
    remembered = Spoilt(StreamingTeacher(teacher, TASK, accelerator.device), spoilt_call=4)
    optimizer, given = parts(accelerator, student, remembered)
    recorder = OpTape(state_of(student, optimizer))
    step = GraphedStep(*given, optimizer=optimizer, recorder=recorder, is_asked_for=True)
    for number, batch in enumerate(batches, 1):
        before = [tensor.clone() for tensor in state_of(student, optimizer)()]
        losses, norm = step(batch)
        after = state_of(student, optimizer)()
        assert bool(torch.isfinite(norm)) == bool(torch.isfinite(losses["loss"])) == (number != 4)
        if number > 1:
            same = all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
            assert same == (number == 4), f"step {number}"
    assert step.num_recorded == 1


class Spoilt(Remembered):
    def __init__(self, source: StreamingTeacher, spoilt_call: int) -> None:
        super().__init__(source)
        self._spoilt_call = spoilt_call

    def signal(self, batch: Batch) -> Signal:
        signal = super().signal(batch)
        return Signal(signal.logits * float("nan")) if self.num_calls == self._spoilt_call else signal


def test_shapes_beyond_the_most_are_taken_without_a_recording(
    accelerator: Accelerator, teacher: PreTrainedModel, caplog: pytest.LogCaptureFixture
) -> None:
    batches = batches_of(teacher)
    streaming = StreamingTeacher(teacher, TASK, accelerator.device)
    eager = run(accelerator, make_student(teacher), streaming, batches, graphed=False)
    graphed = run(accelerator, make_student(teacher), streaming, batches, graphed=True, most_shapes=1)
    assert isinstance(graphed[2], GraphedStep) and graphed[2].num_recorded <= 1
    assert_same(eager, graphed)
    assert caplog.text.count("1 shapes of batches were seen, and further ones are taken eagerly") == 1


class Unrecordable(StreamingTeacher):
    """Asks the host in the middle of a step."""

    def signal(self, batch: Batch) -> Signal:
        signal = super().signal(batch)
        return Signal(signal.logits * float(signal.logits.isfinite().all()))


def test_what_cannot_be_recorded_is_refused_where_graphs_were_asked_for(
    accelerator: Accelerator, teacher: PreTrainedModel
) -> None:
    batches = [batches_of(teacher)[0]] * 2
    source = Unrecordable(teacher, TASK, accelerator.device)
    with pytest.raises(UserError, match=r"training.step_mode: graphed, but this step cannot be recorded \(operation"):
        run(accelerator, make_student(teacher), source, batches, graphed=True)


def test_what_cannot_be_recorded_is_taken_as_it_is_where_nobody_asked_for_graphs(
    accelerator: Accelerator, teacher: PreTrainedModel, caplog: pytest.LogCaptureFixture
) -> None:
    batches = batches_of(teacher)
    source = Unrecordable(teacher, TASK, accelerator.device)
    eager = run(accelerator, make_student(teacher), source, batches, graphed=False)
    student = make_student(teacher)
    optimizer, given = parts(accelerator, student, source)
    recorder = OpTape(state_of(student, optimizer))
    step = GraphedStep(*given, optimizer=optimizer, recorder=recorder, is_asked_for=False)
    told = [step(batch) for batch in batches]
    assert [float(losses["loss"]) for losses, _ in told] == pytest.approx([row["loss"] for row in eager[0]], rel=1e-5)
    assert caplog.text.count("step mode: eager from here on") == 1 and recorder.num_recordings == 0


def test_learning_rates_stay_numbers_of_the_host_between_steps(
    accelerator: Accelerator, teacher: PreTrainedModel
) -> None:
    """Checkpoints and the schedule read them."""
    student = make_student(teacher)
    optimizer, given = parts(accelerator, student, None, WeightedSum([(1.0, HardLabel())]))
    before = copy.deepcopy(optimizer.param_groups[0]["capturable"])
    step = GraphedStep(*given, optimizer=optimizer, recorder=OpTape(state_of(student, optimizer)), is_asked_for=True)
    for batch in batches_of(teacher)[:6]:
        step(batch)
        assert all(isinstance(group["lr"], float) for group in optimizer.param_groups)
        assert all(group["capturable"] == before for group in optimizer.param_groups)
