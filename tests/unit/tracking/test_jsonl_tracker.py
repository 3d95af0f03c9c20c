"""The JSON lines, which comparisons trust, and the trackers that only pass calls on or drop them."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from accel_kd.errors import RunFailure, UserError
from accel_kd.tracking import (
    ArtifactRecord,
    CompositeTracker,
    JsonlTracker,
    NullTracker,
    RunRecord,
    RunStatus,
    read_record,
    read_rows,
)
from accel_kd.tracking.jsonl_file import keep_rows

RUN = RunRecord(
    name="student",
    job_type="distill",
    group="clinc",
    tags=("kl", "small"),
    notes=None,
    config={"objective": {"temperature": 2.0}},
    environment={"python": "3.11"},
)
MODEL = ArtifactRecord("student", "model", "/runs/student", "cd", {"test/accuracy": 0.5}, folder="/runs/student")


def started(path: Path, num_rows: int = 0) -> JsonlTracker:
    tracker = JsonlTracker(path)
    tracker.start(RUN, num_rows)
    return tracker


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def kinds_of(path: Path) -> list[Any]:
    """The steps of the rows, and of other lines what they are."""
    return [line.get("step", next(iter(line))) for line in lines_of(path)]


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


def test_what_a_run_is_made_from_and_what_it_made_is_in_the_record_and_pictures_are_not(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    tracker = JsonlTracker(path)
    data = ArtifactRecord("data-clinc150", "dataset", "/data", "ab", {"examples": {"train": 5}})
    tracker.start(dataclasses.replace(RUN, inputs=(data,)))
    tracker.show("predictions/test", ["id"], [["a"]])
    tracker.show_confusions("test/confusions", [0], [0], ["a"])
    tracker.produced(MODEL)
    tracker.finish(RunStatus.FINISHED)
    begun, produced, _ = lines_of(path)
    assert kinds_of(path) == ["run", "produced", "status"]
    assert [ArtifactRecord(**artifact) for artifact in begun["run"]["inputs"]] == [data]
    assert ArtifactRecord(**produced["produced"]) == MODEL
    assert read_record(path).rows == []


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

    started(path, num_rows=2).log({"train/loss": 0.125}, step=3)
    assert read_rows(path) == [{"step": 1, "train/loss": 0.5}, *kept, {"step": 3, "train/loss": 0.125}]


def test_a_resumed_run_has_each_row_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    first = started(path)
    for step in (1, 2, 3):
        first.log({"train/loss": 1 / step}, step=step)
    first.log({"eval/accuracy": 0.5}, step=3)
    first.summarise({"best/accuracy": 0.5})
    first.table("rows", ["id"], [["a"]])
    first.finish(RunStatus.STOPPED)
    assert read_record(path).status is RunStatus.STOPPED

    resumed = started(path, num_rows=2)
    assert kinds_of(path) == ["run", 1, 2, "status", "run"], "what tells of attempts stays; the rest comes again"
    for step in (3, 4):
        resumed.log({"train/loss": 1 / step}, step=step)
    assert kinds_of(path) == ["run", 1, 2, "status", "run", 3, 4]
    assert read_record(path).status is None, "the resumed run has not ended yet"
    assert read_record(path).summary == {}


def test_a_run_begun_again_drops_all_rows(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    first = started(path)
    first.log({"train/loss": 0.5}, step=1)
    first.summarise({"best/accuracy": 0.5})
    first.finish(RunStatus.FAILED)
    started(path).log({"train/loss": 0.5}, step=1)
    assert kinds_of(path) == ["run", "status", "run", 1]


def test_two_rows_of_a_step_count_as_two(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    first = started(path)
    for metric in ("train/loss", "eval/accuracy", "test/accuracy"):
        first.log({metric: 0.5}, step=10)
    started(path, num_rows=2)
    assert [list(line)[1] for line in lines_of(path) if "step" in line] == ["train/loss", "eval/accuracy"]


def test_where_nothing_is_dropped_the_file_is_not_written_anew(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    started(path).log({"train/loss": 0.5}, step=1)
    inode, before = path.stat().st_ino, path.read_bytes()
    started(path, num_rows=1)
    assert path.stat().st_ino == inode and path.read_bytes().startswith(before)


def test_a_process_killed_while_rows_are_dropped_leaves_the_file_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "metrics.jsonl"
    first = started(path)
    for step in (1, 2, 3):
        first.log({"train/loss": 0.5}, step=step)
    before = path.read_bytes()
    for call in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            killed = RuntimeError("killed")

            def kill(*_: Any, error: Exception = killed) -> None:
                raise error

            patch.setattr(os if call == "fsync" else Path, call, kill)
            with pytest.raises(RuntimeError, match="killed"):
                started(path, num_rows=1)
        assert path.read_bytes() == before, call
    started(path, num_rows=1)
    assert kinds_of(path) == ["run", 1, "run"]


def test_fewer_rows_than_the_checkpoint_counted_are_told_in_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "metrics.jsonl"
    started(path).log({"train/loss": 0.5}, step=1)
    tracker = started(path, num_rows=3)
    tracker.log({"train/loss": 0.25}, step=4)
    (message,) = caplog.messages
    assert str(path) in message and "1 of the 3 rows" in message
    assert [row["step"] for row in read_rows(path)] == [1, 4]


def test_a_million_rows_are_cut_in_seconds(tmp_path: Path) -> None:
    """Of computing: what the disk takes is not ours."""
    path = tmp_path / "metrics.jsonl"
    with path.open("w") as file:
        file.writelines(f'{{"step": {step}, "train/loss": 0.123456789, "train/kl": 0.5}}\n' for step in range(10**6))
    began = time.process_time()
    assert keep_rows(path, 999_990) == 999_990
    assert time.process_time() - began < 10
    assert path.read_bytes().count(b"\n") == 999_990


def test_flushing_waits_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker = started(tmp_path / "metrics.jsonl")
    flushed: list[int] = []
    monkeypatch.setattr(os, "fsync", flushed.append)
    tracker.log({"train/loss": 0.5}, step=1)
    assert flushed == []
    tracker.flush()
    assert len(flushed) == 1

    def refuse(_: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(RunFailure, match="Input/output error"):
        tracker.flush()


def test_of_a_step_that_is_there_twice_the_last_values_count(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "a": 1}\n{"step": 2, "a": 2}\n{"step": 2, "a": -2}\n')
    assert read_rows(path) == [{"step": 1, "a": 1}, {"step": 2, "a": -2}]


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

    def start(self, run: RunRecord, num_rows: int = 0) -> None:
        self.note(f"start {run.name} {num_rows}")

    def log(self, metrics: Mapping[str, float | int], step: int) -> None:
        self.note(f"log {step}")

    def summarise(self, metrics: Mapping[str, Any]) -> None:
        self.note("summarise")

    def flush(self) -> None:
        self.note("flush")

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        self.note(f"table {name}")

    def show(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        self.note(f"show {name}")

    def show_confusions(
        self, name: str, labels: Sequence[int], argmax: Sequence[int], label_names: Sequence[str]
    ) -> None:
        self.note(f"show_confusions {name}")

    def produced(self, artifact: ArtifactRecord) -> None:
        self.note(f"produced {artifact.name}")

    def finish(self, status: RunStatus) -> None:
        self.note(f"finish {status}")


def test_a_composite_passes_every_call_on_to_each() -> None:
    parts = [Recorder(), Recorder()]
    tracker = CompositeTracker([*parts, NullTracker()])
    tracker.start(RUN, 7)
    tracker.log({"train/loss": 0.5}, step=3)
    tracker.flush()
    tracker.summarise({"best/accuracy": 1.0})
    tracker.table("rows", ["id"], [["a"]])
    tracker.show("predictions", ["id"], [["a"]])
    tracker.show_confusions("confusions", [0], [0], ["a"])
    tracker.produced(MODEL)
    tracker.finish(RunStatus.STOPPED)
    shown = ["table rows", "show predictions", "show_confusions confusions", "produced student"]
    for part in parts:
        assert part.calls == ["start student 7", "log 3", "flush", "summarise", *shown, "finish stopped"]


def test_a_failed_start_closes_what_was_started_as_failed() -> None:
    before, failing, after = Recorder(), Recorder(fails_in="start"), Recorder()
    with pytest.raises(UserError, match="told to fail"):
        CompositeTracker([before, failing, after]).start(RUN)
    assert before.calls == ["start student 0", "finish failed"]
    assert after.calls == []


def test_a_failing_finish_does_not_keep_the_others_open() -> None:
    failing, other = Recorder(fails_in="finish"), Recorder()
    with pytest.raises(UserError, match="told to fail"):
        CompositeTracker([failing, other]).finish(RunStatus.FINISHED)
    assert other.calls == ["finish finished"]


def test_finishing_what_never_started_does_nothing(tmp_path: Path) -> None:
    JsonlTracker(tmp_path / "metrics.jsonl").finish(RunStatus.FAILED)
    assert list(tmp_path.iterdir()) == []
