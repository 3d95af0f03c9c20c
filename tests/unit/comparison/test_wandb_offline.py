"""Runs that the program's own tracker left offline, read back without a network, and against wandb's own reader."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path
from typing import Any, NoReturn

import pytest

from accel_kd.comparison.comparison import compare
from accel_kd.comparison.gathering import gather
from accel_kd.comparison.read_run import flattened
from accel_kd.comparison.wandb_offline import OfflineRun, read_offline
from accel_kd.errors import UserError
from tests.support.compared_runs import accuracies, write_run
from tests.support.wandb_runs import RUN, attempt, next_second, records_of, run_files

_TABLES = """
columns = ["id", "label", "argmax", "confidence", "loss", "teacher_argmax", "teacher_kl", "label_name", "argmax_name"]
rows = [[f"r{n}", n % 2, int(n % 2 != (n < WRONG)), 0.9, 0.1, n % 2, 0.25, "ab"[n % 2], "ab"[n % 2 != (n < WRONG)]]
        for n in range(40)]
tracker.table("predictions/test", columns, rows)
tracker.table("test/differences", columns, rows[:3])
tracker.summarise({"test/accuracy": 1 - WRONG / 40, "num_examples": {"train": 3, "test": 40}})
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One with a table of its predictions in two attempts, another one, one without a table, and a stopped one."""
    homes = {name: tmp_path_factory.mktemp(name) for name in ("one", "two", "plain")}
    attempt(homes["one"], end=2, status="stopped")
    homes["stopped"] = homes["one"].with_name("stopped")
    shutil.copytree(homes["one"], homes["stopped"])
    next_second()
    attempt(homes["one"], num_rows=2, end=3, before_end=_TABLES.replace("WRONG", "9"))
    attempt(homes["two"], before_end=_TABLES.replace("WRONG", "1"))
    attempt(homes["plain"])
    return homes


def folder(home: Path) -> str:
    """Of W&B's files of a run."""
    return str(home / "run" / "wandb")


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*arguments: Any) -> NoReturn:
        raise AssertionError("a connection was asked for")

    monkeypatch.setattr(socket.socket, "connect", refused)


def test_all_attempts_make_one_run_with_config_curve_summary_and_predictions(runs: dict[str, Path]) -> None:
    [run] = gather([folder(runs["one"])], "test").runs
    assert (run.label, run.part) == ("student-a", "student")
    assert run.config == RUN.config
    assert run.summary["test/accuracy"] == pytest.approx(31 / 40)
    assert run.curve is not None and run.curve.loss_steps.tolist() == [10, 20, 30]
    assert run.curve.losses.tolist() == [0.1, 1 / 20, 1 / 30]
    assert run.curve.evaluations["eval/accuracy"].tolist() == [0.5] * 3
    predictions = run.predictions
    assert predictions is not None and len(predictions.ids) == 40
    assert int(predictions.is_right.sum()) == 31 and predictions.label_names == ("a", "b")
    assert predictions.teacher_kl is not None and predictions.teacher_kl.mean() == pytest.approx(0.25)


def test_it_reads_what_wandbs_own_reader_reads(runs: dict[str, Path]) -> None:
    [file] = run_files(runs["two"])
    records = records_of(file)
    [run] = read_offline([file])
    history = [flattened(record["item"]) for record in records["history"]]
    assert [flattened(run.history[index]) for index in sorted(run.history)] == history
    config = records["run"][0]["config"]["update"]
    assert {name: run.config[name] for name in RUN.config} == {name: config[name] for name in RUN.config}
    summary: dict[str, Any] = {}
    for record in records["summary"]:
        summary.update(record.get("update", {}))
    assert flattened(run.summary) == flattened(summary)
    assert run.exit_code == records["exit"][0].get("exit_code", 0) == 0


def test_runs_with_a_table_are_compared_row_by_row_and_others_by_their_figures(runs: dict[str, Path]) -> None:
    gathered = gather([folder(runs[name]) for name in ("one", "two", "plain")], "test")
    content = compare(gathered.runs, split="test", notes=gathered.notes, each=True)
    found = {one.other: one for one in content.differences}
    paired, unpaired = found.values()
    assert (paired.num_rows, paired.only_other, paired.only_baseline) == (40, 8, 0)
    assert paired.verdict == "better"
    assert unpaired.verdict == "no common rows"
    assert any("W&B holds no table of its predictions" in note for note in content.notes)


def test_a_stopped_run_is_refused_or_taken_as_it_is(runs: dict[str, Path]) -> None:
    with pytest.raises(UserError, match="not finished: stopped at step 20; .*--unfinished"):
        gather([folder(runs["stopped"])], "test")
    gathered = gather([folder(runs["stopped"])], "test", unfinished=True)
    assert len(gathered.runs) == 1 and "stopped at step 20" in gathered.notes[0]


def test_its_directory_and_w_and_bs_copy_are_one_run(runs: dict[str, Path]) -> None:
    directory = runs["plain"] / "run"
    with pytest.raises(UserError, match="the same run is given in"):
        gather([str(directory), str(directory / "wandb")], "validation", unfinished=True)


def test_runs_of_one_second_are_in_the_order_of_their_starts(runs: dict[str, Path], tmp_path: Path) -> None:
    """Their folders are named for the second, and after it for an id that means nothing."""
    started = []
    for home in ("one", "two"):
        [file, *_] = run_files(runs[home])
        started.append(read_offline([file])[0].started)
        # The run that started first gets the folder that comes last.
        folder_of_second = tmp_path / f"offline-run-20260101_000000-{'zy'[len(started) - 1]}"
        shutil.copytree(file.parent, folder_of_second)
        [copy] = folder_of_second.glob("run-*.wandb")
        copy.rename(copy.with_name(f"run-{home}.wandb"))
    assert started[0] < started[1]
    assert [run.run_id for run in read_offline(list(tmp_path.glob("*/run-*.wandb")))] == ["one", "two"]


def test_a_file_without_a_run_does_not_stand_in_the_way_of_others(runs: dict[str, Path], tmp_path: Path) -> None:
    """As a process leaves it that is killed at its start."""
    torn = tmp_path / "offline-run-20260101_000000-torn"
    torn.mkdir()
    (torn / "run-torn.wandb").touch()
    with pytest.raises(UserError, match="holds no run, nor runs of W&B"):
        gather([str(tmp_path)], "test")
    write_run(tmp_path / "a", accuracies(0, 40, 0.8)[0])
    assert [Path(run.origin).name for run in gather([str(tmp_path)], "test").runs] == ["a"]
    shutil.rmtree(tmp_path / "a")
    [file, *_] = run_files(runs["two"])
    shutil.copytree(file.parent, tmp_path / file.parent.name)
    assert len(gather([str(tmp_path)], "test").runs) == 1


def test_a_folder_stands_for_its_run_directories_and_for_what_w_and_b_alone_has(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    write_run(tmp_path / "a", accuracies(0, 40, 0.8)[0])
    [file, *_] = run_files(runs["two"])
    shutil.copytree(file.parent, tmp_path / "b" / "wandb" / file.parent.name)
    gathered = gather([str(tmp_path)], "test")
    assert [Path(run.origin).name for run in gathered.runs] == ["a", file.parent.name]
    # The copy that W&B has of a run whose directory is there too is that run.
    (tmp_path / "a" / "wandb_run_id").write_text(file.stem.removeprefix("run-"))
    assert [Path(run.origin).name for run in gather([str(tmp_path)], "test").runs] == ["a"]


def test_a_trial_that_was_broken_off_is_not_finished_though_it_ended_well() -> None:
    history = {0: {"step": 10, "eval/accuracy": 0.5}}
    pruned = OfflineRun("a", job_type="search", summary={"eval/accuracy": 0.5}, history=history, exit_code=0)
    assert not pruned.is_finished and pruned.progress == "not finished: pruned at step 10"
    assert OfflineRun("b", job_type="search", summary={"num_examples": {"test": 3}}, exit_code=0).is_finished
