"""Intervals stand where they are, in points, in the colour of their verdict."""

from __future__ import annotations

from dataclasses import replace
from math import nan

import pytest

from accel_kd.comparison.compared import PairedDifference, Verdict
from accel_kd.comparison.figures.paired_differences import can_be_drawn, paired_differences
from accel_kd.comparison.figures.style import GREEN, GREY, RED

BETTER = PairedDifference(
    "control", "distilled", "all", 5500, 0.018, 0.006, 0.030, 0.95, 40, 139, 0.001, Verdict.BETTER
)
EVEN = replace(BETTER, scope="in scope", difference=0.002, low=-0.006, high=0.010, verdict=Verdict.NOT_TOLD_APART)
WORSE = replace(BETTER, other="tiny", difference=-0.05, low=-0.07, high=-0.03, verdict=Verdict.WORSE)


def test_ends_colours_and_words_are_those_of_the_differences() -> None:
    (axes,) = paired_differences([BETTER, EVEN, WORSE]).axes
    for place, (one, colour) in enumerate(((BETTER, GREEN), (EVEN, GREY), (WORSE, RED))):
        interval = axes.collections[place]
        (ends,) = interval.get_segments()
        assert ends[:, 0].tolist() == pytest.approx([100 * one.low, 100 * one.high])
        assert axes.containers[place].lines[0].get_color() == colour
        assert axes.containers[place].lines[0].get_xdata()[0] == pytest.approx(100 * one.difference)
    assert [text.get_text() for text in axes.texts] == [
        "distilled: better, +1.8",
        "distilled, in scope: not told apart, +0.2",
        "tiny: worse, \N{MINUS SIGN}5.0",
    ]
    assert axes.get_xlabel() == "points of accuracy more than control\n(95 % interval)"


def test_words_fit_into_the_figure_whatever_a_setting_is_called() -> None:
    long = replace(EVEN, other="W" * 100, scope="out of scope")
    figure = paired_differences([long])
    figure.draw_without_rendering()
    (axes,) = figure.axes
    assert axes.texts[0].get_window_extent().x1 <= figure.bbox.x1


def test_without_an_interval_there_is_nothing_to_draw() -> None:
    assert can_be_drawn(BETTER)
    assert not can_be_drawn(replace(BETTER, verdict=Verdict.NO_COMMON_ROWS))
    assert not can_be_drawn(replace(BETTER, low=nan))
