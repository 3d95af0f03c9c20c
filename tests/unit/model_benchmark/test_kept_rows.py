"""What a run's directory keeps of what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from accel_kd.model_benchmark.candidates import Candidate
from accel_kd.model_benchmark.kept_rows import keep_rows, keep_rows_of_runs
from accel_kd.models.loading import Checkpoint
from accel_kd.run_directory import RunDirectory

OTHERS = {"split": "validation", "hardware": "another CPU", "threads": 2, "batch_size": 8, "device": "cuda"}


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    directory = RunDirectory(tmp_path)
    directory.write_summary({"weights_sha256": "new"})
    return directory


def row(form: str, latency: float, **changes: object) -> dict[str, object]:
    return {
        "form": form, "device": "cpu", "threads": 1, "batch_size": 32, "split": "test", "hardware": "a CPU",
        "weights_sha256": "new", "latency_mean": latency,
    } | changes  # fmt: skip


def kept(directory: RunDirectory) -> list[tuple[object, object]]:
    rows = json.loads(directory.measurements.read_text())["rows"]
    return [(entry["form"], entry["latency_mean"]) for entry in rows]


def test_a_new_measurement_takes_the_place_of_its_like_and_of_no_other(run: RunDirectory) -> None:
    others = [row("torch", 6.0 + number, **{name: value}) for number, (name, value) in enumerate(OTHERS.items())]
    keep_rows(run, [row("onnx", 5.0), row("torch", 9.0), *others])
    keep_rows(run, [row("onnx-int8", 2.0), row("torch", 8.0)])
    torch = [("torch", 6.0 + number) for number in range(len(others))]
    assert kept(run) == [*torch, ("torch", 8.0), ("onnx", 5.0), ("onnx-int8", 2.0)], "in the order of the forms"


def test_a_form_that_is_refused_now_is_kept_no_longer(run: RunDirectory) -> None:
    keep_rows(run, [row("torch", 9.0), row("onnx", 5.0)])
    keep_rows(run, [row("onnx", 0.0, refused="no exporter")])
    assert kept(run) == [("torch", 9.0)]


def test_rows_of_weights_that_are_no_longer_there_go_and_older_ones_without_a_digest_stay(run: RunDirectory) -> None:
    older = {name: value for name, value in row("onnx", 5.0).items() if name not in ("weights_sha256", "split")}
    keep_rows(run, [row("torch", 9.0, weights_sha256="old"), older])
    assert [entry["form"] for entry in run.read_measurements()] == ["onnx"]
    keep_rows(run, [row("compiled", 3.0)])
    assert kept(run) == [("compiled", 3.0), ("onnx", 5.0)]
    keep_rows(run, [row("onnx", 4.0)])
    assert kept(run) == [("compiled", 3.0), ("onnx", 4.0)]
    run.write_summary({})
    assert len(run.read_measurements()) == 2
    run.summary.unlink()
    assert run.read_measurements() == [], "a run that goes on will have another student"


def test_what_was_measured_on_the_data_of_another_run_is_not_kept(tmp_path: Path) -> None:
    runs = {name: RunDirectory(tmp_path / name) for name in ("a", "b")}
    data = {"a": {"path": "one", "max_length": 48}, "b": {"path": "one", "max_length": 8}}
    rows = []
    for name, directory in runs.items():
        directory.path.mkdir()
        directory.write_summary({})
        candidate = Candidate(name, Checkpoint(name, "model"), directory, None, data[name])
        rows.append((candidate, row("torch", 9.0)))
    [note] = keep_rows_of_runs(rows, data["a"])
    assert note.startswith(f"b: nothing is kept in {tmp_path / 'b'}, whose own data are others (data.max_length)")
    assert kept(runs["a"]) == [("torch", 9.0)] and not runs["b"].measurements.exists()


def test_a_run_that_cannot_be_written_or_whose_file_is_torn_costs_no_figure(tmp_path: Path) -> None:
    rows = []
    for name in ("torn", "another", "mine"):
        directory = RunDirectory(tmp_path / name)
        directory.path.mkdir()
        directory.write_summary({})
        rows.append((Candidate(name, Checkpoint(name, "model"), directory, None, {}), row("torch", 9.0)))
    (tmp_path / "torn" / "model_benchmark.json").write_text("{")
    (tmp_path / "another" / "model_benchmark.json").mkdir()
    (tmp_path / "another" / "model_benchmark.json" / "x").touch()
    notes = keep_rows_of_runs(rows, {})
    assert [note.partition(":")[0] for note in notes] == [
        f"nothing is kept in {tmp_path / name}, whose measurements cannot be read or written"
        for name in ("torn", "another")
    ]
    assert kept(RunDirectory(tmp_path / "mine")) == [("torch", 9.0)]
