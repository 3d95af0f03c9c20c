"""What a CUDA graph does, on a CPU: the operations of a piece of work recorded with the very tensors that they read
and wrote, and done again on these.

Whatever the work reads of the host while it is recorded (a learning rate, a number of rows, a branch taken) is fixed
in the recording, and an operation that hands a value to the host is refused, as by a stream that is being captured.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

_TO_THE_HOST = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default}


class _Tape(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, operation: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        if operation in _TO_THE_HOST:
            raise RuntimeError(f"operation not permitted while a stream is captured: {operation}")
        keywords = keywords or {}
        result = operation(*arguments, **keywords)
        self.operations.append((operation, arguments, keywords, result))
        return result

    def replay(self) -> None:
        for operation, arguments, keywords, result in self.operations:
            again = operation(*arguments, **keywords)
            for old, new in zip(tree_flatten(result)[0], tree_flatten(again)[0], strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():  # neither in place nor a view
                    old.copy_(new)


class OpTape:
    """A `Recorder`. A graph is recorded without doing the work: here what it did to `state` is taken back."""

    def __init__(self, state: Callable[[], list[Tensor]]) -> None:
        """`state` gives every tensor that outlives the work."""
        self._state = state
        self.num_recordings = 0

    def rehearse(self, work: Callable[[], None]) -> None:
        work()

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        tape = _Tape()
        with self._undone(), _looks_captured(), tape:
            work()
        self.num_recordings += 1

        def replay() -> None:
            with torch.no_grad():
                tape.replay()

        return replay

    @contextlib.contextmanager
    def _undone(self) -> Iterator[None]:
        tensors, random = self._state(), torch.get_rng_state()
        before = [tensor.detach().clone() for tensor in tensors]
        try:
            yield
        finally:
            torch.set_rng_state(random)
            with torch.no_grad():
                for tensor, value in zip(tensors, before, strict=True):
                    tensor.copy_(value)


@contextlib.contextmanager
def _looks_captured() -> Iterator[None]:
    """Transformers asks torch, and leaves out of a captured stream what would hand a value to the host."""
    with (
        mock.patch.object(torch.cuda, "is_current_stream_capturing", return_value=True),
        mock.patch.object(torch.cuda, "is_available", return_value=True),
    ):
        yield
