"""The optimizer, without decay on biases and norms, and the learning rate over the run."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_scheduler

OptimizerName = Literal["adamw", "sgd"]
_MOMENTUM = 0.9


def make_optimizer(
    name: OptimizerName, model: nn.Module, learning_rate: float, weight_decay: float, *, scaled_loss: bool = False
) -> torch.optim.Optimizer:
    """AdamW, or gradient descent with a momentum of 0.9, over the parameters of `model` that train; decay acts on
    matrices only.

    `scaled_loss` says that a gradient scaler (fp16) will decide whether a step is taken.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        # Biases and the scales of norms are the vectors of a Transformer; everything that multiplies is a matrix.
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    if name == "sgd":
        # Not fused: that kernel leaves the momentum of a first step that it skips as the memory was.
        return torch.optim.SGD(groups, lr=learning_rate, momentum=_MOMENTUM)
    # Fused: one kernel for all parameters; several times faster than the plain loop on CPUs too. Not under a scaler:
    # the fused kernel skips a step by itself, Accelerate does not hear of it, and the schedule would go on.
    return torch.optim.AdamW(groups, lr=learning_rate, fused=not scaled_loss)


def learning_rate_schedule(
    optimizer: torch.optim.Optimizer, schedule: str, total_steps: int, warmup_fraction: float
) -> LambdaLR:
    """`linear` to 0, `cosine` to 0 or `constant`, after a rise from 0 over the first share of `total_steps`.

    It counts optimizer steps. It must stay out of `Accelerator.prepare`, which would advance it once a rank.
    """
    warmup_steps = math.ceil(warmup_fraction * total_steps)
    name = "constant_with_warmup" if schedule == "constant" else schedule
    scheduler: LambdaLR = get_scheduler(name, optimizer, num_warmup_steps=warmup_steps, num_training_steps=total_steps)
    return scheduler
