"""The table: a line a model, only figures that some model has, and columns that line up."""

from __future__ import annotations

from typing import Any

from accel_kd.export.results_table import COLUMNS, results_table

TEACHER: dict[str, Any] = {"num_parameters": 22_714_775, "eval/accuracy": 0.95, "test/accuracy": 0.94126}
STUDENT: dict[str, Any] = {
    "num_parameters": 8_000_000,
    "eval/accuracy": 0.9,
    "test/accuracy": 1.0,
    "test/teacher_agreement": 0.97654,
    "train/steps": 7,
}


def cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def test_each_model_is_a_line_with_its_figures_and_a_dash_where_it_has_none() -> None:
    head, _, *body = cells(results_table({"teacher": TEACHER, "student": STUDENT}))
    keys = ["num_parameters", "eval/accuracy", "test/accuracy", "test/teacher_agreement"]
    assert head == ["model", *(COLUMNS[key] for key in keys)]
    assert body == [
        ["teacher", "22,714,775", "0.9500", "0.9413", "-"],
        ["student", "8,000,000", "0.9000", "1.0000", "0.9765"],
    ]


def test_a_figure_that_is_null_or_absent_everywhere_has_no_column() -> None:
    head, *_ = cells(results_table({"student": {"eval/accuracy": 0.5, "test/accuracy": None}}))
    assert head == ["model", COLUMNS["eval/accuracy"]]


def test_a_score_of_zero_is_a_figure() -> None:
    *_, line = cells(results_table({"student": {"eval/accuracy": 0.0}}))
    assert line == ["student", "0.0000"]


def test_the_columns_line_up_and_the_second_line_is_markdowns_rule() -> None:
    lines = results_table({"a": STUDENT, "a much longer name": TEACHER}).splitlines()
    assert len({len(line) for line in lines}) == 1
    bars = [[place for place, letter in enumerate(line) if letter == "|"] for line in lines]
    assert all(places == bars[0] for places in bars)
    rule = [cell.strip() for cell in lines[1].strip("|").split("|")]
    assert set(rule[0]) == {"-"} and all(cell.endswith(":") and set(cell[:-1]) == {"-"} for cell in rule[1:])
