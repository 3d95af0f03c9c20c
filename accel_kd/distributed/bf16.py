"""Whether bf16 is computed as such where a run is, on all of its ranks, whose machines may be of several kinds."""

from __future__ import annotations

import logging

import torch
from accelerate import Accelerator

from accel_kd.distributed.collectives import true_on_every_rank
from accel_kd.distributed.cpu_features import multiplies_bf16

logger = logging.getLogger(__name__)

_agreed: bool | None = None


def agree_on_bf16(accelerator: Accelerator) -> None:
    """Finds out for `all_ranks_have_bf16`, on all ranks together; warns where a run is in bf16 without it."""
    global _agreed
    _agreed = None
    _agreed = true_on_every_rank(accelerator, all_ranks_have_bf16(accelerator.device))
    if accelerator.mixed_precision == "bf16" and not _agreed and accelerator.is_main_process:
        logger.warning(
            "training.precision: bf16, which not all ranks' devices are known to have instructions for: without them "
            "it is computed in fp32 and converted, slower than fp32 itself, on a CPU up to thirty times; use "
            "training.precision=no"
        )


def all_ranks_have_bf16(device: torch.device) -> bool:
    """Whether the devices of all ranks have instructions for bf16; before `agree_on_bf16`, whether this one has."""
    if _agreed is not None:
        return _agreed
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return multiplies_bf16()
