"""FSDP2 through Accelerate: what its plugin is told, and how it starts on a CPU, where Accelerate has DDP instead."""

from __future__ import annotations

import os

import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch.distributed.fsdp import MixedPrecisionPolicy


def fsdp2_plugin(precision: str) -> FullyShardedDataParallelPlugin:
    """What the launcher was told of FSDP2, with what this program decides itself."""
    # With it `from_pretrained` leaves weights empty on all ranks but the first, the teacher's too.
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    policy = None
    if precision == "bf16":
        # Gradients are added up over ranks in fp32, as under DDP.
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    os.environ.setdefault("FSDP_AUTO_WRAP_POLICY", "TRANSFORMER_BASED_WRAP")
    return FullyShardedDataParallelPlugin(
        fsdp_version=2, cpu_ram_efficient_loading=False, mixed_precision_policy=policy
    )


def start_fsdp2_on_cpu(plugin: FullyShardedDataParallelPlugin) -> None:
    """Makes Accelerate treat CPU ranks as it treats GPUs: it knows FSDP for those alone, and torch's works on both.

    Without it, ranks that asked for FSDP2 would train under DDP without a word.
    """
    state, partial = AcceleratorState._shared_state, PartialState._shared_state
    if state.get("distributed_type") is DistributedType.MULTI_CPU:
        state["distributed_type"] = partial["distributed_type"] = DistributedType.FSDP
        state["fsdp_plugin"] = plugin
        state["device"] = partial["device"] = torch.device("cpu")
