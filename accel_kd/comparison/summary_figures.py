"""The figures by which models are compared, from the summary of a run, its rows, and what was measured of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from accel_kd.comparison.compared import Measured, Predictions, Spread
from accel_kd.comparison.read_run import PREFIXES

OF_ROWS = (
    "accuracy", "in_scope_accuracy", "out_of_scope_recall", "macro_f1", "teacher_agreement", "teacher_kl",
    "calibration_error", "loss",
)  # fmt: skip
"""On the split that is compared."""
OF_COST = ("num_parameters", "megabytes", "latency_p50", "latency_p95", "device_hours")
"""Latencies in ms and megabytes of one form, for all models the same; `device_hours` of the training of this model
alone: the wall time of each attempt, with evaluations and checkpoints, by the number of its ranks."""


def figures_of_run(summary: Mapping[str, Any], measured: Measured | None, split: str) -> dict[str, float]:
    """The figures of a run by the names above, those that there are; `measured` is the row that stands for its cost."""
    prefix = PREFIXES[split]
    figures = {name: summary[prefix + name] for name in OF_ROWS if _is_number(summary.get(prefix + name))}
    if _is_number(summary.get("num_parameters")):
        figures["num_parameters"] = summary["num_parameters"]
    # Over attempts: checkpoints carry the seconds on, so that what a killed one did after its last is not in it.
    if _is_number(summary.get("perf/device_seconds")):
        figures["device_hours"] = summary["perf/device_seconds"] / 3600
    elif _is_number(summary.get("perf/seconds")) and _is_number(summary.get("world_size")):
        figures["device_hours"] = summary["perf/seconds"] * summary["world_size"] / 3600  # of an older version
    if measured is not None:
        figures |= {name: getattr(measured, name) for name in ("megabytes", "latency_p50", "latency_p95")}
    return figures


def figures_of_rows(predictions: Predictions, out_of_scope: int | None) -> dict[str, float]:
    """The figures of a model on rows that are not its whole split, by the definitions that training uses."""
    from accel_kd.metrics.classification import classification_metrics
    from accel_kd.metrics.fidelity import expected_calibration_error

    figures = classification_metrics(predictions.labels, predictions.argmax, out_of_scope)
    if not np.isnan(predictions.confidence).any():
        figures["calibration_error"] = expected_calibration_error(predictions.confidence, predictions.is_right)
    if predictions.teacher_argmax is not None:
        figures["teacher_agreement"] = float((predictions.argmax == predictions.teacher_argmax).mean())
    for name, values in (("loss", predictions.loss), ("teacher_kl", predictions.teacher_kl)):
        if values is not None:
            figures[name] = float(values.mean())
    return figures


def spreads(figures: Iterable[Mapping[str, float]]) -> dict[str, Spread]:
    """Each figure over the runs of a setting that have it."""
    runs = list(figures)
    found = {}
    for name in (*OF_ROWS, *OF_COST):
        values = np.array([run[name] for run in runs if name in run], dtype=np.float64)
        if len(values):
            deviation = float(values.std(ddof=1)) if len(values) > 1 else None
            found[name] = Spread(float(values.mean()), deviation, len(values))
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
