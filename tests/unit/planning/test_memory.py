from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from accel_kd.planning.live_memory import Moment
from accel_kd.planning.memory import Placement, Strategy, student_memory, teacher_memory, traced_precision
from accel_kd.planning.model_costs import ModelCosts

_PARAMETERS = 1000
_COSTS = ModelCosts(
    num_parameters=_PARAMETERS,
    num_layer_parameters=100,
    num_outer_parameters=200,
    weight_bytes=4 * _PARAMETERS,
    buffer_bytes=0,
    saved_bytes=50_000,
    forward_peak_bytes=52_000,
    moments=(Moment(60_000, 400), Moment(20_000, 2000), Moment(0, 4000)),
    kept_gradient_bytes=0,
    forward_flops=1,
    step_flops=3,
)


def test_one_device_holds_everything_and_few_gradients_at_its_worst() -> None:
    parts = student_memory(_COSTS, Strategy.ONE, 1)
    assert (parts.weights, parts.optimizer, parts.exchange) == (4000, 8000, 0)
    assert (parts.activations, parts.gradients) == (60_000, 400)
    assert parts.total == 72_400


def test_plain_descent_remembers_half_of_what_adamw_does() -> None:
    assert student_memory(_COSTS, Strategy.ONE, 1, optimizer="sgd").optimizer == 4000


def test_without_many_activations_the_worst_is_when_all_gradients_are_there() -> None:
    small = replace(_COSTS, saved_bytes=50, moments=(Moment(60, 400), Moment(20, 2000), Moment(0, 4000)))
    assert student_memory(small, Strategy.ONE, 1).gradients == 4000


def test_one_process_on_a_cpu_keeps_the_gradients_of_large_embeddings() -> None:
    keeping = replace(_COSTS, kept_gradient_bytes=1000)
    # A tenth of those that come and go is there at the worst moment.
    assert student_memory(keeping, Strategy.ONE, 1).gradients == 1000 + 300
    assert student_memory(keeping, Strategy.DDP, 2).gradients == 400
    small = replace(keeping, saved_bytes=50, moments=(Moment(60, 400), Moment(20, 2000), Moment(0, 4000)))
    assert student_memory(small, Strategy.ONE, 1).gradients == 4000


def test_ddp_holds_its_buckets_beside_the_gradients() -> None:
    assert student_memory(_COSTS, Strategy.DDP, 8).exchange == 4000


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("strategy", list(Strategy))
def test_the_shares_of_all_ranks_make_up_the_whole(strategy: Strategy, precision: str) -> None:
    costs = replace(_COSTS, moments=(Moment(0, 4000),), saved_bytes=0)
    alone, shared = (student_memory(costs, strategy, ranks, precision) for ranks in (1, 8))  # type: ignore[arg-type]
    for part, is_shared in (
        ("weights", strategy.shards_weights),
        ("gradients", strategy.shards_gradients),
        ("optimizer", strategy.shards_optimizer),
    ):
        factor = 8 if is_shared else 1
        assert factor * getattr(shared, part) == getattr(alone, part) > 0, part


def test_zero_takes_the_bytes_of_its_paper() -> None:
    # Table 1 of arXiv 1910.02054: (2 + 2 + 12) a parameter, over 64 ranks.
    costs = replace(_COSTS, num_parameters=64_000, moments=(Moment(0, 128_000),), saved_bytes=0)
    found = {}
    for strategy in (Strategy.ZERO1, Strategy.ZERO2, Strategy.ZERO3):
        parts = student_memory(costs, strategy, 64, "bf16")
        found[strategy] = (parts.weights + parts.gradients + parts.optimizer) / 64_000
    expected = {Strategy.ZERO1: 4 + 12 / 64, Strategy.ZERO2: 2 + 14 / 64, Strategy.ZERO3: 16 / 64}
    assert found == pytest.approx(expected)


def test_a_teacher_runs_when_all_that_backward_needs_is_there() -> None:
    small, large = (student_memory(_COSTS, Strategy.ONE, 1, beside_forward=size) for size in (9000, 30_000))
    assert small.total == student_memory(_COSTS, Strategy.ONE, 1).total, "hidden by the backward's peak"
    assert (large.activations, large.beside) == (50_000, 30_000)


def test_a_loss_scaler_costs_a_number_a_parameter_while_it_steps() -> None:
    costs = replace(_COSTS, moments=(Moment(0, 4000),), saved_bytes=0)
    assert student_memory(costs, Strategy.ONE, 1, "fp16").total - student_memory(costs, Strategy.ONE, 1).total == 4000


def test_a_sharded_teacher_takes_its_share_and_the_layers_that_it_gathers() -> None:
    layers = {"num_layer_parameters": 100, "num_outer_parameters": 200}
    taken = {place: teacher_memory(8000, 2, place, 8, **layers) for place in Placement}
    assert taken == {
        Placement.REPLICATED: 16_000,
        Placement.SHARDED: 2000 + 2 * (200 + 2 * 100),
        Placement.OFFLOADED: 2 * (200 + 2 * 100),
        Placement.CACHED: 0,
    }


def test_deepspeed_and_fsdp2_compute_with_short_weights_and_the_others_under_autocast() -> None:
    assert traced_precision(Strategy.DDP, "bf16") == (torch.float32, torch.bfloat16)
    assert (
        traced_precision(Strategy.ZERO2, "bf16") == traced_precision(Strategy.FSDP2, "bf16") == (torch.bfloat16, None)
    )
    assert traced_precision(Strategy.ZERO3, "no") == (torch.float32, None)
