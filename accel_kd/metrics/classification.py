"""Accuracy and F1 through `evaluate`, from a metric of our own: its shipped ones are fetched from a hub."""

from __future__ import annotations

from typing import Any

import datasets
import evaluate
import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, f1_score


class ClassificationMetric(evaluate.Metric):  # type: ignore[misc]
    """Accuracy and macro F1 (unweighted mean over the labels that occur) of integer predictions."""

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")})
        return evaluate.MetricInfo(
            description="Accuracy by argmax, and macro F1.",
            citation="",
            inputs_description="predictions and references: integers, one an example",
            features=features,
        )

    def _compute(self, *, predictions: Any, references: Any) -> dict[str, float]:
        return {
            "accuracy": float(accuracy_score(references, predictions)),
            "macro_f1": float(f1_score(references, predictions, average="macro", zero_division=0)),
        }


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
    metric = ClassificationMetric(keep_in_memory=True)
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
