"""Intervals and p-values of paired differences: against other ways to them, and how often they hold the truth."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from numpy.typing import NDArray

from accel_kd.comparison.paired_statistics import discordant_rows, holm, paired_interval
from accel_kd.metrics.paired import mcnemar_p_value

_DRAWS = 1000
_ERROR = 3 * math.sqrt(0.95 * 0.05 / _DRAWS)
"""Three standard errors of a rate of 95 % that is seen in so many draws."""


def two_models(both: int, only_baseline: int, only_other: int, neither: int) -> tuple[NDArray[np.bool_], ...]:
    """Two runs on rows of which so many are right."""
    counts = [both, only_baseline, only_other, neither]
    baseline = np.repeat([True, True, False, False], counts)
    other = np.repeat([True, False, True, False], counts)
    return baseline[None], other[None]


def test_mcnemar_is_the_binomial_sum_over_the_rows_that_one_alone_has_right() -> None:
    for a, b in itertools.product(range(8), repeat=2):
        n, fewer = a + b, min(a, b)
        tail = sum(math.comb(n, k) for k in range(fewer + 1)) / 2**n
        assert mcnemar_p_value(a, b) == pytest.approx(min(1.0, 2 * tail))


def test_the_bootstrap_is_one_that_draws_pairs_of_rows() -> None:
    baseline, other = two_models(700, 30, 65, 205)
    extended = [np.concatenate([side[0], more]) for side, more in ((baseline, [True, False]), (other, [False, True]))]
    generator = np.random.default_rng(5)
    rows = generator.integers(0, 1002, size=(4000, 1002))
    differences = extended[1][rows].mean(axis=1) - extended[0][rows].mean(axis=1)
    interval = paired_interval(baseline, other)
    assert interval.difference == pytest.approx(0.035)
    assert interval.low == pytest.approx(np.quantile(differences, 0.025), abs=0.0015)
    assert interval.high == pytest.approx(np.quantile(differences, 0.975), abs=0.0015)


def test_it_agrees_with_the_exact_test_where_few_rows_differ_and_is_no_point_where_none_does() -> None:
    for only_other in range(12):
        interval = paired_interval(*two_models(900, 0, only_other, 88))
        assert (interval.low > 0) == (mcnemar_p_value(0, only_other) < 0.05), only_other
    none = paired_interval(*two_models(900, 0, 0, 100))
    assert none.low < none.difference == 0 < none.high


def test_it_is_the_same_each_time_and_turns_round_with_its_sides() -> None:
    baseline, other = two_models(500, 20, 41, 39)
    there, back = paired_interval(baseline, other), paired_interval(other, baseline)
    assert there == paired_interval(baseline, other)
    assert back.difference == -there.difference
    assert back.low == pytest.approx(-there.high, abs=0.002)
    assert paired_interval(baseline, other, 0.99).low < there.low


@pytest.mark.parametrize(("num_rows", "only_other", "only_baseline"), [(1200, 0.05, 0.03), (4500, 0.04, 0.04)])
def test_intervals_of_two_models_hold_the_truth_as_often_as_they_say(
    num_rows: int, only_other: float, only_baseline: float
) -> None:
    generator = np.random.default_rng(1)
    held = 0
    for _ in range(_DRAWS):
        neither, more, less = generator.multinomial(
            num_rows, [1 - only_other - only_baseline, only_other, only_baseline]
        )
        interval = paired_interval(*two_models(neither, less, more, 0))
        held += interval.low <= only_other - only_baseline <= interval.high
    assert held / _DRAWS == pytest.approx(0.95, abs=_ERROR)


def test_where_few_rows_differ_intervals_hold_the_truth_at_least_as_often() -> None:
    generator = np.random.default_rng(1)
    held = 0
    for more in generator.binomial(300, 0.005, size=_DRAWS):
        interval = paired_interval(*two_models(300 - more, 0, more, 0))
        held += interval.low <= 0.005 <= interval.high
    assert held / _DRAWS > 0.95 - _ERROR


def seeds(
    generator: np.random.Generator, row_logits: NDArray[np.float64], num_runs: int, spread: float
) -> NDArray[np.bool_]:
    """Runs of one setting `[runs, n]`: each row has its logit, each run a shift of its own, each answer its chance."""
    shifts = generator.normal(0, spread, size=(num_runs, 1))
    return generator.random((num_runs, len(row_logits))) < 1 / (1 + np.exp(-(row_logits + shifts)))


def true_accuracy(shift: float, spread: float) -> float:
    """Over all rows and seeds of the simulation below, by quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    scale = math.hypot(1.5, spread)
    return float((weights / (1 + np.exp(-(1.8 + shift + scale * nodes)))).sum() / weights.sum())


def coverage(num_baseline: int, num_other: int, spread: float, num_rows: int = 600) -> tuple[float, float]:
    """How often the interval holds the true difference of two settings, and how often it would without the part of
    the seeds (as for the mean of the runs by rows alone)."""
    generator = np.random.default_rng(7)
    truth = true_accuracy(0.25, spread) - true_accuracy(0.0, spread)
    held = held_by_rows_alone = 0
    for _ in range(_DRAWS):
        row_logits = generator.normal(1.8, 1.5, size=num_rows)
        baseline = seeds(generator, row_logits, num_baseline, spread)
        other = seeds(generator, row_logits + 0.25, num_other, spread)
        interval = paired_interval(baseline, other)
        held += interval.low <= truth <= interval.high
        by_row = other.mean(axis=0) - baseline.mean(axis=0)
        held_by_rows_alone += abs(by_row.mean() - truth) < 1.96 * by_row.std() / math.sqrt(num_rows)
    return held / _DRAWS, held_by_rows_alone / _DRAWS


@pytest.mark.parametrize(("num_baseline", "num_other"), [(2, 2), (3, 3), (5, 3), (5, 5)])
def test_intervals_of_settings_hold_the_truth_as_often_as_they_say_though_seeds_differ(
    num_baseline: int, num_other: int
) -> None:
    held, held_by_rows_alone = coverage(num_baseline, num_other, spread=0.3)
    assert held == pytest.approx(0.95, abs=_ERROR)
    assert held_by_rows_alone < 0.9, "there were to be seeds whose noise matters"


def test_where_seeds_do_not_differ_intervals_of_settings_hold_the_truth_at_least_as_often() -> None:
    held, _ = coverage(3, 3, spread=0.0)
    assert 0.95 - _ERROR < held < 0.99


def test_several_runs_against_one_say_how_the_setting_stands_to_that_very_model() -> None:
    """Coverage of the mean over seeds less what the one trained model does, whose shift is known here."""
    generator = np.random.default_rng(3)
    held = 0
    for _ in range(_DRAWS):
        row_logits = generator.normal(1.8, 1.5, size=600)
        shift = generator.normal(0, 0.3)
        baseline = seeds(generator, row_logits + shift, 1, 0.0)
        interval = paired_interval(baseline, seeds(generator, row_logits, 4, 0.3))
        held += interval.low <= true_accuracy(0.0, 0.3) - true_accuracy(shift, 0.0) <= interval.high
    assert held / _DRAWS == pytest.approx(0.95, abs=_ERROR)


def test_rows_that_differ_are_counted_over_all_pairs_of_runs() -> None:
    generator = np.random.default_rng(0)
    baseline, other = generator.random((2, 50)) < 0.7, generator.random((3, 50)) < 0.8
    pairs = list(itertools.product(baseline, other))
    counts = sum(int((a & ~b).sum()) for a, b in pairs), sum(int((~a & b).sum()) for a, b in pairs)
    assert discordant_rows(baseline, other) == counts


def test_holm_is_the_step_down_of_bonferroni() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
