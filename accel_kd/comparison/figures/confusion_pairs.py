"""Which labels two settings confuse unlike often."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from accel_kd.comparison.compared import Predictions
from accel_kd.comparison.figures.style import (
    BLUE,
    INK,
    ORANGE,
    SMALL,
    SOFT,
    WIDTH,
    dress,
    fitted,
    inches_of,
    new_figure,
    short_signed,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_PAIRS = 12
_HALF = 0.45 * WIDTH
"""Inches on each side of the bars' root."""


@dataclass(frozen=True)
class ConfusedPair:
    """A label that is taken for another: rows a run on either side."""

    label: str
    prediction: str
    baseline: float
    other: float

    @property
    def difference(self) -> float:
        """Rows a run that `other` confuses more than the baseline; less, where it is negative."""
        return self.other - self.baseline


def differing_pairs(
    baseline: Sequence[Predictions], other: Sequence[Predictions], most: int = MOST_PAIRS
) -> list[ConfusedPair]:
    """The pairs of a label and a wrong prediction whose counts differ most, the largest difference first.

    Args:
        baseline: predictions of each of its runs, at least one.
        other: those of the other setting, at least one, on the same rows.
        most: so many at most; those that do not differ are never among them.
    """
    before, after = _mistakes(baseline), _mistakes(other)
    pairs = [
        ConfusedPair(*pair, baseline=before[pair] / len(baseline), other=after[pair] / len(other))
        for pair in sorted(before.keys() | after.keys())
    ]
    differing = [pair for pair in pairs if pair.difference != 0]
    return sorted(differing, key=lambda pair: -abs(pair.difference))[:most]


def _named(pair: ConfusedPair) -> str:
    """As wide as half of the figure at most; the longer name gives way."""
    room = _HALF - inches_of(" → ")
    label = fitted(pair.label, max(room / 2, room - inches_of(pair.prediction)))
    return f"{label} → {fitted(pair.prediction, max(room / 2, room - inches_of(pair.label)))}"


def _mistakes(runs: Sequence[Predictions]) -> Counter[tuple[str, str]]:
    """How often each (label, wrong prediction) occurs, by name, over all runs."""
    return Counter(
        (run.label_names[label], run.label_names[argmax])
        for run in runs
        for label, argmax in zip(run.labels[~run.is_right], run.argmax[~run.is_right], strict=True)
    )


def confusion_pairs(pairs: Sequence[ConfusedPair], baseline: str, other: str) -> Figure:
    """A bar a pair: to the left what `other` confuses less than the baseline, to the right what it confuses more.

    Args:
        pairs: at least one, as `differing_pairs` has them.
        baseline, other: what the two are called.
    """
    figure = new_figure(1.1 + 0.34 * len(pairs))
    axes = figure.add_subplot()
    ordered = sorted(pairs, key=lambda pair: pair.difference)
    longest = max(abs(pair.difference) for pair in pairs)
    for place, pair in enumerate(ordered):
        less = pair.difference < 0
        axes.barh(place, pair.difference, height=0.7, color=BLUE if less else ORANGE)
        # A pair's name stands where its bar is not.
        name = _named(pair)
        aside = 0.02 * longest
        axes.text(
            aside if less else -aside, place, name, fontsize=SMALL, color=INK,
            ha="left" if less else "right", va="center", in_layout=False,
        )  # fmt: skip
        axes.annotate(
            f"{pair.baseline:.3g} → {pair.other:.3g}", (pair.difference, place), xytext=(-4 if less else 4, 0),
            textcoords="offset points", fontsize=SMALL, color=SOFT, ha="right" if less else "left", va="center",
        )  # fmt: skip
    axes.axvline(0, color=SOFT, linewidth=1.0)
    axes.set_xlim(-1.45 * longest, 1.45 * longest)
    axes.set_ylim(len(pairs) - 0.4, -0.6)
    dress(axes, f"rows a run: {fitted(other, 2.5)}\nless {fitted(baseline, 2.5)}")
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    axes.set_yticks([])
    axes.xaxis.set_major_formatter(lambda value, _: short_signed(value))
    return figure
