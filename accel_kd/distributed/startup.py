"""Starts Accelerate and proves that the launch is what it claims to be; otherwise the run stops here."""

from __future__ import annotations

import logging
import os
from datetime import timedelta
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DataLoaderConfiguration,
    DistributedType,
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
)
from transformers.utils.logging import disable_progress_bar

from accel_kd.distributed.asked_strategy import Strategy, asked_strategy, is_set
from accel_kd.distributed.bf16 import agree_on_bf16
from accel_kd.distributed.collectives import on_every_rank, true_on_every_rank
from accel_kd.distributed.cpu_matmul import CpuMatmul, is_onednn, multiply_with
from accel_kd.distributed.cpu_threads import threads_of_rank, usable_cpus
from accel_kd.distributed.deepspeed_start import deepspeed_plugin, leave_models_whole, prepare_for_deepspeed
from accel_kd.distributed.freed_memory import keep_freed_memory
from accel_kd.distributed.fsdp2_start import fsdp2_plugin, start_fsdp2_on_cpu
from accel_kd.errors import UserError

logger = logging.getLogger(__name__)

_STARTED = {
    DistributedType.NO: Strategy.REPLICATED,
    DistributedType.MULTI_CPU: Strategy.REPLICATED,
    DistributedType.MULTI_GPU: Strategy.REPLICATED,
    DistributedType.FSDP: Strategy.FSDP2,
    DistributedType.DEEPSPEED: Strategy.ZERO,
}


def start(
    precision: str | None,
    rank_timeout_seconds: float = 1800.0,
    threads: int | None = None,
    cpu_matmul: CpuMatmul = "auto",
) -> Accelerator:
    """The accelerator of this process.

    Args:
        precision: `no`, `bf16` or `fp16`; None takes what the launcher was told.
        rank_timeout_seconds: how long a rank waits for the others in a collective.
        threads: CPU threads of this rank; None as `threads_of_rank` has it.
        cpu_matmul: what multiplies on a CPU; see `multiply_with`.

    Raises:
        UserError: the launcher asked for another number of processes, another precision or a strategy that this
            program does not run, or this CPU is not one for `cpu_matmul`.
    """
    strategy = asked_strategy()
    # A bar for each file that is loaded or written would drown the one bar that counts.
    disable_progress_bar()
    has_device = torch.accelerator.is_available() and not is_set("ACCELERATE_USE_CPU")
    precision = _precision(precision, strategy, has_device)
    timeout = timedelta(seconds=rank_timeout_seconds)
    backend: str | None = None
    if strategy is Strategy.ZERO:
        prepare_for_deepspeed(has_device)
        backend = None if has_device else "gloo"
    elif not has_device:
        # DeepSpeed, which Accelerate imports, otherwise warns that it found no GPU.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    try:
        plugins: dict[str, Any] = {}
        if strategy is Strategy.ZERO:
            plugins["deepspeed_plugin"] = deepspeed_plugin()
        elif strategy is Strategy.FSDP2:
            plugins["fsdp_plugin"] = fsdp2_plugin(precision)
        accelerator = Accelerator(
            mixed_precision=precision,
            # Without this, several CPU processes each believe that they are alone; with it, DeepSpeed is not started.
            cpu=not has_device and strategy is not Strategy.ZERO,
            # The order and the sharding of examples are our own; nothing of them is left to a prepared loader.
            dataloader_config=DataLoaderConfiguration(dispatch_batches=False),
            # So is accumulation: a count in the environment would divide every gradient once more.
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
            kwargs_handlers=[InitProcessGroupKwargs(backend=backend, timeout=timeout)],
            **plugins,
        )
    except UserError:
        raise
    except (ValueError, RuntimeError) as error:  # a variable or a device that the launcher counts on is not there
        raise UserError(f"launch: Accelerate cannot start from what the launcher set: {error}") from error
    if strategy is Strategy.FSDP2 and not has_device:
        start_fsdp2_on_cpu(plugins["fsdp_plugin"])
    if strategy is Strategy.ZERO:
        leave_models_whole()
    # Behind Accelerate, which sets a number of its own in some launches.
    if (num_threads := threads_of_rank(threads, usable_cpus())) is not None:
        torch.set_num_threads(num_threads)
    if not has_device:
        keep_freed_memory()
    _prove(accelerator, strategy)
    agree_on_bf16(accelerator)
    if not has_device:
        _multiply_alike(accelerator, cpu_matmul)
    return accelerator


def describe(accelerator: Accelerator) -> str:
    """One line for the log: ranks, device, strategy, precision."""
    ranks, device = accelerator.num_processes, accelerator.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    where = f"{ranks} rank{'s' if ranks > 1 else ''} on {device.type} ({name})"
    by = ", fp32 products by oneDNN" if device.type == "cpu" and is_onednn() else ""
    return f"{where}, {strategy_name(accelerator)}, precision {accelerator.mixed_precision}{by}"


def strategy_name(accelerator: Accelerator) -> str:
    """The strategy for people: `one process`, `DDP over gloo`, `FSDP2 over nccl`, `DeepSpeed ZeRO-2 over gloo`."""
    strategy = _STARTED[accelerator.distributed_type]
    if accelerator.distributed_type is DistributedType.NO:
        return "one process"
    if strategy is Strategy.ZERO:
        name = f"{strategy}-{accelerator.state.deepspeed_plugin.zero_stage}"
    else:
        name = "DDP" if strategy is Strategy.REPLICATED else str(strategy)
    return f"{name} over {'NCCL' if accelerator.device.type == 'cuda' else 'gloo'}"


def _precision(precision: str | None, strategy: Strategy, has_device: bool) -> str:
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision is not None and launched != "no" and launched != precision:
        raise UserError(
            f"training.precision: {precision}, but the launcher was told mixed_precision {launched}; let one of them go"
        )
    precision = precision or launched
    if precision == "fp16" and not has_device:
        raise UserError("training.precision: fp16 needs a GPU; use bf16 or no on a CPU")
    if precision == "fp16" and strategy is Strategy.FSDP2:
        raise UserError(
            "training.precision: fp16 is not run under FSDP2, whose slices no loss scale looks over; use bf16"
        )
    if precision not in {"no", "bf16", "fp16"}:
        raise UserError(f"training.precision: the launcher was told mixed_precision {precision}; use no, bf16 or fp16")
    return precision


def _multiply_alike(accelerator: Accelerator, cpu_matmul: CpuMatmul) -> None:
    """All ranks by one library: what sums and teachers' logits are must not depend on which rank has a row."""
    on_every_rank(accelerator, partial(multiply_with, cpu_matmul))
    chosen = is_onednn()
    by_onednn = true_on_every_rank(accelerator, chosen)
    if not by_onednn:
        multiply_with("blas")
    if not by_onednn and not true_on_every_rank(accelerator, not chosen):
        logger.info("run.cpu_matmul: blas, since not all ranks are on CPUs for which auto takes oneDNN")


def _prove(accelerator: Accelerator, asked_for: Strategy) -> None:
    started = _STARTED.get(accelerator.distributed_type)
    if started is not asked_for:
        raise UserError(
            f"launch: {asked_for} was asked for, and {accelerator.distributed_type.value} started; check the launch "
            "configuration (launch_configs/ has one for each strategy) against the devices of this machine"
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
