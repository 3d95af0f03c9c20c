"""Which of a loader's steps are taken: all of them, epoch after epoch, or some of one shape or of each."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator

import torch

from accel_kd.data.loaders import TrainingLoader
from accel_kd.signals import StepBatches


def endless(loader: TrainingLoader) -> Iterator[StepBatches]:
    """Epoch after epoch."""
    return (batches for epoch in itertools.count() for batches in loader.epoch(epoch))


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
    """Two of `steps` of each shape, or one where there is no more: what a graph is made from."""
    seen: Counter[torch.Size] = Counter()
    kept = []
    for step in steps:
        seen[_shape(step)] += 1
        if seen[_shape(step)] <= 2:
            kept.append(step)
    return kept


def _shape(step: StepBatches) -> torch.Size:
    return step.micro_batches[0].inputs["input_ids"].shape
