"""`status.json` says how far a run is and how it ended, whoever reads it, and counts attempts that led nowhere."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from accel_kd.run_status import StatusWriter, read_status, status_file


def test_a_run_without_a_readable_status_has_none(tmp_path: Path) -> None:
    assert read_status(tmp_path) is None
    for text in ("", "[]", "{", '{"state": "stopped"}', "3"):
        status_file(tmp_path).write_text(text)
        assert read_status(tmp_path) is None


def test_what_is_safe_is_told_and_kept_over_attempts(tmp_path: Path) -> None:
    first = StatusWriter(tmp_path, "distill")
    first.begun()
    assert (found := read_status(tmp_path)) is not None and (found.state, found.attempt) == ("running", 1)
    first.reached("student", 8, 39)
    first.ended("stopped", "SIGTERM")
    second = StatusWriter(tmp_path, "distill")
    second.begun()
    found = read_status(tmp_path)
    assert found is not None and (found.state, found.attempt, found.part, found.step) == ("running", 2, "student", 8)
    second.reached("student", 39, 39)
    second.ended("finished")
    content = json.loads(status_file(tmp_path).read_text())
    assert (content["state"], content["reason"], content["total_steps"]) == ("finished", None, 39)
    assert content["time"].endswith("+00:00")


def test_a_trial_that_was_pruned_is_over_and_says_why(tmp_path: Path) -> None:
    trial = StatusWriter(tmp_path, "distill")
    trial.begun()
    trial.ended("pruned", "accuracy 0.5 at evaluation 1")
    found = read_status(tmp_path)
    assert found is not None and (found.state, found.reason) == ("pruned", "accuracy 0.5 at evaluation 1")
    assert found.attempts_without_progress == 0


def test_attempts_that_end_no_further_than_they_began_are_counted_in_a_row(tmp_path: Path) -> None:
    counts = []
    for step in (8, 8, 8, 9, 9):
        attempt = StatusWriter(tmp_path, "distill")
        attempt.begun()
        attempt.reached("student", step, 39)
        attempt.ended("stopped")
        found = read_status(tmp_path)
        assert found is not None
        counts.append(found.attempts_without_progress)
    assert counts == [0, 1, 2, 0, 1]


def test_an_attempt_that_is_killed_does_not_lose_the_count_of_those_before(tmp_path: Path) -> None:
    counts = []
    for is_killed in (False, False, True, False):
        attempt = StatusWriter(tmp_path, "distill")
        attempt.begun()
        if not is_killed:
            attempt.ended("failed")
        found = read_status(tmp_path)
        assert found is not None
        counts.append(found.attempts_without_progress)
    assert counts == [1, 2, 2, 3]
    further = StatusWriter(tmp_path, "distill")
    further.begun()
    further.reached("student", 8, 39)
    found = read_status(tmp_path)
    assert found is not None and found.attempts_without_progress == 0


def test_another_command_in_the_directory_counts_for_itself(tmp_path: Path) -> None:
    cache = StatusWriter(tmp_path, "cache-teacher")
    cache.reached("cache", 50, 50)
    cache.ended("finished")
    distill = StatusWriter(tmp_path, "distill")
    distill.begun()
    found = read_status(tmp_path)
    assert found is not None and (found.command, found.attempt, found.part, found.step) == ("distill", 1, "", 0)


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    StatusWriter(None, "distill").ended("failed", "here")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_takes_no_status_does_not_hide_what_the_run_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = StatusWriter(tmp_path / "gone", "distill")
    attempt.ended("failed", "no space")


def test_what_a_background_thread_reports_does_not_undo_how_the_run_ended(tmp_path: Path) -> None:
    for number in range(60):
        directory = tmp_path / str(number)
        directory.mkdir()
        attempt = StatusWriter(directory, "distill")
        reporting = threading.Thread(target=attempt.reached, args=("student", 8, 39))
        reporting.start()
        attempt.ended("failed", "planted")
        reporting.join()
        found = read_status(directory)
        assert found is not None and (found.state, found.step) == ("failed", 8)
