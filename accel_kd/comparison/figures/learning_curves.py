"""How the runs learned: training loss and validation accuracy over steps, the runs of a setting in one colour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from accel_kd.comparison.compared import ComparedSetting, LearningCurve
from accel_kd.comparison.figures.style import LEGEND_LINE, LEGEND_WIDTH, dress, fitted, legend, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

VALIDATION_ACCURACY = "eval/accuracy"
_MOST_POINTS = 60


def learning_curves(settings: Sequence[ComparedSetting], colours: Mapping[str, str]) -> Figure:
    """Losses, and accuracies under them if any run has some.

    Args:
        settings: at least one, each with losses.
        colours: of each setting, by name.
    """
    curves = [(setting.name, run.curve) for setting in settings for run in setting.runs if run.curve is not None]
    with_accuracy = any(len(accuracies_of(curve)[0]) for _, curve in curves)
    width = _bin_width([curve for _, curve in curves])
    names = list(dict.fromkeys(name for name, _ in curves))
    figure = new_figure((5.0 if with_accuracy else 3.0) + LEGEND_LINE * len(names))
    axes = figure.subplots(1 + with_accuracy, 1, sharex=True, squeeze=False)[:, 0]
    handles: dict[str, Any] = {}
    for name, curve in curves:
        look = {"color": colours[name], "linewidth": 1.6, "alpha": 0.9}
        (handles[name],) = axes[0].plot(*binned(curve.loss_steps, curve.losses, width), **look)
        if with_accuracy:
            steps, accuracies = accuracies_of(curve)
            axes[1].plot(steps, 100 * accuracies, marker="o", markersize=4, **look)
    mean = f"\nmean of {width} steps" if width > 1 else ""
    dress(axes[0], "" if with_accuracy else "step", f"training loss{mean}")
    if with_accuracy:
        dress(axes[1], "step", "validation\naccuracy (%)")
    figure.align_ylabels()
    legend(figure, handles.values(), [fitted(name, LEGEND_WIDTH) for name in handles])
    return figure


def has_losses(setting: ComparedSetting) -> bool:
    """Whether there is a line to draw for it."""
    return any(run.curve is not None and np.isfinite(run.curve.losses).any() for run in setting.runs)


def accuracies_of(curve: LearningCurve) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Steps `[e]` and validation accuracies `[e]`, those that are numbers."""
    accuracies = curve.evaluations.get(VALIDATION_ACCURACY)
    if accuracies is None:
        return np.zeros(0, dtype=np.int64), np.zeros(0)
    are_numbers = np.isfinite(accuracies)
    return curve.evaluation_steps[are_numbers], accuracies[are_numbers]


def binned(
    steps: NDArray[np.int64], losses: NDArray[np.float64], width: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The mean step and the mean loss of each `width` steps that hold a loss; losses that are not finite count for
    nothing.

    Args:
        steps: from 1 on `[m]`.
        losses: theirs `[m]`.
    """
    finite = np.isfinite(losses)
    steps, losses = steps[finite], losses[finite]
    bins = (steps - 1) // width
    _, places, counts = np.unique(bins, return_inverse=True, return_counts=True)
    return np.bincount(places, weights=steps) / counts, np.bincount(places, weights=losses) / counts


def _bin_width(curves: Sequence[LearningCurve]) -> int:
    last = max(int(curve.loss_steps.max(initial=1)) for curve in curves)
    return max(1, -(-last // _MOST_POINTS))
