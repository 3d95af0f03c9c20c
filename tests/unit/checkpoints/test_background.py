"""Work beside the training: one piece at a time, no failure lost, nobody waits for ever."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from accel_kd.checkpoints.background import BackgroundWriter, wait_for_parts
from accel_kd.checkpoints.files import clean_up, publish, read_checkpoint, start_draft, write_part
from accel_kd.errors import RunFailure
from tests.support.checkpoints import PARTS, content, name_of, value_of, write
from tests.support.processes import ROOT

NAME = name_of(2)


def fail(error: BaseException) -> None:
    raise error


def test_submit_returns_before_the_work_is_done_and_wait_after_it() -> None:
    writer, may_end, ended = BackgroundWriter(), threading.Event(), threading.Event()

    def work() -> None:
        may_end.wait(10)
        ended.set()

    writer.submit(work)
    assert not ended.is_set()
    may_end.set()
    writer.wait()
    assert ended.is_set()
    writer.wait()  # nothing is under way


def test_one_piece_of_work_ends_before_the_next_begins() -> None:
    writer, events = BackgroundWriter(), []

    def work(number: int) -> None:
        events.append(("begin", number))
        time.sleep(0.02)
        events.append(("end", number))

    for number in range(4):
        writer.submit(lambda number=number: work(number))
    writer.wait()
    assert events == [(what, number) for number in range(4) for what in ("begin", "end")]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RunFailure("the disk is full: /x"), "^the disk is full: /x$"),
        (KeyError("moment"), "a checkpoint could not be written: KeyError: 'moment'"),
        (SystemExit(3), "a checkpoint could not be written: SystemExit: 3"),
    ],
)
def test_a_failure_is_logged_at_once_and_raised_once_at_the_next_opportunity(
    error: BaseException, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    writer, begun = BackgroundWriter(), []
    writer.submit(lambda: fail(error))
    deadline = time.monotonic() + 5
    while not caplog.records and time.monotonic() < deadline:
        time.sleep(0.01)
    assert "a checkpoint could not be written" in caplog.text
    with pytest.raises(RunFailure, match=message):
        writer.submit(lambda: begun.append(1))
    writer.wait()
    assert not begun
    writer.submit(lambda: fail(error))
    with pytest.raises(RunFailure, match=message):
        writer.wait()
    writer.submit(lambda: begun.append(2))
    writer.wait()
    assert begun == [2]


@pytest.mark.parametrize("end", ["", "import os, signal; os.kill(os.getpid(), signal.SIGTERM)", "raise SystemExit(85)"])
def test_a_process_that_ends_does_not_wait_for_work_that_hangs(end: str) -> None:
    code = (
        "import time; from accel_kd.checkpoints.background import BackgroundWriter\n"
        f"writer = BackgroundWriter(); writer.submit(lambda: time.sleep(300)); print('begun', flush=True)\n{end}"
    )
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert process.stdout == "begun\n"
    assert process.returncode == {"": 0, "raise SystemExit(85)": 85}.get(end, -15)


def test_rank_0_waits_until_all_parts_are_there(tmp_path: Path) -> None:
    start_draft(tmp_path, NAME)
    write_part(tmp_path, NAME, "00000", content(5)["00000"])
    naps = []

    def sleep(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == 3:
            write_part(tmp_path, NAME, "00001", content(5)["00001"])

    wait_for_parts(tmp_path, NAME, PARTS, 10, sleep)
    assert len(naps) == 3
    publish(tmp_path, NAME, PARTS, {"value": 5, "size": 30})
    assert value_of(read_checkpoint(tmp_path, NAME)) == 5


def test_a_part_that_does_not_come_is_named_at_the_timeout(tmp_path: Path) -> None:
    start_draft(tmp_path, NAME)
    write_part(tmp_path, NAME, "00000", {})
    slept = []
    with pytest.raises(RunFailure, match=f"{NAME} .* lacks the part 00001 .1 of 2 parts are missing. after 30 seconds"):
        wait_for_parts(tmp_path, NAME, PARTS, 30, slept.append)
    assert 29 < sum(slept) < 31


def test_nobody_waits_for_a_part_of_a_draft_that_another_rank_has_given_up(tmp_path: Path) -> None:
    start_draft(tmp_path, NAME)
    with pytest.raises(RunFailure, match=f"{NAME} is gone"):
        wait_for_parts(tmp_path, NAME, PARTS, 30, lambda seconds: clean_up(tmp_path))


def test_two_processes_write_one_checkpoint_without_speaking_to_each_other(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from tests.support.checkpoints import content, write_part\n"
        "write_part(pathlib.Path(sys.argv[1]), sys.argv[2], '00001', content(2)['00001'])"
    )
    write(tmp_path, 1)
    start_draft(tmp_path, NAME)
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path), NAME], cwd=ROOT) as other:
        writer = BackgroundWriter()

        def work() -> None:
            write_part(tmp_path, NAME, "00000", content(2)["00000"])
            wait_for_parts(tmp_path, NAME, PARTS, 60)
            publish(tmp_path, NAME, PARTS, {"value": 2, "size": 30})

        writer.submit(work)
        writer.wait()
    assert other.returncode == 0
    assert value_of(read_checkpoint(tmp_path, NAME)) == 2
