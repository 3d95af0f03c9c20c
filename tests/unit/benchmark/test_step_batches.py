"""Which of a loader's steps are taken."""

from __future__ import annotations

import itertools
from collections import Counter

import torch

from accel_kd.benchmark.step_batches import every_shape_twice, of_one_shape
from accel_kd.signals import Batch, GlobalCounts, StepBatches, Targets


def _step(rows: int, length: int) -> StepBatches:
    inputs = {"input_ids": torch.zeros(rows, length, dtype=torch.long)}
    targets = Targets(torch.zeros(rows, dtype=torch.long), torch.ones(rows, dtype=torch.bool))
    return StepBatches(0, [Batch(torch.arange(rows), inputs, targets)], GlobalCounts(rows, rows))


STEPS = [_step(4, 8), _step(4, 9), _step(3, 8), _step(4, 9), _step(4, 8), _step(4, 9)]


def test_steps_of_one_shape_are_alike_in_rows_and_length() -> None:
    found = of_one_shape(itertools.cycle(STEPS), 5)
    assert {step.micro_batches[0].inputs["input_ids"].shape for step in found} == {(4, 9)} and len(found) == 5


def test_each_shape_is_taken_twice_also_one_that_comes_once() -> None:
    shapes = Counter(tuple(step.micro_batches[0].inputs["input_ids"].shape) for step in every_shape_twice(STEPS))
    assert shapes == {(4, 8): 2, (4, 9): 2, (3, 8): 2}
