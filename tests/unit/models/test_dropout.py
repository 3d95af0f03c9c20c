"""Dropout by whole words: the same distribution, from the same generator."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from accel_kd.models.dropout import draw_whole_words


def _dropout(probability: float) -> nn.Module:
    model = nn.Sequential(nn.Dropout(probability))
    draw_whole_words(model)
    assert "forward" in vars(model[0])
    return model


def _mask(probability: float, *shape: int) -> Tensor:
    torch.manual_seed(0)
    return (_dropout(probability)(torch.ones(shape)) != 0).double()


@pytest.mark.parametrize("probability", [0.001, 0.1, 0.5, 0.9])
def test_each_element_is_dropped_with_its_probability(probability: float) -> None:
    count = 2_000_000
    mask = _mask(probability, count)
    deviation = math.sqrt(probability * (1 - probability) / count)
    assert abs(float(1 - mask.mean()) - probability) < 5 * deviation
    # Even and odd elements come from the halves of one word.
    for half in (mask[::2], mask[1::2]):
        assert abs(float(1 - half.mean()) - probability) < 5 * deviation * math.sqrt(2)


@pytest.mark.parametrize("distance", [1, 2, 3, 624, 1248])
def test_elements_are_dropped_independently(distance: int) -> None:
    centred = _mask(0.5, 2_000_000) - 0.5
    correlation = float((centred[distance:] * centred[:-distance]).mean()) * 4
    assert abs(correlation) < 5 / math.sqrt(len(centred))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(5,), (4, 3, 7), (2, 0)])
def test_what_is_kept_is_scaled_and_its_gradient_too(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    inputs = torch.rand(shape, dtype=dtype).add_(1).requires_grad_()
    outputs = _dropout(0.25)(inputs)
    outputs.sum().backward()
    assert outputs.dtype == dtype and inputs.grad is not None
    scale = torch.tensor(4 / 3, dtype=dtype)
    assert torch.equal(inputs.grad, torch.where(outputs == 0, torch.zeros_like(scale), scale))
    assert torch.equal(outputs.detach(), inputs.detach() * inputs.grad)


def test_the_generator_alone_decides() -> None:
    dropout, inputs = _dropout(0.5), torch.ones(9, 7)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first, second = dropout(inputs), dropout(inputs)
    torch.set_rng_state(state)
    assert torch.equal(dropout(inputs), first) and torch.equal(dropout(inputs), second)
    assert not torch.equal(first, second)


def test_what_torch_does_without_drawing_stays() -> None:
    inputs = torch.ones(50)
    assert torch.equal(_dropout(0.5).eval()(inputs), inputs)
    assert torch.equal(_dropout(0.0)(inputs), inputs)
    assert torch.equal(_dropout(1.0)(inputs), torch.zeros(50))


def test_a_compiled_model_draws_as_torch_compiles_it() -> None:
    compiled = torch.compile(_dropout(0.5), backend="aot_eager", fullgraph=True)
    kept = compiled(torch.ones(1000))
    assert set(kept.tolist()) == {0.0, 2.0}


def test_other_modules_are_left_alone() -> None:
    class Own(nn.Dropout):
        pass

    model = nn.Sequential(nn.Dropout1d(0.5), Own(0.5), nn.Linear(2, 2))
    draw_whole_words(model)
    assert not any("forward" in vars(module) for module in model)
