"""Which way of taking a step a launch allows, and which of them is chosen."""

from __future__ import annotations

from dataclasses import replace

import pytest
from torch import nn

from accel_kd.errors import UserError
from accel_kd.training.step_modes import Launch, choose_step_mode, training_flops

GPU = Launch("cuda", "one process", "bf16", "adamw")
CPU = Launch("cpu", "one process", "no", "adamw")
SMALL, LARGE = 3e11, 3e13


def test_a_small_model_on_one_gpu_is_graphed_and_a_large_one_is_not() -> None:
    mode, reason = choose_step_mode("auto", GPU, SMALL)
    assert mode == "graphed" and reason.startswith("0.30 TFLOP a step")
    mode, reason = choose_step_mode("auto", GPU, LARGE)
    assert mode == "eager" and reason.startswith("30.0 TFLOP a step")


@pytest.mark.parametrize(
    ("launch", "reason"),
    [
        (CPU, "this runs on the cpu"),
        (replace(GPU, strategy="FSDP2"), "this is FSDP2"),
        (replace(GPU, precision="fp16"), "loss scale"),
        (replace(GPU, optimizer="sgd"), "training.optimizer sgd"),
    ],
)
def test_where_graphs_are_impossible_auto_says_why_and_graphed_is_refused(launch: Launch, reason: str) -> None:
    mode, found = choose_step_mode("auto", launch, SMALL)
    assert mode == "eager" and reason in found
    with pytest.raises(UserError, match=rf"^training.step_mode: graphed, but .*{reason}.*; use compiled or eager, or"):
        choose_step_mode("graphed", launch, SMALL)


def test_steps_of_several_ranks_are_recorded_where_that_is_asked_for() -> None:
    ddp = replace(GPU, strategy="DDP")
    mode, reason = choose_step_mode("auto", ddp, SMALL)
    assert mode == "eager" and "training.step_mode says graphed" in reason
    assert choose_step_mode("graphed", ddp, SMALL) == ("graphed", "as set")


@pytest.mark.parametrize("strategy", ["FSDP2", "DeepSpeed"])
def test_a_sharded_student_is_not_compiled(strategy: str) -> None:
    with pytest.raises(UserError, match=f"^training.step_mode: compiled, but a student under {strategy} is not"):
        choose_step_mode("compiled", replace(GPU, strategy=strategy), SMALL)  # type: ignore[arg-type]


def test_compiling_for_a_cpu_takes_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_step_mode("compiled", replace(CPU, strategy="DDP"), SMALL) == ("compiled", "as set")
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match=r"^training.step_mode: compiled, but there is no C\+\+ compiler .*; use eager"):
        choose_step_mode("compiled", CPU, SMALL)
    assert choose_step_mode("compiled", GPU, SMALL)[0] == "compiled"


def test_what_was_asked_for_is_taken_whatever_the_size() -> None:
    assert choose_step_mode("eager", GPU, SMALL) == ("eager", "as set")
    assert choose_step_mode("graphed", GPU, LARGE) == ("graphed", "as set")


def test_a_step_multiplies_six_times_with_each_weight_that_is_no_embedding() -> None:
    model = nn.Sequential(nn.Embedding(100, 8), nn.Linear(8, 16), nn.LayerNorm(16), nn.Linear(16, 4))
    assert training_flops(model, 10) == 6 * 10 * (8 * 16 + 16 * 4)
