"""All figures of a comparison, each with the words that go with it, and what could not be drawn and why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from accel_kd.comparison.compared import ComparedSetting, Comparison, PairedDifference, Predictions
from accel_kd.comparison.figures.accuracy_latency import accuracy_against_latency, labelled
from accel_kd.comparison.figures.calibration import calibration, reliability_of
from accel_kd.comparison.figures.confusion_pairs import ConfusedPair, confusion_pairs, differing_pairs
from accel_kd.comparison.figures.learning_curves import has_losses, learning_curves
from accel_kd.comparison.figures.measured_rows import bubbles_of, place_of
from accel_kd.comparison.figures.paired_differences import can_be_drawn, paired_differences
from accel_kd.comparison.figures.style import MOST_SERIES, series_colours

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_CONFUSIONS = 4
_MOST_DIFFERENCES = 24


@dataclass(frozen=True)
class DrawnFigure:
    """A figure; `stem` names its file; `description` says in words what it shows to whoever does not see it."""

    stem: str
    title: str
    caption: str
    description: str
    figure: Figure


@dataclass(frozen=True)
class LeftOut:
    """A figure that was not drawn, and why."""

    title: str
    reason: str


def drawn_figures(comparison: Comparison) -> list[DrawnFigure | LeftOut]:
    """Every figure for which there is data, in the order in which they are read."""
    colours = series_colours(setting.name for setting in comparison.settings)
    return [
        _differences(comparison.differences, comparison.baseline),
        _latencies(comparison.settings, colours),
        _curves(comparison.settings, colours),
        _calibration(comparison, colours),
        *_confusions(comparison),
    ]


def _differences(differences: Sequence[PairedDifference], baseline: str) -> DrawnFigure | LeftOut:
    title = "Differences on the same rows"
    drawable = [one for one in differences if can_be_drawn(one)]
    if not drawable:
        return LeftOut(title, "no two settings have predictions of the same rows")
    # Where there are many settings, what counts is each as a whole; the rest stands in the table.
    chosen = drawable if len(drawable) <= _MOST_DIFFERENCES else [one for one in drawable if one.scope == "all"]
    shown = chosen[:_MOST_DIFFERENCES]
    caption = (
        f"Accuracy less that of {baseline} on the very same rows, with its interval. Where the interval holds 0, these "
        "rows do not tell the two apart."
    )
    if len(shown) < len(drawable):
        caption += f" {len(drawable) - len(shown)} more stand in the table alone."
    described = "; ".join(
        f"{one.other}, {one.scope}: {one.verdict}, {100 * one.difference:.1f} points "
        f"({100 * one.low:.1f} to {100 * one.high:.1f})"
        for one in shown
    )
    return DrawnFigure("paired_differences", title, caption, described, paired_differences(shown))


def _latencies(settings: Sequence[ComparedSetting], colours: Mapping[str, str]) -> DrawnFigure | LeftOut:
    title = "Accuracy against latency"
    bubbles = bubbles_of(settings)
    measured = [one for setting in settings for run in setting.runs for one in run.measured]
    if not measured:
        return LeftOut(title, "no run was measured by accel-kd benchmark model")
    if not bubbles:
        return LeftOut(title, "what was measured has no accuracy")
    places = {place_of(one) for one in measured}
    where = places.pop() if len(places) == 1 else "each where its label says"
    caption = "Further left is faster, further up is right more often, a smaller bubble takes less of the disk."
    if len(bubbles) < len(measured):
        caption += f" Left out: {len(measured) - len(bubbles)} measured without an accuracy."
    if len(named := labelled(bubbles)) < len(bubbles):
        caption += f" Named are {len(named)} of {len(bubbles)}: than those, none is both faster and more often right."
    described = "; ".join(
        f"{one.name} {one.detail}: {one.latency:.3g} ms, {one.accuracy:.1%}, {one.megabytes:.3g} MB" for one in bubbles
    )
    figure = accuracy_against_latency(bubbles, colours, f"one query, p50, {where}")
    return DrawnFigure("accuracy_latency", title, caption, described, figure)


def _curves(settings: Sequence[ComparedSetting], colours: Mapping[str, str]) -> DrawnFigure | LeftOut:
    title = "Learning curves"
    logged = [setting for setting in settings if has_losses(setting)]
    if not logged:
        return LeftOut(title, "no run has a log of its training loss")
    shown = logged[:MOST_SERIES]
    caption = "A line a run, a colour a setting. Losses of unlike objectives are not on one scale."
    caption += _only_the_first(len(shown), len(logged))
    described = f"Training loss and validation accuracy by step, of {', '.join(one.name for one in shown)}"
    return DrawnFigure("learning_curves", title, caption, described, learning_curves(shown, colours))


def _calibration(comparison: Comparison, colours: Mapping[str, str]) -> DrawnFigure | LeftOut:
    title = "Calibration"
    predicted = [(setting, of) for setting in comparison.settings if (of := reliability_of(setting)) is not None]
    if not predicted:
        return LeftOut(title, "no run has predictions with their confidence")
    shown = predicted[:MOST_SERIES]
    caption = (
        f"How often a prediction of the {comparison.split} split is right, by how confident it is; under the dashed "
        "line it claims too much. ECE: expected calibration error, the mean over the runs of a setting."
    )
    caption += _only_the_first(len(shown), len(predicted))
    described = "; ".join(f"{setting.name}: expected calibration error {of.error:.3f}" for setting, of in shown)
    figure = calibration({setting.name: of for setting, of in shown}, colours)
    return DrawnFigure("calibration", title, caption, described, figure)


def _confusions(comparison: Comparison) -> Iterator[DrawnFigure | LeftOut]:
    title = "Confusions that differ"
    baseline, *others = comparison.settings
    pairs = {other.name: _differing(baseline, other) for other in others}
    drawable = {name: found for name, found in pairs.items() if found}
    if not drawable:
        yield LeftOut(title, f"no setting confuses labels unlike often than {baseline.name} on the same rows")
    most_unlike = sorted(drawable, key=lambda name: -sum(abs(pair.difference) for pair in drawable[name]))
    for number, name in enumerate(most_unlike[:_MOST_CONFUSIONS], start=1):
        caption = (
            f"Label → wrong prediction, where {name} and {baseline.name} differ most: rows a run, the bar from "
            f"{baseline.name} to {name}."
        )
        if number == 1 and len(most_unlike) > _MOST_CONFUSIONS:
            caption += f" The {_MOST_CONFUSIONS} settings most unlike the baseline are drawn, of {len(most_unlike)}."
        described = "; ".join(
            f"{pair.label} for {pair.prediction}: {pair.baseline:.3g} rows, then {pair.other:.3g}"
            for pair in drawable[name]
        )
        figure = confusion_pairs(drawable[name], baseline.name, name)
        yield DrawnFigure(f"confusion_pairs_{number}", f"{title}: {name}", caption, described, figure)


def _differing(baseline: ComparedSetting, other: ComparedSetting) -> list[ConfusedPair]:
    """Empty where the two have no predictions of the same rows."""
    before, after = _predictions(baseline), _predictions(other)
    if not before or not after or any(run.ids != before[0].ids for run in [*before, *after]):
        return []
    return differing_pairs(before, after)


def _predictions(setting: ComparedSetting) -> list[Predictions]:
    return [run.predictions for run in setting.runs if run.predictions is not None and run.predictions.ids]


def _only_the_first(shown: int, number: int) -> str:
    return f" The first {shown} settings of {number} are drawn." if shown < number else ""
