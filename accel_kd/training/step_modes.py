"""The `step_mode` setting: which way of taking a step this launch allows, and which of them is worth it."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn

from accel_kd.errors import UserError
from accel_kd.training.step import EagerStep, Step

StepMode = Literal["eager", "compiled", "graphed"]
StepModeSetting = Literal["auto", "eager", "compiled", "graphed"]

_LAUNCH_BOUND_FLOPS = 4e12
"""A GPU for which graphs matter multiplies as much in 5 to 10 milliseconds in bf16; the host takes 20 to launch the
kernels of a step of BERT-base's size."""


@dataclass(frozen=True)
class Launch:
    """What decides which ways are possible."""

    device: str
    """`cpu`, `cuda`, ..."""
    strategy: Literal["one process", "DDP", "FSDP2", "DeepSpeed"]
    precision: str
    optimizer: str

    @classmethod
    def of(cls, accelerator: Accelerator, optimizer: str) -> Launch:
        """That of this process."""
        match accelerator.distributed_type:
            case DistributedType.NO:
                strategy = "one process"
            case DistributedType.FSDP:
                strategy = "FSDP2"
            case DistributedType.DEEPSPEED:
                strategy = "DeepSpeed"
            case _:
                strategy = "DDP"
        return cls(accelerator.device.type, strategy, accelerator.mixed_precision, optimizer)  # type: ignore[arg-type]


def choose_step_mode(setting: StepModeSetting, launch: Launch, flops: float) -> tuple[StepMode, str]:
    """The mode, and the reason for it.

    Args:
        setting: what the recipe says.
        launch: where it runs.
        flops: floating-point operations of a step of one device.

    Raises:
        UserError: the mode that was asked for is impossible here.
    """
    if setting == "eager":
        return "eager", "as set"
    if setting == "compiled":
        _refuse("compiled", _against_compiled(launch), "eager")
        return "compiled", "as set"
    against = _against_graphed(launch)
    if setting == "graphed":
        _refuse("graphed", against, "compiled or eager")
        return "graphed", "as set"
    if against is not None:
        return "eager", against
    if launch.strategy != "one process":
        return "eager", "steps of several ranks are recorded where training.step_mode says graphed"
    if flops > _LAUNCH_BOUND_FLOPS:
        return "eager", f"{flops / 1e12:.1f} TFLOP a step keep the GPU busy while the host launches them"
    return "graphed", f"{flops / 1e12:.2f} TFLOP a step are done before the host has launched them one by one"


def training_flops(model: nn.Module, num_tokens: float) -> float:
    """Six for each token and weight that is multiplied with it, forward and backward (Kaplan et al. 2020, arXiv
    2001.08361, section 2.1); embeddings are looked up, and attention's own products are left out."""
    looked_up = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    matrices = (p for p in model.parameters() if p.ndim >= 2 and id(p) not in looked_up)
    return 6.0 * num_tokens * sum(matrix.numel() for matrix in matrices)


def make_step(mode: StepMode, *parts: Any, optimizer: torch.optim.Optimizer, is_asked_for: bool = True) -> Step:
    """The step of that mode; `parts` as of `EagerStep`, `optimizer` as it was before it was prepared."""
    match mode:
        case "eager":
            return EagerStep(*parts)
        case "compiled":
            from accel_kd.training.compiled_step import CompiledStep  # the compiler takes seconds to import

            return CompiledStep(*parts)
        case "graphed":
            from accel_kd.recording.cuda_graphs import CudaGraphs
            from accel_kd.training.graphed_step import GraphedStep

            recorder = CudaGraphs(parts[0].device)
            return GraphedStep(*parts, optimizer=optimizer, recorder=recorder, is_asked_for=is_asked_for)


def _refuse(mode: StepMode, against: str | None, others: str) -> None:
    if against is not None:
        raise UserError(f"training.step_mode: {mode}, but {against}; use {others}, or auto")


def _against_graphed(launch: Launch) -> str | None:
    if launch.device != "cuda":
        return f"graphs are CUDA's, and this runs on the {launch.device}"
    if launch.strategy not in ("one process", "DDP"):
        return f"graphs are recorded of one process or DDP, and this is {launch.strategy}"
    if launch.precision == "fp16":
        return "fp16's loss scale is looked at by the host in every step"
    if launch.optimizer != "adamw":
        return f"training.optimizer {launch.optimizer} asks the host whether a gradient is finite"
    return None


def _against_compiled(launch: Launch) -> str | None:
    if launch.strategy not in ("one process", "DDP"):
        return f"a student under {launch.strategy} is not compiled here"
    if launch.device == "cpu" and not any(map(shutil.which, (os.environ.get("CXX", "g++"), "g++", "clang++"))):
        return "there is no C++ compiler (g++, or what CXX names)"
    return None
