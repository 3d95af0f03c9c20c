"""Trials that take turns, and what they come to: medians, spreads, and ratios within a round."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

PEER = "Trainer"
"""What everything else is compared with."""


@dataclass(frozen=True)
class Trial:
    """Some steps that were timed together: for each the lengths of its texts `[n]`, and what they were padded to."""

    seconds: float
    lengths: list[NDArray[np.int64]]
    widths: list[int]

    @classmethod
    def of(cls, seconds: float, masks: Sequence[Tensor]) -> Trial:
        """From the attention masks `[n, L]` of the steps."""
        return cls(seconds, [mask.sum(dim=1).cpu().numpy() for mask in masks], [mask.shape[1] for mask in masks])

    @property
    def num_examples(self) -> int:
        return sum(map(len, self.lengths))

    @property
    def num_tokens(self) -> int:
        """Those that are no padding."""
        return int(sum(lengths.sum() for lengths in self.lengths))

    @property
    def num_positions(self) -> int:
        """Tokens and padding."""
        return sum(len(lengths) * width for lengths, width in zip(self.lengths, self.widths, strict=True))

    @property
    def examples_per_second(self) -> float:
        return self.num_examples / self.seconds

    @property
    def tokens_per_second(self) -> float:
        return self.num_tokens / self.seconds

    @property
    def seconds_per_step(self) -> float:
        return self.seconds / len(self.lengths)

    @property
    def padding(self) -> float:
        """The share of the positions that are padding."""
        return 1.0 - self.num_tokens / self.num_positions


class Contestant(Protocol):
    """One way of training, with a model of its own that goes on from trial to trial."""

    @property
    def name(self) -> str:
        """What tables call it."""
        ...

    def run(self, untimed: int, timed: int) -> Trial:
        """Takes so many steps that are not timed, and then so many that are."""
        ...


@dataclass(frozen=True)
class Spread:
    """The middle and the ends of some values."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Over `values`, one a round."""
        return cls(median(values), min(values), max(values))


def take_turns(
    contestants: Sequence[Contestant],
    num_rounds: int,
    num_steps: int,
    warm_up: int,
    report: Callable[[str], None] = lambda line: None,
) -> dict[str, list[Trial]]:
    """Each contestant once a round, in an order that goes round too, so that none is always first.

    Args:
        contestants: with different names.
        num_rounds: how many trials each has.
        num_steps: timed steps of a trial; one step before them is not timed, as caches are another's then.
        warm_up: steps of each before the first round.
        report: takes a line a trial, for whoever waits.
    """
    for contestant in contestants:
        if warm_up:
            contestant.run(warm_up - 1, 1)
    trials: dict[str, list[Trial]] = {contestant.name: [] for contestant in contestants}
    for number in range(num_rounds):
        first = number % len(contestants)
        for contestant in [*contestants[first:], *contestants[:first]]:
            trial = contestant.run(1, num_steps)
            trials[contestant.name].append(trial)
            speed = trial.examples_per_second
            report(f"round {number + 1} of {num_rounds}, {contestant.name}: {speed:.4g} examples/s")
    return trials


def wait_for(device: torch.device) -> None:
    """Returns when the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def device_name(device: torch.device) -> str:
    """The GPU's, or `cpu`."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
