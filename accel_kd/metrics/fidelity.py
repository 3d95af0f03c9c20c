"""How closely a student follows its teacher, and how far its confidence can be believed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from accel_kd.metrics.scored_rows import ScoredRows


def fidelity_metrics(rows: ScoredRows) -> dict[str, float]:
    """`calibration_error`; with a teacher also `teacher_agreement` (share of equal argmax) and `teacher_kl` (nats)."""
    metrics = {"calibration_error": expected_calibration_error(rows.confidence, rows.argmax == rows.labels)}
    if rows.teacher_argmax is not None and rows.teacher_kl is not None:
        metrics["teacher_agreement"] = float((rows.argmax == rows.teacher_argmax).mean())
        metrics["teacher_kl"] = float(rows.teacher_kl.mean())
    return metrics


def expected_calibration_error(
    confidence: NDArray[np.float64], correct: NDArray[np.bool_], num_bins: int = 15
) -> float:
    """Mean distance of accuracy from confidence over equal-width bins, weighted by how many examples each holds
    (Guo et al. 2017, "On Calibration of Modern Neural Networks", eq. 3).

    Args:
        confidence: largest probability of each example `[n]`, within 0 and 1.
        correct: whether it was right `[n]`.
        num_bins: bins between 0 and 1, closed on the right as in the paper.
    """
    bins = np.clip(np.ceil(confidence * num_bins).astype(np.int64) - 1, 0, num_bins - 1)
    gap = np.bincount(bins, weights=confidence - correct, minlength=num_bins)
    return float(np.abs(gap).sum() / len(confidence))
