"""Predictions as a table: one row an example, in the split's order, with names that belong to the numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from accel_kd.export.predictions import write_predictions
from accel_kd.metrics.scored_rows import ScoredRows

NAMES = ["alarm", "bank", "oos"]


def rows(teacher_argmax: list[int] | None = None) -> ScoredRows:
    return ScoredRows(
        labels=np.array([2, 0, 1]),
        argmax=np.array([2, 1, 1]),
        confidence=np.array([0.25, 0.5, 1 / 3]),
        loss=np.array([0.1, 0.2, 0.3]),
        teacher_argmax=None if teacher_argmax is None else np.array(teacher_argmax),
        teacher_kl=None if teacher_argmax is None else np.array([0.5, 0.0, 1.5]),
    )


def test_each_example_is_a_row_with_its_names(tmp_path: Path) -> None:
    path = tmp_path / "predictions" / "test.parquet"
    write_predictions(path, ["b", "a", "c"], rows([2, 0, 0]), NAMES)
    table = pq.read_table(path)
    assert table.to_pydict() == {
        "id": ["b", "a", "c"],
        "label": [2, 0, 1],
        "argmax": [2, 1, 1],
        "confidence": [0.25, 0.5, 1 / 3],
        "loss": [0.1, 0.2, 0.3],
        "teacher_argmax": [2, 0, 0],
        "teacher_kl": [0.5, 0.0, 1.5],
        "label_name": ["oos", "alarm", "bank"],
        "argmax_name": ["oos", "bank", "bank"],
    }
    assert [file.name for file in path.parent.iterdir()] == ["test.parquet"]


def test_without_a_teacher_its_columns_are_there_and_empty_so_that_files_can_be_joined(tmp_path: Path) -> None:
    write_predictions(tmp_path / "with.parquet", ["b", "a", "c"], rows([2, 0, 0]), NAMES)
    write_predictions(tmp_path / "without.parquet", ["b", "a", "c"], rows(), NAMES)
    with_teacher, without = pq.read_table(tmp_path / "with.parquet"), pq.read_table(tmp_path / "without.parquet")
    assert without["teacher_argmax"].to_pylist() == without["teacher_kl"].to_pylist() == [None] * 3
    assert with_teacher.schema == without.schema
    assert pa.concat_tables([with_teacher, without]).num_rows == 6


def test_a_file_that_is_there_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "test.parquet"
    for ids in (["x", "y", "z"], ["b", "a", "c"]):
        write_predictions(path, ids, rows(), NAMES)
    assert pq.read_table(path)["id"].to_pylist() == ["b", "a", "c"]


def test_ids_that_are_not_as_many_as_the_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(pa.ArrowInvalid):
        write_predictions(tmp_path / "test.parquet", ["b", "a"], rows(), NAMES)
    assert not (tmp_path / "test.parquet").exists()
