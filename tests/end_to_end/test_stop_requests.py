"""Asked to stop, all ranks stop together at the end of their step, leave a checkpoint, and go on bit for bit."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from accel_kd.errors import EXIT_STOPPED
from tests.support.exactness import differences, recipe
from tests.support.forks import ForkedRun, Forks
from tests.support.processes import on_ranks, succeeded

STOPPED = {EXIT_STOPPED}


@pytest.fixture(scope="module")
def plain(
    forks: Forks, tiny_data: Path, tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[int, Path]:
    """The run without an interruption, by the number of its ranks."""
    folder = tmp_path_factory.mktemp("plain")
    for ranks in (1, 2):
        forks.run(*recipe(tiny_data, tiny_teacher, folder / str(ranks)), ranks=ranks).succeeded()
    return {ranks: folder / str(ranks) for ranks in (1, 2)}


def status(directory: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((directory / "status.json").read_text())
    return content


def steps_saved(directory: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in (directory / "checkpoints").glob("step-*"))


def litter(directory: Path) -> list[str]:
    return [path.name for path in directory.glob(".stop*")] + [path.name for path in directory.glob("stop")]


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("signal_name", ["SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2"])
def test_a_signal_to_one_worker_stops_all_ranks_at_the_same_step(
    forks: Forks,
    plain: dict[int, Path],
    tiny_data: Path,
    tiny_teacher: Path,
    tmp_path: Path,
    signal_name: str,
    ranks: int,
) -> None:
    command = recipe(tiny_data, tiny_teacher, tmp_path, "checkpoint.every_steps=100")
    fault = {"at": "step", "count": 18, "do": signal_name, "rank": ranks - 1}
    stopped = forks.run(*command, ranks=ranks, faults=[fault])
    assert set(stopped.codes) == STOPPED, stopped.text
    assert stopped.text.count(f"stopped by {signal_name}; the same command goes on") == 1
    (step,) = steps_saved(tmp_path)
    assert 18 <= step <= 20, "at the end of the step, or of the one after it where ranks have to agree"
    found = status(tmp_path)
    assert (found["state"], found["reason"], found["step"]) == ("stopped", signal_name, step)
    assert litter(tmp_path) == []
    forks.run(*command, ranks=ranks).succeeded()
    assert [name for name in differences(plain[ranks], tmp_path) if not name.startswith("checkpoints/step")] == []
    assert status(tmp_path)["state"] == "finished" and status(tmp_path)["attempt"] == 2


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize(
    ("place", "count", "saved"),
    # In batches of 14 over all ranks: 4 to score validation and 5 to score test, by the teacher first; then steps 13,
    # 26 and 39 are evaluated, and the test split is scored.
    [("scored_batch", 1, None), ("micro_batch", 1, None), ("scored_batch", 10, 13), ("scored_batch", 22, 39)],
    ids=["scoring the teacher", "first step", "evaluation", "test"],
)
def test_a_request_is_heard_in_every_loop(
    forks: Forks, tiny_data: Path, tiny_teacher: Path, tmp_path: Path,
    place: str, count: int, saved: int | None, ranks: int,
) -> None:  # fmt: skip
    settings = [f"evaluation.micro_batch_size={14 // ranks}"]
    command = recipe(tiny_data, tiny_teacher, tmp_path / "run", *settings)
    fault = {"at": place, "count": count, "do": "SIGTERM", "rank": ranks - 1}
    stopped = forks.run(*command, ranks=ranks, faults=[fault])
    assert set(stopped.codes) == STOPPED, stopped.text
    if saved is not None:
        assert steps_saved(tmp_path / "run")[-1] == saved
    forks.run(*command, ranks=ranks).succeeded()
    forks.run(*recipe(tiny_data, tiny_teacher, tmp_path / "whole", *settings), ranks=ranks).succeeded()
    assert differences(tmp_path / "whole", tmp_path / "run") == []


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_stop_file_stops_the_run_and_is_gone_afterwards(
    forks: Forks, plain: dict[int, Path], tiny_data: Path, tiny_teacher: Path, tmp_path: Path, ranks: int
) -> None:
    run, command = tmp_path / "run", recipe(tiny_data, tiny_teacher, tmp_path / "run")
    run.mkdir()
    (run / "stop").touch()
    stopped = forks.run(*command, ranks=ranks)
    assert set(stopped.codes) == STOPPED and status(run)["reason"] == "the stop file"
    assert not (run / "stop").exists()
    elsewhere = tmp_path / "STOP.3"
    elsewhere.touch()
    stopped = forks.run(*command, ranks=ranks, ACCEL_KD_STOP_FILE=str(elsewhere))
    assert set(stopped.codes) == STOPPED and not elsewhere.exists()
    assert status(run)["attempts_without_progress"] == 2
    forks.run(*command, ranks=ranks).succeeded()
    assert differences(plain[ranks], run) == []


def test_the_end_of_the_jobs_time_stops_the_run_in_time(
    forks: Forks, plain: dict[int, Path], tiny_data: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    command = recipe(tiny_data, tiny_teacher, tmp_path, "run.stop_before=1h")
    for variable in ("ACCEL_KD_END_TIME", "SLURM_JOB_END_TIME"):
        stopped = forks.run(*command, ranks=2, **{variable: str(time.time() + 3599)})
        assert set(stopped.codes) == STOPPED and status(tmp_path)["reason"] == "the end of the job's time"
    wrong = forks.run(*command, SLURM_JOB_END_TIME="tomorrow")
    assert wrong.codes == [2] and "SLURM_JOB_END_TIME: 'tomorrow' is no number of seconds" in wrong.text
    later = forks.run(*command, ranks=2, SLURM_JOB_END_TIME=str(time.time() + 36000)).succeeded()
    assert "Traceback" not in later.text
    assert differences(plain[2], tmp_path) == []


def test_without_an_end_of_time_there_is_no_deadline(
    forks: Forks, tiny_data: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    run = forks.run(*recipe(tiny_data, tiny_teacher, tmp_path, "run.stop_before=90s")).succeeded()
    assert "the end of this job is not known" in run.text


def test_a_second_ctrl_c_stops_at_once_and_an_echo_of_the_first_does_not(
    forks: Forks, tiny_data: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    command = recipe(tiny_data, tiny_teacher, tmp_path)
    at_once = forks.run(*command, faults=[{"at": "step", "count": 18, "do": "interrupt twice"}])
    assert at_once.codes == [-2] and steps_saved(tmp_path) == [12, 16]
    echoed = forks.run(*command, faults=[{"at": "step", "count": 3, "do": "interrupt with an echo"}])
    assert echoed.codes == [EXIT_STOPPED] and steps_saved(tmp_path)[-1] == 19


@pytest.mark.parametrize("ranks", [1, 2])
def test_caching_stops_between_shards_keeps_them_and_ends_with_the_same_bytes(
    forks: Forks, tiny_data: Path, tiny_teacher: Path, tmp_path: Path, ranks: int
) -> None:
    def cache(name: str, **options: Any) -> ForkedRun:
        _, *settings = recipe(tiny_data, tiny_teacher, tmp_path / name)
        settings += [
            f"teacher.store.path={tmp_path / name}_store",
            "teacher.store.shard_rows=20",
            "teacher.source=cached",
        ]
        return forks.run("cache-teacher", *settings, ranks=ranks, **options)

    cache("whole").succeeded()
    fault = {"at": "teacher_batch", "count": 5, "do": "SIGTERM", "rank": ranks - 1}
    stopped = cache("parts", faults=[fault])
    assert set(stopped.codes) == STOPPED, stopped.text
    found = status(tmp_path / "parts")
    assert (found["command"], found["part"], found["state"]) == ("cache-teacher", "cache", "stopped")
    assert 0 < found["step"] < found["total_steps"] == 317
    killed = cache("parts", faults=[{"at": "shard", "count": 2, "do": "kill"}])
    assert -9 in killed.codes
    cache("parts").succeeded()
    whole, parts = (
        {path.relative_to(tmp_path / name): path.read_bytes() for path in sorted((tmp_path / name).rglob("*.*"))}
        for name in ("whole_store", "parts_store")
    )
    assert {path for path in whole if path.suffix == ".safetensors"}
    assert {p.name: b for p, b in whole.items() if p.suffix == ".safetensors"} == {
        p.name: b for p, b in parts.items() if p.suffix == ".safetensors"
    }
    assert litter(tmp_path / "parts") == []


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_teacher_that_is_being_fine_tuned_stops_and_goes_on_like_a_student(
    forks: Forks, tiny_data: Path, tiny_teacher: Path, tmp_path: Path, ranks: int
) -> None:
    settings = ["teacher.finetune.epochs=2", "teacher.finetune.learning_rate=1e-3"]

    def command(name: str) -> list[str]:
        return [
            arg for arg in recipe(tiny_data, tiny_teacher, tmp_path / name, *settings) if arg != "teacher.finetune=null"
        ]

    forks.run(*command("whole"), ranks=ranks).succeeded()
    fault = {"at": "step", "count": 18, "do": "SIGUSR1", "rank": 0}
    stopped = forks.run(*command("parts"), ranks=ranks, faults=[fault])
    assert set(stopped.codes) == STOPPED and status(tmp_path / "parts")["part"] == "teacher"
    forks.run(*command("parts"), ranks=ranks).succeeded()
    assert differences(tmp_path / "whole", tmp_path / "parts") == []
    weights = "teacher/model/model.safetensors"
    assert (tmp_path / "whole" / weights).read_bytes() == (tmp_path / "parts" / weights).read_bytes()


def test_a_signal_to_the_launcher_reaches_the_ranks_and_leaves_no_orphan(
    plain: dict[int, Path], tiny_data: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    import os
    import signal
    import subprocess
    import sys

    from tests.support.processes import ROOT, free_port

    command = recipe(tiny_data, tiny_teacher, tmp_path, "training.epochs=300", "training.num_workers=1")
    launcher = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={free_port()}",
         "-m", "accel_kd", *command],
        cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("checkpoints/step-*")):
        assert time.monotonic() < deadline and launcher.poll() is None
        time.sleep(0.1)
    launcher.send_signal(signal.SIGTERM)
    assert launcher.wait(60) != 0
    assert status(tmp_path)["state"] == "stopped" and status(tmp_path)["step"] == steps_saved(tmp_path)[-1]
    time.sleep(0.5)
    with pytest.raises(ProcessLookupError):
        os.killpg(launcher.pid, 0)  # the session is empty


@pytest.mark.parametrize("guard", ["listening", "agreement"])
def test_without_its_guards_a_stop_loses_steps_or_a_rank(
    forks: Forks, tiny_data: Path, tiny_teacher: Path, tmp_path: Path, guard: str
) -> None:
    command = recipe(tiny_data, tiny_teacher, tmp_path, "checkpoint.every_steps=100", "run.rank_timeout=5s")
    faults = [{"without": guard}, {"at": "step", "count": 18, "do": "SIGTERM", "rank": 1}]
    stopped = forks.run(*command, ranks=2, faults=faults, timeout=60)
    assert set(stopped.codes) != STOPPED
    assert steps_saved(tmp_path) == []


def test_the_real_launcher_runs_it_too(tiny_data: Path, tiny_teacher: Path, tmp_path: Path) -> None:
    succeeded(on_ranks(2, *recipe(tiny_data, tiny_teacher, tmp_path, "training.epochs=1")))
    assert status(tmp_path)["state"] == "finished"
