"""What engines have in common that Accelerate itself prepares and differentiates: one process, DDP, FSDP2."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from accelerate import Accelerator
from torch import Tensor, nn


class AcceleratedEngine:
    """See `Engine`, of which this is a part."""

    def __init__(
        self, accelerator: Accelerator, model: nn.Module, optimizer: torch.optim.Optimizer, max_grad_norm: float | None
    ) -> None:
        self._accelerator = accelerator
        self._bare = model
        self._raw_optimizer = optimizer
        self._max_grad_norm = max_grad_norm
        self.model, self._optimizer = accelerator.prepare(model, optimizer)

    def expect_eager_steps(self) -> None:
        """Changes nothing."""

    def accumulating(self, *, is_last: bool) -> AbstractContextManager[object]:
        """Until the last one ranks exchange nothing; DDP decides so in the forward pass already."""
        context: AbstractContextManager[object] = nullcontext() if is_last else self._accelerator.no_sync(self.model)
        return context

    def backward(self, loss: Tensor) -> None:
        """See `Engine`."""
        self._accelerator.backward(loss)

    def close(self) -> None:
        """See `Engine`."""
        self._accelerator.free_memory(self.model, self._optimizer)
