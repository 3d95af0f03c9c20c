"""Puts a comparison into Weights & Biases: a run of the type `compare` with its tables, its page and its verdicts."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accel_kd.comparison.compared import Comparison, Verdict
from accel_kd.comparison.report.page import page_of
from accel_kd.errors import RunFailure, UserError
from accel_kd.tracking import RunRecord, RunStatus, WandbTracker, Words, describe_environment

_OPTION = "--push-to-wandb"
_FINISH_TIMEOUT_SECONDS = 60.0


def project_of(target: str) -> tuple[str | None, str]:
    """Entity, None for the key's own, and project of `ENTITY/PROJECT` or `PROJECT`.

    Raises:
        UserError: it is neither.
    """
    entity, slash, project = target.rpartition("/")
    if not project or bool(slash) != bool(entity) or "/" in entity:
        raise UserError(f"{_OPTION}: {target!r} is neither PROJECT nor ENTITY/PROJECT")
    return entity or None, project


def refuse_push(target: str) -> None:
    """Raises `UserError` where it is known before anything is compared that there will be no push."""
    project_of(target)
    if os.environ.get("WANDB_MODE") == "disabled":
        raise UserError(f"{_OPTION}: WANDB_MODE=disabled is set; unset it, or leave the option out")


def push(comparison: Comparison, target: str, group: str | None) -> None:
    """Puts it there, or into the folder `wandb` here (or in WANDB_DIR) for `wandb sync` where there is no key.

    Args:
        comparison: what is shown.
        target: `ENTITY/PROJECT` or `PROJECT`.
        group: among whose runs it is shown; None for a run by itself.

    Raises:
        UserError: W&B cannot start, or there is nothing to draw with.
        RunFailure: W&B has not taken all of it.
    """
    entity, project = project_of(target)
    page, tables = page_of(comparison), _tables(comparison)  # before there is a run that could be left half done
    directory = Path(os.environ.get("WANDB_DIR") or ".").resolve()
    with tempfile.TemporaryDirectory(prefix="accel_kd_compare_") as folder:
        tracker = WandbTracker(
            "auto", project, entity, directory, Path(folder) / "wandb_run_id", Path(folder) / "metrics.jsonl",
            words=Words(_OPTION, "WANDB_MODE"), finish_timeout_seconds=_FINISH_TIMEOUT_SECONDS,
        )  # fmt: skip
        tracker.start(_record(comparison, group))
        status = RunStatus.FAILED
        try:
            for name, rows in tables.items():
                columns = list(dict.fromkeys(column for row in rows for column in row))
                tracker.table(name, columns, [[_cell(row.get(column)) for column in columns] for row in rows])
            tracker.page("compare/page", page)
            tracker.summarise(_verdicts(comparison))
            status = RunStatus.FINISHED if tracker.is_whole else RunStatus.FAILED
        finally:
            tracker.finish(status)
        if not tracker.is_whole:
            raise RunFailure(f"{_OPTION}: W&B has not taken all of the comparison, as said above; push it again")


def _record(comparison: Comparison, group: str | None) -> RunRecord:
    config = {
        "split": comparison.split,
        "baseline": comparison.baseline,
        "runs": {run.name: run.origin for setting in comparison.settings for run in setting.runs},
    }
    name = f"compare-{group}" if group else f"compare-with-{comparison.baseline}"
    return RunRecord(
        name=name, job_type="compare", group=group, tags=("compare",), notes="\n".join(comparison.notes) or None,
        config=config, environment=describe_environment(),
    )  # fmt: skip


def _tables(comparison: Comparison) -> dict[str, Sequence[dict[str, Any]]]:
    """By name; each row by column. A table without rows is left out."""
    settings = [
        {
            "setting": setting.name,
            "runs": len(setting.runs),
            **{name: spread.mean for name, spread in setting.figures.items()},
            **{
                f"{name} (deviation)": spread.deviation for name, spread in setting.figures.items() if spread.number > 1
            },
            **setting.differs,
        }
        for setting in comparison.settings
    ]
    differences = [{**vars(one), "verdict": str(one.verdict)} for one in comparison.differences]
    runs = [
        {"run": run.name, "setting": setting.name, "seed": run.seed, "read from": run.origin}
        for setting in comparison.settings
        for run in setting.runs
    ]
    tables = {"compare/settings": settings, "compare/differences": differences, "compare/runs": runs}
    return {name: rows for name, rows in tables.items() if rows}


def _cell(value: Any) -> Any:
    """A number or a text; None where there is none."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _verdicts(comparison: Comparison) -> dict[str, Any]:
    overall = [one for one in comparison.differences if one.scope == "all"]
    return {
        "baseline": comparison.baseline,
        **{
            str(verdict).replace(" ", "_"): [one.other for one in overall if one.verdict is verdict]
            for verdict in Verdict
        },
    }
