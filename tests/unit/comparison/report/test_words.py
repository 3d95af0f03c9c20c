"""The verdict is said in words that hold whatever the numbers are."""

from __future__ import annotations

from dataclasses import replace
from math import nan

from accel_kd.comparison.compared import PairedDifference, Verdict
from accel_kd.comparison.report.words import NONE, points, verdict_sentence

BETTER = PairedDifference(
    "control", "distilled", "all", 5500, 0.018, 0.006, 0.030, 0.95, 40, 139, 0.001, Verdict.BETTER
)
LESS = "\N{MINUS SIGN}"


def test_who_is_better_by_how_much_on_how_many_rows() -> None:
    assert verdict_sentence(BETTER) == (
        "distilled is better than control: +1.8 points (0.6 to 3.0) on the same 5,500 rows"
    )
    worse = replace(BETTER, difference=-0.018, low=-0.03, high=-0.006, verdict=Verdict.WORSE, scope="in scope")
    assert verdict_sentence(worse) == (
        f"distilled is worse than control in scope: {LESS}1.8 points ({LESS}3.0 to {LESS}0.6) on the same 5,500 rows"
    )


def test_not_told_apart_and_not_comparable_are_said_as_such() -> None:
    even = replace(BETTER, low=-0.002, verdict=Verdict.NOT_TOLD_APART)
    assert verdict_sentence(even) == (
        f"distilled and control are not told apart: +1.8 points ({LESS}0.2 to 3.0) on the same 5,500 rows"
    )
    apart = replace(BETTER, difference=nan, low=nan, high=nan, num_rows=0, verdict=Verdict.NO_COMMON_ROWS)
    assert verdict_sentence(apart) == "distilled and control have no common rows"
    assert points(apart) == NONE


def test_a_small_difference_is_not_rounded_to_none() -> None:
    assert points(replace(BETTER, difference=0.0004, low=-0.0031, high=0.0039)) == f"+0.04 points ({LESS}0.31 to 0.39)"
    assert points(replace(BETTER, difference=0.0, low=0.0, high=0.0)) == "0.0 points (0.0 to 0.0)"
