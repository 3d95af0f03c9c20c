"""What stands in the cells, and what their columns are sorted by."""

from __future__ import annotations

from dataclasses import replace
from math import nan

from accel_kd.comparison.compared import Comparison, Spread, Verdict
from accel_kd.comparison.report.tables import (
    Table,
    differences_table,
    differing_settings_table,
    measured_table,
    runs_table,
    settings_table,
)
from accel_kd.comparison.report.words import NONE
from accel_kd.metrics.intervals import wilson_interval
from tests.support.made_up_comparison import NUM_ROWS, made_up_comparison


def column(table: Table, heading: str) -> list[tuple[str, object]]:
    place = [one.heading for one in table.columns].index(heading)
    return [(row[place].text, row[place].key) for row in table.rows]


def with_figures(comparison: Comparison, *figures: dict[str, Spread]) -> Comparison:
    settings = zip(comparison.settings, figures, strict=True)
    return replace(comparison, settings=tuple(replace(setting, figures=one) for setting, one in settings))


def test_settings_have_mean_and_deviation_in_the_order_in_which_figures_are_read() -> None:
    one = {"odd/figure": Spread(0.5, None, 3), "test/accuracy": Spread(0.84834, 0.0031, 3)}
    comparison = with_figures(made_up_comparison(), one, {"test/accuracy": Spread(0.85, None, 1)}, {})
    table = settings_table(comparison)
    assert [one.heading for one in table.columns] == ["setting", "runs", "accuracy (%)", "odd/figure"]
    assert column(table, "accuracy (%)") == [("84.83 ± 0.31", 84.834), ("85.00", 85.0), (NONE, None)]
    assert column(table, "odd/figure") == [("0.5", 0.5), (NONE, None), (NONE, None)]
    assert [row[0].look for row in table.rows] == ["baseline", "", ""]


def test_differences_have_interval_rows_and_p() -> None:
    comparison = made_up_comparison()
    first, second, *_ = comparison.differences
    first = replace(first, p_value=0.00001, difference=0.02, low=0.01, high=0.03)
    none = replace(second, difference=nan, low=nan, high=nan, verdict=Verdict.NO_COMMON_ROWS, p_value=None)
    table = differences_table(replace(comparison, differences=(first, none)))
    assert column(table, "difference (interval)") == [("+2.0 points (1.0 to 3.0)", 0.02), (NONE, None)]
    assert column(table, "p") == [("< 0.0001", 0.00001), (NONE, None)]
    assert column(table, "verdict")[1] == ("no common rows", "no common rows")
    assert column(table, "it alone")[0][1] == first.only_other
    assert column(table, "baseline alone")[0][1] == first.only_baseline
    assert "95 % intervals" in table.caption


def test_settings_that_differ_are_columns_and_numbers_are_sorted_as_numbers() -> None:
    comparison = made_up_comparison()
    differs = (
        {"part": "control", "objective.alpha": 0.5, "student.layers": [0, 2], "run.control": True},
        {"objective.alpha": 10, "student.layers": None, "run.control": False},
        {"objective.alpha": 2, "student.init": "random"},
    )
    settings = tuple(replace(one, differs=each) for one, each in zip(comparison.settings, differs, strict=True))
    table = differing_settings_table(replace(comparison, settings=settings))
    assert column(table, "objective.alpha") == [("0.5", 0.5), ("10", 10), ("2", 2)]
    assert column(table, "student.layers") == [("[0, 2]", "[0, 2]"), ("null", "null"), (NONE, None)]
    assert column(table, "student.init") == [(NONE, None), (NONE, None), ("random", "random")]
    assert column(table, "run.control")[0] == ("true", "true")
    assert "part" not in [one.heading for one in table.columns]
    numeric = {one.heading for one in table.columns if one.is_number}
    assert numeric == {"objective.alpha"}


def test_runs_have_the_interval_of_their_rows_and_their_origin() -> None:
    comparison = made_up_comparison()
    first, *others = comparison.settings
    bare = replace(first, runs=(replace(first.runs[0], predictions=None, seed=None),))
    differences = tuple(replace(one, level=0.9) for one in comparison.differences)
    table = runs_table(replace(comparison, settings=(bare, *others), differences=differences))
    assert column(table, "accuracy (%)")[0] == (NONE, None) and column(table, "seed")[0] == (NONE, None)
    rows = others[0].runs[0].predictions
    assert rows is not None
    right = int(rows.is_right.sum())
    low, high = wilson_interval(right, NUM_ROWS, 0.9)
    text = f"{100 * right / NUM_ROWS:.2f} ({100 * low:.1f} to {100 * high:.1f})"
    assert column(table, "accuracy (%)")[1] == (text, right / NUM_ROWS)
    assert column(table, "read from")[1] == ("/runs/distilled-0", "/runs/distilled-0")


def test_each_form_that_was_measured_is_a_row() -> None:
    table = measured_table(made_up_comparison())
    assert [text for text, _ in column(table, "form")] == ["torch", "onnx-int8"] * 3
    assert column(table, "p50 (ms)")[0] == ("14.00", 14.0) and column(table, "size (MB)")[1] == ("18.0", 18.0)
