"""The JSON lines, which comparisons trust, and the trackers that only pass calls on or drop them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from accel_kd.errors import RunFailure, UserError
from accel_kd.tracking import (
    CompositeTracker,
    JsonlTracker,
    NullTracker,
    RunRecord,
    RunStatus,
    read_record,
    read_rows,
)

RUN = RunRecord(
    name="student",
    job_type="distill",
    group="clinc",
    tags=("kl", "small"),
    notes=None,
    config={"objective": {"temperature": 2.0}},
    environment={"python": "3.11"},
)


def started(path: Path) -> JsonlTracker:
    tracker = JsonlTracker(path)
    tracker.start(RUN)
    return tracker


def test_a_finished_run_reads_back_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "new" / "metrics.jsonl"
    tracker = started(path)
    tracker.log({"train/loss": 0.5, "train/num_tokens": 12}, step=10)
    tracker.log({"train/loss": 0.25}, step=20)
    tracker.summarise({"best/accuracy": 0.9})
    tracker.summarise({"best/accuracy": 0.95, "final/accuracy": 0.94})
    tracker.finish(RunStatus.FINISHED)

    record = read_record(path)
    assert record.rows == [
        {"step": 10, "train/loss": 0.5, "train/num_tokens": 12},
        {"step": 20, "train/loss": 0.25},
    ]
    assert record.run is not None
    assert record.run["config"] == RUN.config
    assert record.run["tags"] == ["kl", "small"]
    assert record.summary == {"best/accuracy": 0.95, "final/accuracy": 0.94}
    assert record.status is RunStatus.FINISHED


def test_a_row_is_on_disk_as_soon_as_it_is_logged(tmp_path: Path) -> None:
    tracker = started(tmp_path / "metrics.jsonl")
    tracker.log({"train/loss": 0.5}, step=1)
    assert read_rows(tmp_path / "metrics.jsonl") == [{"step": 1, "train/loss": 0.5}]
    assert read_record(tmp_path / "metrics.jsonl").status is None
    tracker.finish(RunStatus.FAILED)
    assert read_record(tmp_path / "metrics.jsonl").status is RunStatus.FAILED


def test_numbers_that_are_not_finite_become_null(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    tracker = started(path)
    tracker.log({"nan": float("nan"), "inf": float("inf"), "minus": -float("inf"), "fine": 1.0}, step=1)
    tracker.summarise({"classes": [0.5, float("nan")], "nested": {"worst": float("inf")}})

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    for line in path.read_text().splitlines():
        json.loads(line, parse_constant=refuse)
    assert read_rows(path) == [{"step": 1, "nan": None, "inf": None, "minus": None, "fine": 1.0}]
    assert read_record(path).summary == {"classes": [0.5, None], "nested": {"worst": None}}


def test_a_value_that_is_no_number_is_refused_and_leaves_no_trace(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    tracker = started(path)
    before = path.read_bytes()
    with pytest.raises(TypeError):
        tracker.log({"train/loss": object()}, step=1)  # type: ignore[dict-item]
    with pytest.raises(AssertionError):
        tracker.log({"step": 3}, step=1)
    assert path.read_bytes() == before


@pytest.mark.parametrize("num_lost_bytes", range(1, 32))
def test_a_run_torn_anywhere_in_its_last_line_reads_and_resumes(tmp_path: Path, num_lost_bytes: int) -> None:
    path = tmp_path / "metrics.jsonl"
    tracker = started(path)
    tracker.log({"train/loss": 0.5}, step=1)
    tracker.log({"train/loss": 0.25}, step=2)
    last_line = b'{"step": 2, "train/loss": 0.25}\n'
    content = path.read_bytes()
    assert content.endswith(last_line) and len(last_line) == 32
    path.write_bytes(content[:-num_lost_bytes])

    # Without its newline alone, the line is still whole.
    kept = [{"step": 2, "train/loss": 0.25}] if num_lost_bytes == 1 else []
    assert read_rows(path) == [{"step": 1, "train/loss": 0.5}, *kept]

    started(path).log({"train/loss": 0.125}, step=3)
    assert read_rows(path) == [{"step": 1, "train/loss": 0.5}, *kept, {"step": 3, "train/loss": 0.125}]


def test_of_a_step_logged_again_after_a_resume_the_last_values_count(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    first = started(path)
    for step in (1, 2, 3):
        first.log({"train/loss": float(step)}, step=step)
    first.finish(RunStatus.FAILED)
    resumed = started(path)
    for step in (2, 3, 4):
        resumed.log({"train/loss": -float(step)}, step=step)

    assert [row["train/loss"] for row in read_rows(path)] == [1.0, -2.0, -3.0, -4.0]
    assert read_record(path).status is None, "the resumed run has not ended yet"


def test_two_rows_of_one_step_are_read_as_one(tmp_path: Path) -> None:
    tracker = started(tmp_path / "metrics.jsonl")
    tracker.log({"train/loss": 0.5}, step=10)
    tracker.log({"eval/accuracy": 0.9}, step=10)
    assert read_rows(tmp_path / "metrics.jsonl") == [{"step": 10, "train/loss": 0.5, "eval/accuracy": 0.9}]


def test_damage_inside_the_file_is_named_and_not_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "a": 1}\n{"step": 2, "a"\n{"step": 3, "a": 3}\n')
    with pytest.raises(UserError, match="line 2"):
        read_rows(path)


def test_a_path_that_cannot_be_written_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        started(tmp_path / "file" / "metrics.jsonl")


def test_a_full_disk_ends_the_run(tmp_path: Path) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("needs /dev/full")
    path = tmp_path / "metrics.jsonl"
    tracker = started(path)
    tracker._file = full.open("wb")
    with pytest.raises(RunFailure, match=r"metrics\.jsonl can no longer be written"):
        tracker.log({"train/loss": 0.5}, step=1)
    with pytest.raises(RunFailure):
        tracker.finish(RunStatus.FAILED)
    tracker.finish(RunStatus.FAILED)


class Recorder:
    """Notes its calls, and fails in the one it is told to fail in."""

    def __init__(self, fails_in: str = "") -> None:
        self.fails_in = fails_in
        self.calls: list[str] = []

    def note(self, call: str) -> None:
        self.calls.append(call)
        if call.split()[0] == self.fails_in:
            raise UserError(f"{call} was told to fail")

    def start(self, run: RunRecord) -> None:
        self.note(f"start {run.name}")

    def log(self, metrics: Mapping[str, float | int], step: int) -> None:
        self.note(f"log {step}")

    def summarise(self, metrics: Mapping[str, Any]) -> None:
        self.note("summarise")

    def finish(self, status: RunStatus) -> None:
        self.note(f"finish {status}")


def test_a_composite_passes_every_call_on_to_each() -> None:
    parts = [Recorder(), Recorder()]
    tracker = CompositeTracker([*parts, NullTracker()])
    tracker.start(RUN)
    tracker.log({"train/loss": 0.5}, step=3)
    tracker.summarise({"best/accuracy": 1.0})
    tracker.finish(RunStatus.FINISHED)
    for part in parts:
        assert part.calls == ["start student", "log 3", "summarise", "finish finished"]


def test_a_failed_start_closes_what_was_started_as_failed() -> None:
    before, failing, after = Recorder(), Recorder(fails_in="start"), Recorder()
    with pytest.raises(UserError, match="told to fail"):
        CompositeTracker([before, failing, after]).start(RUN)
    assert before.calls == ["start student", "finish failed"]
    assert after.calls == []


def test_a_failing_finish_does_not_keep_the_others_open() -> None:
    failing, other = Recorder(fails_in="finish"), Recorder()
    with pytest.raises(UserError, match="told to fail"):
        CompositeTracker([failing, other]).finish(RunStatus.FINISHED)
    assert other.calls == ["finish finished"]


def test_finishing_what_never_started_does_nothing(tmp_path: Path) -> None:
    JsonlTracker(tmp_path / "metrics.jsonl").finish(RunStatus.FAILED)
    assert list(tmp_path.iterdir()) == []
