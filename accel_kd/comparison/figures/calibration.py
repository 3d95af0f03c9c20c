"""Whether confidence can be believed: accuracy over confidence, and how many rows stand behind each point."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from accel_kd.comparison.compared import ComparedSetting
from accel_kd.comparison.figures.style import LEGEND_LINE, LEGEND_WIDTH, SOFT, dress, fitted, legend, new_figure
from accel_kd.metrics.fidelity import expected_calibration_error

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NUM_BINS = 15
"""As many as the calibration error of a run's results has."""


@dataclass(frozen=True)
class Reliability:
    """What a setting's rows say in each bin of confidence: `counts` `[b]` of rows a run, `confidences` and `accuracies`
    `[b]`, their means, not a number where a bin is empty; `error` is the mean over the runs of the expected calibration
    error."""

    counts: NDArray[np.float64]
    confidences: NDArray[np.float64]
    accuracies: NDArray[np.float64]
    error: float


def reliability(runs: Sequence[tuple[NDArray[np.float64], NDArray[np.bool_]]]) -> Reliability:
    """Pools the rows of a setting's runs.

    Args:
        runs: of each, the largest probability of every row `[n]` and whether it was right `[n]`; at least one run.
    """
    confidence = np.concatenate([confidence for confidence, _ in runs])
    is_right = np.concatenate([is_right for _, is_right in runs])
    bins = np.clip(np.ceil(confidence * NUM_BINS).astype(np.int64) - 1, 0, NUM_BINS - 1)
    counts = np.bincount(bins, minlength=NUM_BINS)
    with np.errstate(invalid="ignore"):
        return Reliability(
            counts / len(runs),
            np.bincount(bins, weights=confidence, minlength=NUM_BINS) / counts,
            np.bincount(bins, weights=is_right, minlength=NUM_BINS) / counts,
            float(np.mean([expected_calibration_error(*run, num_bins=NUM_BINS) for run in runs])),
        )


def reliability_of(setting: ComparedSetting) -> Reliability | None:
    """That of a setting's runs; None if none of them has predictions whose confidence is known of every row."""
    predictions = [run.predictions for run in setting.runs if run.predictions is not None and run.predictions.ids]
    rows = [(one.confidence, one.is_right) for one in predictions if np.isfinite(one.confidence).all()]
    return reliability(rows) if rows else None


def calibration(settings: Mapping[str, Reliability], colours: Mapping[str, str]) -> Figure:
    """The reliability diagram (Guo et al. 2017, "On Calibration of Modern Neural Networks"), counts under it.

    Args:
        settings: at least one, by name.
        colours: of each.
    """
    figure = new_figure(5.4 + LEGEND_LINE * len(settings))
    diagram, counts = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1.3])
    diagram.plot([0, 1], [0, 1], color=SOFT, linewidth=1.0, linestyle=(0, (4, 3)))
    edges = np.linspace(0, 1, NUM_BINS + 1)
    handles = []
    # A logarithmic axis has no zero: what holds no row lies on its floor, under all that do.
    floor = 0.5 * min(float(of.counts[of.counts > 0].min()) for of in settings.values())
    for name, of in settings.items():
        filled = of.counts > 0
        look = {"color": colours[name], "linewidth": 1.6, "alpha": 0.9}
        handles += diagram.plot(of.confidences[filled], of.accuracies[filled], marker="o", markersize=4, **look)
        counts.stairs(np.maximum(of.counts, floor), edges, baseline=None, **look)
    diagram.set(xlim=(0, 1), ylim=(0, 1.02))
    most = max(float(of.counts.max()) for of in settings.values())
    counts.set_yscale("log")
    counts.set_ylim(floor, 2 * most)
    dress(diagram, "", "share that is right")
    dress(counts, "confidence", "rows a run\n(log scale)")
    counts.tick_params(which="minor", left=False)
    figure.align_ylabels()
    legend(figure, handles, [fitted(name, LEGEND_WIDTH, f": ECE {of.error:.3f}") for name, of in settings.items()])
    return figure
