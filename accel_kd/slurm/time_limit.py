"""Time limits as SLURM writes them."""

from __future__ import annotations

import re

_WITHOUT_DAYS = re.compile(r"(?:(?P<hours>\d+):(?=\d+:\d+$))?(?P<minutes>\d+)(?::(?P<seconds>\d+))?")
_WITH_DAYS = re.compile(r"(?P<days>\d+)-(?P<hours>\d+)(?::(?P<minutes>\d+)(?::(?P<seconds>\d+))?)?")
_SECONDS = {"days": 86400, "hours": 3600, "minutes": 60, "seconds": 1}


def seconds_of(limit: str) -> int | None:
    """The seconds of `minutes`, `minutes:seconds`, `hours:minutes:seconds`, `days-hours`, `days-hours:minutes` or
    `days-hours:minutes:seconds`; None where `limit` is none of them."""
    match = (_WITH_DAYS if "-" in limit else _WITHOUT_DAYS).fullmatch(limit)
    if match is None or not limit.isascii():
        return None
    return sum(int(count) * _SECONDS[unit] for unit, count in match.groupdict().items() if count is not None)
