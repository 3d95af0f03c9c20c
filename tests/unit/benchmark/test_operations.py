"""The arithmetic of a step, against a count by hand."""

from __future__ import annotations

import pytest
import torch

from accel_kd.benchmark.operations import Operations, ceiling
from accel_kd.benchmark.rounds import Trial
from tests.support.tiny import config


def test_operations_are_those_of_all_products_of_a_step() -> None:
    student, teacher = config("bert", layers=1), config("bert", layers=2)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    trials = [Trial.of(1.0, [mask, mask])]
    operations = Operations.of(student, teacher, 8, torch.device("cpu"), first_token_only=False)

    def forward(layers: int, length: int) -> float:
        """Four maps of attention, two of the feed-forward net, the two products of attention, pooler and head."""
        layer = 2 * length * (4 * 32 * 32 + 2 * 32 * 64) + 2 * 2 * length * length * 32
        return layers * layer + 2 * (32 * 32 + 32 * 5)

    padded = 2 * (3 * forward(1, 4))
    # Nothing is computed backwards into the embeddings, whose output the first layer's maps read.
    found = operations.of_step(trials, with_teacher=False, with_padding=True)
    assert found == pytest.approx(padded, rel=0.2)
    both = operations.of_step(trials, with_teacher=True, with_padding=True)
    assert both - found == pytest.approx(2 * forward(2, 4))
    useful = operations.of_step(trials, with_teacher=True, with_padding=False)
    only_students = operations.of_step(trials, with_teacher=False, with_padding=False)
    assert useful - only_students == pytest.approx(forward(2, 4) + forward(2, 2))
    less = Operations.of(student, teacher, 8, torch.device("cpu"), first_token_only=True)
    for_others = 2 * 3 * (2 * 32 * 32 + 2 * 32 * 64 + 2 * 4 * 32)  # all but keys and values, of three tokens of a row
    teachers = [
        one.of_step(trials, with_teacher=True, with_padding=True)
        - one.of_step(trials, with_teacher=False, with_padding=True)
        for one in (operations, less)
    ]
    assert teachers[0] - teachers[1] == pytest.approx(2 * for_others)


def test_the_ceiling_is_the_rate_of_a_product() -> None:
    assert 1e7 < ceiling(torch.device("cpu"), "no", size=64) < 1e14
