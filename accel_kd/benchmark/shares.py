"""The teacher's and the student's shares of a step's time, measured in steps of their own."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import nn

from accel_kd.benchmark.rounds import Contestant, wait_for


class Stopwatch:
    """Times each forward of a module, the device waited for before and after."""

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        self.seconds: list[float] = []
        self._device = device
        self._hooks = [module.register_forward_pre_hook(self._begin), module.register_forward_hook(self._end)]

    def remove(self) -> None:
        """Lets the module be as it was."""
        for hook in self._hooks:
            hook.remove()

    def _begin(self, *_: Any) -> None:
        wait_for(self._device)
        self._started = time.perf_counter()

    def _end(self, *_: Any) -> None:
        wait_for(self._device)
        self.seconds.append(time.perf_counter() - self._started)


def teachers_share(contestant: Contestant, teacher: nn.Module, num_steps: int, device: torch.device) -> float:
    """The share of the time of `num_steps` steps that passes in the teacher's forward; the student has the rest."""
    watch = Stopwatch(teacher, device)
    try:
        trial = contestant.run(1, num_steps)
    finally:
        watch.remove()
    return sum(watch.seconds[-num_steps:]) / trial.seconds
