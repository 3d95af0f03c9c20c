"""Which rows W&B is given: each once, whatever was killed when, and wherever a run went on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accel_kd.tracking import JsonlTracker, RunRecord, RunStatus
from accel_kd.tracking.jsonl_file import first_rows
from accel_kd.tracking.wandb_rows import HeldRows, RowMirror

NUM_ROWS = 40
RUN = RunRecord("student", "distill", None, (), None, {}, {})


def row_of(index: int) -> dict[str, float]:
    return {"train/loss": 1 / (index + 1)}


# How far an attempt comes beyond its start, at which of its rows it leaves a checkpoint, how much of what W&B was given
# last never reaches the disk, and whether half a line is left in the JSON lines.
ATTEMPT = st.tuples(st.integers(0, 15), st.integers(0, 15), st.integers(0, 20), st.booleans())


@settings(max_examples=150, deadline=None)
@given(attempts=st.lists(ATTEMPT, max_size=8))
def test_any_sequence_of_killed_attempts_leaves_each_row_once(
    tmp_path_factory: pytest.TempPathFactory, attempts: list[tuple[int, int, int, bool]]
) -> None:
    path = tmp_path_factory.mktemp("run") / "metrics.jsonl"
    parts: list[list[tuple[int, Mapping[str, Any]]]] = []
    checkpoint = 0
    for num_logged, before_checkpoint, num_lost, is_torn in [*attempts, (NUM_ROWS, 0, 0, False)]:
        part: list[tuple[int, Mapping[str, Any]]] = []
        jsonl = JsonlTracker(path)
        jsonl.start(RUN, checkpoint)
        held = HeldRows.of(index for part in parts for index, _ in part)
        mirror = RowMirror(held, lambda row, index, to=part: to.append((index, row)))
        num_rows = checkpoint
        mirror.go_on_at(num_rows, lambda: first_rows(path, num_rows))  # noqa: B023 called at once
        end = min(checkpoint + num_logged, NUM_ROWS)
        for index in range(checkpoint, end):
            jsonl.log(row_of(index), step=index)
            mirror.log({"step": index, **row_of(index)})
        checkpoint = min(checkpoint + before_checkpoint, end)
        parts.append(part[: max(0, len(part) - num_lost)])
        if is_torn:
            with path.open("ab") as file:
                file.write(b'{"step": 7, "train/lo')
    jsonl.finish(RunStatus.FINISHED)

    expected = [{"step": index, **row_of(index)} for index in range(NUM_ROWS)]
    assert list(first_rows(path, 10**6)) == expected
    in_order = sorted([pair for part in parts for pair in part], key=lambda pair: pair[0])
    assert in_order == list(enumerate(expected))


@given(indices=st.lists(st.integers(0, 30)))
def test_held_rows_are_a_set_that_knows_where_it_begins_to_have_gaps(indices: list[int]) -> None:
    held = HeldRows.of(indices)
    assert {index for index in range(40) if index in held} == set(indices)
    assert held.num_leading == next(index for index in range(40) if index not in indices)
    assert held.end == max(indices, default=-1) + 1


def test_the_json_lines_are_not_read_where_nothing_lacks() -> None:
    def read() -> list[dict[str, Any]]:
        raise AssertionError("a file of a million rows was to be left alone")

    sent: list[int] = []
    mirror = RowMirror(HeldRows(12), lambda row, index: sent.append(index))
    mirror.go_on_at(10, read)
    for step in range(5):
        mirror.log({"step": step})
    assert (sent, mirror.end) == ([12, 13, 14], 15)


def test_a_row_that_cannot_be_sent_keeps_its_place() -> None:
    sent: list[int] = []

    def send(row: Mapping[str, Any], index: int) -> None:
        if row["step"] == 1:
            raise OSError("wandb-core is dead")
        sent.append(index)

    mirror = RowMirror(HeldRows(), send)
    with pytest.raises(OSError):
        mirror.go_on_at(4, lambda: [{"step": step} for step in range(4)])
    mirror.log({"step": 4})
    assert sent == [0, 4], "the next attempt sends what is between"


def test_first_rows_are_as_they_were_logged(tmp_path: Path) -> None:
    tracker = JsonlTracker(tmp_path / "metrics.jsonl")
    tracker.start(RUN)
    tracker.log({"train/loss": 0.5}, step=10)
    tracker.summarise({"step": 3})
    tracker.log({"eval/accuracy": 0.9}, step=10)
    assert list(first_rows(tmp_path / "metrics.jsonl", 1)) == [{"step": 10, "train/loss": 0.5}]
    assert len(list(first_rows(tmp_path / "metrics.jsonl", 5))) == 2, "two rows of one step are two"
