"""What `benchmark model` measured of runs: read, told apart by hardware, and the one form by which all are compared."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from accel_kd.comparison.compared import Measured
from accel_kd.comparison.read_run import ReadRun
from accel_kd.run_directory import RunDirectory

COMMON_FORM = "torch"
"""The form whose latency and size stand for a model's, since that alone is every model as it was trained."""

Place = tuple[str, int | None]
"""Device and threads."""


class _OfRun(Protocol):
    @property
    def measured(self) -> tuple[Measured, ...]: ...


def read_measured(directory: RunDirectory, split: str) -> tuple[Measured, ...]:
    """What was measured of the run's model as it is now, on that split; rows of before the split was kept count.

    Raises:
        KeyError: a row lacks a figure.
    """
    rows = [row for row in directory.read_measurements() if row.get("split", split) == split]
    return tuple(_measured(row) for row in rows)


def _measured(row: dict[str, Any]) -> Measured:
    needed = [field.name for field in dataclasses.fields(Measured) if field.default is dataclasses.MISSING]
    return Measured(**{name: row[name] for name in needed}, hardware=row.get("hardware"))


def with_hardware(runs: Sequence[ReadRun]) -> list[ReadRun]:
    """The runs, in which the device is `cpu (AMD EPYC 7763)` where some were measured on other ones of that device."""
    hardware: dict[str, set[str | None]] = {}
    for run in runs:
        for one in run.measured:
            hardware.setdefault(one.device, set()).add(one.hardware)
    return [
        dataclasses.replace(run, measured=tuple(_named(one, hardware[one.device]) for one in run.measured))
        for run in runs
    ]


def _named(one: Measured, hardware: set[str | None]) -> Measured:
    if len(hardware) == 1 or one.hardware is None:
        return one
    return dataclasses.replace(one, device=f"{one.device} ({one.hardware})")


def common_place(runs: Iterable[_OfRun]) -> Place | None:
    """Where `COMMON_FORM` was measured of all runs of which anything was; the first such place, or None."""
    places = [
        [(one.device, one.threads) for one in run.measured if one.form == COMMON_FORM] for run in runs if run.measured
    ]
    return next((place for place in places[0] if all(place in others for others in places)), None) if places else None


def measured_at(place: Place | None, measured: Sequence[Measured]) -> Measured | None:
    """The row of `COMMON_FORM` in that place."""
    return next((one for one in measured if one.form == COMMON_FORM and (one.device, one.threads) == place), None)


def place_in_words(device: str, threads: int | None) -> str:
    """The device, and its threads where it has some."""
    return device if threads is None else f"{device}, {threads} thread{'s' * (threads > 1)}"
