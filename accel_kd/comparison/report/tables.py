"""The tables of a page: cells that are read by people, each with the value by which its column is sorted."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from accel_kd.comparison.compared import ComparedRun, ComparedSetting, Comparison, PairedDifference, Spread
from accel_kd.comparison.figures.measured_rows import place_of
from accel_kd.comparison.measurements import COMMON_FORM, common_place, place_in_words
from accel_kd.comparison.report.words import NONE, points
from accel_kd.metrics.intervals import wilson_interval


@dataclass(frozen=True)
class Column:
    """`heading`; `title` says more of it; numbers stand to the right."""

    heading: str
    title: str = ""
    is_number: bool = False


@dataclass(frozen=True)
class Cell:
    """What is shown, what it is sorted by (None: always last), and a word for its looks."""

    text: str
    key: str | float | None
    look: str = ""


@dataclass(frozen=True)
class Table:
    """Rows `[r]` of cells `[c]` under columns `[c]`; the first of each row names it."""

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True)
class _Kind:
    """How a figure of a setting is shown: its heading, what it is, and by what it is multiplied."""

    heading: str
    title: str
    factor: float = 1.0
    format: str = ".3f"


_KINDS = {
    "accuracy": _Kind("accuracy (%)", "accuracy by argmax", 100, ".2f"),
    "in_scope_accuracy": _Kind("in scope (%)", "accuracy without the out-of-scope examples", 100, ".2f"),
    "out_of_scope_recall": _Kind("oos recall (%)", "the share of the out-of-scope examples that is found", 100, ".2f"),
    "macro_f1": _Kind("macro F1 (%)", "mean of the labels' F1", 100, ".2f"),
    "teacher_agreement": _Kind("agreement (%)", "the share of examples that get the teacher's label", 100, ".2f"),
    "teacher_kl": _Kind("KL (nats)", "KL(teacher || student), mean over the examples"),
    "calibration_error": _Kind("ECE", "expected calibration error"),
    "loss": _Kind("loss (nats)", "cross-entropy"),
    "num_parameters": _Kind("parameters", "of the model", 1, ",.0f"),
    "megabytes": _Kind(f"{COMMON_FORM}: size (MB)", "on disk, 10**6 bytes", 1, ",.1f"),
    "latency_p50": _Kind(f"{COMMON_FORM}: p50 (ms)", "latency of a single query", 1, ".2f"),
    "latency_p95": _Kind(f"{COMMON_FORM}: p95 (ms)", "latency of a single query", 1, ".2f"),
    "device_hours": _Kind("device-hours", "wall time of the training by its ranks", 1, ".3g"),
}
_OTHER_FORMAT = ".4g"


def settings_table(comparison: Comparison) -> Table:
    """A row a setting: its figures, mean and standard deviation over its runs."""
    prefix = f"{comparison.split}/"
    present = dict.fromkeys(key for setting in comparison.settings for key in setting.figures)
    order = list(_KINDS)
    keys = sorted(present, key=lambda key: _rank(key.removeprefix(prefix), order))
    kinds = {key: _KINDS.get(key.removeprefix(prefix), _Kind(key, "", 1, _OTHER_FORMAT)) for key in keys}
    rows = tuple(
        (
            _named(setting.name, comparison.baseline),
            _number(len(setting.runs), "d"),
            *(_spread(setting.figures.get(key), kind) for key, kind in kinds.items()),
        )
        for setting in comparison.settings
    )
    columns = [Column(kind.heading, kind.title, is_number=True) for kind in kinds.values()]
    caption = f"On the {comparison.split} split; over several runs: mean ± standard deviation of a run"
    place = common_place(run for setting in comparison.settings for run in setting.runs)
    if place is not None:
        caption += f"; sizes and latencies of the form {COMMON_FORM}, on {place_in_words(*place)}"
    return Table(caption, (Column("setting"), Column("runs", is_number=True), *columns), rows)


def _rank(key: str, order: Sequence[str]) -> int:
    return order.index(key) if key in order else len(order)


def _spread(spread: Spread | None, kind: _Kind) -> Cell:
    if spread is None:
        return Cell(NONE, None)
    mean = kind.factor * spread.mean
    text = format(mean, kind.format)
    if spread.deviation:
        text += f" ± {format(kind.factor * spread.deviation, kind.format)}"
    return Cell(text, mean)


def differences_table(comparison: Comparison) -> Table:
    """A row a paired difference, with its interval and verdict."""
    columns = (
        Column("setting"), Column("scope"), Column("verdict"), Column("difference (interval)", is_number=True),
        Column("rows", "that both have predictions of", is_number=True),
        Column("it alone", "rows that the setting alone has right, summed over the pairs of runs", is_number=True),
        Column("baseline alone", "rows that the baseline alone has right, summed likewise", is_number=True),
        Column("p", "McNemar's exact test, where a single run stands on each side", is_number=True),
    )  # fmt: skip
    rows = tuple(_difference_row(one) for one in comparison.differences)
    level = {f"{100 * one.level:g} %" for one in comparison.differences}
    return Table(
        f"Accuracy less that of {comparison.baseline}, on the very same rows; {' and '.join(sorted(level))} intervals",
        columns, rows,
    )  # fmt: skip


def _difference_row(one: PairedDifference) -> tuple[Cell, ...]:
    p_value = Cell(NONE, None) if one.p_value is None else Cell(_p_in_words(one.p_value), one.p_value)
    return (
        Cell(one.other, one.other), Cell(one.scope, one.scope, "whole"), Cell(one.verdict, one.verdict, _look(one)),
        Cell(points(one), one.difference if math.isfinite(one.difference) else None), _number(one.num_rows),
        _number(one.only_other), _number(one.only_baseline), p_value,
    )  # fmt: skip


def _look(one: PairedDifference) -> str:
    return str(one.verdict).replace(" ", "-")


def _p_in_words(p_value: float) -> str:
    return "< 0.0001" if p_value < 0.0001 else f"{p_value:.4f}"


def differing_settings_table(comparison: Comparison) -> Table:
    """A row a setting, a column each dotted name in which they are not all alike."""
    # Which model of its run a setting is stands in its name.
    names = list(dict.fromkeys(name for one in comparison.settings for name in one.differs if name != "part"))
    rows = tuple(
        (_named(setting.name, comparison.baseline), *(_value(setting.differs, name) for name in names))
        for setting in comparison.settings
    )
    cells = [[row[place] for row in rows] for place in range(1, len(names) + 1)]
    columns = [
        Column(name, is_number=all(isinstance(cell.key, int | float) for cell in of if cell.key is not None))
        for name, of in zip(names, cells, strict=True)
    ]
    return Table("All other settings are alike", (Column("setting"), *columns), rows)


def _value(values: Mapping[str, Any], name: str) -> Cell:
    if name not in values:
        return Cell(NONE, None)
    value = values[name]
    if isinstance(value, int | float) and not isinstance(value, bool):
        return Cell(f"{value:g}" if isinstance(value, float) else str(value), value)
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return Cell(text, text)


def runs_table(comparison: Comparison) -> Table:
    """A row a run: its accuracy with the interval of its rows, and where it was read."""
    columns = (
        Column("run"), Column("setting"), Column("seed", is_number=True),
        Column("accuracy (%)", "and how far it may lie on other rows", is_number=True),
        Column("rows", is_number=True), Column("read from"),
    )  # fmt: skip
    level = comparison.differences[0].level if comparison.differences else 0.95
    rows = tuple(_run_row(run, setting, level) for setting in comparison.settings for run in setting.runs)
    caption = f"Accuracy on the {comparison.split} split with Wilson's {100 * level:g} % interval"
    return Table(caption, columns, rows)


def _run_row(run: ComparedRun, setting: ComparedSetting, level: float) -> tuple[Cell, ...]:
    accuracy, num_rows = Cell(NONE, None), Cell(NONE, None)
    if run.predictions is not None and run.predictions.ids:
        right, total = int(run.predictions.is_right.sum()), len(run.predictions.ids)
        low, high = wilson_interval(right, total, level)
        accuracy = Cell(f"{100 * right / total:.2f} ({100 * low:.1f} to {100 * high:.1f})", right / total)
        num_rows = _number(total)
    seed = Cell(NONE, None) if run.seed is None else _number(run.seed, "d")
    return (
        Cell(run.name, run.name), Cell(setting.name, setting.name), seed, accuracy, num_rows,
        Cell(run.origin, run.origin, "path"),
    )  # fmt: skip


def measured_table(comparison: Comparison) -> Table:
    """A row each form of a run's model on a device."""
    columns = (
        Column("run"), Column("form"), Column("device"),
        *(
            Column(heading, title, is_number=True)
            for heading, title in (
                ("accuracy (%)", ""), ("mean (ms)", "latency of a single query"), ("p50 (ms)", ""), ("p95 (ms)", ""),
                ("p99 (ms)", ""), ("examples/s", "throughput at the batch size"), ("batch", ""),
                ("size (MB)", "on disk, 10**6 bytes"), ("parameters", ""),
            )
        ),
    )  # fmt: skip
    rows = tuple(
        (
            Cell(run.name, run.name), Cell(one.form, one.form, "whole"),
            Cell(place_of(one), place_of(one), "whole"),
            Cell(NONE, None) if one.accuracy is None else _number(100 * one.accuracy, ".2f"),
            *(_number(value, ".2f") for value in (one.latency_mean, one.latency_p50, one.latency_p95, one.latency_p99)),
            _number(one.examples_per_second, ",.1f"), _number(one.batch_size), _number(one.megabytes, ",.1f"),
            _number(one.num_parameters),
        )
        for setting in comparison.settings
        for run in setting.runs
        for one in run.measured
    )  # fmt: skip
    return Table("Latency of single queries, as accel-kd benchmark model measured it", columns, rows)


def _named(name: str, baseline: str) -> Cell:
    return Cell(name, name, "baseline" if name == baseline else "")


def _number(value: float, form: str = ",d") -> Cell:
    return Cell(format(value, form), value)
