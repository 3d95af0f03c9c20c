"""Paired comparisons of two models on the same rows."""

from __future__ import annotations

import math

import numpy as np
import pytest

from accel_kd.metrics.paired import mcnemar_p_value


@pytest.mark.parametrize(("only_baseline", "only_other"), [(0, 5), (0, 6), (3, 11), (36, 71), (8, 8)])
def test_it_is_the_binomial_sum(only_baseline: int, only_other: int) -> None:
    total, least = only_baseline + only_other, min(only_baseline, only_other)
    tail = sum(math.comb(total, count) for count in range(least + 1)) / 2**total
    assert mcnemar_p_value(only_baseline, only_other) == pytest.approx(min(1.0, 2 * tail), rel=1e-9)
    assert mcnemar_p_value(only_other, only_baseline) == mcnemar_p_value(only_baseline, only_other)


def test_models_that_differ_on_no_row_are_not_told_apart() -> None:
    assert mcnemar_p_value(0, 0) == 1.0


def test_equal_models_are_told_apart_no_more_often_than_the_level() -> None:
    draws = np.random.default_rng(0).binomial(40, 0.5, size=1_000)
    p_values = {int(draw): mcnemar_p_value(40 - int(draw), int(draw)) for draw in set(draws.tolist())}
    assert np.mean([p_values[draw] <= 0.05 for draw in draws.tolist()]) <= 0.05
