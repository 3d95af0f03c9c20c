"""Labels stand beside their marks and on nothing else."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from accel_kd.comparison.figures.label_places import Box, Mark, place_labels

WITHIN = Box(0, 0, 500, 400)


@pytest.mark.parametrize("seed", range(5))
def test_labels_of_random_marks_cover_nothing(seed: int) -> None:
    random = np.random.default_rng(seed)
    marks = [Mark(*random.uniform(60, 340, 2), random.uniform(3, 14), random.uniform(50, 110), 24) for _ in range(10)]
    places = place_labels(marks, WITHIN)
    for one, other in itertools.combinations(places, 2):
        assert one.overlap(other) == 0
    for place, mark in itertools.product(places, marks):
        assert place.overlap(mark.box) == pytest.approx(0, abs=1e-5)
    for place, mark in zip(places, marks, strict=True):
        assert place.overlap(WITHIN) == pytest.approx(place.area)
        assert (place.right - place.left, place.top - place.bottom) == pytest.approx((mark.width, mark.height))


def test_a_lonely_mark_has_its_label_next_to_it() -> None:
    mark = Mark(200, 200, 10, 60, 20)
    (place,) = place_labels([mark], WITHIN)
    assert place.left == pytest.approx(214) and place.centre[1] == pytest.approx(200)
    assert not mark.is_far_from(place)


def test_a_mark_at_the_edge_has_its_label_inside() -> None:
    (place,) = place_labels([Mark(490, 200, 5, 60, 20)], WITHIN)
    assert place.right == pytest.approx(481)


@pytest.mark.parametrize("seed", range(5))
def test_a_line_leads_to_a_label_that_found_no_place_nearby_and_strikes_out_no_other(seed: int) -> None:
    random = np.random.default_rng(seed)
    marks = [Mark(*random.uniform(200, 290, 2), 6, 80, 24) for _ in range(9)]
    places = place_labels(marks, WITHIN)
    far = [number for number, mark in enumerate(marks) if mark.is_far_from(places[number])]
    for number in far:
        mark = marks[number]
        (x0, y0), (x1, y1) = mark.line_to(places[number])
        assert math.hypot(x0 - mark.x, y0 - mark.y) == pytest.approx(mark.radius)
        for part in np.linspace(0, 1, 200):
            x, y = x0 + part * (x1 - x0), y0 + part * (y1 - y0)
            assert not [other for n, other in enumerate(places) if n != number and other.nearest(x, y) == (x, y)]
    assert far


def test_where_everything_is_full_a_label_still_has_a_place() -> None:
    marks = [Mark(50, 50, 60, 80, 24) for _ in range(4)]
    assert len(place_labels(marks, Box(0, 0, 100, 100))) == 4
