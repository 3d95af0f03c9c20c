"""Gradients of a rank that are averaged over the ranks between two recordings, and not by DDP within the backward pass.

A recording reads and writes at fixed places, so that the gradients lie in memory of their own, in one piece for each
type; a call for each piece averages them. The call is not recorded: it needs of the library behind it (NCCL, gloo) what
every eager step needs, and ranks whose batches have other shapes, one recording while another replays, meet in it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


class GradientExchange:
    """See the module. All ranks call `average` together, once a step; the rest is each rank's own, but for a first
    `finish`.

    The model is called with parameters that share the memory of its own. To its own DDP has tied what adds up their
    gradients, and that to the stream on which DDP was made: nothing that a recording on another stream may wait for.
    """

    def __init__(self, model: DistributedDataParallel) -> None:
        self._module: nn.Module = model.module
        self._group = model.process_group
        self._own = {name: p for name, p in model.module.named_parameters() if p.requires_grad}
        self._called: dict[str, Tensor] = {
            name: nn.Parameter(parameter.detach()) for name, parameter in self._own.items()
        }
        self._places: dict[str, Tensor] = {}
        self.pieces: list[Tensor] = []
        """The gradients: one dimension, a tensor for each type."""

    def forward(self, **inputs: Any) -> Any:
        """The model's answer to a batch."""
        return torch.func.functional_call(self._module, self._called, (), inputs)

    def start(self) -> None:
        """Before a step's first backward pass: gradients are 0."""
        for piece in self.pieces:
            piece.zero_()

    def finish(self) -> None:
        """After a step's last backward pass: the model's own parameters have the gradients of this rank.

        The first time, which must not be recorded, it lays out the memory, for the parameters that have a gradient:
        what has none gets no update, as without ranks.

        Raises:
            RuntimeError: the parameters that have a gradient are not those of the first time, or of other ranks.
        """
        gradients = {name: p.grad for name, p in self._called.items() if p.grad is not None}
        if not self._places:
            self._refuse_others_than_on_all_ranks(gradients.keys())
            self._lay_out(gradients)
        for name in gradients.keys() - self._places.keys():
            raise RuntimeError(f"{name} has a gradient, and had none in the first step")
        for piece in self.pieces:
            piece.div_(dist.get_world_size(self._group))  # before the sum, as DDP
        for name, place in self._places.items():
            self._own[name].grad = place

    def average(self) -> None:
        """The ranks' gradients become their average."""
        for piece in self.pieces:
            dist.all_reduce(piece, group=self._group)

    def _lay_out(self, gradients: Mapping[str, Tensor]) -> None:
        for dtype in sorted({gradient.dtype for gradient in gradients.values()}, key=str):
            alike = {name: gradient for name, gradient in gradients.items() if gradient.dtype == dtype}
            piece = torch.cat([gradient.reshape(-1) for gradient in alike.values()])
            self.pieces.append(piece)
            places = torch.split(piece, [gradient.numel() for gradient in alike.values()])
            for (name, gradient), place in zip(alike.items(), places, strict=True):
                self._places[name] = self._called[name].grad = place.view(gradient.shape)

    def _refuse_others_than_on_all_ranks(self, learning: Collection[str]) -> None:
        """All ranks together: pieces that are exchanged must be alike."""
        bits = [name in learning for name in self._own]
        device = next(iter(self._own.values())).device
        counts = torch.tensor(bits, dtype=torch.int64, device=device)
        dist.all_reduce(counts, group=self._group)
        if counts.tolist() != [bit * dist.get_world_size(self._group) for bit in bits]:
            raise RuntimeError("other parameters have a gradient on other ranks")
