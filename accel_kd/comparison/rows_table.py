"""Predictions from a table with a row an example, as runs write it into parquet files and into W&B."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from accel_kd.comparison.compared import Predictions
from accel_kd.comparison.read_run import number_or_nan

NEEDED = ("id", "label", "argmax")


def predictions_of_columns(
    split: str, columns: Mapping[str, Sequence[Any]], known_names: Mapping[int, str] | None = None
) -> Predictions:
    """Predictions from `columns` by name, of which `NEEDED` are there and older tables lack some others.

    Labels are numbers with their names in `label_name` and `argmax_name`, or names themselves.

    Args:
        split: which split the rows are of.
        columns: one value a row each.
        known_names: names by number of labels that may occur nowhere in the table.
    """
    labels, argmax, names = _labels(columns, known_names or {})
    teacher_argmax = _all_or_none(columns.get("teacher_argmax"))
    if teacher_argmax is not None and isinstance(teacher_argmax[0], str):
        names = (*names, *sorted({str(name) for name in teacher_argmax}.difference(names)))
        teacher_argmax = [names.index(name) for name in teacher_argmax]
    return Predictions(
        split=split,
        ids=tuple(str(id) for id in columns["id"]),
        label_names=names,
        labels=labels,
        argmax=argmax,
        confidence=_floats(columns.get("confidence"), len(labels)),
        loss=None if _all_or_none(columns.get("loss")) is None else _floats(columns["loss"], len(labels)),
        teacher_argmax=None if teacher_argmax is None else np.array(teacher_argmax, dtype=np.int64),
        teacher_kl=(
            None if _all_or_none(columns.get("teacher_kl")) is None else _floats(columns["teacher_kl"], len(labels))
        ),
    )


def _labels(
    columns: Mapping[str, Sequence[Any]], known_names: Mapping[int, str]
) -> tuple[NDArray[np.int64], NDArray[np.int64], tuple[str, ...]]:
    labels, argmax = columns["label"], columns["argmax"]
    if len(labels) and isinstance(labels[0], str):
        names = tuple(sorted({*map(str, labels), *map(str, argmax)}))
        number = {name: place for place, name in enumerate(names)}
        return _integers(number[name] for name in labels), _integers(number[name] for name in argmax), names
    by_number = dict(known_names)
    for numbers, name_column in ((labels, "label_name"), (argmax, "argmax_name")):
        by_number.update(zip(map(int, numbers), columns.get(name_column, ()), strict=False))
    size = 1 + max([*by_number, *map(int, labels), *map(int, argmax)], default=-1)
    found = tuple(by_number.get(number, f"label {number}") for number in range(size))
    return _integers(labels), _integers(argmax), found


def _integers(values: Any) -> NDArray[np.int64]:
    return np.fromiter((int(value) for value in values), dtype=np.int64)


def _floats(values: Sequence[Any] | None, size: int) -> NDArray[np.float64]:
    if values is None:
        return np.full(size, np.nan)
    return np.array([number_or_nan(value) for value in values], dtype=np.float64)


def _all_or_none(values: Sequence[Any] | None) -> Sequence[Any] | None:
    """A column that is filled; None for one that is missing or holds nothing."""
    return None if values is None or not len(values) or any(value is None for value in values) else values
