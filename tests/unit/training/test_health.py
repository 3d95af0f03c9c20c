"""Gradients that are not finite are counted, capped and named; a device without memory is told in terms of settings."""

from __future__ import annotations

import math

import pytest
import torch

from accel_kd.errors import RunFailure
from accel_kd.training import health as health_module
from accel_kd.training.health import NonFiniteSteps, explained_lack_of_memory


def row(step: int, loss: float = 1.0, norm: float = 2.0) -> dict[str, float]:
    return {"step": step, "train/loss": loss, "train/gradient_norm": norm}


def ids(step: int) -> list[str]:
    return [f"{step}-{number}" for number in range(100)]


def test_finite_steps_are_not_counted() -> None:
    health = NonFiniteSteps(0, ids)
    health.examine([row(1), row(2, loss=1e30, norm=1e30)])
    assert health.num_steps == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("what", ["loss", "norm"])
def test_the_first_beyond_what_is_allowed_ends_the_run(bad: float, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[tuple[int, int]] = []
    monkeypatch.setattr(
        health_module.logger, "warning", lambda text, found, number, allowed, ids: said.append((number, allowed))
    )
    health = NonFiniteSteps(2, ids)
    health.examine([row(1), row(2, **{what: bad}), row(3), row(4, **{what: bad})])
    assert said == [(1, 2), (2, 2)]
    with pytest.raises(RunFailure, match=r"at step 9; .*max_nonfinite_steps is 2") as failure:
        health.examine([row(9, **{what: bad}), row(10, **{what: bad})])
    assert "9-0, 9-1, " in str(failure.value) and "9-63 and 36 more" in str(failure.value)
    assert health.num_steps == 3


def test_under_fp16_an_overflow_counts_only_when_the_loss_scale_can_sink_no_further() -> None:
    scale = [65536.0]
    health = NonFiniteSteps(0, ids, lambda: scale[0])
    health.examine([row(1, norm=math.inf)])
    assert health.num_steps == 0
    with pytest.raises(RunFailure):
        health.examine([row(2, loss=math.nan)])
    scale[0] = 1.0
    with pytest.raises(RunFailure, match="at step 3"):
        health.examine([row(3, norm=math.nan)])


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has\nmore lines"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: 9 bytes"),
    ],
)
def test_a_lack_of_memory_names_the_settings(error: Exception) -> None:
    with pytest.raises(RunFailure) as failure, explained_lack_of_memory(48, 128, "training"):
        raise error
    message = str(failure.value)
    assert str(error).splitlines()[0].rstrip(". ") in message and "\n" not in message
    assert "training.micro_batch_size=24 halves" in message and "evaluation.micro_batch_size=64" in message


def test_other_errors_pass_as_they_are() -> None:
    with pytest.raises(RuntimeError, match="^other$"), explained_lack_of_memory(48, 128, "training"):
        raise RuntimeError("other")


def test_a_real_allocator_is_understood() -> None:
    explained = explained_lack_of_memory(1, 1, "teacher.finetune")
    said = "out of memory on the device: .*allocate.*teacher.finetune.micro_batch_size=1 halves"
    with pytest.raises(RunFailure, match=said), explained:
        torch.empty(2**60, dtype=torch.uint8)
