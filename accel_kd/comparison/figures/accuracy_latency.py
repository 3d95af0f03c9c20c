"""What a model's accuracy costs: accuracy against latency, the size on disk as the area of a bubble."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from accel_kd.comparison.figures.label_places import Box, Mark, place_labels
from accel_kd.comparison.figures.style import INK, SMALL, SOFT, dress, fitted, new_figure, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_LABELS = 14
_LABEL_WIDTH = 1.6
"""Inches that a label may take."""
_LARGEST_AREA = 1100.0
"""Square points around the largest model's bubble, to which the others are in proportion."""


@dataclass(frozen=True)
class Bubble:
    """A model as it was measured: what it is called, which gives it its colour, what tells it from others of that name
    (may be empty), milliseconds of a single query, accuracy within 0 and 1, and megabytes (10**6 bytes) on disk."""

    name: str
    detail: str
    latency: float
    accuracy: float
    megabytes: float


def labelled(bubbles: Sequence[Bubble]) -> list[Bubble]:
    """Those that get a label: all, or where they are too many those alone than which no other is both faster and more
    often right."""
    if len(bubbles) <= MOST_LABELS:
        return list(bubbles)
    unbeaten = [
        one for one in bubbles
        if not any(other.latency < one.latency and other.accuracy > one.accuracy for other in bubbles)
    ]  # fmt: skip
    return sorted(unbeaten, key=lambda one: -one.accuracy)[:MOST_LABELS]


def accuracy_against_latency(bubbles: Sequence[Bubble], colours: Mapping[str, str], latency: str) -> Figure:
    """A bubble a row; those that are `labelled` with name and size.

    Args:
        bubbles: at least one; latencies and sizes greater than zero.
        colours: of each name.
        latency: which latency it is, and of which device, as the axis says it.
    """
    figure = new_figure(4.2 + 0.16 * max(0, len(labelled(bubbles)) - 6))
    axes = figure.add_subplot()
    dress(axes, f"{plain(latency)} (ms, log scale)\nbubble area: size on disk", "accuracy (%)")
    _scale(axes, bubbles)
    scale = _LARGEST_AREA / max(bubble.megabytes for bubble in bubbles)
    largest_first = sorted(bubbles, key=lambda bubble: -bubble.megabytes)
    for bubble in largest_first:
        colour = colours[bubble.name]
        place, area = _centre(bubble), scale * bubble.megabytes
        axes.scatter(*place, s=area, color=colour, alpha=0.45, linewidths=0)
        axes.scatter(*place, s=area, facecolors="none", edgecolors=colour, linewidths=1.2)
    _label(figure, axes, bubbles, scale)
    return figure


def _scale(axes: Any, bubbles: Sequence[Bubble]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    latencies = [bubble.latency for bubble in bubbles]
    accuracies = [100 * bubble.accuracy for bubble in bubbles]
    axes.set_xscale("log")
    # Room for the labels: half of what the data take on each side, and a factor of two at least.
    room = max(2.0, (max(latencies) / min(latencies)) ** 0.35)
    axes.set_xlim(min(latencies) / room, max(latencies) * room)
    margin = max(1.0, 0.35 * (max(accuracies) - min(accuracies)))
    axes.set_ylim(min(accuracies) - margin, max(accuracies) + margin)
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())


def _label(figure: Figure, axes: Any, bubbles: Sequence[Bubble], scale: float) -> None:
    """Lets the layout settle, measures every label, and moves each to where it covers nothing."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    texts = {
        one: axes.text(*_centre(one), _label_of(one), fontsize=SMALL, color=INK, ha="center", va="center", zorder=4)
        for one in labelled(bubbles)
    }
    wanting, others = [], []
    for bubble in bubbles:
        x, y = map(float, axes.transData.transform(_centre(bubble)))
        radius = (scale * bubble.megabytes) ** 0.5 / 2 * figure.dpi / 72
        if bubble in texts:
            extent = texts[bubble].get_window_extent()
            wanting.append(Mark(x, y, radius, float(extent.width), float(extent.height)))
        else:
            others.append(Mark(x, y, radius, 0.0, 0.0).box)
    extent = axes.get_window_extent()
    within = Box(extent.x0, extent.y0, extent.x1, extent.y1)
    labels = [texts[bubble] for bubble in bubbles if bubble in texts]
    for text, mark, box in zip(labels, wanting, place_labels(wanting, within, others), strict=True):
        text.set_position(axes.transData.inverted().transform(box.centre))
        if mark.is_far_from(box):
            ends = axes.transData.inverted().transform(mark.line_to(box))
            axes.plot(ends[:, 0], ends[:, 1], color=SOFT, linewidth=0.8, zorder=3)


def _centre(bubble: Bubble) -> tuple[float, float]:
    return bubble.latency, 100 * bubble.accuracy


def _label_of(bubble: Bubble) -> str:
    size = f"{bubble.megabytes:.3g} MB"
    detail = fitted(bubble.detail, _LABEL_WIDTH, f", {size}") if bubble.detail else size
    return f"{fitted(bubble.name, _LABEL_WIDTH)}\n{detail}"
