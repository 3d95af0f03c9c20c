"""What the launcher was told to start, read from what it leaves in the environment, and refused where it cannot be."""

from __future__ import annotations

import os
from collections.abc import Mapping
from enum import StrEnum

from accel_kd.errors import UserError


class Strategy(StrEnum):
    """How the student is spread over ranks."""

    REPLICATED = "replicated"
    """One process, or DDP where there are several."""
    FSDP2 = "FSDP2"
    ZERO = "DeepSpeed ZeRO"


def asked_strategy(environment: Mapping[str, str] = os.environ) -> Strategy:
    """The strategy that the launcher was told to use, whether or not Accelerate then starts it.

    Raises:
        UserError: it is none that this program runs, several processes were asked for and one was started, or a
            sharded one was asked for without a launcher.
    """
    _refuse_lost_processes(environment)
    if is_set("ACCELERATE_USE_MEGATRON_LM", environment):
        raise UserError(
            "launch: the launcher was told to use Megatron-LM, which is not supported; use a file of launch_configs/"
        )
    strategy = Strategy.REPLICATED
    if is_set("ACCELERATE_USE_DEEPSPEED", environment):
        strategy = Strategy.ZERO
    elif is_set("ACCELERATE_USE_FSDP", environment):
        strategy = Strategy.FSDP2
        version = environment.get("FSDP_VERSION", "1")
        if version != "2":
            raise UserError(
                f"launch: the launcher was told to use FSDP version {version}, and FSDP2 is what is supported; set "
                "fsdp_version: 2, as launch_configs/fsdp2.yaml does"
            )
    if strategy is not Strategy.REPLICATED and "LOCAL_RANK" not in environment:
        raise UserError(
            f"launch: {strategy} was asked for (ACCELERATE_USE_*), but no launcher started this process; use "
            "`accelerate launch --config_file launch_configs/...`, or unset it"
        )
    return strategy


def is_set(variable: str, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether the launcher said yes to `variable`."""
    return environment.get(variable, "false").lower() in {"true", "1"}


def _refuse_lost_processes(environment: Mapping[str, str]) -> None:
    """`accelerate launch --cpu --num_processes 2` starts one process without a word; all it leaves is an address."""
    if "MASTER_ADDR" in environment and "ACCELERATE_MIXED_PRECISION" in environment and "WORLD_SIZE" not in environment:
        raise UserError(
            "launch: several processes were asked for, but the launcher started one (it does so for --cpu); start CPU "
            "ranks with `accelerate launch --multi_gpu --num_processes N` or `torchrun --nproc_per_node N`, or unset "
            "MASTER_ADDR if one was meant"
        )
