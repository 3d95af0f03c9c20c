"""A comparison as text that reads in a terminal and is Markdown."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

from accel_kd.comparison.compared import ComparedSetting, Comparison, Measured, PairedDifference, Spread, Verdict
from accel_kd.comparison.measurements import place_in_words
from accel_kd.export.results_table import as_markdown
from accel_kd.metrics.intervals import wilson_interval

_NONE = "-"


def _share(value: float) -> str:
    return f"{value:.4f}"


def _three_digits(value: float) -> str:
    return f"{value:.3g}"


_QUALITY: dict[str, tuple[str, Callable[[float], str]]] = {
    "in_scope_accuracy": ("in scope", _share),
    "out_of_scope_recall": ("oos recall", _share),
    "macro_f1": ("macro F1", _share),
    "teacher_agreement": ("agreement", _share),
    "teacher_kl": ("teacher KL", _share),
    "calibration_error": ("ECE", _share),
}
_LEGEND = """accuracy by argmax, with Wilson's interval for a single run, else mean ± standard deviation over the runs;
in scope, without the out-of-scope examples; oos recall, the share of those that is found; agreement, the share of
examples that get the teacher's label; teacher KL, KL(teacher || model) in nats; ECE, expected calibration error;
won, lost: rows that the model alone, or the baseline alone, has right, over all pairs of runs; device-hours, wall
time of this model's own training, evaluation and test, by its ranks"""


def comparison_text(comparison: Comparison) -> str:
    """All tables and notes."""
    parts = [_headline(comparison), _quality(comparison), _differences(comparison), _costs(comparison)]
    parts += [_settings(comparison), _LEGEND, "\n".join(f"- {note}" for note in comparison.notes)]
    return "\n\n".join(part for part in parts if part)


def _headline(comparison: Comparison) -> str:
    counts = {len(run.predictions.ids) for setting in comparison.settings for run in setting.runs if run.predictions}
    rows = f" on the {max(counts):,} rows of" if counts else " on"
    runs = sum(len(setting.runs) for setting in comparison.settings)
    what = (
        f"{runs} models" if runs == len(comparison.settings) else f"{len(comparison.settings)} settings ({runs} runs)"
    )
    return f"{what}{rows} the {comparison.split} split; baseline: {comparison.baseline}"


def _quality(comparison: Comparison) -> str:
    level = comparison.differences[0].level if comparison.differences else 0.95
    several = any(len(setting.runs) > 1 for setting in comparison.settings)
    shown = [name for name in _QUALITY if any(name in setting.figures for setting in comparison.settings)]
    head = ["model", *(["runs"] if several else []), "accuracy", f"{100 * level:g} % interval"]
    lines = [[*head, *(_QUALITY[name][0] for name in shown)]]
    for setting in comparison.settings:
        cells = [setting.name, *([str(len(setting.runs))] if several else [])]
        cells += [
            _spread(setting.figures.get("accuracy"), _share),
            _interval_of_share(setting, comparison.split, level),
        ]
        lines.append([*cells, *(_spread(setting.figures.get(name), _QUALITY[name][1]) for name in shown)])
    return as_markdown(lines)


def _interval_of_share(setting: ComparedSetting, split: str, level: float) -> str:
    if len(setting.runs) > 1 or "accuracy" not in setting.figures:
        return _NONE
    [run] = setting.runs
    if run.predictions is not None:
        right, rows = int(run.predictions.is_right.sum()), len(run.predictions.ids)
    else:
        counts = run.summary.get("num_examples")
        rows = counts.get(split, 0) if isinstance(counts, Mapping) else 0
        right = round(setting.figures["accuracy"].mean * rows)
    if not rows:
        return _NONE
    low, high = wilson_interval(right, rows, level)
    return f"{low:.4f} to {high:.4f}"


def _differences(comparison: Comparison) -> str:
    if not comparison.differences:
        return ""
    level = comparison.differences[0].level
    lines = [
        ["against " + comparison.baseline, "scope", "rows", "difference", f"{100 * level:g} % interval",
         "won", "lost", "McNemar p", "verdict"]
    ]  # fmt: skip
    return as_markdown([*lines, *(_difference(one) for one in comparison.differences)])


def _difference(one: PairedDifference) -> list[str]:
    if one.verdict is Verdict.NO_COMMON_ROWS:
        return [one.other, one.scope, *[_NONE] * 6, one.verdict]
    interval = f"{_signed(one.low)} to {_signed(one.high)}"
    return [
        one.other, one.scope, f"{one.num_rows:,}", _signed(one.difference), interval, f"{one.only_other:,}",
        f"{one.only_baseline:,}", _NONE if one.p_value is None else _p_in_words(one.p_value), one.verdict,
    ]  # fmt: skip


def _p_in_words(p_value: float) -> str:
    return "< 0.0001" if p_value < 0.0001 else f"{p_value:.4f}"


def _signed(value: float) -> str:
    return _NONE if math.isnan(value) else f"{value:+.4f}"


def _costs(comparison: Comparison) -> str:
    """A line a setting, or one for each form in which its model was measured."""
    is_measured = any(run.measured for setting in comparison.settings for run in setting.runs)
    head = ["model", "parameters", "device-hours"]
    if is_measured:
        head += ["form", "device", "accuracy of form", "p50 ms", "p95 ms", "MB"]
    lines = [head]
    for setting in comparison.settings:
        cells = [setting.name, _spread(setting.figures.get("num_parameters"), lambda value: f"{value:,.0f}")]
        cells.append(_spread(setting.figures.get("device_hours"), _three_digits))
        forms = next((run.measured for run in setting.runs if run.measured), ())
        if not is_measured:
            lines.append(cells)
        for place, form in enumerate(forms or [None] * is_measured):
            lines.append([*(cells if place == 0 else [setting.name, _NONE, _NONE]), *_form(form)])
    return as_markdown(lines)


def _form(form: Measured | None) -> list[str]:
    if form is None:
        return [_NONE] * 6
    accuracy = _NONE if form.accuracy is None else _share(form.accuracy)
    latencies = [f"{form.latency_p50:.3g}", f"{form.latency_p95:.3g}"]
    return [form.form, place_in_words(form.device, form.threads), accuracy, *latencies, f"{form.megabytes:.3g}"]


def _settings(comparison: Comparison) -> str:
    """What the settings differ in; which model of its run it is stands in the name."""
    names = dict.fromkeys(name for setting in comparison.settings for name in setting.differs if name != "part")
    if not names:
        return ""
    lines = [["setting", *(setting.name for setting in comparison.settings)]]
    lines += [[name, *(_value(setting.differs, name) for setting in comparison.settings)] for name in names]
    if len(comparison.settings) > 6:  # as many columns would not read: a line a model then
        lines = [["model", *names]]
        lines += [[s.name, *(_value(s.differs, name) for name in names)] for s in comparison.settings]
    return as_markdown(lines)


def _value(differs: Any, name: str) -> str:
    if name not in differs:
        return _NONE
    value = differs[name]
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _spread(spread: Spread | None, show: Callable[[float], str]) -> str:
    if spread is None:
        return _NONE
    return show(spread.mean) + (f" ± {show(spread.deviation)}" if spread.deviation else "")
