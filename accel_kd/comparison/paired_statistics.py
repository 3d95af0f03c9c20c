"""How surely the difference in accuracy of two models, or of two settings, was seen on one and the same rows.

Two trained models: a bootstrap over rows. The rows are drawn again in pairs, so that only those count on which the two
differ; drawing `n` rows with replacement is drawing from a multinomial over (other alone right, baseline alone right,
the rest), which is how it is done here. The percentiles of the plain bootstrap fail where few rows differ: with three,
all on one side, they exclude zero, and with none they are a point (78 % of nominal 95 % intervals held the truth in a
simulation of 300 rows, of which 0.5 % differ). So one row more on either side is put among those drawn from, the
adjustment of Bonett and Price (2012, "Adjusted Wald confidence interval for a difference of binomial proportions based
on paired data", Journal of Educational and Behavioral Statistics 37(4)). The interval then covers at its level or
above, and agrees with McNemar's exact test: 5 rows against none are not enough, 6 are. A corrected bootstrap (BCa)
mends bias and skewness, of which this mean has next to none, and not this.

Two settings, each with runs of several seeds: what is asked for is the mean over all seeds and all rows, and both vary.
A row is seen by all runs and a run sees all rows; for such crossed effects no bootstrap is exact (McCullagh 2000,
"Resampling and exchangeable arrays"; Owen 2007, "The pigeonhole bootstrap"), and drawing again from two or three seeds
says next to nothing of their spread. So the variance is put together from its parts:

    rows: the variance over rows of the difference of the two settings' mean correctness, / n
    seeds of one side: (variance of its runs' accuracies - what rows alone would give) / runs, at least 0

What the rows give is the interaction of run and row, and it stands in the first part already; without the subtraction
it counts twice (intervals of 99 % for 95 %). The quantile is of Student's t with Satterthwaite's degrees of freedom
(1946, "An approximate distribution of estimates of variance components"), in whose denominator the seeds' part stands
before the subtraction: that is the quantity that is known from few runs only. `tests/unit/comparison/` shows that both
kinds of interval cover: 96 to 99 % of nominal 95 % where seeds hardly differ, 95 to 97 % where they are most of the
noise, with two to five runs on each side; two against five came to 92.5 % then, so sides had better be alike in number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_NUM_DRAWS = 10_000
_SEED = 0


@dataclass(frozen=True)
class Interval:
    """A difference of accuracies with the interval about it."""

    difference: float
    low: float
    high: float


def paired_interval(baseline: NDArray[np.bool_], other: NDArray[np.bool_], level: float = 0.95) -> Interval:
    """Accuracy of `other` less that of `baseline`.

    Args:
        baseline: whether each run has each row right, `[runs, n]`, in the same order of rows as
        other: likewise, with as many runs or not. A side with a single run is taken as it was trained: its seed's
            part of the variance cannot be known.
        level: how often such intervals hold the true difference.
    """
    assert baseline.ndim == other.ndim == 2 and baseline.shape[1] == other.shape[1] > 0 and 0 < level < 1
    if len(baseline) == len(other) == 1:
        only_baseline, only_other = discordant_rows(baseline, other)
        return _over_rows(only_baseline, only_other, baseline.shape[1], level)
    return _over_rows_and_seeds(baseline, other, level)


def discordant_rows(baseline: NDArray[np.bool_], other: NDArray[np.bool_]) -> tuple[int, int]:
    """The rows that `baseline` alone, and that `other` alone has right, both `[runs, n]`, over all pairs of runs."""
    only_baseline = baseline.sum(axis=0) * (~other).sum(axis=0)
    only_other = other.sum(axis=0) * (~baseline).sum(axis=0)
    return int(only_baseline.sum()), int(only_other.sum())


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values, in the order given, adjusted for there being several (Holm 1979, "A simple sequentially rejective
    multiple test procedure")."""
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda place: p_values[place])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted


def _over_rows(only_baseline: int, only_other: int, num_rows: int, level: float) -> Interval:
    drawn_from = np.array([only_other + 1, only_baseline + 1, num_rows - only_other - only_baseline], dtype=np.float64)
    num_drawn = num_rows + 2
    draws = np.random.default_rng(_SEED).multinomial(num_drawn, drawn_from / num_drawn, size=_NUM_DRAWS)
    low, high = np.quantile((draws[:, 0] - draws[:, 1]) / num_drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval((only_other - only_baseline) / num_rows, float(low), float(high))


def _over_rows_and_seeds(baseline: NDArray[np.bool_], other: NDArray[np.bool_], level: float) -> Interval:
    from scipy.stats import t

    num_rows = baseline.shape[1]
    by_row = other.mean(axis=0) - baseline.mean(axis=0)
    difference = float(by_row.mean())
    variance = _variance_of_rows(by_row)
    squares_by_freedom = variance**2 / max(num_rows - 1, 1)
    for side in (baseline, other):
        if len(side) > 1:
            of_seeds, of_rows = _variances_of_seeds(side)
            variance += max(0.0, of_seeds - of_rows)
            squares_by_freedom += of_seeds**2 / (len(side) - 1)
    half = float(t.ppf((1 + level) / 2, variance**2 / squares_by_freedom)) * float(np.sqrt(variance))
    return Interval(difference, max(-1.0, difference - half), min(1.0, difference + half))


def _variance_of_rows(by_row: NDArray[np.float64]) -> float:
    """Of the mean of `[n]` differences, with a row of 1 and one of -1 among them, as `_over_rows` has it."""
    num_rows = len(by_row) + 2
    mean = by_row.sum() / num_rows
    return float(((by_row**2).sum() + 2) / num_rows - mean**2) / num_rows


def _variances_of_seeds(is_right: NDArray[np.bool_]) -> tuple[float, float]:
    """Of the mean of the accuracies of runs `[runs, n]`: as these spread, and as they would by their rows alone."""
    num_runs, num_rows = is_right.shape
    accuracies = is_right.mean(axis=1, keepdims=True)
    interaction = is_right - accuracies - is_right.mean(axis=0, keepdims=True) + accuracies.mean()
    of_rows = (interaction**2).sum() / ((num_runs - 1) * max(num_rows - 1, 1)) / num_rows
    return float(accuracies.var(ddof=1)) / num_runs, float(of_rows) / num_runs
