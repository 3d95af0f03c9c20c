"""The outcome of a verification as a table for people and as JSON for programs."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

from accel_kd.verify.records import Differences
from accel_kd.verify.ways import Tolerance

Outcome = Literal["pass", "FAIL", "not run"]


@dataclass(frozen=True)
class Row:
    """One way."""

    way: str
    outcome: Outcome
    because: str
    """The reason of the tolerance; of a failure, what failed; or why the way was not run."""
    differences: Differences | None = None
    tolerance: Tolerance | None = None
    seconds: float = 0.0


def judge(way: str, tolerance: Tolerance, differences: Differences, seconds: float) -> Row:
    """The row of a way that ran to its end."""
    failures = []
    if tolerance.bit_equal:
        if not differences.bits_equal:
            failures.append("bits differ")
    else:
        for name in ("loss", "gradient", "parameters"):
            error, allowed = getattr(differences, name), getattr(tolerance, name)
            if error is not None and not error <= allowed:
                failures.append(f"{name} off by {error:.1e}")
    if tolerance.metrics_equal and differences.metrics_equal is False:
        failures.append("metrics or predictions differ")
    outcome: Outcome = "FAIL" if failures else "pass"
    return Row(way, outcome, "; ".join(failures) or tolerance.because, differences, tolerance, seconds)


def table(rows: list[Row]) -> str:
    """A Markdown table."""
    head = ["way", "loss", "gradient", "parameters", "metrics", "tolerance", "outcome", "because"]
    cells = [head, *([_cell(row, column) for column in head] for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(head))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in cells
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def content(rows: list[Row], facts: dict[str, Any]) -> dict[str, Any]:
    """Everything, as JSON, which has no word for a number that is not finite: it is spelt out."""
    return {**facts, "passed": all(row.outcome != "FAIL" for row in rows),
            "ways": [_finite(dataclasses.asdict(row)) for row in rows]}  # fmt: skip


def _cell(row: Row, column: str) -> str:
    if column in ("way", "outcome", "because"):
        return str(getattr(row, column))
    if row.differences is None or row.tolerance is None:
        return "-"
    if column == "tolerance":
        if row.tolerance.bit_equal:
            return "same bits"
        return ", ".join(
            f"{getattr(row.tolerance, name):.0e}"
            for name in ("loss", "gradient", "parameters")
            if getattr(row.differences, name) is not None
        )
    if column == "metrics":
        return {True: "equal", False: "differ", None: "-"}[row.differences.metrics_equal]
    error = getattr(row.differences, column)
    return "-" if error is None else "0" if error == 0 else f"{error:.1e}"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(member) for key, member in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(member) for member in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
