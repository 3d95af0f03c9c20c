"""What a process does on its own at a search: it has a place that no other has, and finds what trials are judged by."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

import pytest

from accel_kd.errors import UserError
from accel_kd.run_directory import in_use
from accel_kd.search import searching
from accel_kd.search.directory import SearchDirectory


def place(folder: Path, worker: str | None) -> str:
    with ExitStack() as until:
        return searching._open(SearchDirectory(folder), worker, until).path.name


def test_a_process_without_a_name_gets_a_number_that_none_has_be_it_as_a_name(tmp_path: Path) -> None:
    holding, letting_go = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        with in_use(SearchDirectory(tmp_path).worker("1")):
            os.write(holding[1], b"!")
            os.read(letting_go[0], 1)
            os._exit(0)
    os.read(holding[0], 1)
    try:
        assert place(tmp_path, None) == "2" and place(tmp_path, "2") == "2"
        with pytest.raises(UserError, match="--worker: 1 is at work already"):
            place(tmp_path, "1")
    finally:
        os.write(letting_go[1], b"!")
        os.waitpid(child, 0)
    assert place(tmp_path, None) == "1"


def test_a_metric_that_was_not_measured_is_named() -> None:
    assert searching._judged({"accuracy": 0.5}, "accuracy") == 0.5
    with pytest.raises(UserError, match="search.metric: eval/teacher_kl is not among .*eval/accuracy"):
        searching._judged({"eval/accuracy": 0.5}, "eval/teacher_kl")


@pytest.mark.parametrize("worker", [None, "3"])
def test_a_place_that_cannot_be_made_is_not_called_at_work(worker: str | None, tmp_path: Path) -> None:
    (tmp_path / "study.journal").touch()
    (tmp_path / "workers").touch()
    with pytest.raises(UserError, match=r"run.directory: .*workers/\d cannot be made or written"):
        place(tmp_path, worker)
