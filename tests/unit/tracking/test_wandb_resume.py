"""One W&B run over all attempts: real processes that are really killed, and W&B has each row once all the same."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from accel_kd.tracking.wandb_files import Part, read_records
from tests.support.wandb_runs import (
    KILL,
    KILL_WITH_WANDB_CORE,
    attempt,
    expected_row,
    history_of,
    next_second,
    records_of,
    run_files,
    run_id,
    sync,
)
from tests.support.wandb_server import wandb_server

pytestmark = pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="needs wandb")

# So wide a row that wandb-core, which keeps what it is given for up to 15 seconds, has to write some of 25 before.
WIDE = 200


NOTE_WHAT_WANDB_IS_GIVEN = """
import wandb
given = []
log = wandb.Run.log

def note(run, row, step=None, commit=None):
    given.append(step)
    log(run, row, step=step, commit=commit)

wandb.Run.log = note
"""


def without_own(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in ("_step", "_runtime", "_timestamp")}


def assert_each_once(rows: Sequence[dict[str, Any]], num_rows: int, num_more: int = 0) -> None:
    """Rows of step 10, 20, ..., whose place among all is W&B's own step, with the values that were logged."""
    in_order = sorted(rows, key=lambda row: row["_step"])
    assert [row["_step"] for row in in_order] == list(range(num_rows))
    assert [without_own(row) for row in in_order] == [expected_row(index, num_more) for index in range(num_rows)]


@pytest.mark.parametrize("kill", [KILL, KILL_WITH_WANDB_CORE], ids=["python", "python and wandb-core"])
@pytest.mark.parametrize("num_more", [0, WIDE], ids=["nothing written", "half a record written"])
def test_of_a_killed_and_resumed_run_w_and_b_has_each_row_once(tmp_path: Path, kill: str, num_more: int) -> None:
    assert attempt(tmp_path, end=25, num_more=num_more, before_end=kill) == {"returncode": -9}
    (killed,) = run_files(tmp_path)
    written = len(history_of(killed))
    size = killed.stat().st_size
    *_, (_, whole_size) = [(None, 7), *read_records(killed)]
    if num_more:
        assert written > 0, "else this test shows less than it says"

    next_second()
    assert attempt(tmp_path, num_rows=12, end=30, num_more=num_more)["error"] is None
    parts = [history_of(file) for file in run_files(tmp_path)]
    assert [len(part) for part in parts] == [written, 30 - written]
    assert_each_once([row for part in parts for row in part], 30, num_more)
    assert killed.stat().st_size == whole_size <= size, "half a record is cut off"

    with wandb_server() as (runs, environ):
        output = sync(tmp_path, environ)
        assert "ERROR" not in output and "Error" not in output, output
        sent = runs[run_id(tmp_path)]
        assert sent.steps == list(range(30)), "and `wandb sync` makes one history of the parts"
        assert_each_once(sent.rows, 30, num_more)
        sync(tmp_path, environ)
        assert sent.steps == list(range(30)), "once, however often it is called"


def test_attempt_after_attempt_adds_the_rows_that_are_new(tmp_path: Path) -> None:
    for num_rows, end in [(0, 7), (4, 9), (9, 9), (2, 5), (6, 14)]:
        attempt(tmp_path, num_rows=num_rows, end=end, status="failed")
        next_second()
    parts = [[row["_step"] for row in history_of(file)] for file in run_files(tmp_path)]
    assert parts == [[0, 1, 2, 3, 4, 5, 6], [7, 8], [], [], [9, 10, 11, 12, 13]]


def test_a_run_begun_again_without_a_checkpoint_has_each_row_once(tmp_path: Path) -> None:
    attempt(tmp_path, end=5, status="failed")
    next_second()
    attempt(tmp_path, end=8)
    assert_each_once([row for file in run_files(tmp_path) for row in history_of(file)], 8)


def test_rows_that_are_lost_on_disk_leave_a_gap_and_stop_nothing(tmp_path: Path) -> None:
    attempt(tmp_path, end=5, jsonl=False, before_end=KILL)
    next_second()
    assert attempt(tmp_path, num_rows=5, end=7, jsonl=False)["error"] is None
    assert [row["_step"] for file in run_files(tmp_path) for row in history_of(file)] == [5, 6]


def test_numbers_that_the_json_lines_have_as_null_are_sent_again_as_nan(tmp_path: Path) -> None:
    attempt(tmp_path, end=0)
    next_second()
    metrics = tmp_path / "run" / "metrics.jsonl"
    metrics.write_text('{"step": 10, "train/loss": null}\n{"step": 20, "train/loss": 0.25}\n')
    attempt(tmp_path, num_rows=2, end=2)
    losses = [row["train/loss"] for row in history_of(run_files(tmp_path)[1])]
    assert math.isnan(losses[0]) and losses[1:] == [0.25]


def test_a_stopped_run_is_marked_for_a_sweep_to_start_it_again(tmp_path: Path) -> None:
    attempt(tmp_path, status="stopped")
    records = records_of(run_files(tmp_path)[0])
    assert records["exit"] == [{"exit_code": 85}]
    assert "preempting" in records


def test_a_table_comes_last_and_takes_no_index_of_a_row(tmp_path: Path) -> None:
    attempt(tmp_path, end=3, table=True, status="stopped")
    next_second()
    attempt(tmp_path, num_rows=2, end=5, table=True)
    first, second = [history_of(file) for file in run_files(tmp_path)]
    assert [row["_step"] for row in [*first, *second]] == [0, 1, 2, 3, 4, 5]
    assert ["rows" in row or "rows._type" in row for row in [*first, *second]] == [False] * 5 + [True]

    next_second()
    attempt(tmp_path, end=0, table=True)
    (again,) = history_of(run_files(tmp_path)[2])
    assert again["_step"] == 6, "a table that is told again does not stand in the place of the first"


def test_an_online_run_goes_on_where_the_server_is(tmp_path: Path) -> None:
    with wandb_server() as (runs, environ):
        attempt(tmp_path, environ=environ, mode="online", end=25, status="stopped")
        sent = runs[run_id(tmp_path)]
        assert (sent.steps, sent.exit_codes, sent.is_preempting) == (list(range(25)), [85], True)
        given = "result['given'] = given"
        again = attempt(
            tmp_path,
            environ=environ,
            mode="online",
            num_rows=12,
            end=30,
            before=NOTE_WHAT_WANDB_IS_GIVEN,
            before_end=given,
        )
        assert_each_once(sent.rows, 30)
        assert again["given"] == list(range(25, 30)), "wandb is not left to drop the others"
        assert sent.exit_codes == [85, 0]


def test_a_killed_online_run_goes_on_where_the_server_is(tmp_path: Path) -> None:
    with wandb_server() as (runs, environ):
        attempt(tmp_path, environ=environ, mode="online", end=20, status="failed")
        sent = runs[run_id(tmp_path)]
        attempt(tmp_path, environ=environ, mode="online", num_rows=20, end=60, before_end=KILL_WITH_WANDB_CORE)
        attempt(tmp_path, environ=environ, mode="online", num_rows=50, end=70)
        assert_each_once(sent.rows, 70)


def test_what_offline_attempts_kept_is_sent_by_the_first_online_one(tmp_path: Path) -> None:
    attempt(tmp_path, end=12, status="failed")
    with wandb_server() as (runs, environ):
        attempt(tmp_path, environ=environ, mode="online", num_rows=10, end=20)
        sent = runs[run_id(tmp_path)]
        assert_each_once(sent.rows, 20)
        assert Part(run_files(tmp_path)[0]).is_synced
        sync(tmp_path, environ)
        assert sent.steps == list(range(20)), "`wandb sync` does not add them once more"


def test_an_offline_attempt_counts_what_an_online_one_sent(tmp_path: Path) -> None:
    with wandb_server() as (runs, environ):
        attempt(tmp_path, environ=environ, mode="online", end=12, status="stopped")
        next_second()
        attempt(tmp_path, num_rows=10, end=20)
        sync(tmp_path, environ)
        assert_each_once(runs[run_id(tmp_path)].rows, 20)
