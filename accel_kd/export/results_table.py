"""The models of a run side by side, as plain text or Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

COLUMNS = {
    "num_parameters": "parameters",
    "eval/accuracy": "validation",
    "test/accuracy": "test",
    "test/in_scope_accuracy": "in scope",
    "test/out_of_scope_recall": "oos recall",
    "test/macro_f1": "macro F1",
    "test/teacher_agreement": "agreement",
    "test/calibration_error": "ECE",
}
LEGEND = """validation, test: accuracy by argmax; the further columns are of the test split: in scope, accuracy without
the out-of-scope examples; oos recall, the share of those that is found; agreement, the share of examples that get the
teacher's label; ECE, expected calibration error"""


def results_table(models: Mapping[str, Mapping[str, Any]]) -> str:
    """One line a model, one column a figure; figures that no model has are left out.

    Args:
        models: what each is called, and its figures by the keys of `COLUMNS`.
    """
    shown = [key for key in COLUMNS if any(figures.get(key) is not None for figures in models.values())]
    lines = [["model", *(COLUMNS[key] for key in shown)]]
    lines += [[name, *(_format(figures.get(key)) for key in shown)] for name, figures in models.items()]
    return as_markdown(lines)


def _format(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def as_markdown(lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table that also lines up as plain text."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    head, *body = [
        "| "
        + " | ".join(cell.ljust(width) if n == 0 else cell.rjust(width) for n, (cell, width) in enumerate(row))
        + " |"
        for row in ([*zip(line, widths, strict=True)] for line in lines)
    ]
    rule = (
        "|" + "|".join("-" * (width + 2) if n == 0 else "-" * (width + 1) + ":" for n, width in enumerate(widths)) + "|"
    )
    return "\n".join([head, rule, *body])
