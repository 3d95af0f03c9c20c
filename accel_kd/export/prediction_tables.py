"""A split's predictions as tables for people: where student and teacher differ, what is confused with what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from accel_kd.export.predictions import predictions_table
from accel_kd.metrics.scored_rows import ScoredRows

_MOST_DIFFERENCES = 200
_MOST_PAIRS = 100


@dataclass(frozen=True)
class Table:
    """`rows` hold one value a column; a column has one type, or gaps (None)."""

    columns: tuple[str, ...]
    rows: list[list[Any]]


def predictions(ids: Sequence[str], rows: ScoredRows, names: Sequence[str]) -> Table:
    """The very columns and rows of the file of predictions."""
    table = predictions_table(ids, rows, names)
    return Table(tuple(table.column_names), [list(row) for row in zip(*table.to_pydict().values(), strict=True)])


def differences(
    ids: Sequence[str], rows: ScoredRows, names: Sequence[str], texts: Mapping[str, str] | None = None
) -> Table:
    """The examples whose student and teacher give different labels, those of the largest KL(teacher || student) first,
    and no more than 200; `texts` by id, where they may be shown."""
    columns = (
        "id",
        "label",
        "student",
        "teacher",
        "right",
        "confidence",
        "kl",
        *(["text"] if texts is not None else []),
    )
    if rows.teacher_argmax is None or rows.teacher_kl is None:
        return Table(columns, [])
    differs = np.flatnonzero(rows.argmax != rows.teacher_argmax)
    found: list[list[Any]] = []
    for row in differs[np.argsort(-rows.teacher_kl[differs], kind="stable")][:_MOST_DIFFERENCES]:
        label, student, teacher = int(rows.labels[row]), int(rows.argmax[row]), int(rows.teacher_argmax[row])
        right = "student" if student == label else "teacher" if teacher == label else "neither"
        figures = [float(rows.confidence[row]), float(rows.teacher_kl[row])]
        shown = [] if texts is None else [texts.get(ids[row], "")]
        found.append([ids[row], names[label], names[student], names[teacher], right, *figures, *shown])
    return Table(columns, found)


def confused_pairs(rows: ScoredRows, names: Sequence[str]) -> Table:
    """Which label is taken for which, the most frequent first and no more than 100: how often, which share of the
    label's examples that is, and how often the teacher makes the very same mistake.

    With many labels this is what a confusion matrix is looked at for.
    """
    count = len(names)
    mistakes = _mistakes(rows.labels, rows.argmax, count)
    of_teacher = None if rows.teacher_argmax is None else _mistakes(rows.labels, rows.teacher_argmax, count)
    num_rows = np.bincount(rows.labels, minlength=count)
    found: list[list[Any]] = []
    for pair, times in sorted(mistakes.items(), key=lambda mistake: -mistake[1])[:_MOST_PAIRS]:
        label, argmax = divmod(pair, count)
        teacher = None if of_teacher is None else of_teacher.get(pair, 0)
        found.append([names[label], names[argmax], times, times / int(num_rows[label]), teacher])
    return Table(("label", "taken_for", "times", "share_of_label", "times_by_teacher"), found)


def by_label(rows: ScoredRows, names: Sequence[str]) -> Table:
    """Each label that occurs, the one found least first: its examples, the share that is found (recall), the share of
    right answers among those that give it (precision; None where none does), and the teacher's recall."""
    count = len(names)
    num_rows, num_given = (np.bincount(of, minlength=count) for of in (rows.labels, rows.argmax))
    num_found = np.bincount(rows.labels[rows.labels == rows.argmax], minlength=count)
    by_teacher = None
    if rows.teacher_argmax is not None:
        by_teacher = np.bincount(rows.labels[rows.labels == rows.teacher_argmax], minlength=count)
    found: list[list[Any]] = []
    for label in np.flatnonzero(num_rows).tolist():
        precision = num_found[label] / num_given[label] if num_given[label] else None
        teacher = None if by_teacher is None else float(by_teacher[label] / num_rows[label])
        recall = float(num_found[label] / num_rows[label])
        found.append(
            [names[label], int(num_rows[label]), recall, None if precision is None else float(precision), teacher]
        )
    return Table(
        ("label", "examples", "recall", "precision", "recall_of_teacher"), sorted(found, key=lambda row: row[2])
    )


def _mistakes(labels: NDArray[np.int64], argmax: NDArray[np.int64], count: int) -> dict[int, int]:
    """How often each pair (label, prediction) of unequal ones occurs, by label * count + prediction, in that order.

    Those alone that occur: of 30,000 labels there are 9e8 pairs.
    """
    wrong = labels != argmax
    pairs, times = np.unique(labels[wrong] * count + argmax[wrong], return_counts=True)
    return dict(zip(pairs.tolist(), times.tolist(), strict=True))
