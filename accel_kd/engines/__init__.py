"""A model and its optimizer as each strategy holds them: whole on every rank, or in shards."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn

from accel_kd.engines.base import Engine
from accel_kd.engines.fsdp2 import Fsdp2Engine
from accel_kd.engines.replicated import ReplicatedEngine
from accel_kd.engines.zero import ZeroEngine

__all__ = ["Engine", "Fsdp2Engine", "ReplicatedEngine", "ZeroEngine", "start_engine"]


def start_engine(
    accelerator: Accelerator, model: nn.Module, optimizer: torch.optim.Optimizer, max_grad_norm: float | None
) -> Engine:
    """Puts `model` and `optimizer` where the launch's strategy has them; all ranks together.

    Args:
        accelerator: of this launch, as `distributed.startup` proved it.
        model: whole, with the same weights on every rank.
        optimizer: over its parameters; it has taken no step.
        max_grad_norm: gradients are scaled down to this norm; None: never.
    """
    match accelerator.distributed_type:
        case DistributedType.DEEPSPEED:
            return ZeroEngine(accelerator, model, optimizer, max_grad_norm)
        case DistributedType.FSDP:
            return Fsdp2Engine(accelerator, model, optimizer, max_grad_norm)
        case _:
            return ReplicatedEngine(accelerator, model, optimizer, max_grad_norm)
