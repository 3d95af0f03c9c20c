"""What W&B holds of a run, on disk or on its server, as a run to compare."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from accel_kd.comparison.compared import Predictions
from accel_kd.comparison.read_run import Part, ReadRun, curve_of
from accel_kd.comparison.rows_table import NEEDED, predictions_of_columns

_PARTS: dict[str | None, Part] = {
    "teacher": "teacher", "control": "control", "distill": "student", "search": "student", None: "student",
}  # fmt: skip
"""By the type of a run of W&B; `search` is a trial."""
_SPLITS = ("train", "validation", "test")
_TABLE = "table-file"


def is_model(job_type: str | None) -> bool:
    """Whether a run of that type trained a model: one that filled a store or measured something did not."""
    return (job_type or None) in _PARTS


def part_of(job_type: str | None) -> Part:
    """Which model of its run one of that type trained."""
    return _PARTS.get(job_type or None, "student")


def was_pruned(job_type: str | None, summary: Mapping[str, Any]) -> bool:
    """Whether a run that ended well is a trial that its search broke off: such a one has no final figures."""
    return job_type == "search" and "num_examples" not in summary


def wandb_run(
    *,
    name: str,
    origin: str,
    run_id: str,
    job_type: str | None,
    config: Mapping[str, Any],
    summary: Mapping[str, Any],
    history: Iterable[Mapping[str, Any]],
    split: str,
    read_table: Callable[[str], Mapping[str, Any] | None],
) -> ReadRun:
    """A run from its parts.

    Args:
        name: what W&B calls it.
        origin: where it was read.
        run_id: W&B's id of it.
        job_type: what it trained.
        config: nested, with W&B's own entries and the environment.
        summary: nested, with W&B's own entries and pointers to tables.
        history: its rows.
        split: whose predictions are looked for.
        read_table: reads a table's `columns` and `data` by its path among the run's files; None if it is not there.
    """
    predictions = _predictions(summary, split, read_table)
    return ReadRun(
        label=name,
        origin=origin,
        identity=run_id,
        part=part_of(job_type),
        config={key: value for key, value in config.items() if key not in ("_wandb", "environment")},
        summary={key: value for key, value in summary.items() if not key.startswith("_") and not _is_media(value)},
        predictions=predictions,
        no_predictions="" if predictions else f"W&B holds no table of its predictions on the {split} split",
        curve=curve_of(history),
    )


def _predictions(
    summary: Mapping[str, Any], split: str, read_table: Callable[[str], Mapping[str, Any] | None]
) -> Predictions | None:
    """From the table that has them whole: one of the rows where two models differ has the same columns."""
    counts = summary.get("num_examples")
    expected = counts.get(split) if isinstance(counts, Mapping) else None
    others = [other for other in _SPLITS if other != split]
    pointers = {key: value for key, value in summary.items() if _is_media(value) and value.get("_type") == _TABLE}
    for key, value in sorted(pointers.items(), key=lambda item: split not in item[0]):
        if any(other in key for other in others) or not (split in key or expected):
            continue
        table = read_table(str(value.get("path")))
        if table is None or not {*NEEDED} <= {*table.get("columns", ())}:
            continue
        rows = table["data"]
        if rows and len(rows) == (expected or len(rows)):
            columns = dict(zip(table["columns"], map(list, zip(*rows, strict=True)), strict=True))
            return predictions_of_columns(split, columns)
    return None


def _is_media(value: Any) -> bool:
    return isinstance(value, Mapping) and "_type" in value
