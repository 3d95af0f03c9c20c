"""Threads of a rank: what was asked for, and where a launcher left one, this rank's share of the cores."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from accel_kd.distributed.cpu_threads import threads_of_rank, usable_cpus

_ACCELERATE = {"ACCELERATE_MIXED_PRECISION": "no", "OMP_NUM_THREADS": "1"}
_TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize("environment", [{}, {"OMP_NUM_THREADS": "3"}, _ACCELERATE, _TORCHRUN])
def test_the_setting_goes_before_everything(environment: dict[str, str]) -> None:
    assert threads_of_rank(1, 64, environment) == 1
    assert threads_of_rank(6, 2, environment) == 6


def test_one_process_of_a_launcher_has_all_cores() -> None:
    assert threads_of_rank(None, 64, _ACCELERATE) == 64
    assert threads_of_rank(None, 2, _ACCELERATE) == 2


@pytest.mark.parametrize("launcher", [_ACCELERATE, _TORCHRUN])
@pytest.mark.parametrize(("cpus", "ranks", "threads"), [(64, 8, 8), (7, 2, 3), (2, 2, 1), (2, 4, 1), (1, 1, 1)])
def test_ranks_of_one_machine_share_its_cores(launcher: dict[str, str], cpus: int, ranks: int, threads: int) -> None:
    # The ranks of other machines have cores of their own.
    environment = launcher | {"LOCAL_WORLD_SIZE": str(ranks), "WORLD_SIZE": str(4 * ranks)}
    assert threads_of_rank(None, cpus, environment) == threads


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"OMP_NUM_THREADS": "1"},  # started without a launcher: it was set by whoever started it
        {"OMP_NUM_THREADS": "1", "LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "2"},  # a fork, whose threads were set
        _ACCELERATE | {"OMP_NUM_THREADS": "4"},
        {"TORCHELASTIC_RUN_ID": "none"},  # torchrun leaves one process as it was
    ],
)
def test_every_other_count_stays(environment: dict[str, str]) -> None:
    assert threads_of_rank(None, 64, environment) is None


def test_cores_that_cannot_be_counted_change_nothing() -> None:
    assert threads_of_rank(None, None, _ACCELERATE) is None


@pytest.mark.parametrize(
    ("granted", "expected"),
    [("max 100000", 8), ("200000 100000", 2), ("50000 100000", 1), ("6400000 100000", 8), ("", 8)],
)
def test_usable_cores_are_those_of_this_process_and_no_more_than_its_container_is_granted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, granted: str, expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    (tmp_path / "cpu.max").write_text(granted)
    assert usable_cpus(tmp_path / "cpu.max") == expected
    assert usable_cpus(tmp_path / "none") == 8
