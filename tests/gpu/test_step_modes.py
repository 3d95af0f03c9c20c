"""Each way of taking a step on a GPU against the step as it is there: recorded graphs on real memory and streams."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from accel_kd.logit_store.reader import open_store
from accel_kd.models.loading import Checkpoint, load_classifier
from accel_kd.recording.cuda_graphs import CudaGraphs
from accel_kd.training.graphed_step import GraphedStep
from tests.support.launch_configs import recipe
from tests.support.processes import accel_kd, accelerate_launch, step_rows, succeeded, summary
from tests.unit.training.test_graphed_step import TASK, Unrecordable, batches_of, make_student, parts

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

_SETTINGS = [
    "training.optimizer=adamw", "training.learning_rate=1e-3", "training.micro_batch_size=null", "training.epochs=3",
    "training.max_steps=null",
    "teacher.dtype=float32", "training.precision=no",
]  # fmt: skip
_STORE = ["teacher.source=cached", "teacher.store.encoding={type: full, dtype: float32}"]


def _rows(data: Path, teacher: Path, directory: Path, mode: str, *more: str) -> tuple[list[dict[str, float]], str]:
    given = [*recipe(data, teacher, directory), *_SETTINGS, f"training.step_mode={mode}", *more]
    process = succeeded(accel_kd(*given, timeout=600))
    return step_rows(directory), process.stderr


@pytest.mark.parametrize("source", [[], _STORE], ids=["streaming", "store"])
@pytest.mark.parametrize("dropout", ["0", "0.1"])
@pytest.mark.parametrize("mode", ["graphed", "compiled"])
def test_every_step_has_the_loss_and_the_gradient_of_the_eager_one(
    mode: str, dropout: str, source: list[str], tiny_data: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    """Graphs draw the masks of dropout that the eager step draws; a compiler draws its own."""
    if mode == "compiled" and dropout != "0":
        pytest.skip("a compiled student draws other masks")
    more = [f"student.dropout={dropout}", *(f"{s}" for s in source), f"teacher.store.path={tmp_path / 'stores'}"]
    eager, _ = _rows(tiny_data, tiny_teacher, tmp_path / "eager", "eager", *more)
    other, log = _rows(tiny_data, tiny_teacher, tmp_path / mode, mode, *more)
    assert f"step mode {mode}: as set" in log
    assert (mode == "graphed") == ("step mode graphed: recorded" in log)
    for expected, found in zip(eager, other, strict=True):
        for name in ("train/loss", "train/gradient_norm"):
            assert found[name] == pytest.approx(expected[name], rel=1e-3, abs=1e-4), (name, expected["step"])
        assert found["train/learning_rate"] == expected["train/learning_rate"]


def test_two_gpus_that_replay_are_two_that_do_not(tiny_data: Path, tiny_teacher: Path, tmp_path: Path) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    rows = {}
    for mode in ("eager", "graphed"):
        given = recipe(tiny_data, tiny_teacher, tmp_path / mode)
        settings = [*_SETTINGS, "student.dropout=0", f"training.step_mode={mode}"]
        process = succeeded(accelerate_launch(["--multi_gpu", "--num_processes", "2"], *given, *settings, timeout=600))
        assert (mode == "graphed") == ("step mode graphed: recorded" in process.stderr)
        rows[mode] = step_rows(tmp_path / mode)
    for expected, found in zip(rows["eager"], rows["graphed"], strict=True):
        for name in ("train/loss", "train/gradient_norm"):
            assert found[name] == pytest.approx(expected[name], rel=1e-3, abs=1e-4), (name, expected["step"])


def test_a_small_model_is_graphed_without_being_asked(tiny_data: Path, tiny_teacher: Path, tmp_path: Path) -> None:
    _, log = _rows(tiny_data, tiny_teacher, tmp_path / "run", "auto")
    assert "step mode graphed: 0.00 TFLOP a step are done before" in log
    assert summary(tmp_path / "run")["step_mode"] == "graphed"


def test_a_graphed_run_that_stops_half_way_goes_on_with_the_same_losses(
    tiny_data: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    whole, _ = _rows(tiny_data, tiny_teacher, tmp_path / "whole", "graphed", "training.schedule=constant")
    constant = ["training.schedule=constant"]
    _rows(tiny_data, tiny_teacher, tmp_path / "part", "graphed", *constant, "training.max_steps=17")
    again, _ = _rows(tiny_data, tiny_teacher, tmp_path / "part", "graphed", *constant)
    assert [row["step"] for row in again] == [row["step"] for row in whole]
    assert [row["train/loss"] for row in again] == pytest.approx([row["train/loss"] for row in whole], rel=1e-4)


def test_after_a_recording_that_failed_steps_go_on_with_their_dropout(
    tiny_teacher: Path, caplog: pytest.LogCaptureFixture
) -> None:
    accelerator = Accelerator()
    teacher = load_classifier(Checkpoint(str(tiny_teacher), "teacher.model"))
    source = Unrecordable(teacher, TASK, accelerator.device)
    optimizer, given = parts(accelerator, make_student(teacher, 0.3), source)
    recorder = CudaGraphs(accelerator.device)
    step = GraphedStep(*given, optimizer=optimizer, recorder=recorder, is_asked_for=False)
    losses = [float(step(batches)[0]["loss"]) for batches in batches_of(teacher)]
    assert all(map(torch.isfinite, map(torch.tensor, losses))) and step.num_recorded == 0
    assert "step mode: eager from here on: the step cannot be recorded" in caplog.text


def test_a_store_that_is_filled_by_replays_holds_what_an_eager_teacher_said(
    tiny_data: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    stored = []
    for mode in ("eager", "auto"):
        stores = tmp_path / f"{mode}-stores"
        _, log = _rows(tiny_data, tiny_teacher, tmp_path / mode, mode, *_STORE, f"teacher.store.path={stores}")
        assert "cannot be recorded" not in log
        [folder] = stores.iterdir()
        reader = open_store(folder)
        stored.append(reader.tensors(np.arange(len(reader))))
    eager, replayed = stored
    assert eager.keys() == replayed.keys()
    for name, tensor in eager.items():
        torch.testing.assert_close(replayed[name], tensor, rtol=1e-4, atol=1e-4)
