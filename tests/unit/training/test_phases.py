"""Each part of a training gets its own time, and no part that of another within it."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path

import pytest
import torch

from accel_kd.training.phases import OTHER, MeasuredPhases, Phases


def test_a_part_has_its_own_time_without_that_of_the_parts_within(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    phases = MeasuredPhases(tmp_path / "profile", torch.device("cpu"))

    def pass_time(seconds: float) -> None:
        nonlocal now
        now += seconds

    pass_time(1.0)
    with phases("evaluation"):
        pass_time(2.0)
        with phases("checkpoint"):
            pass_time(4.0)
        pass_time(8.0)
    with phases("data"):
        pass_time(16.0)
    with phases("data"):
        pass_time(32.0)
    phases.step_done()
    phases.finish()
    found = json.loads((tmp_path / "profile" / "shares.json").read_text())
    assert found["seconds"] == {"data": 48.0, "evaluation": 10.0, "checkpoint": 4.0, OTHER: 1.0}
    assert found["whole_seconds"] == 63.0 and found["steps"] == 1
    table = (tmp_path / "profile" / "shares.md").read_text()
    assert table.splitlines()[2] == "| data | 48.00 | 76.2% |" and "communication" not in table


def test_an_error_within_a_part_leaves_the_others_their_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    phases = MeasuredPhases(tmp_path, torch.device("cpu"))
    with contextlib.suppress(KeyError), phases("data"):
        now += 3.0
        raise KeyError
    now += 5.0
    phases.step_done()
    phases.finish()
    assert json.loads((tmp_path / "shares.json").read_text())["seconds"] == {"data": 3.0, OTHER: 5.0}


@pytest.mark.parametrize(("num_steps", "traced"), [(2, 0), (8, 5), (30, 10)])
def test_ten_steps_are_traced_or_as_many_as_there_are(tmp_path: Path, num_steps: int, traced: int) -> None:
    phases = MeasuredPhases(tmp_path, torch.device("cpu"))
    for _ in range(num_steps):
        with phases("optimizer"):
            torch.ones(4).sum()
        phases.step_done()
    phases.finish()
    events = []
    if traced:
        events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert sum(event.get("name") == "optimizer" and event.get("cat") == "user_annotation" for event in events) == traced
    assert (tmp_path / "trace.json").exists() == bool(traced)


def test_a_training_that_had_nothing_left_to_do_leaves_what_was_written_before(tmp_path: Path) -> None:
    (tmp_path / "shares.json").write_text("{}")
    phases = MeasuredPhases(tmp_path, torch.device("cpu"))
    with phases("evaluation"):
        pass
    phases.finish()
    assert [path.name for path in tmp_path.iterdir()] == ["shares.json"]
    assert (tmp_path / "shares.json").read_text() == "{}"


def test_without_a_profile_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    phases = Phases()
    with phases("data"):
        pass
    phases.step_done()
    phases.finish()
    assert not list(tmp_path.iterdir())
