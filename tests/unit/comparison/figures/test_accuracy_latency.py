"""A bubble says accuracy, latency and size, and its label can be read."""

from __future__ import annotations

import io
import itertools

import numpy as np
import pytest

from accel_kd.comparison.figures.accuracy_latency import (
    MOST_LABELS,
    Bubble,
    accuracy_against_latency,
    labelled,
)
from accel_kd.comparison.figures.style import series_colours

BUBBLES = [
    Bubble("teacher", "torch", 8.0, 0.855, 91.0),
    Bubble("student", "torch", 4.0, 0.845, 70.0),
    Bubble("student", "onnx", 3.6, 0.846, 70.0),
    Bubble("student", "onnx-int8", 1.4, 0.842, 17.5),
    Bubble("control", "torch", 4.1, 0.815, 70.0),
]


def drawn(bubbles: list[Bubble]):
    return accuracy_against_latency(bubbles, series_colours(one.name for one in bubbles), "p50, cpu")


def test_places_are_latency_and_accuracy_and_areas_are_sizes() -> None:
    (axes,) = drawn(BUBBLES).axes
    assert axes.get_xscale() == "log"
    filled = axes.collections[::2]
    at = {tuple(np.round(bubble.get_offsets()[0], 6)): float(bubble.get_sizes()[0]) for bubble in filled}
    assert at.keys() == {(one.latency, round(100 * one.accuracy, 6)) for one in BUBBLES}
    for one in BUBBLES:
        area = at[one.latency, round(100 * one.accuracy, 6)]
        assert area / at[8.0, 85.5] == pytest.approx(one.megabytes / 91.0)
    assert "(ms, log scale)" in axes.get_xlabel() and axes.get_ylabel() == "accuracy (%)"


@pytest.mark.parametrize("dots_per_inch", [72, 200])
def test_labels_cover_neither_each_other_nor_the_edge_at_any_resolution(dots_per_inch: int) -> None:
    figure = drawn(BUBBLES)
    figure.savefig(io.BytesIO(), format="png", dpi=dots_per_inch)
    figure.set_dpi(dots_per_inch)
    figure.draw_without_rendering()
    (axes,) = figure.axes
    extents = [text.get_window_extent() for text in axes.texts]
    assert [text.get_text() for text in axes.texts][:2] == ["teacher\ntorch, 91 MB", "student\ntorch, 70 MB"]
    for one, other in itertools.combinations(extents, 2):
        assert not one.overlaps(other)
    inside = axes.get_window_extent()
    for extent in extents:
        assert inside.x0 <= extent.x0 and extent.x1 <= inside.x1 and inside.y0 <= extent.y0 and extent.y1 <= inside.y1


def test_one_bubble_alone_is_drawn() -> None:
    (axes,) = drawn([Bubble("student", "", 2.0, 0.9, 10.0)]).axes
    assert [text.get_text() for text in axes.texts] == ["student\n10 MB"]
    low, high = axes.get_xlim()
    assert low < 2.0 < high


def test_of_too_many_those_are_named_than_which_none_is_faster_and_better() -> None:
    crowd = [Bubble(f"slow {n}", "", 10.0 + n, 0.5, 1.0) for n in range(MOST_LABELS)]
    best = [Bubble("fast", "", 1.0, 0.6, 1.0), Bubble("right", "", 30.0, 0.9, 1.0)]
    assert labelled(crowd) == crowd
    assert labelled([*crowd, *best]) == [best[1], best[0]]
    (axes,) = drawn([*crowd, *best]).axes
    assert len(axes.texts) == 2 and len(axes.collections) == 2 * (len(crowd) + 2)
