"""The step whose student goes through `torch.compile`: fewer and larger kernels, after a minute of compilation."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch._dynamo.exc import TorchDynamoException

from accel_kd.errors import UserError
from accel_kd.signals import StepBatches
from accel_kd.training.step import EagerStep, Outcome


class CompiledStep(EagerStep):
    """See `Step`. The module that `prepare` returned is what is compiled, once for batches of all shapes; whoever else
    calls that module, evaluation for one, calls it as it is."""

    _is_compiled_or_recorded = True

    def __init__(self, *parts: Any, backend: str | Callable[..., Any] = "inductor") -> None:
        """`parts` as of `EagerStep`, `backend` as of `torch.compile`."""
        super().__init__(*parts)
        self._compiled = torch.compile(self._engine.model, dynamic=True, backend=backend)

    @property
    def called_model(self) -> Callable[..., Any]:
        """See `EagerStep`."""
        return self._compiled

    def __call__(self, batches: StepBatches) -> Outcome:
        """See `Step`.

        Raises:
            UserError: the model cannot be compiled.
        """
        with _explained():
            return super().__call__(batches)

    def rehearse(self, batches: StepBatches) -> None:
        """See `Step`.

        Raises:
            UserError: the model cannot be compiled.
        """
        with _explained():
            super().rehearse(batches)


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except TorchDynamoException as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"training.step_mode: compiled, but torch.compile fails with this model: {reason}; use eager"
        ) from error
