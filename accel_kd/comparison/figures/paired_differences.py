"""How far each setting is from the baseline, on the very same rows, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from accel_kd.comparison.compared import PairedDifference, Verdict
from accel_kd.comparison.figures.style import (
    GREEN,
    GREY,
    INK,
    PAPER,
    RED,
    SMALL,
    SOFT,
    WIDTH,
    dress,
    fitted,
    new_figure,
    short_signed,
    signed,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLOURS = {Verdict.BETTER: GREEN, Verdict.WORSE: RED, Verdict.NOT_TOLD_APART: GREY}


def can_be_drawn(difference: PairedDifference) -> bool:
    """Whether there is an interval to draw."""
    ends = (difference.difference, difference.low, difference.high)
    return difference.verdict in _COLOURS and all(math.isfinite(end) for end in ends)


def paired_differences(differences: Sequence[PairedDifference]) -> Figure:
    """A row a difference: its interval, and its verdict in words over it.

    Args:
        differences: at least one, of one baseline, all of which `can_be_drawn`.
    """
    figure = new_figure(0.95 + 0.52 * len(differences))
    axes = figure.add_subplot()
    for place, one in enumerate(differences):
        colour = _COLOURS[one.verdict]
        spread = [[100 * (one.difference - one.low)], [100 * (one.high - one.difference)]]
        axes.errorbar(
            100 * one.difference, place, xerr=spread, fmt="o", markersize=6, capsize=4, elinewidth=2, color=colour
        )
        scope = "" if one.scope == "all" else f", {one.scope}"
        verdict = f"{scope}: {one.verdict}, {signed(100 * one.difference)}"
        axes.text(
            0.0, place - 0.36, fitted(one.other, 0.95 * WIDTH, verdict),
            transform=axes.get_yaxis_transform(), fontsize=SMALL, color=INK, va="center", in_layout=False,
            bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 1.0},
        )  # fmt: skip
    axes.axvline(0, color=SOFT, linewidth=1.0)
    axes.set_ylim(len(differences) - 0.6, -0.65)
    level, baseline = 100 * differences[0].level, fitted(differences[0].baseline, 2.0)
    dress(axes, f"points of accuracy more than {baseline}\n({level:g} % interval)")
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    axes.set_yticks([])
    axes.xaxis.set_major_formatter(lambda value, _: short_signed(value))
    return figure
