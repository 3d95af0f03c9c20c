"""Accuracy and F1 through `evaluate`, from a metric of our own: its shipped ones are fetched from a hub.

`evaluate` and scikit-learn take a second to import, so that this module is imported with the first scores.
"""

from __future__ import annotations

from typing import Any

import datasets
import evaluate
from sklearn.metrics import accuracy_score, f1_score


class AccuracyAndF1(evaluate.Metric):  # type: ignore[misc]
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
