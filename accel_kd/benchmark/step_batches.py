"""Which of a loader's steps are taken: all of them, epoch after epoch, or some of one shape or of each."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from accel_kd.data.loaders import TrainingLoader
from accel_kd.signals import StepBatches


def endless(loader: TrainingLoader) -> Iterator[StepBatches]:
    """Epoch after epoch."""
    return (batches for epoch in itertools.count() for batches in loader.epoch(epoch))


def endless_rows(loader: TrainingLoader) -> Iterator[NDArray[np.int64]]:
    """The rows of those steps, over all ranks."""
    return (rows for epoch in itertools.count() for rows in loader.global_batches(epoch))


def of_one_shape(steps: Iterable[StepBatches], count: int) -> list[StepBatches]:
    """The first `count` of `steps` that have as many rows and are padded alike, as replaying a recording needs."""
    found: dict[torch.Size, list[StepBatches]] = {}
    for step in steps:
        alike = found.setdefault(_shape(step), [])
        alike.append(step)
        if len(alike) == count:
            return alike
    raise AssertionError("an endless loader repeats its shapes")


def every_shape_twice(steps: Iterable[StepBatches]) -> list[StepBatches]:
    """The first of `steps` of each shape, twice: what a graph is made from."""
    first: dict[torch.Size, StepBatches] = {}
    for step in steps:
        first.setdefault(_shape(step), step)
    return [step for step in first.values() for _ in range(2)]


def _shape(step: StepBatches) -> torch.Size:
    return step.micro_batches[0].inputs["input_ids"].shape
