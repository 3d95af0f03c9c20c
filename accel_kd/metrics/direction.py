"""Which way a metric gets better."""

from __future__ import annotations


def is_minimised(metric: str) -> bool:
    """Whether less of this metric is better."""
    return metric.endswith(("loss", "kl", "calibration_error"))
