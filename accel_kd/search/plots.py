"""The pictures of a search: how it got on, what mattered, and where in each setting the good values lie."""

from __future__ import annotations

import importlib.util
import itertools
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from accel_kd.metrics.direction import is_minimised
from accel_kd.search.directory import SearchDirectory
from accel_kd.search.records import Outcome, TrialRecord

logger = logging.getLogger(__name__)

_COMPLETE, _PRUNED, _BEST = "#1f77b4", "#c0c0c0", "#d62728"
_DRAWN: tuple[tuple[Outcome, str, str], ...] = (
    ("pruned", _PRUNED, "pruned (last evaluation)"),
    ("complete", _COMPLETE, "complete"),
)


def draw(
    directory: SearchDirectory, records: Sequence[TrialRecord], metric: str, shares: dict[str, float] | None
) -> list[str]:
    """Draws what there is to draw into the directory.

    Args:
        directory: see there.
        records: all trials.
        metric: by which they are judged.
        shares: the importance of each setting, where it can be told.

    Returns:
        The names of the pictures; none where there is nothing to draw with.
    """
    if importlib.util.find_spec("matplotlib") is None:
        logger.info("search: no pictures, since matplotlib is not installed (pip install 'accel_kd[plots]')")
        return []
    pictures: dict[str, Any] = {}
    if _points(records, "complete"):
        pictures["history.png"] = _history(records, metric)
        pictures["slices.png"] = _slices(records, metric)
    if shares:
        pictures["importances.png"] = _importances(shares)
    for name, figure in pictures.items():
        _save(figure, directory.path / name)
    return list(pictures)


def _points(records: Sequence[TrialRecord], outcome: Outcome) -> list[tuple[TrialRecord, float]]:
    """The trials that ended so and have a value, each with it."""
    return [(record, record.value) for record in records if record.outcome == outcome and record.value is not None]


def _history(records: Sequence[TrialRecord], metric: str) -> Any:
    """Each trial's value by its number, and the best so far."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(8.0, 4.0), layout="constrained")
    axes = figure.add_subplot()
    for outcome, colour, label in _DRAWN:
        points = _points(records, outcome)
        axes.scatter([r.number for r, _ in points], [value for _, value in points], color=colour, label=label)
    complete = _points(records, "complete")
    best = list(itertools.accumulate((value for _, value in complete), min if is_minimised(metric) else max))
    axes.step([r.number for r, _ in complete], best, where="post", color=_BEST, label="best so far")
    axes.set_xlabel("trial")
    axes.set_ylabel(f"validation {metric}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure


def _importances(shares: dict[str, float]) -> Any:
    """A bar a setting, the most important on top."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 1.2 + 0.5 * len(shares)), layout="constrained")
    axes = figure.add_subplot()
    for place, share in enumerate(shares.values()):
        axes.barh(place, share, height=0.6, color=_COMPLETE)
        axes.text(share + 0.01, place, f"{share:.0%}", va="center")
    axes.set_yticks(range(len(shares)), list(shares))
    axes.invert_yaxis()
    axes.set_xlim(0, 1.1)
    axes.set_xlabel("importance for being among the best tenth of the trials (PED-ANOVA)")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _slices(records: Sequence[TrialRecord], metric: str) -> Any:
    """The values over each setting, whatever the others are; choices stand side by side."""
    from matplotlib.figure import Figure

    names = list(records[0].settings)
    figure = Figure(figsize=(4.0 * len(names), 3.6), layout="constrained")
    every = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for axes, name in zip(every, names, strict=True):
        on_axis = _on_axis([record.settings[name] for record in records])
        for outcome, colour, _ in _DRAWN:
            points = _points(records, outcome)
            axes.scatter([on_axis(r.settings[name]) for r, _ in points], [value for _, value in points], color=colour)
        axes.set_xlabel(name)
        axes.spines[["top", "right"]].set_visible(False)
    every[0].set_ylabel(f"validation {metric}")
    return figure


def _on_axis(tried: Sequence[Any]) -> Callable[[Any], Any]:
    """How a value is drawn: numbers as such where all that was `tried` are numbers, else each by its name."""
    are_numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in tried)
    return float if are_numbers else str


def _save(figure: Any, path: Path) -> None:
    """Under a temporary name first: a picture is seen whole or not at all."""
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, dpi=120, format="png")
    temporary.replace(path)
