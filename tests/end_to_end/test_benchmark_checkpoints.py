"""What checkpoints cost, measured on the real program; and that it counts what training waits for."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from accel_kd.benchmark.checkpoints import main
from tests.support.exactness import recipe
from tests.support.processes import run, succeeded, summary

_FAKE_CLOCK = """
import sys
from types import SimpleNamespace
from accel_kd.tracking.jsonl_tracker import JsonlTracker
from accel_kd.training import checkpointing

now = [0.0]
checkpointing.time = SimpleNamespace(perf_counter=lambda: now[0])

def takes(owner, name, seconds):
    original = getattr(owner, name)
    def slow(*arguments):
        now[0] += seconds
        return original(*arguments)
    setattr(owner, name, slow)

takes(JsonlTracker, "log", 1_000_000.0)
takes(JsonlTracker, "flush", 1.0)
takes(checkpointing.TrainingCheckpoints, "save", 10.0)
takes(checkpointing.TrainingCheckpoints, "keep_best", 100.0)
takes(checkpointing.TrainingCheckpoints, "wait", 1000.0)

from accel_kd.cli import main
sys.exit(main(sys.argv[1:]))
"""
_SAVE, _BEST, _END = 1011.0, 1100.0, 1000.0
"""What each takes: it waits for the one before."""


def test_the_benchmark_runs_on_the_real_program(
    tiny_data: Path, tiny_teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, name, *settings = recipe(tiny_data, tiny_teacher, tmp_path)
    own = ("run.directory", "training.epochs", "checkpoint.every_steps", "tracking.mode")
    settings = [setting for setting in settings if not setting.startswith(own)]
    rows_file = tmp_path / "rows.jsonl"
    sizes = ["--steps", "8", "--every", "3", "--repeats", "1", "--stops", "2"]
    assert main([name, *settings, *sizes, "--output", str(rows_file)]) == 0
    output = capsys.readouterr().out
    assert "Final weights: equal byte for byte in all 3 runs." in output
    *prices, stop = [json.loads(line) for line in rows_file.read_text().splitlines()]
    assert [row["checkpoints"] for row in prices] == [1, 3, 3]
    for row in prices:
        assert row["training_seconds"][0] > 0 and row["checkpoint_seconds"][0] > 0
        assert row["checkpoint_bytes"] > 100_000 and row["device"] == "cpu"
    assert prices[0]["ratio"] == [1.0]
    first, second = stop["steps"]
    assert 0 < first < second
    assert stop["orphans"] == 0
    assert all(
        0 < published <= exited for published, exited in zip(stop["published_ms"], stop["exited_ms"], strict=True)
    )


def test_what_training_waits_for_is_counted_and_goes_on_with_the_run(
    tiny_data: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    def seconds(max_steps: int) -> float:
        settings = [f"training.max_steps={max_steps}", "evaluation.every_steps=4", "checkpoint.every_steps=2"]
        command = recipe(tiny_data, tiny_teacher, tmp_path / "run", *settings)
        succeeded(run([sys.executable, "-c", _FAKE_CLOCK, *command]))
        return float(summary(tmp_path / "run")["perf/checkpoint_seconds"])

    assert seconds(4) == _SAVE + _BEST + _SAVE + _END
    # The checkpoint cannot know what it takes itself, nor what comes after it.
    assert seconds(8) - (_SAVE + _BEST) - (2 * _SAVE + _END) in (0.0, _BEST)
