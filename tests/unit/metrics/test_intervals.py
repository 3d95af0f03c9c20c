"""Intervals of proportions."""

from __future__ import annotations

import math

import numpy as np
import pytest

from accel_kd.metrics.intervals import wilson_interval


@pytest.mark.parametrize(("num_right", "num_rows"), [(0, 7), (7, 7), (45, 61), (4813, 5500)])
def test_it_is_the_formula(num_right: int, num_rows: int) -> None:
    share, z = num_right / num_rows, 1.959963984540054
    middle = (share + z * z / (2 * num_rows)) / (1 + z * z / num_rows)
    half = z / (1 + z * z / num_rows) * math.sqrt(share * (1 - share) / num_rows + z * z / (4 * num_rows**2))
    expected = max(0.0, middle - half), min(1.0, middle + half)
    assert wilson_interval(num_right, num_rows) == pytest.approx(expected, abs=1e-12)


def test_it_covers_at_its_level() -> None:
    draws = np.random.default_rng(0).binomial(300, 0.87, size=1_000)
    ends = {int(draw): wilson_interval(int(draw), 300) for draw in set(draws.tolist())}
    covered = np.mean([ends[draw][0] <= 0.87 <= ends[draw][1] for draw in draws.tolist()])
    assert 0.93 <= covered <= 0.97
