"""Follows the bytes that are alive while a model runs on tensors without data, operation by operation."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@dataclass(frozen=True)
class Moment:
    """Bytes alive at one time of a step: finished gradients of parameters, and all else that was made on the way."""

    activation_bytes: int
    gradient_bytes: int


class LiveMemory(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While it is entered, every storage that an operation makes counts until its last tensor is gone.

    Views count once, and what is `known` (parameters, inputs) never: it was there before. What a kernel takes and
    gives back within one operation is not seen.
    """

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.activation_bytes = 0
        self.gradient_bytes = 0
        self._known = {_address(tensor): tensor for tensor in known}
        self._alive: dict[int, tuple[int, weakref.ref[Any]]] = {}
        self._gradients: set[int] = set()
        self._highest: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._meet(tensor)
        self._look()
        return result

    def is_gradient(self, gradient: Tensor) -> None:
        """From here on `gradient` counts as a parameter's finished gradient."""
        address = _address(gradient)
        if address in self._alive and address not in self._gradients:
            num_bytes, _ = self._alive[address]
            self._gradients.add(address)
            self.activation_bytes -= num_bytes
            self.gradient_bytes += num_bytes
        self._look()

    def start_over(self) -> None:
        """Forgets the moments so far; what is alive stays."""
        self._highest.clear()
        self._look()

    @property
    def peak_activation_bytes(self) -> int:
        """The most that was alive at once beside finished gradients, since the start or `start_over`."""
        return max(self._highest.values(), default=0)

    @property
    def peak_bytes(self) -> int:
        """The most that was alive at once, finished gradients among it."""
        return max((gradients + others for gradients, others in self._highest.items()), default=0)

    def moments(self) -> tuple[Moment, ...]:
        """The moments that could be a step's worst, whatever a byte of gradients costs beside one of activations.

        Of two moments the one with less of both is left out.
        """
        worst: list[Moment] = []
        for gradients in sorted(self._highest, reverse=True):
            if not worst or self._highest[gradients] > worst[-1].activation_bytes:
                worst.append(Moment(self._highest[gradients], gradients))
        return tuple(reversed(worst))

    def _meet(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        address = storage._cdata
        if address in self._known or address in self._alive:
            return
        num_bytes = storage.nbytes()
        self._alive[address] = (num_bytes, weakref.ref(storage, lambda _: self._leave(address)))
        self.activation_bytes += num_bytes

    def _leave(self, address: int) -> None:
        num_bytes, _ = self._alive.pop(address)
        if address in self._gradients:
            self._gradients.remove(address)
            self.gradient_bytes -= num_bytes
        else:
            self.activation_bytes -= num_bytes

    def _look(self) -> None:
        highest = self._highest.get(self.gradient_bytes, 0)
        self._highest[self.gradient_bytes] = max(highest, self.activation_bytes)


def _address(tensor: Tensor) -> int:
    # Tensors without data have no data pointer to tell them apart.
    address: int = tensor.untyped_storage()._cdata
    return address
