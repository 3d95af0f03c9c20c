"""Decay on matrices alone, and a learning rate that is a function of the optimizer step."""

from __future__ import annotations

import math

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn
from transformers import BertForSequenceClassification

from accel_kd.training.optimizer import learning_rate_schedule, make_optimizer
from tests.support.tiny import config

LAYER = "bert.encoder.layer.0"
DECAYED = {
    "bert.embeddings.word_embeddings.weight",
    "bert.embeddings.position_embeddings.weight",
    "bert.embeddings.token_type_embeddings.weight",
    f"{LAYER}.attention.self.query.weight",
    f"{LAYER}.attention.self.key.weight",
    f"{LAYER}.attention.self.value.weight",
    f"{LAYER}.attention.output.dense.weight",
    f"{LAYER}.intermediate.dense.weight",
    f"{LAYER}.output.dense.weight",
    "bert.pooler.dense.weight",
    "classifier.weight",
}
NOT_DECAYED = {
    "bert.embeddings.LayerNorm.weight",
    "bert.embeddings.LayerNorm.bias",
    f"{LAYER}.attention.self.query.bias",
    f"{LAYER}.attention.self.key.bias",
    f"{LAYER}.attention.self.value.bias",
    f"{LAYER}.attention.output.dense.bias",
    f"{LAYER}.attention.output.LayerNorm.weight",
    f"{LAYER}.attention.output.LayerNorm.bias",
    f"{LAYER}.intermediate.dense.bias",
    f"{LAYER}.output.dense.bias",
    f"{LAYER}.output.LayerNorm.weight",
    f"{LAYER}.output.LayerNorm.bias",
    "bert.pooler.dense.bias",
    "classifier.bias",
}


def test_biases_and_norms_do_not_decay_and_every_matrix_does() -> None:
    model = BertForSequenceClassification(config("bert", layers=1))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    by_decay: dict[float, set[str]] = {}
    for group in make_optimizer("adamw", model, 1e-3, 0.07).param_groups:
        by_decay.setdefault(group["weight_decay"], set()).update(names[id(p)] for p in group["params"])
        assert group["lr"] == 1e-3
    assert by_decay == {0.07: DECAYED, 0.0: NOT_DECAYED}


def test_frozen_parameters_stay_out() -> None:
    model = BertForSequenceClassification(config("bert", layers=1))
    model.bert.embeddings.requires_grad_(False)
    optimised = {id(p) for group in make_optimizer("adamw", model, 1e-3, 0.1).param_groups for p in group["params"]}
    assert optimised == {id(p) for p in model.parameters() if p.requires_grad}


def test_a_step_is_adamw_as_it_is_written_down() -> None:
    layer = nn.Linear(3, 2).double()
    before = {name: parameter.detach().clone() for name, parameter in layer.named_parameters()}
    optimizer = make_optimizer("adamw", layer, 0.1, 0.5)
    gradients = {}
    for name, parameter in layer.named_parameters():
        parameter.grad = gradients[name] = torch.randn_like(parameter)
    optimizer.step()
    for name, parameter in layer.named_parameters():
        # After one step both moments are the gradient itself, up to their bias corrections.
        decay = 0.5 if name == "weight" else 0.0
        update = gradients[name] / (gradients[name].abs() + 1e-8)
        torch.testing.assert_close(parameter.detach(), before[name] * (1 - 0.1 * decay) - 0.1 * update)


def plain_rate(schedule: str, step: int, total_steps: int, warmup_steps: int) -> float:
    """The share of the peak rate that the step after `step` steps uses."""
    if step < warmup_steps:
        return step / warmup_steps
    share_done = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return {
        "constant": 1.0,
        "linear": 1.0 - share_done,
        "cosine": 0.5 * (1.0 + math.cos(math.pi * share_done)),
    }[schedule]


@pytest.mark.parametrize(("warmup_fraction", "warmup_steps"), [(0.0, 0), (0.1, 3), (0.5, 13), (1.0, 25)])
@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_the_learning_rate_follows_its_formula(schedule: str, warmup_fraction: float, warmup_steps: int) -> None:
    total_steps = 25
    optimizer = make_optimizer("adamw", nn.Linear(2, 2), 0.4, 0.0)
    rates = learning_rate_schedule(optimizer, schedule, total_steps, warmup_fraction)
    for step in range(total_steps):
        expected = 0.4 * plain_rate(schedule, step, total_steps, warmup_steps)
        assert rates.get_last_lr() == pytest.approx([expected, expected], abs=1e-12), step
        assert [group["lr"] for group in optimizer.param_groups] == rates.get_last_lr()
        optimizer.step()
        rates.step()
    if schedule != "constant" and warmup_fraction < 1:
        assert rates.get_last_lr()[0] == pytest.approx(0.0, abs=1e-12), "the rate ends at 0 with the last step"


def test_a_step_that_the_scaler_skips_is_seen_and_moves_neither_weights_nor_schedule() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=True)
    accelerator.scaler = torch.amp.GradScaler("cpu")
    model = torch.nn.Linear(3, 2)
    optimizer = accelerator.prepare(make_optimizer("adamw", model, 0.01, 0.0, scaled_loss=True))
    before = model.weight.detach().clone()
    loss = model(torch.full((1, 3), math.inf)).sum()
    accelerator.backward(loss)
    optimizer.step()
    assert accelerator.optimizer_step_was_skipped
    assert torch.equal(model.weight, before)
    AcceleratorState._reset_state(reset_partial_state=True)
