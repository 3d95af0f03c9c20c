"""Starts Accelerate and proves that the launch is what it claims to be; otherwise the run stops here."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DataLoaderConfiguration,
    DistributedType,
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
)
from transformers.utils.logging import disable_progress_bar

from accel_kd.errors import UserError

logger = logging.getLogger(__name__)

_UNSUPPORTED = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
}
"""What the launcher sets for a strategy, also where Accelerate then starts without it."""
_SUPPORTED = "use one process or DDP (launch_configs/single_gpu.yaml, launch_configs/ddp.yaml)"
_STRATEGIES = {
    DistributedType.NO: "one process",
    DistributedType.MULTI_CPU: "DDP over gloo",
    DistributedType.MULTI_GPU: "DDP over NCCL",
}


def start(precision: str | None, rank_timeout_seconds: float = 1800.0) -> Accelerator:
    """The accelerator of this process.

    Args:
        precision: `no`, `bf16` or `fp16`; None takes what the launcher was told.
        rank_timeout_seconds: how long a rank waits for the others in a collective.

    Raises:
        UserError: the launcher asked for another number of processes, another precision or a strategy that this
            program does not run.
    """
    _refuse_lost_processes(os.environ)
    _refuse_unsupported(os.environ)
    # A bar for each file that is loaded or written would drown the one bar that counts.
    disable_progress_bar()
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision is not None and launched != "no" and launched != precision:
        raise UserError(
            f"training.precision: {precision}, but the launcher was told mixed_precision {launched}; let one of them go"
        )
    precision = precision or launched
    has_device = torch.accelerator.is_available()
    if precision == "fp16" and not has_device:
        raise UserError("training.precision: fp16 needs a GPU; use bf16 or no on a CPU")
    if precision not in {"no", "bf16", "fp16"}:
        raise UserError(f"training.precision: the launcher was told mixed_precision {precision}; use no, bf16 or fp16")
    if not has_device:
        # DeepSpeed, which Accelerate imports, otherwise warns that it found no GPU.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    try:
        accelerator = Accelerator(
            mixed_precision=precision,
            # Without this, several CPU processes each believe that they are alone.
            cpu=not has_device or os.environ.get("ACCELERATE_USE_CPU", "false").lower() in {"true", "1"},
            # The order and the sharding of examples are our own; nothing of them is left to a prepared loader.
            dataloader_config=DataLoaderConfiguration(dispatch_batches=False),
            # So is accumulation: a count in the environment would divide every gradient once more.
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
            kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(seconds=rank_timeout_seconds))],
        )
    except (ValueError, RuntimeError) as error:  # a variable or a device that the launcher counts on is not there
        raise UserError(f"launch: Accelerate cannot start from what the launcher set: {error}") from error
    _prove(accelerator)
    return accelerator


def describe(accelerator: Accelerator) -> str:
    """One line for the log: ranks, device, strategy, precision."""
    ranks = accelerator.num_processes
    device = accelerator.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    strategy = _STRATEGIES[accelerator.distributed_type]
    where = f"{ranks} rank{'s' if ranks > 1 else ''} on {device.type} ({name})"
    return f"{where}, {strategy}, precision {accelerator.mixed_precision}"


def _refuse_lost_processes(environment: Mapping[str, str]) -> None:
    """`accelerate launch --cpu --num_processes 2` starts one process without a word; all it leaves is an address."""
    if "MASTER_ADDR" in environment and "ACCELERATE_MIXED_PRECISION" in environment and "WORLD_SIZE" not in environment:
        raise UserError(
            "launch: several processes were asked for, but the launcher started one (it does so for --cpu); start CPU "
            "ranks with `accelerate launch --multi_gpu --num_processes N` or `torchrun --nproc_per_node N`, or unset "
            "MASTER_ADDR if one was meant"
        )


def _refuse_unsupported(environment: Mapping[str, str]) -> None:
    for variable, strategy in _UNSUPPORTED.items():
        if environment.get(variable, "false").lower() in {"true", "1"}:
            raise UserError(
                f"launch: the launcher was told to use {strategy}, which this version does not support; {_SUPPORTED}"
            )


def _prove(accelerator: Accelerator) -> None:
    if accelerator.distributed_type not in _STRATEGIES:
        raise UserError(
            f"launch: the strategy {accelerator.distributed_type.value} is not supported by this version; {_SUPPORTED}"
        )
    if accelerator.device.type == "mps":
        raise UserError("launch: scores are computed in float64, which mps lacks; set ACCELERATE_USE_CPU=1")
    asked = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != asked:
        raise UserError(
            f"launch: {asked} processes were asked for, but this one sees {accelerator.num_processes}: each would "
            "train by itself; check the launch configuration against the devices of this machine"
        )
    # One cheap collective: ranks that cannot reach each other fail here and not after an hour of tokenising.
    total = accelerator.reduce(torch.ones((), device=accelerator.device), reduction="sum")
    assert int(total) == asked, f"{int(total)} ranks answered, {asked} were started"
