"""How far a share that was counted on a sample may lie from the true one."""

from __future__ import annotations


def wilson_interval(num_right: int, num_rows: int, level: float = 0.95) -> tuple[float, float]:
    """The interval of a proportion (Wilson 1927, "Probable inference, the law of succession, and statistical
    inference"), which covers near its level for small samples and shares near 0 or 1 too.

    Args:
        num_right: rows that count.
        num_rows: rows in all, at least one.
        level: how often such intervals hold the true share.

    Returns:
        Its ends, within 0 and 1.
    """
    assert 0 <= num_right <= num_rows and num_rows > 0
    from scipy.stats import binomtest

    interval = binomtest(num_right, num_rows).proportion_ci(confidence_level=level, method="wilson")
    return float(interval.low), float(interval.high)
