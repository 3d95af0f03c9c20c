"""Jobs that are interrupted and put into the queue again end bit for bit as if they had not been."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import pytest

from accel_kd.run_status import read_status
from tests.slurm.cluster import Cluster
from tests.slurm.submitting import logs, submitted, write_recipe
from tests.support.exactness import differences, rows
from tests.support.processes import summary
from tests.support.wandb_runs import history_of

# 203 examples in batches of 16: 13 steps an epoch, 156 in all; with dropout, so that the generators matter.
_LONG_ENOUGH = [
    "training.epochs=12", "training.batch_size=16", "student.dropout=0.1", "checkpoint.every_steps=10",
    "tracking.log_every_steps=10",
]  # fmt: skip
_TWO_NODES = ["--nodes", "2", "--gpus-per-node", "1", "tracking.mode=offline"]
_ONE_RANK = ["--gpus-per-node", "0", "--stop-before", "60"]


class Runs:
    """Jobs of one recipe, each with a name, which is also its run directory's."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster, self.folder = cluster, folder
        self.ids: dict[str, str] = {}

    def start(self, name: str, *options: str) -> None:
        """Submits one."""
        common = ["recipe.yaml", *_LONG_ENOUGH, f"run.directory={name}"]
        ((_, self.ids[name]),) = submitted(self.cluster, self.folder, *common, *options)

    def wait(self, name: str, happened: Callable[[Path], bool], what: str, timeout: float = 120) -> None:
        """Until something is true of its run directory."""
        directory = self.folder / name

        def happened_or_failed() -> bool:
            assert self.cluster.job(self.ids[name])["JobState"] not in ("FAILED", "TIMEOUT", "CANCELLED"), (
                "it has failed"
            )
            return happened(directory)

        try:
            self.cluster.wait_until(happened_or_failed, timeout, f"{name}: {what}")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{logs(directory)}") from error

    def ended(self, name: str) -> dict[str, str]:
        """What SLURM says of it in the end."""
        (over,) = self.cluster.wait(self.ids[name])
        return over

    def succeeded(self, name: str) -> Path:
        """Its directory, once it has ended well."""
        over = self.ended(name)
        assert over["JobState"] == "COMPLETED" and over["ExitCode"] == "0:0", (over, logs(self.folder / name))
        return self.folder / name


def has_begun(directory: Path) -> bool:
    """Whether a checkpoint holds some steps, with most of them still to come."""
    status = read_status(directory)
    return status is not None and status.part == "student" and status.step >= 20


def was_asked_to_stop(directory: Path) -> bool:
    return any((directory / "slurm").glob("stop-*"))


@contextlib.contextmanager
def held(processes: list[int]) -> Iterator[None]:
    """Keeps `processes` from doing anything."""
    assert processes
    for process in processes:
        os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGCONT)


def ranks_of(directory: Path) -> list[int]:
    """The processes that train in `directory`."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            words = (entry / "cmdline").read_bytes().split(b"\0") if entry.name.isdecimal() else [b""]
            is_python = b"python" in Path(os.fsdecode(words[0])).name.encode()
            is_launcher = b"accelerate.commands.launch" in words
            if is_python and not is_launcher and f"run.directory={directory}".encode() in words:
                found.append(int(entry.name))
    return found


def rank_of(directory: Path, rank: int) -> int:
    """The process of one rank."""
    mark = f"RANK={rank}".encode()
    (found,) = (p for p in ranks_of(directory) if mark in Path(f"/proc/{p}/environ").read_bytes().split(b"\0"))
    return found


@pytest.fixture(scope="module")
def runs(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """All jobs of this file: they wait more than they work, and do so at the same time."""
    runs = Runs(cluster, write_recipe(tmp_path_factory.mktemp("requeue")))
    runs.start("time is up", *_ONE_RANK)
    runs.start("requeued", *_TWO_NODES)
    runs.wait("time is up", has_begun, "its first checkpoints")
    limited = f"JobId={runs.ids['time is up']}"
    with held(ranks_of(runs.folder / "time is up")):
        runs.wait("requeued", has_begun, "its first checkpoints")
        cluster.run("scontrol", "requeue", runs.ids["requeued"])
        runs.start("one rank", *_ONE_RANK)
        runs.start("two nodes", *_TWO_NODES)
        runs.start("no time", *_ONE_RANK, "--time", "0:30:00", "run.stop_before=1800s")
        # The limit comes near while the run stands still. SLURM looks for such jobs every half minute.
        running = datetime.now() - datetime.fromisoformat(cluster.job(runs.ids["time is up"])["StartTime"])
        cluster.run("scontrol", "update", limited, f"TimeLimit={2 + int(running.total_seconds() / 60)}")
        runs.wait("time is up", was_asked_to_stop, "the signal before its limit")
        cluster.run("scontrol", "update", limited, "TimeLimit=30")
    return runs


def test_a_job_that_is_requeued_in_the_middle_goes_on_to_the_same_bits(runs: Runs) -> None:
    plain, requeued = runs.succeeded("two nodes"), runs.succeeded("requeued")
    assert runs.ended("requeued")["Restarts"] == "1" and runs.ended("two nodes")["Restarts"] == "0"
    assert "goes on after step" in logs(requeued)
    assert summary(requeued)["world_size"] == 2 and summary(requeued)["train/steps"] == 156
    assert differences(plain, requeued) == []


def test_all_its_starts_are_one_offline_run(runs: Runs) -> None:
    requeued = runs.succeeded("requeued")
    files = sorted(requeued.glob("wandb/offline-run-*/run-*.wandb"))
    assert len(files) == 2 and len({file.name for file in files}) == 1
    *history, tables = [row for file in files for row in history_of(file)]
    # To W&B a run's tables are a row too, the last.
    assert not [name for name in tables if name.startswith(("train/", "eval/"))] and tables["_step"] == len(history)
    assert [row["_step"] for row in history] == list(range(len(rows(requeued))))
    losses = [(row["step"], row["train/loss"]) for row in history if "train/loss" in row]
    assert losses == [(row["step"], row["train/loss"]) for row in rows(requeued) if "train/loss" in row]


def test_before_its_limit_a_job_is_stopped_and_goes_on_to_the_same_bits(runs: Runs) -> None:
    plain, limited = runs.succeeded("one rank"), runs.succeeded("time is up")
    assert runs.ended("time is up")["Restarts"] == "1"
    assert "stopped by the stop file" in logs(limited) and "goes on after step" in logs(limited)
    status = read_status(limited)
    assert status is not None and (status.state, status.attempt) == ("finished", 2)
    assert differences(plain, limited) == []
    assert not was_asked_to_stop(limited)


def test_a_job_that_gets_nowhere_is_not_requeued_for_ever(runs: Runs) -> None:
    over = runs.ended("no time")
    assert (over["JobState"], over["ExitCode"], over["Restarts"]) == ("FAILED", "1:0", "2"), logs(
        runs.folder / "no time"
    )
    text = logs(runs.folder / "no time")
    assert text.count("stopped by the end of the job's time") == 3 and "not to be started again" in text


def test_a_rank_that_is_killed_ends_the_job_on_all_nodes_and_it_is_not_requeued(runs: Runs) -> None:
    runs.start("killed", *_TWO_NODES, "tracking.mode=disabled")
    runs.wait("killed", has_begun, "its first checkpoints")
    directory = runs.folder / "killed"
    os.kill(rank_of(directory, 1), signal.SIGKILL)
    since = time.monotonic()
    over = runs.ended("killed")
    assert time.monotonic() - since < 60
    assert over["JobState"] == "FAILED" and over["Restarts"] == "0"
    assert ranks_of(directory) == []
    status = read_status(directory)
    assert status is not None and status.state == "failed" and "rank 1" in str(status.reason)
