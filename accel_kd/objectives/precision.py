"""The precision that every objective computes in, whatever the models ran in."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_float32(logits: Tensor) -> Tensor:
    """The same logits in float32, or as they are if already wider: half types lose small differences of logarithms."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def autocast_disabled(logits: Tensor) -> torch.autocast:
    """A context in which autocast leaves the arithmetic on the device of `logits` alone."""
    return torch.autocast(logits.device.type, enabled=False)
