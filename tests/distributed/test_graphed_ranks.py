"""Ranks under DDP that record their steps in two pieces, beside ranks whose steps DDP takes as usual."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from accel_kd.data.loaders import Shard
from accel_kd.models.loading import Checkpoint, load_classifier
from accel_kd.signals import StepBatches
from accel_kd.teachers.base import TeacherSource
from accel_kd.teachers.streaming import StreamingTeacher
from accel_kd.training.gradient_exchange import GradientExchange
from accel_kd.training.graphed_step import GraphedStep
from accel_kd.training.step import EagerStep
from tests.support.forks import Forks
from tests.support.op_tape import OpTape
from tests.unit.training.test_graphed_step import TASK, Spoilt, batches_of, make_student, parts, state_of

_SPOILT_STEP = 8
"""Of 12; a short batch leaves the second rank without a row in two others."""


def _take(step: EagerStep, student: torch.nn.Module, batches: list[StepBatches]) -> tuple[list[float], list[Tensor]]:
    outcomes = [step(batch) for batch in batches]
    told = [float(value) for losses, norm in outcomes for value in (losses["loss"], norm)]
    # Biases of keys have no gradient but rounding, which Adam takes for one.
    named = student.named_parameters()
    return told, [parameter.detach().clone() for name, parameter in named if not name.endswith("key.bias")]


def take_both(teacher_folder: str, accumulation: str, is_spoilt: str, output: str) -> None:
    """In each of several ranks: the same steps in both ways, and what they come to in a file for each rank."""
    accelerator = Accelerator(cpu=True)
    rank = accelerator.process_index
    teacher = load_classifier(Checkpoint(teacher_folder, "teacher.model"))
    shard = Shard(rank, accelerator.num_processes)
    batches = batches_of(teacher, accumulation=int(accumulation), shard=shard)

    def source() -> TeacherSource:
        streaming = StreamingTeacher(teacher, TASK, accelerator.device)
        return Spoilt(streaming, spoilt_call=_SPOILT_STEP) if is_spoilt == "True" and rank == 1 else streaming

    eager_student, student = make_student(teacher), make_student(teacher)
    _, given = parts(accelerator, eager_student, source())
    expected = _take(EagerStep(*given), eager_student, batches)
    optimizer, given = parts(accelerator, student, source())

    def state() -> list[Tensor]:
        assert step._exchange is not None
        return [*state_of(student, optimizer)(), *step._exchange.pieces]

    step = GraphedStep(*given, optimizer=optimizer, recorder=OpTape(state), is_asked_for=True)
    found = _take(step, student, batches)
    answer = {
        "told": [expected[0], found[0]],
        "weights": _farthest(expected[1], found[1]),
        "moved": _farthest(found[1], _take(step, make_student(teacher), [])[1]),
        "recorded": step.num_recorded,
        "shapes": [[batch.inputs["input_ids"].shape for batch in step.micro_batches] for step in batches],
    }
    Path(f"{output}.{rank}").write_text(json.dumps(answer), encoding="utf-8")
    accelerator.end_training()


def _farthest(some: list[Tensor], others: list[Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(some, others, strict=True))


@pytest.mark.parametrize(("accumulation", "is_spoilt"), [(1, False), (2, False), (1, True)])
def test_every_step_has_the_losses_and_the_gradient_of_ddp(
    forks: Forks, tiny_teacher: Path, tmp_path: Path, accumulation: int, is_spoilt: bool
) -> None:
    output = tmp_path / "answer"
    function = "tests.distributed.test_graphed_ranks:take_both"
    forks.run(function, tiny_teacher, str(accumulation), str(is_spoilt), output, ranks=2).succeeded()
    answers = [json.loads(Path(f"{output}.{rank}").read_text(encoding="utf-8")) for rank in (0, 1)]
    assert answers[0]["shapes"] != answers[1]["shapes"], "one rank is to record while the other replays"
    for answer in answers:
        expected, found = answer["told"]
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-6, nan_ok=True)
        assert answer["recorded"] > 0 and answer["weights"] < 1e-5 < 1e-3 < answer["moved"]
    norms = [answer["told"][1][1::2] for answer in answers]
    assert [math.isnan(norm) for norm in norms[0]] == [
        is_spoilt and number == _SPOILT_STEP for number, _ in enumerate(norms[0], 1)
    ]
    assert norms[0] == pytest.approx(norms[1], rel=1e-6, nan_ok=True)


class _Branched(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.always, self.sometimes = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)

    def forward(self, inputs: Tensor, both: bool) -> Tensor:
        return (self.always(inputs) + (self.sometimes(inputs) if both else 0.0)).sum()


def differentiate_branches(first: str, second: str) -> None:
    """`first` and `second` say of each rank whether it takes both branches in that step, as in `01`."""
    accelerator = Accelerator(cpu=True)
    exchange = GradientExchange(accelerator.prepare(_Branched()))
    for step in (first, second):
        exchange.start()
        exchange.forward(inputs=torch.ones(1, 2), both=step[accelerator.process_index] == "1").backward()
        exchange.finish()
        exchange.average()
    accelerator.end_training()


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        ("00", "00", None),
        ("11", "10", None),  # a gradient of 0 is one
        ("01", "01", "other parameters have a gradient on other ranks"),
        ("00", "11", "sometimes.weight has a gradient, and had none in the first step"),
    ],
)
def test_gradients_that_could_not_be_averaged_are_refused(
    forks: Forks, first: str, second: str, said: str | None
) -> None:
    done = forks.run("tests.distributed.test_graphed_ranks:differentiate_branches", first, second, ranks=2, timeout=60)
    assert done.codes == ([0, 0] if said is None else [70, 70])
    assert said is None or f"RuntimeError: {said}" in done.text.replace("sometimes.bias", "sometimes.weight")
