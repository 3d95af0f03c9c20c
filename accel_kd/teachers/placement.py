"""Where a frozen teacher lives: whole on each device, shared out over the ranks, or in host memory.

Its logits are the same in each place. None of these goes through `Accelerator.prepare`, which belongs to the student:
under FSDP2 it refuses a second model, and under DeepSpeed it would make an engine of it.
"""

from __future__ import annotations

import gc
from typing import Literal

import torch
from accelerate.big_modeling import cpu_offload
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from accel_kd.distributed.freed_memory import release_freed_memory
from accel_kd.models.layers import layers

Placement = Literal["replicated", "sharded", "offloaded"]


def place(model: PreTrainedModel, placement: Placement, device: torch.device, world_size: int) -> PreTrainedModel:
    """The same model, frozen, in evaluation mode and in its place.

    Args:
        model: with its weights, on the CPU, the same on all ranks.
        placement: `replicated`: whole on `device`; `sharded`: each rank keeps a part of every layer and gathers a whole
            one for its forward, so that all ranks have to call the model equally often; `offloaded`: its weights stay
            in host memory and come to `device` part by part.
        device: where its forward runs.
        world_size: number of ranks; one alone has nobody to share with, and keeps the whole.
    """
    model = model.eval().requires_grad_(False)
    if placement == "sharded" and world_size > 1:
        return _sharded(model, device, world_size)
    if placement == "offloaded":
        # To `cpu:0`, as ranks name theirs, each `.to` is a copy that is no parameter any more.
        there = torch.device("cpu") if device.type == "cpu" else device
        offloaded: PreTrainedModel = cpu_offload(model, execution_device=there)
        return offloaded
    return model.to(device)


def describe(model: PreTrainedModel, placement: Placement, device: torch.device, world_size: int) -> str:
    """Where it is, for the log, with what this rank holds of it where that is a part."""
    if placement == "offloaded":
        return f"offloaded: its weights are in host memory, and come to {device} part by part"
    if placement == "sharded" and world_size > 1:
        held, whole = held_parameters(model), model.num_parameters()
        return f"sharded over {world_size} ranks: {held:,} of its {whole:,} parameters are on rank 0 ({device.type})"
    return f"replicated: whole on {device}" + (", since one rank has none to share with" * (placement == "sharded"))


def held_parameters(model: nn.Module) -> int:
    """Parameters that this rank keeps on its device between two calls."""
    parts = [p.to_local() if isinstance(p, DTensor) else p for p in model.parameters()]
    return sum(part.numel() for part in parts if part.device.type != "meta")


def release_memory() -> None:
    """Gives back the memory of teachers that nobody refers to any more; hooks keep each in a cycle with itself."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    release_freed_memory()


def _sharded(model: PreTrainedModel, device: torch.device, world_size: int) -> PreTrainedModel:
    mesh = init_device_mesh(device.type, (world_size,))
    # Children before parents, where layers lie within layers. What belongs to no layer is the root's.
    for module in [*reversed(layers(model)), model]:
        fully_shard(module, mesh=mesh, reshard_after_forward=True)
    return model
