"""The predictions of a split as a parquet file, to compare runs row by row."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from accel_kd.metrics.scored_rows import ScoredRows
from accel_kd.whole_folder import flush


def write_predictions(path: Path, ids: Sequence[str], rows: ScoredRows, label_names: Sequence[str]) -> None:
    """Puts `predictions_table` into a file, which is there whole or not at all."""
    table = predictions_table(ids, rows, label_names)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}")
    pq.write_table(table, temporary)
    flush(temporary)
    temporary.replace(path)


def predictions_table(ids: Sequence[str], rows: ScoredRows, label_names: Sequence[str]) -> pa.Table:
    """One row an example, in the split's order: `id`, `label`, `argmax`, `confidence`, `loss` (cross-entropy, nats),
    `teacher_argmax` and `teacher_kl` (KL(teacher || student), nats; both null without a teacher), and the names of the
    label and of the prediction.

    Raises:
        ArrowInvalid: there are not as many ids as rows.
    """
    no_teacher = rows.teacher_argmax is None or rows.teacher_kl is None
    return pa.table(
        {
            "id": list(ids),
            "label": pa.array(rows.labels, pa.int32()),
            "argmax": pa.array(rows.argmax, pa.int32()),
            "confidence": pa.array(rows.confidence),
            "loss": pa.array(rows.loss),
            "teacher_argmax": pa.nulls(len(ids), pa.int32())
            if no_teacher
            else pa.array(rows.teacher_argmax, pa.int32()),
            "teacher_kl": pa.nulls(len(ids), pa.float64()) if no_teacher else pa.array(rows.teacher_kl),
            "label_name": [label_names[number] for number in rows.labels],
            "argmax_name": [label_names[number] for number in rows.argmax],
        }
    )
