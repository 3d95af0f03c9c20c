"""Whether two models that answered the very same rows can be told apart."""

from __future__ import annotations


def mcnemar_p_value(only_baseline: int, only_other: int) -> float:
    """The exact two-sided p-value that two models are equally often right (McNemar 1947, "Note on the sampling error
    of the difference between correlated proportions or percentages"): among the rows that one of them alone has right,
    each is as likely the one's as the other's.

    Args:
        only_baseline: rows that the one alone has right.
        only_other: rows that the other alone has right.
    """
    assert only_baseline >= 0 and only_other >= 0
    from scipy.stats import binomtest

    discordant = only_baseline + only_other
    return float(binomtest(only_other, discordant, 0.5).pvalue) if discordant else 1.0
