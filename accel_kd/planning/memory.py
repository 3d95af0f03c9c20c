"""What one rank holds, by part, when a model is trained or asked under each strategy.

Bytes a parameter follow ZeRO (arXiv 1910.02054, section 3): weights and gradients in the precision of the model,
AdamW's two moments in fp32, and under DeepSpeed a master copy of the weights in fp32, which it keeps beside fp32
weights too. The buffers that DeepSpeed fills before it sends them are settings of a launch file (`reduce_bucket_size`)
and are not counted, nor are a device's context and the rounding of its allocator.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

import torch

from accel_kd.planning.live_memory import Moment
from accel_kd.planning.model_costs import ModelCosts

Precision = Literal["no", "bf16", "fp16"]

_FP32 = 4
_MOMENTS = {"adamw": 2 * _FP32, "sgd": _FP32}
"""AdamW's running means of the gradient and of its square; the momentum of plain descent."""
_GATHERED_LAYERS = 2
"""The layer that computes and the one that is fetched meanwhile."""


class Strategy(StrEnum):
    """How the ranks share a student."""

    ONE = "one"
    DDP = "ddp"
    FSDP2 = "fsdp2"
    ZERO1 = "zero1"
    ZERO2 = "zero2"
    ZERO3 = "zero3"

    @property
    def is_deepspeed(self) -> bool:
        return self in {Strategy.ZERO1, Strategy.ZERO2, Strategy.ZERO3}

    @property
    def shards_weights(self) -> bool:
        return self in {Strategy.FSDP2, Strategy.ZERO3}

    @property
    def shards_gradients(self) -> bool:
        return self.shards_weights or self is Strategy.ZERO2

    @property
    def shards_optimizer(self) -> bool:
        return self.shards_gradients or self is Strategy.ZERO1


class Placement(StrEnum):
    """Where a rank has its teacher."""

    REPLICATED = "replicated"
    SHARDED = "sharded"
    OFFLOADED = "offloaded"
    CACHED = "cached"


@dataclass(frozen=True)
class MemoryParts:
    """Bytes on one rank at the worst moment of a step."""

    weights: int
    gradients: int
    """Those that are finished at that moment; without accumulation there are few while there are many activations."""
    optimizer: int
    activations: int
    exchange: int
    """DDP's buckets, or the layers that a sharded model has gathered."""
    beside: int = 0
    """What the caller said is alive beside the student at that moment: a teacher's forward, logits."""

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations + self.exchange + self.beside


def traced_precision(strategy: Strategy, precision: Precision) -> tuple[torch.dtype, torch.dtype | None]:
    """The weights' dtype and autocast's, with which `model_costs` sees what this strategy's forward sees.

    DeepSpeed and FSDP2 compute with weights in the short precision; elsewhere autocast casts weights in fp32.
    """
    if precision == "no":
        return torch.float32, None
    short = torch.bfloat16 if precision == "bf16" else torch.float16
    return (short, None) if strategy.is_deepspeed or strategy.shards_weights else (torch.float32, short)


def student_memory(
    costs: ModelCosts,
    strategy: Strategy,
    world_size: int,
    precision: Precision = "no",
    *,
    optimizer: Literal["adamw", "sgd"] = "adamw",
    beside_forward: int = 0,
    beside_backward: int = 0,
) -> MemoryParts:
    """A rank's memory at the worst moment of a training step.

    Args:
        costs: the student's, traced with `traced_precision`.
        strategy: how the ranks share it.
        world_size: the number of ranks.
        precision: mixed precision.
        optimizer: what it remembers of each parameter counts.
        beside_forward: bytes that something else takes right behind the student's forward: the teacher's.
        beside_backward: bytes that something else takes during the backward: logits and what the loss made of them.
    """
    num_parameters = costs.num_parameters
    short = _FP32 if precision == "no" else 2
    # FSDP2 keeps fp32 shards and gathers short ones; DeepSpeed's model is short throughout.
    kept = short if strategy.is_deepspeed else _FP32
    remembered = num_parameters * (_MOMENTS[optimizer] + (_FP32 if strategy.is_deepspeed else 0))
    fixed = {
        "weights": _part(num_parameters * kept, strategy.shards_weights, world_size) + costs.buffer_bytes,
        "optimizer": _part(remembered, strategy.shards_optimizer, world_size),
        "exchange": _exchange(costs, strategy, short),
    }
    gradients = _part(num_parameters * kept, strategy.shards_gradients, world_size)
    always = costs.kept_gradient_bytes if strategy is Strategy.ONE else 0
    candidates = []
    for moment, beside in _moments(costs, strategy, precision, world_size, beside_forward, beside_backward):
        share = moment.gradient_bytes / max(1, costs.moments[-1].gradient_bytes)
        candidates.append(
            MemoryParts(
                **fixed,
                gradients=always + round((gradients - always) * share),
                activations=moment.activation_bytes,
                beside=beside,
            )
        )
    return max(candidates, key=lambda parts: parts.total)


def teacher_memory(
    num_parameters: int,
    bytes_per_parameter: int,
    placement: Placement,
    world_size: int,
    *,
    num_layer_parameters: int = 0,
    num_outer_parameters: int = 0,
) -> int:
    """Bytes of the teacher's weights on one rank, without its forward.

    Args:
        num_parameters: all of the teacher's.
        bytes_per_parameter: of the precision that it is kept in.
        placement: replicated: all; sharded: a share of all, and what is gathered; offloaded: what is gathered; cached:
            nothing, since a store answers in its place.
        world_size: the number of ranks.
        num_layer_parameters: its largest layer; two of them are gathered at once.
        num_outer_parameters: those outside its layers, which stay gathered.
    """
    gathered = (num_outer_parameters + _GATHERED_LAYERS * num_layer_parameters) * bytes_per_parameter
    whole = num_parameters * bytes_per_parameter
    match placement:
        case Placement.REPLICATED:
            return whole
        case Placement.SHARDED:
            return min(whole + gathered, _part(whole, True, world_size) + gathered)
        case Placement.OFFLOADED:
            return min(whole, gathered)
        case Placement.CACHED:
            return 0


def _moments(
    costs: ModelCosts, strategy: Strategy, precision: Precision, world_size: int, forward: int, backward: int
) -> list[tuple[Moment, int]]:
    """The moments that may be the worst, each with what stands beside the student then."""
    moments = [(moment, backward) for moment in costs.moments]
    # The teacher runs behind the student's forward, when all that backward needs is there.
    moments.append((Moment(costs.saved_bytes, costs.moments[0].gradient_bytes), forward))
    if precision == "fp16" and not strategy.is_deepspeed:
        # A loss scaler rules out the fused AdamW, and the other one takes a number a parameter while it steps.
        temporary = _part(costs.num_parameters * _FP32, strategy.shards_optimizer, world_size)
        moments.append((Moment(temporary, costs.moments[-1].gradient_bytes), 0))
    return moments


def _exchange(costs: ModelCosts, strategy: Strategy, short: int) -> int:
    if strategy is Strategy.DDP:
        # Gradients are copied into buckets, since Accelerate leaves gradient_as_bucket_view off.
        return costs.num_parameters * _FP32
    if strategy.shards_weights:
        # Weights of the gathered layers, and one layer's gradients until they are shared out.
        layers = (_GATHERED_LAYERS + 1) * costs.num_layer_parameters
        return (costs.num_outer_parameters + layers) * short
    return 0


def _part(whole: int, is_sharded: bool, world_size: int) -> int:
    return -(-whole // world_size) if is_sharded else whole
