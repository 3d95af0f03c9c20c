"""Which of the rows of `benchmark model` are set beside one another."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from accel_kd.comparison.compared import Comparison, Measured
from accel_kd.comparison.comparison import compare
from accel_kd.comparison.report.tables import settings_table
from accel_kd.comparison.run_directories import read_run_directory
from tests.support.compared_runs import read_run, write_measurements
from tests.support.made_up_comparison import made_up_measured

TORCH, INT8 = made_up_measured(0.8, "torch", 9.0), made_up_measured(0.8, "onnx-int8", 2.0)


def compared(*measured: tuple[Measured, ...]) -> Comparison:
    """Runs of which these rows were measured."""
    runs = [read_run(f"r{n}", config={"x": n}, measured=rows) for n, rows in enumerate(measured)]
    return compare(runs, split="test")


def latencies(*measured: tuple[Measured, ...]) -> list[float | None]:
    figures = [setting.figures.get("latency_p50") for setting in compared(*measured).settings]
    return [None if one is None else one.mean for one in figures]


def test_latencies_beside_one_another_are_of_one_form_in_one_place() -> None:
    assert latencies((INT8, TORCH), (replace(TORCH, latency_p50=7.0),), ()) == [9.0, 7.0, None]
    assert latencies((INT8, TORCH), (INT8,)) == [None, None]
    assert latencies((TORCH,), (replace(TORCH, threads=2),)) == [None, None]
    assert latencies((replace(TORCH, threads=2), TORCH), (TORCH,)) == [9.0, 9.0]


def test_the_table_says_of_which_form_and_place_they_are() -> None:
    table = settings_table(compared((TORCH, INT8), (TORCH,)))
    assert "torch: p50 (ms)" in [column.heading for column in table.columns]
    assert table.caption.endswith("; sizes and latencies of the form torch, on cpu, 1 thread")


def test_devices_of_several_makes_are_told_apart() -> None:
    here, there = replace(TORCH, hardware="Xeon"), replace(TORCH, hardware="EPYC")
    content = compared((here,), (there,), (replace(TORCH, hardware=None),))
    assert [setting.runs[0].measured[0].device for setting in content.settings] == ["cpu (Xeon)", "cpu (EPYC)", "cpu"]
    assert latencies((here,), (there,)) == [None, None] and latencies((here,), (here,)) == [9.0, 9.0]
    assert compared((here,), (here,)).settings[0].runs[0].measured[0].device == "cpu"


def test_rows_of_another_split_or_of_former_weights_are_not_of_the_comparison(tmp_path: Path) -> None:
    def read(split: str = "test", **row: Any) -> list[float]:
        write_measurements(tmp_path, **row)
        return [one.latency_p50 for one in read_run_directory(tmp_path, split).measured]

    (tmp_path / "summary.json").write_text(json.dumps({"weights_sha256": "now"}))
    assert read() == read("validation") == [1.5], "of before either was kept"
    assert read(split="test") == [1.5]
    write_measurements(tmp_path, split="validation")
    assert read_run_directory(tmp_path, "test").measured == ()
    assert read(weights_sha256="now") == [1.5] and read(weights_sha256="before") == []
