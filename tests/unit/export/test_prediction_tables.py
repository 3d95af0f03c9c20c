"""What people are shown of a split's predictions: counted by hand, and bounded."""

from __future__ import annotations

import tracemalloc

import numpy as np

from accel_kd.export.prediction_tables import by_label, confused_pairs, differences, predictions
from accel_kd.metrics.scored_rows import ScoredRows

NAMES = ["alarm", "bank", "oos"]
IDS = ["a", "b", "c", "d", "e"]
# Student right on a and e; teacher right on b, c and e; d is wrong for both, in the same way.
ROWS = ScoredRows(
    labels=np.array([0, 1, 1, 1, 2]),
    argmax=np.array([0, 0, 0, 0, 2]),
    confidence=np.array([0.9, 0.8, 0.7, 0.6, 0.5]),
    loss=np.zeros(5),
    teacher_argmax=np.array([1, 1, 1, 0, 2]),
    teacher_kl=np.array([0.3, 0.1, 0.2, 0.0, 0.0]),
)
ALONE = ScoredRows(ROWS.labels, ROWS.argmax, ROWS.confidence, ROWS.loss)


def test_rows_where_student_and_teacher_differ_come_by_how_far_they_differ() -> None:
    table = differences(IDS, ROWS, NAMES)
    assert table.columns == ("id", "label", "student", "teacher", "right", "confidence", "kl")
    assert table.rows == [
        ["a", "alarm", "alarm", "bank", "student", 0.9, 0.3],
        ["c", "bank", "alarm", "bank", "teacher", 0.7, 0.2],
        ["b", "bank", "alarm", "bank", "teacher", 0.8, 0.1],
    ]
    assert differences(IDS, ALONE, NAMES).rows == []


def test_texts_are_there_only_where_they_are_given() -> None:
    shown = differences(IDS, ROWS, NAMES, {"a": "wake me", "c": "my balance", "b": "pay"})
    assert shown.columns[-1] == "text"
    assert [row[-1] for row in shown.rows] == ["wake me", "my balance", "pay"]


def test_differences_are_bounded_and_those_that_differ_most_stay() -> None:
    count = 1_000
    labels, kl = np.zeros(count, dtype=np.int64), np.arange(count) / count
    rows = ScoredRows(labels, labels, kl, kl, teacher_argmax=labels + 1, teacher_kl=kl)
    table = differences([str(number) for number in range(count)], rows, NAMES)
    assert len(table.rows) == 200 and table.rows[0][0] == "999" and table.rows[-1][0] == "800"


def test_confused_pairs_are_counted_for_student_and_teacher() -> None:
    table = confused_pairs(ROWS, NAMES)
    assert table.columns == ("label", "taken_for", "times", "share_of_label", "times_by_teacher")
    assert table.rows == [["bank", "alarm", 3, 1.0, 1]]
    assert confused_pairs(ALONE, NAMES).rows == [["bank", "alarm", 3, 1.0, None]]


def test_pairs_of_many_labels_take_no_memory_of_their_number_squared() -> None:
    names = [str(number) for number in range(30_000)]
    labels = np.array([29_999, 29_999, 29_998, 7, 7])
    tracemalloc.start()
    argmax = np.array([1, 1, 0, 8, 7])
    table = confused_pairs(ScoredRows(labels, argmax, np.zeros(5), np.zeros(5), labels, np.zeros(5)), names)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert table.rows == [["29999", "1", 2, 1.0, 0], ["7", "8", 1, 0.5, 0], ["29998", "0", 1, 1.0, 0]]
    assert peak < 2**20


def test_labels_come_worst_first_with_recall_and_precision() -> None:
    assert by_label(ROWS, NAMES).rows == [
        ["bank", 3, 0.0, None, 2 / 3],
        ["alarm", 1, 1.0, 0.25, 0.0],
        ["oos", 1, 1.0, 1.0, 1.0],
    ]


def test_predictions_are_the_columns_and_rows_of_the_file() -> None:
    table = predictions(IDS, ALONE, NAMES)
    assert dict(zip(table.columns, table.rows[1], strict=True)) == {
        "id": "b",
        "label": 1,
        "argmax": 0,
        "confidence": 0.8,
        "loss": 0.0,
        "teacher_argmax": None,
        "teacher_kl": None,
        "label_name": "bank",
        "argmax_name": "alarm",
    }
    of_teacher = predictions(IDS, ROWS, NAMES)
    assert of_teacher.columns == table.columns and of_teacher.rows[1][5:7] == [1, 0.1]
