"""What a loss holds beside the model: logits, their softmax, and gradients of these."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from accel_kd.planning.live_memory import LiveMemory

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From the student's logits `[N, V]`, the teacher's `[N, V]` in fp32 and labels `[N]` to a scalar."""


def loss_bytes(loss: Loss, num_rows: int, num_classes: int, dtype: torch.dtype = torch.float32) -> int:
    """The most that is alive at once while `loss` and its gradient are computed, the student's own logits left out.

    Args:
        loss: any that asks no tensor for its values.
        num_rows: rows of a micro-batch, `N`.
        num_classes: classes, `V`.
        dtype: precision of the student's logits.
    """
    with FakeTensorMode():
        student = torch.empty(num_rows, num_classes, dtype=dtype, requires_grad=True)
        with LiveMemory([student]) as live:
            teacher = torch.empty(num_rows, num_classes)
            labels = torch.empty(num_rows, dtype=torch.long)
            loss(student, teacher, labels).backward()  # type: ignore[no-untyped-call]
    peak: int = live.peak_bytes
    return peak
