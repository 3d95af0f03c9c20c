"""What a classifier is judged by: accuracy in its several senses, and F1."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def classification_metrics(
    labels: NDArray[np.int64], argmax: NDArray[np.int64], out_of_scope: int | None = None
) -> dict[str, float]:
    """`accuracy` and `macro_f1`; with an out-of-scope label also `in_scope_accuracy` and `out_of_scope_recall`.

    Args:
        labels: true labels `[n]`.
        argmax: predicted labels `[n]`.
        out_of_scope: the label that stands for none of the others. The two metrics that it brings are each left out
            where the split has no example for them.
    """
    # Imported with the first scores: it takes a second, which the first step need not wait for.
    from accel_kd.metrics.accuracy_and_f1 import AccuracyAndF1

    metric = AccuracyAndF1(keep_in_memory=True)
    metric.add_batch(predictions=argmax, references=labels)
    scores: dict[str, float] = dict(metric.compute())
    if out_of_scope is not None:
        outside = labels == out_of_scope
        correct = labels == argmax
        if (~outside).any():
            scores["in_scope_accuracy"] = float(correct[~outside].mean())
        if outside.any():
            scores["out_of_scope_recall"] = float(correct[outside].mean())
    return scores


def accuracy_by_label(labels: NDArray[np.int64], argmax: NDArray[np.int64], names: list[str]) -> dict[str, float]:
    """The share of each label's examples that is predicted as that label, for the labels that occur."""
    return {
        name: float((argmax[labels == number] == number).mean())
        for number, name in enumerate(names)
        if (labels == number).any()
    }
