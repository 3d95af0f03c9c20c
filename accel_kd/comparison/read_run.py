"""A run as it was read, wherever from, before it is named and pooled with others."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from accel_kd.comparison.compared import LearningCurve, Measured, Predictions

Part = Literal["student", "control", "teacher"]
PREFIXES = {"test": "test/", "validation": "eval/"}
"""Of the figures of a split in summaries and logs."""


@dataclass(frozen=True)
class ReadRun:
    """One trained model: its folder's or W&B's name for it, and what is there of it.

    Two that have the same `identity` are the same run. `config` is nested; `no_predictions` says why there are none.
    """

    label: str
    origin: str
    identity: str
    part: Part
    config: Mapping[str, Any]
    summary: Mapping[str, Any]
    predictions: Predictions | None
    no_predictions: str
    curve: LearningCurve | None
    measured: tuple[Measured, ...] = ()


def flattened(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by their dotted names; lists stay values."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            flat |= flattened(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def curve_of(rows: Iterable[Mapping[str, Any]]) -> LearningCurve | None:
    """The learning curve in rows of a log, each with its `step`; None where there is none."""
    logged = [row for row in rows if isinstance(row.get("step"), int | float)]
    losses = [row for row in logged if "train/loss" in row]
    evaluations = [row for row in logged if any(name.startswith("eval/") for name in row)]
    if not losses and not evaluations:
        return None
    names = dict.fromkeys(name for row in evaluations for name in row if name.startswith("eval/"))
    return LearningCurve(
        loss_steps=_steps(losses),
        losses=_numbers(row["train/loss"] for row in losses),
        evaluation_steps=_steps(evaluations),
        evaluations={name: _numbers(row.get(name) for row in evaluations) for name in names},
    )


def number_or_nan(value: Any) -> float:
    """What JSON has for a number: null, and W&B's words, for those that are not finite."""
    try:
        return math.nan if value is None else float(value)
    except (TypeError, ValueError):
        return math.nan


def _steps(rows: Sequence[Mapping[str, Any]]) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.array([row["step"] for row in rows], dtype=np.int64)


def _numbers(values: Iterable[Any]) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.array([number_or_nan(value) for value in values], dtype=np.float64)
