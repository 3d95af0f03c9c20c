"""Puts labels beside their marks so that none covers another, a mark, or the edge of the axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

_DIRECTIONS = [
    math.radians(angle) for angle in (0, 180, 90, 270, 45, 135, 315, 225, 20, 160, 200, 340, 70, 110, 250, 290)
]
_GAP = 4.0
_RINGS = 24
_RING_WIDTH = 9.0
_STEP = 4.0
_FAR = 9.0
"""Pixels between a mark and its label beyond which a line joins them."""
_STRUCK_OUT = 20.0
"""So much worse is a line through a word than one through a disc, which in a crowd cannot be avoided."""
_NOTHING = 1e-6


@dataclass(frozen=True)
class Box:
    """A rectangle, in pixels from the lower left."""

    left: float
    bottom: float
    right: float
    top: float

    def overlap(self, other: Box) -> float:
        """The area that both cover."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.top, other.top) - max(self.bottom, other.bottom)
        return max(0.0, width) * max(0.0, height)

    @property
    def area(self) -> float:
        """In square pixels."""
        return (self.right - self.left) * (self.top - self.bottom)

    @property
    def centre(self) -> tuple[float, float]:
        """Its middle."""
        return (self.left + self.right) / 2, (self.bottom + self.top) / 2

    def nearest(self, x: float, y: float) -> tuple[float, float]:
        """The point of it that is nearest to (x, y)."""
        return min(max(x, self.left), self.right), min(max(y, self.bottom), self.top)


@dataclass(frozen=True)
class Mark:
    """A disc that wants a label: centre and radius in pixels, and the label's width and height."""

    x: float
    y: float
    radius: float
    width: float
    height: float

    @property
    def box(self) -> Box:
        """The square around the disc."""
        return Box(self.x - self.radius, self.y - self.radius, self.x + self.radius, self.y + self.radius)

    def distance_to(self, box: Box) -> float:
        """Pixels between the disc's rim and `box`."""
        x, y = box.nearest(self.x, self.y)
        return max(0.0, math.hypot(x - self.x, y - self.y) - self.radius)

    def is_far_from(self, box: Box) -> bool:
        """Whether a label there needs a line that leads to it."""
        return self.distance_to(box) > _FAR

    def line_to(self, box: Box) -> tuple[tuple[float, float], tuple[float, float]]:
        """From the disc's rim to the nearest point of `box`."""
        x, y = box.nearest(self.x, self.y)
        rim = self.radius / math.hypot(x - self.x, y - self.y)
        return (self.x + rim * (x - self.x), self.y + rim * (y - self.y)), (x, y)


def place_labels(marks: Sequence[Mark], within: Box, others: Sequence[Box] = ()) -> list[Box]:
    """Where each label goes: as near to its mark as it finds a free place, ring by ring; where there is none, where it
    covers least. A label apart from its mark needs a free line to it, too.

    Marks that stand close to others choose first. `others` are left free as well.
    """
    places: dict[int, Box] = {}
    discs = [mark.box for mark in marks] + list(others)
    written: list[Box] = []
    for index in sorted(range(len(marks)), key=lambda index: _distance_to_nearest(marks, index)):
        mark = marks[index]
        place = _nearest_free(mark, discs, discs[:index] + discs[index + 1 :], written, within)
        places[index] = place
        written += [place, *_line(mark, place)]
    return [places[index] for index in range(len(marks))]


def _nearest_free(
    mark: Mark, discs: Sequence[Box], other_discs: Sequence[Box], written: Sequence[Box], within: Box
) -> Box:
    """`written` are the labels and lines that are there already."""
    best, least = None, math.inf
    for ring in range(_RINGS):
        for direction in _DIRECTIONS:
            box = _beside(mark, direction, mark.radius + _GAP + ring * _RING_WIDTH)
            covered = _covered(box, discs) + _covered(box, written) + box.area - box.overlap(within)
            if covered < least:
                for piece in _line(mark, box):
                    covered += _covered(piece, other_discs) + _STRUCK_OUT * _covered(piece, written)
            if covered < least - _NOTHING:
                best, least = box, covered
            if best is not None and least <= _NOTHING:
                return best
    assert best is not None
    return best


def _covered(box: Box, others: Sequence[Box]) -> float:
    return sum(box.overlap(other) for other in others)


def _line(mark: Mark, label: Box) -> list[Box]:
    """Small squares along the line from the rim of a mark to its label; none where they stand together."""
    if not mark.is_far_from(label):
        return []
    (left, bottom), (right, top) = mark.line_to(label)
    number = 2 + int(mark.distance_to(label) / _STEP)
    points = ((left + (right - left) * n / number, bottom + (top - bottom) * n / number) for n in range(number + 1))
    return [Box(x - 1, y - 1, x + 1, y + 1) for x, y in points]


def _beside(mark: Mark, direction: float, distance: float) -> Box:
    """The label's box, its nearest point `distance` from the centre of the mark."""
    across, up = math.cos(direction), math.sin(direction)
    x = mark.x + across * distance + (across - 1) * mark.width / 2
    y = mark.y + up * distance + (up - 1) * mark.height / 2
    return Box(x, y, x + mark.width, y + mark.height)


def _distance_to_nearest(marks: Sequence[Mark], index: int) -> float:
    mine = marks[index]
    others = (other for place, other in enumerate(marks) if place != index)
    return min((math.hypot(mine.x - other.x, mine.y - other.y) for other in others), default=math.inf)
