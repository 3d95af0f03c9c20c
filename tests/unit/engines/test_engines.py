"""What an engine promises that one process can show; `tests/distributed/test_strategies.py` has the rest."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

from accel_kd.engines import ReplicatedEngine, ZeroEngine, start_engine


def _engine(accelerator: Accelerator) -> ReplicatedEngine:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    engine = start_engine(accelerator, model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), 1.0)
    assert isinstance(engine, ReplicatedEngine)
    return engine


def _trained(engine: ReplicatedEngine) -> ReplicatedEngine:
    with engine.accumulating(is_last=True):
        engine.backward(engine.model(torch.ones(4, 3)).square().sum())
    assert torch.isfinite(engine.update())
    return engine


def test_what_is_asked_to_be_a_copy_does_not_change_when_training_goes_on() -> None:
    engine = _trained(_engine(Accelerator(cpu=True)))
    copied, shared = engine.weights(copy=True), engine.weights()
    before = copied["weight"].clone()
    _trained(engine)
    assert torch.equal(copied["weight"], before) and not torch.equal(shared["weight"], before)
    assert engine.optimizer_state(copy=True).keys() == {"weight//momentum_buffer", "bias//momentum_buffer"}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"weight": (2, 3)}, "it lacks bias"),
        ({"weight": (2, 3), "bias": (2,), "head": (1,)}, "it has, and the model lacks, head"),
        ({"weight": (3, 2), "bias": (2,)}, r"its weight is \[3, 2\], the model's \[2, 3\]"),
    ],
)
def test_weights_of_another_model_are_refused_and_change_nothing(given: dict[str, Any], said: str) -> None:
    engine = _engine(Accelerator(cpu=True))
    before = engine.weights(copy=True)
    with pytest.raises(ValueError, match=said):
        engine.load_weights({name: torch.full(shape, 7.0) for name, shape in given.items()})
    assert all(torch.equal(tensor, before[name]) for name, tensor in engine.weights().items())


def test_weights_that_are_not_given_stay_where_they_may() -> None:
    engine = _engine(Accelerator(cpu=True))
    bias = engine.weights(copy=True)["bias"]
    engine.load_weights({"weight": torch.zeros(2, 3)}, others_stay=True)
    assert torch.equal(engine.weights()["weight"], torch.zeros(2, 3)) and torch.equal(engine.weights()["bias"], bias)


def test_a_loss_scale_serves_every_strategy() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=True)
    accelerator.scaler = torch.amp.GradScaler("cpu")
    engine = _engine(accelerator)
    accelerator.scaler = torch.amp.GradScaler("cpu")
    engine.load_scaler_state({"scale": 512.0, "good_steps": 7})
    assert engine.loss_scale == 512.0 and engine.scaler_state() == {"scale": 512.0, "good_steps": 7}

    zero = ZeroEngine.__new__(ZeroEngine)
    scaler = SimpleNamespace(dynamic=True, cur_scale=4.0, cur_iter=20, last_overflow_iter=3)
    zero._engine, zero._zero = SimpleNamespace(fp16_enabled=lambda: True), SimpleNamespace(loss_scaler=scaler)
    assert zero.scaler_state() == {"scale": 4.0, "good_steps": 16}
    zero.load_scaler_state({"scale": 512.0, "good_steps": 7})
    assert zero.scaler_state() == {"scale": 512.0, "good_steps": 7}
    AcceleratorState._reset_state(reset_partial_state=True)
