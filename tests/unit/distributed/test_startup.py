"""The accelerator is what the launch claims, whatever else stands in the environment."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState

from accel_kd.distributed import bf16, cpu_matmul, startup


@pytest.fixture(autouse=True)
def _fresh_state() -> Iterator[None]:
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def test_an_accumulation_count_in_the_environment_divides_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    assert startup.start("no").gradient_accumulation_steps == 1


def test_precision_is_the_recipes_else_the_launchers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    accelerator = startup.start(None)
    assert accelerator.mixed_precision == "bf16"
    assert "precision bf16" in startup.describe(accelerator)


def test_a_rank_computes_with_the_threads_that_were_asked_for_and_says_so() -> None:
    before = torch.get_num_threads()
    assert f"({before} threads)" in startup.describe(startup.start("no", cpu_matmul="blas"))
    assert "(3 threads)" in startup.describe(startup.start("no", threads=3, cpu_matmul="blas"))


def test_what_multiplies_is_what_was_asked_for_and_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_matmul, "_rounds", lambda: False)
    assert startup.describe(startup.start("no", cpu_matmul="onednn")).endswith("precision no, fp32 products by oneDNN")
    assert "oneDNN" not in startup.describe(startup.start("no", cpu_matmul="blas"))


@pytest.mark.parametrize(("precision", "has_bf16"), [("bf16", False), ("bf16", True), ("no", False)])
def test_bf16_without_instructions_for_it_is_warned_of(
    precision: str, has_bf16: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(bf16, "multiplies_bf16", lambda: has_bf16)
    monkeypatch.setattr(bf16, "_agreed", None)
    startup.start(precision, cpu_matmul="blas")
    assert ("training.precision: bf16" in caplog.text) is (precision == "bf16" and not has_bf16)
