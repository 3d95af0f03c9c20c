"""A step whose student is compiled is the step as it is, for batches of every shape, with one compilation for all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch._dynamo.testing import CompileCounterWithBackend

from accel_kd.errors import UserError
from accel_kd.models.loading import Checkpoint, load_classifier
from accel_kd.teachers.streaming import StreamingTeacher
from accel_kd.training.compiled_step import CompiledStep
from accel_kd.training.step import EagerStep
from tests.unit.training.test_graphed_step import TASK, assert_same, batches_of, make_student, parts


def outcomes(
    tiny_teacher: Path, make: type[EagerStep], **options: Any
) -> tuple[list[dict[str, float]], dict[str, Any]]:
    accelerator = Accelerator(cpu=True)
    teacher = load_classifier(Checkpoint(str(tiny_teacher), "teacher.model"))
    student = make_student(teacher)
    _, given = parts(accelerator, student, StreamingTeacher(teacher, TASK, accelerator.device))
    step = make(*given, **options)
    told = [(step.learning_rate, *step(batch)) for batch in batches_of(teacher)]
    rows = [
        {"rate": rate, "norm": float(norm), **{name: float(loss) for name, loss in losses.items()}}
        for rate, losses, norm in told
    ]
    return rows, {name: p.detach().clone() for name, p in student.named_parameters()}


@pytest.mark.parametrize(
    "backend",
    [
        "aot_eager",  # the compiler without its last stage, which takes a minute to translate C++
        pytest.param(
            "inductor",
            marks=pytest.mark.skipif("ACCEL_KD_TEST_EVERY_WAY" not in os.environ, reason="compiles for a minute"),
        ),
    ],
)
def test_a_compiled_student_learns_what_it_learns_as_it_is(tiny_teacher: Path, backend: str) -> None:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend(backend)
    compiled = outcomes(tiny_teacher, CompiledStep, backend=counter)
    assert_same(outcomes(tiny_teacher, EagerStep), compiled)
    # The first batch of all, and one row alone, are shapes of their own to the compiler.
    assert 1 <= counter.frame_count <= 4, "each shape was compiled anew"


def test_a_model_that_cannot_be_compiled_is_refused_in_one_line(tiny_teacher: Path) -> None:
    def fail(*arguments: object) -> object:
        raise ValueError("no such operation")

    torch._dynamo.reset()
    with pytest.raises(UserError, match=r"training.step_mode: compiled, but torch.compile fails .*no such operation"):
        outcomes(tiny_teacher, CompiledStep, backend=fail)
