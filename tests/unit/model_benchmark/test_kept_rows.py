"""What a run's directory keeps of what was measured."""

from __future__ import annotations

import json
from pathlib import Path

from accel_kd.model_benchmark.benchmark import keep_rows
from accel_kd.run_directory import RunDirectory


def row(form: str, threads: int, latency: float) -> dict[str, object]:
    return {"form": form, "device": "cpu", "threads": threads, "batch_size": 32, "latency_mean": latency}


def test_a_new_measurement_takes_the_place_of_its_like_and_of_no_other(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    keep_rows(directory, [row("torch", 1, 9.0), row("onnx", 1, 5.0), row("torch", 2, 6.0)])
    keep_rows(directory, [row("torch", 1, 8.0), row("onnx-int8", 1, 2.0)])
    kept = json.loads((tmp_path / "model_benchmark.json").read_text())["rows"]
    assert [(entry["form"], entry["threads"], entry["latency_mean"]) for entry in kept] == [
        ("onnx", 1, 5.0), ("torch", 2, 6.0), ("torch", 1, 8.0), ("onnx-int8", 1, 2.0),
    ]  # fmt: skip
