"""The model card's figures: each with its interval, beside the teacher and the control, on the very same rows."""

from __future__ import annotations

from typing import Any

import numpy as np

from accel_kd.export.results_table import as_markdown
from accel_kd.export.run_records import RunRecords
from accel_kd.metrics.intervals import wilson_interval
from accel_kd.metrics.paired import mcnemar_p_value

_PREFIXES = {"test": "test", "validation": "eval"}
_LEVEL = 0.05


def results(records: RunRecords) -> str:
    """Accuracy of each model with its interval, agreement and calibration, and the paired comparisons."""
    parts = [_accuracies(records, split) for split in _PREFIXES if records.summary["num_examples"].get(split)]
    parts.append(
        f"In brackets: 95 % intervals (Wilson 1927) of the share among such examples. {records.summary['kept']}"
    )
    if len(records.summary["num_examples"]) > 2 and records.weights_were_chosen:
        parts[-1] += " Validation chose them, so its figures are on the high side; test was scored once, at the end."
    parts += [_fidelity(records), _paired(records)]
    return "\n\n".join(part for part in parts if part)


def _accuracies(records: RunRecords, split: str) -> str:
    prefix, num_rows = _PREFIXES[split], records.summary["num_examples"][split]
    rows = records.rows.get(split)
    num_outside = None if rows is None else int(rows.is_outside.sum())
    columns: dict[str, tuple[str, int | None]] = {
        "accuracy": (f"{prefix}/accuracy", num_rows),
        "in scope": (f"{prefix}/in_scope_accuracy", None if num_outside is None else num_rows - num_outside),
        "out of scope found": (f"{prefix}/out_of_scope_recall", num_outside),
        "macro F1": (f"{prefix}/macro_f1", None),
    }
    there = {
        title: place
        for title, place in columns.items()
        if any(place[0] in figures for figures in records.models.values())
    }
    lines = [["model", "parameters", *there]]
    for name, figures in records.models.items():
        size = figures.get("num_parameters")
        shares = [_share(figures.get(key), total) for key, total in there.values()]
        lines.append([name, "" if size is None else f"{size:,}", *shares])
    head = f"### {split.capitalize()} ({num_rows:,} examples"
    head += f", {num_outside:,} of them out of scope)" if num_outside else ")"
    return f"{head}\n\n{as_markdown(lines)}"


def _share(share: float | None, num_rows: int | None) -> str:
    if share is None:
        return ""
    if not num_rows:
        return f"{share:.4f}"
    low, high = wilson_interval(round(share * num_rows), num_rows)
    return f"{share:.4f} [{low:.4f}, {high:.4f}]"


def _fidelity(records: RunRecords) -> str:
    """Agreement and divergence from the teacher, calibration: on test, or where there is none on validation."""
    split = "test" if records.summary["num_examples"].get("test") else "validation"
    prefix = _PREFIXES[split]
    columns = {
        "agreement with the teacher": f"{prefix}/teacher_agreement",
        "KL(teacher \\|\\| model), nats": f"{prefix}/teacher_kl",
        "calibration error": f"{prefix}/calibration_error",
    }
    there = {title: key for title, key in columns.items() if any(key in figures for figures in records.models.values())}
    if not there:
        return ""
    lines = [["model", *there]]
    for name, figures in records.models.items():
        lines.append([name, *(f"{figures[key]:.4f}" if key in figures else "" for key in there.values())])
    text = (
        f"### Agreement and calibration ({split})\n\n{as_markdown(lines)}\n\nAgreement: the share of examples that get "
        "the teacher's label. Calibration error: the expected one, over 15 bins (Guo et al. 2017)."
    )
    rows = records.rows.get(split)
    if rows is not None:
        confidence, share = float(rows.confidence.mean()), float(rows.is_right.mean())
        text += f" This model's mean confidence is {confidence:.4f}, its accuracy {share:.4f}."
    return text


def _paired(records: RunRecords) -> str:
    """This model beside the control and beside its teacher, on the same test examples."""
    rows, control = records.rows.get("test"), records.control_rows.get("test")
    if rows is None:
        return ""
    sentences = []
    if control is not None and sorted(control.ids) == sorted(rows.ids):
        place = {id: number for number, id in enumerate(control.ids)}
        of_control = control.is_right[np.array([place[id] for id in rows.ids], dtype=np.int64)]
        sentences.append(_comparison("the same student trained without a teacher", rows.is_right, of_control))
    if rows.teacher_is_right is not None:
        sentences.append(_comparison("its teacher", rows.is_right, rows.teacher_is_right))
    if not sentences:
        return ""
    head, listed = "### On the same test examples", "\n".join(sentences)
    foot = (
        "The p-values are McNemar's, exact and two-sided. They speak of these two models on such examples, not of what "
        "another seed would give."
    )
    return f"{head}\n\n{listed}\n\n{foot}"


def _comparison(other: str, is_right: Any, other_is_right: Any) -> str:
    only_this = int((is_right & ~other_is_right).sum())
    only_other = int((other_is_right & ~is_right).sum())
    p_value = mcnemar_p_value(only_other, only_this)
    points = 100 * (only_this - only_other) / len(is_right)
    verdict = "better" if only_this > only_other else "worse"
    if p_value > _LEVEL:
        verdict = "not told apart by this test set"
    return (
        f"- Beside {other}: {verdict}. This model alone is right on {only_this:,} of {len(is_right):,} examples, the "
        f"other alone on {only_other:,} ({points:+.2f} points of accuracy, p = {p_value:.2g})."
    )
