"""What a search takes beside streaming runs, measured on the real program."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from accel_kd.benchmark.search import main
from accel_kd.errors import EXIT_USER_ERROR
from tests.support.searches import command


def test_the_same_settings_are_run_both_ways_and_their_times_compared(
    tiny_data: Path, tiny_teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, name, *settings = command(tiny_data, tiny_teacher, tmp_path / "search")
    own = ("run.", "search.directory", "search.num", "search.final", "tracking.mode", "teacher.store.path")
    settings = [setting for setting in settings if not setting.startswith(own)]
    file = tmp_path / "rows.jsonl"
    assert main([name, *settings, "--trials", "1", "--output", str(file)]) == 0
    row = json.loads(file.read_text())
    [pair] = row["pairs"]
    assert set(pair["settings"]) == {"training.epochs", "objective.alpha"}
    assert row["ratio"] == row["search_seconds"] / pair["run_seconds"]
    assert row["search_seconds"] > pair["trial_seconds"] > pair["trial_training_seconds"] > 0
    # The stored logits are rounded: the two are the same up to that.
    assert abs(pair["trial_value"] - pair["run_value"]) < 0.1 and row["packages"]["torch"] and row["device"] == "cpu"
    assert f"{row['ratio']:.1%}" in capsys.readouterr().out
    assert main([name, *settings, "teacher.source=streaming"]) == EXIT_USER_ERROR
