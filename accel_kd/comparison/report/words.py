"""What a comparison says, as one says it."""

from __future__ import annotations

import math

from accel_kd.comparison.compared import PairedDifference, Verdict
from accel_kd.comparison.figures.style import signed

NONE = "\N{EN DASH}"
"""Stands where a table has nothing to say."""


def verdict_sentence(one: PairedDifference) -> str:
    """Who is better, by how much, and on how many rows."""
    rows = "" if one.scope == "all" else f" {one.scope}"
    if one.verdict == Verdict.NO_COMMON_ROWS:
        return f"{one.other} and {one.baseline} have no common rows{rows}"
    if one.verdict == Verdict.NOT_TOLD_APART:
        said = f"{one.other} and {one.baseline} are not told apart{rows}"
    else:
        said = f"{one.other} is {one.verdict} than {one.baseline}{rows}"
    return f"{said}: {points(one)} on the same {one.num_rows:,} rows"


def points(one: PairedDifference) -> str:
    """The difference and its interval in points: `+1.8 points (0.6 to 3.0)`; `NONE` where there is none."""
    if not math.isfinite(one.difference):
        return NONE
    digits = 1 if abs(100 * one.difference) >= 0.1 or one.difference == 0 else 2
    low, high = (signed(100 * end, digits).removeprefix("+") for end in (one.low, one.high))
    return f"{signed(100 * one.difference, digits)} points ({low} to {high})"
