"""Which confusions two settings have unlike often, counted by hand."""

from __future__ import annotations

import numpy as np

from accel_kd.comparison.compared import Predictions
from accel_kd.comparison.figures.confusion_pairs import ConfusedPair, confusion_pairs, differing_pairs


def predicted(argmax: list[int]) -> Predictions:
    labels = np.array([0, 0, 0, 1, 1, 2])
    return Predictions(
        "test", tuple("abcdef"), ("on", "off", "oos"), labels, np.array(argmax), np.full(len(labels), 0.9)
    )


RIGHT = [0, 0, 0, 1, 1, 2]


def test_pairs_are_mistakes_a_run_and_the_largest_difference_comes_first() -> None:
    baseline = [predicted([1, 1, 0, 1, 1, 2]), predicted([1, 0, 0, 1, 2, 2])]
    other = [predicted([0, 0, 0, 0, 0, 2])]
    assert differing_pairs(baseline, other) == [
        ConfusedPair("off", "on", 0.0, 2.0),
        ConfusedPair("on", "off", 1.5, 0.0),
        ConfusedPair("off", "oos", 0.5, 0.0),
    ]
    assert differing_pairs(baseline, other, most=1) == [ConfusedPair("off", "on", 0.0, 2.0)]


def test_what_is_alike_on_both_sides_is_no_difference() -> None:
    assert differing_pairs([predicted([1, 0, 0, 1, 1, 2])], [predicted([0, 1, 0, 1, 1, 2])]) == []
    assert differing_pairs([predicted(RIGHT)], [predicted(RIGHT)]) == []


def test_numbers_of_labels_do_not_matter_their_names_do() -> None:
    renumbered = Predictions(
        "test", tuple("abcdef"), ("oos", "on", "off"), np.array([1, 1, 1, 2, 2, 0]), np.array([2, 1, 1, 2, 2, 0]),
        np.full(6, 0.9),
    )  # fmt: skip
    assert differing_pairs([predicted([1, 0, 0, 1, 1, 2])], [renumbered]) == []


def test_bars_go_left_for_fewer_and_right_for_more_with_their_names_on_the_other_side() -> None:
    pairs = [ConfusedPair("off", "on", 0.0, 2.0), ConfusedPair("on", "off", 1.5, 0.0)]
    (axes,) = confusion_pairs(pairs, "control", "student").axes
    assert [bar.get_width() for bar in axes.patches] == [-1.5, 2.0]
    names = {text.get_text(): text for text in axes.texts}
    assert names["on → off"].get_position()[0] > 0 and names["on → off"].get_ha() == "left"
    assert names["off → on"].get_position()[0] < 0 and names["off → on"].get_ha() == "right"
    assert "1.5 → 0" in names and "0 → 2" in names
    assert axes.get_xlabel() == "rows a run: student\nless control"


def test_long_names_stay_within_their_half_of_the_figure() -> None:
    pairs = [ConfusedPair("a_label_with_a_long_name_indeed", "another_label_with_a_long_name", 3.0, 0.0)]
    figure = confusion_pairs(pairs, "control", "student")
    figure.draw_without_rendering()
    (axes,) = figure.axes
    assert axes.texts[0].get_window_extent().x1 <= axes.get_window_extent().x1
