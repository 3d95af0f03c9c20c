"""A comparison as JSON, in full precision; its rows and curves stay where the runs have them."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from accel_kd.comparison.compared import ComparedRun, ComparedSetting, Comparison, PairedDifference
from accel_kd.comparison.paired_statistics import holm


def comparison_json(comparison: Comparison) -> str:
    """All of it; numbers that are not finite are null.

    `holm_p_value` is McNemar's, adjusted for as many models as there are against the baseline in that scope.
    """
    content = {
        "split": comparison.split,
        "baseline": comparison.baseline,
        "settings": [_setting(setting) for setting in comparison.settings],
        "differences": _differences(comparison.differences),
        "notes": list(comparison.notes),
    }
    return json.dumps(_finite(content), indent=2, ensure_ascii=False, allow_nan=False, default=str) + "\n"


def _setting(setting: ComparedSetting) -> dict[str, Any]:
    return {
        "name": setting.name,
        "differs": dict(setting.differs),
        "figures": {name: dataclasses.asdict(spread) for name, spread in setting.figures.items()},
        "runs": [_run(run) for run in setting.runs],
    }


def _run(run: ComparedRun) -> dict[str, Any]:
    return {
        "name": run.name,
        "origin": run.origin,
        "seed": run.seed,
        "num_rows": None if run.predictions is None else len(run.predictions.ids),
        "num_right": None if run.predictions is None else int(run.predictions.is_right.sum()),
        "summary": dict(run.summary),
        "config": dict(run.config),
        "measured": [dataclasses.asdict(form) for form in run.measured],
    }


def _differences(differences: Sequence[PairedDifference]) -> list[dict[str, Any]]:
    rows = [dataclasses.asdict(one) | {"holm_p_value": None} for one in differences]
    for scope in dict.fromkeys(one.scope for one in differences):
        tested = [row for row in rows if row["scope"] == scope and row["p_value"] is not None]
        for row, adjusted in zip(tested, holm([row["p_value"] for row in tested]), strict=True):
            row["holm_p_value"] = adjusted
    return rows


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value
