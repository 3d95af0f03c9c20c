"""Gradients of a rank that are averaged over the ranks between two recordings, and not by DDP within the backward pass.

A recording reads and writes at fixed places, so that the gradients lie in memory of their own, in one piece for each
type; a call for each piece averages them. The call is not recorded: it needs of the library behind it (NCCL, gloo) what
every eager step needs, and ranks whose batches have other shapes, one recording while another replays, meet in it.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


class GradientExchange:
    """See the module. All ranks call `average` together, once a step; `start` and `finish` are each rank's own."""

    def __init__(self, model: DistributedDataParallel) -> None:
        self.module: nn.Module = model.module
        """What is called with a batch: only DDP's own forward announces a backward pass in which it exchanges."""
        self._group = model.process_group
        self._pieces: list[Tensor] = []
        self._places: list[tuple[nn.Parameter, Tensor]] = []

    def start(self) -> None:
        """Before a step's first backward pass: gradients are 0, where they stay."""
        for piece in self._pieces:
            piece.zero_()
        for parameter, place in self._places:
            parameter.grad = place

    def finish(self) -> None:
        """After a step's last backward pass. The first time, which must not be recorded, it lays out the memory, for
        the parameters that have a gradient: what has none gets no update, as without ranks."""
        if not self._places:
            self._lay_out()
        for piece in self._pieces:
            piece.div_(dist.get_world_size(self._group))  # before the sum, as DDP

    def average(self) -> None:
        """The ranks' gradients become their average."""
        for piece in self._pieces:
            dist.all_reduce(piece, group=self._group)

    def _lay_out(self) -> None:
        learning = [(p, p.grad) for p in self.module.parameters() if p.grad is not None]
        for dtype in sorted({gradient.dtype for _, gradient in learning}, key=str):
            alike = [(parameter, gradient) for parameter, gradient in learning if gradient.dtype == dtype]
            sizes = [gradient.numel() for _, gradient in alike]
            piece = torch.cat([gradient.reshape(-1) for _, gradient in alike])
            self._pieces.append(piece)
            for (parameter, gradient), place in zip(alike, torch.split(piece, sizes), strict=True):
                self._places.append((parameter, place.view(gradient.shape)))
                parameter.grad = self._places[-1][1]
