"""Each setting beside the baseline on the rows that both have: in all, in scope and out of scope."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from accel_kd.comparison.compared import ComparedSetting, PairedDifference, Predictions, Verdict
from accel_kd.comparison.paired_statistics import discordant_rows, paired_interval
from accel_kd.comparison.pooling import SEED
from accel_kd.metrics.paired import mcnemar_p_value


def paired_differences(
    settings: Sequence[ComparedSetting], out_of_scope: str | None, level: float, *, each: bool = False
) -> list[PairedDifference]:
    """All other settings against the first, whose runs are on the very same rows or have none.

    Args:
        settings: the baseline first.
        out_of_scope: the name of the label that stands for none of the others.
        level: of the intervals.
        each: the verdict is of the models. Else it is of the settings, and those that differ in their seed at most are
            never told apart, whatever the rows say of the models.
    """
    baseline, *others = settings
    return [
        replace(difference, verdict=Verdict.NOT_TOLD_APART)
        if difference.num_rows and not each and _are_one_setting(baseline, other)
        else difference
        for other in others
        for difference in _of_pair(baseline, other, out_of_scope, level)
    ]


def _are_one_setting(one: ComparedSetting, other: ComparedSetting) -> bool:
    names = {*one.differs, *other.differs}
    return {name for name in names if one.differs.get(name) != other.differs.get(name)} <= {SEED}


def verdict(low: float, high: float) -> Verdict:
    """What an interval of a difference says."""
    if low > 0:
        return Verdict.BETTER
    return Verdict.WORSE if high < 0 else Verdict.NOT_TOLD_APART


def _of_pair(
    baseline: ComparedSetting, other: ComparedSetting, out_of_scope: str | None, level: float
) -> Iterator[PairedDifference]:
    one, two = _predictions(baseline), _predictions(other)
    if not one or not two:
        nan = math.nan
        yield PairedDifference(
            baseline.name, other.name, "all", 0, nan, nan, nan, level, 0, 0, None, Verdict.NO_COMMON_ROWS
        )
        return
    for scope, rows in _scopes(one[0], out_of_scope):
        before = np.stack([run.is_right[rows] for run in one])
        after = np.stack([run.is_right[rows] for run in two])
        interval = paired_interval(before, after, level)
        only_baseline, only_other = discordant_rows(before, after)
        is_one_pair = len(one) == len(two) == 1
        yield PairedDifference(
            baseline=baseline.name,
            other=other.name,
            scope=scope,
            num_rows=before.shape[1],
            difference=interval.difference,
            low=interval.low,
            high=interval.high,
            level=level,
            only_baseline=only_baseline,
            only_other=only_other,
            p_value=mcnemar_p_value(only_baseline, only_other) if is_one_pair else None,
            verdict=verdict(interval.low, interval.high),
        )


def _predictions(setting: ComparedSetting) -> list[Predictions]:
    return [run.predictions for run in setting.runs if run.predictions is not None]


def _scopes(predictions: Predictions, out_of_scope: str | None) -> list[tuple[str, NDArray[np.bool_]]]:
    """The scopes that have rows, each with which; where all rows are in scope, that is all there is."""
    everything = np.ones(len(predictions.ids), dtype=np.bool_)
    if out_of_scope is None or out_of_scope not in predictions.label_names:
        return [("all", everything)]
    outside = predictions.labels == predictions.label_names.index(out_of_scope)
    if not outside.any() or outside.all():
        return [("all", everything)]
    return [("all", everything), ("in scope", ~outside), ("out of scope", outside)]
