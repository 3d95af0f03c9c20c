"""Time limits as SLURM writes them."""

from __future__ import annotations

import pytest

from accel_kd.slurm.time_limit import seconds_of


@pytest.mark.parametrize(
    ("limit", "seconds"),
    [
        ("90", 90 * 60),
        ("90:30", 90 * 60 + 30),
        ("4:00:00", 4 * 3600),
        ("00:05:09", 309),
        ("2-12", 60 * 3600),
        ("1-0:30", 24 * 3600 + 1800),
        ("1-2:03:04", 26 * 3600 + 184),
        ("0", 0),
    ],
)
def test_every_form_that_slurm_takes(limit: str, seconds: int) -> None:
    assert seconds_of(limit) == seconds


@pytest.mark.parametrize(
    "limit", ["", "4h", "xyz", "1:2:3:4", "-1", "1-", "1-2-3", "1:", ":30", "1.5", " 5", "5\n", "٣"]
)
def test_nothing_else_is_a_limit(limit: str) -> None:
    assert seconds_of(limit) is None
