"""A directory is a new run, one to go on with, or a finished one; nothing in it is ever lost or half written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from accel_kd.errors import UserError
from accel_kd.run_directory import (
    RunDirectory,
    RunState,
    in_use,
    is_part_of_run,
    open_run,
    owner_of,
    write_atomically,
)

SETTINGS = {"data": {"path": "x", "splits": {"train": "train"}}, "training": {"epochs": 3, "seed": 42}}


def opened(directory: RunDirectory, settings: dict[str, Any] = SETTINGS, resume: str = "auto") -> RunState:
    with in_use(directory):
        return open_run(
            directory,
            config_text=yaml.safe_dump(settings),
            settings=settings,
            old_settings=yaml.safe_load,
            resume=resume,
        )


def contents(folder: Path) -> dict[str, str]:
    files = [file for file in folder.rglob("*") if file.is_file() and file.name != ".lock"]
    return {str(file.relative_to(folder)): file.read_text() for file in files}


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path / "runs" / "first")


def test_a_directory_is_new_then_unfinished_then_finished(directory: RunDirectory) -> None:
    assert opened(directory) is RunState.NEW
    assert contents(directory.path) == {"config.yaml": yaml.safe_dump(SETTINGS)}
    directory.metrics.write_text("{}\n")
    assert opened(directory) is RunState.UNFINISHED and not directory.is_finished
    directory.write_summary({"eval/accuracy": 0.5, "name": "Müller"})
    assert opened(directory) is RunState.FINISHED and directory.is_finished
    assert directory.read_summary() == {"eval/accuracy": 0.5, "name": "Müller"}
    assert directory.metrics.read_text() == "{}\n", "opening changes nothing"


def test_an_empty_directory_is_as_good_as_none(directory: RunDirectory) -> None:
    directory.path.mkdir(parents=True)
    assert opened(directory) is RunState.NEW


def test_a_directory_with_something_else_is_refused_and_left_alone(directory: RunDirectory) -> None:
    directory.path.mkdir(parents=True)
    (directory.path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"run\.directory: .* is not empty and holds no run"):
        opened(directory)
    assert contents(directory.path) == {"thesis.tex": "years of work"}


def test_a_file_in_its_place_and_a_place_that_cannot_be_made_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"run\.directory: .*file is a file"):
        opened(RunDirectory(tmp_path / "file"))
    with pytest.raises(UserError, match=r"run\.directory: .* cannot be made"):
        opened(RunDirectory(tmp_path / "file" / "below"))


def test_resume_says_what_must_or_must_not_be_there(directory: RunDirectory) -> None:
    assert opened(directory, resume="never") is RunState.NEW
    directory.metrics.write_text("{}\n")
    assert opened(directory, resume="must") is RunState.UNFINISHED
    with pytest.raises(UserError, match=r"holds a run that is unfinished.*run\.resume is never"):
        opened(directory, resume="never")
    directory.write_summary({})
    with pytest.raises(UserError, match="holds a run that is finished"):
        opened(directory, resume="never")


def test_a_directory_in_use_is_refused_until_its_process_is_gone(directory: RunDirectory) -> None:
    lock = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, 2); print('locked', flush=True); input()"
    opened(directory)
    with subprocess.Popen(
        [sys.executable, "-c", lock, directory.path / ".lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"locked\n"
        with pytest.raises(UserError, match=r"run\.directory: .* is in use by a run that is going on"):
            opened(directory)
        other.kill()
    assert opened(directory) is RunState.NEW


def test_what_a_killed_writer_left_does_not_stand_in_the_way(directory: RunDirectory) -> None:
    directory.path.mkdir(parents=True)
    (directory.path / ".config.yaml.123").write_text("half")
    assert opened(directory) is RunState.NEW


def test_a_run_with_other_settings_is_refused_and_each_difference_is_named(directory: RunDirectory) -> None:
    opened(directory)
    directory.metrics.write_text("{}\n")
    before = contents(directory.path)
    other = {
        "data": {"path": "x", "splits": {"train": "fit"}},
        "training": {"epochs": 5, "seed": 42, "schedule": "cosine"},
    }
    with pytest.raises(UserError) as failure:
        opened(directory, other)
    message = str(failure.value)
    assert "unfinished with other settings" in message
    assert (
        "data.splits.train: train there, fit here; training.epochs: 3 there, 5 here; "
        "training.schedule: None there, cosine here" in message
    )
    assert "seed" not in message and "path: x" not in message
    assert contents(directory.path) == before
    with pytest.raises(UserError, match=r"training: \{.*\} there, None here"):
        opened(directory, {"data": SETTINGS["data"]})


def test_what_scripts_put_beside_a_run_makes_none_and_does_not_stand_in_its_way(directory: RunDirectory) -> None:
    (directory.path / "slurm").mkdir(parents=True)
    (directory.path / "slurm" / "distill.sbatch").write_text("#!/bin/bash")
    (directory.path / "stop").touch()
    (directory.path / "status.json").write_text("{}")
    assert opened(directory) is RunState.NEW
    assert opened(directory, {"data": {"path": "another"}}) is RunState.NEW, "nothing was begun yet"


def test_a_run_may_be_asked_for_more_and_a_finished_one_is_then_unfinished(directory: RunDirectory) -> None:
    longer = {**SETTINGS, "training": {"epochs": 5, "seed": 42}}

    def lengthened(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
        grows = new["training"]["epochs"] > old["training"]["epochs"]
        return {**old, "training": {**old["training"], "epochs": new["training"]["epochs"]}} if grows else old

    def open_again(settings: dict[str, Any]) -> RunState:
        with in_use(directory):
            return open_run(
                directory,
                config_text=yaml.safe_dump(settings),
                settings=settings,
                old_settings=yaml.safe_load,
                resume="auto",
                lengthened=lengthened,
            )

    opened(directory)
    directory.write_summary({"eval/accuracy": 0.5})
    assert open_again(SETTINGS) is RunState.FINISHED
    with pytest.raises(UserError, match="training.seed: 42 there, 43 here"):
        open_again({**longer, "training": {"epochs": 5, "seed": 43}})
    with pytest.raises(UserError, match="without a checkpoint to go on from"):
        open_again(longer)
    assert open_again(SETTINGS) is RunState.FINISHED, "a refusal changes nothing"
    (directory.checkpoints / "step-00000007").mkdir(parents=True)
    assert open_again(longer) is RunState.UNFINISHED
    assert open_again(longer) is RunState.UNFINISHED, "until the longer run is finished"
    assert yaml.safe_load(directory.config.read_text()) == longer
    with pytest.raises(UserError, match="training.epochs: 5 there, 3 here"):
        open_again(SETTINGS)


def test_every_file_lies_inside_the_directory_and_parts_do_not_share_any(directory: RunDirectory) -> None:
    parts = [directory, directory.part("control"), directory.part("teacher")]
    names = ["config", "metrics", "summary", "model", "predictions", "checkpoints", "wandb_run_id"]
    files = [getattr(part, name) for part in parts for name in names]
    assert len(set(files)) == len(files)
    assert all(file.is_relative_to(directory.path) for file in files)
    assert (parts[1].model.name, parts[2].model.name) == ("student", "model")


def test_a_part_is_what_a_run_has_beside_its_student_and_no_model_or_run_of_that_name(tmp_path: Path) -> None:
    run = tmp_path / "control"
    run.mkdir()
    (run / "config.yaml").touch()
    assert not is_part_of_run(run) and owner_of(run).path == run  # a run that somebody called control
    for name in ("control", "teacher"):
        assert is_part_of_run(run / name) and owner_of(run / name).path == run, name
        assert not is_part_of_run(tmp_path / "elsewhere" / name)
    assert not is_part_of_run(run / "student")
    for name, file in (("control", "config.yaml"), ("teacher", "config.json")):
        (run / name).mkdir()
        (run / name / file).touch()
        assert not is_part_of_run(run / name) and owner_of(run / name).path == run / name, file


def test_a_write_that_fails_leaves_the_former_text_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "summary.json"
    write_atomically(path, "former\n")
    seen = []

    def full(descriptor: int) -> None:
        seen.append(path.read_text())
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space left"):
        write_atomically(path, "new\n")
    assert seen == ["former\n"] and path.read_text() == "former\n"


def test_a_text_is_on_the_disk_before_it_takes_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "summary.json"
    flushed = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: flushed.append((path.exists(), os.fstat(descriptor).st_size)))
    write_atomically(path, "text\n")
    assert flushed == [(False, 5)]
    assert [file.name for file in tmp_path.iterdir()] == ["summary.json"] and path.read_text() == "text\n"


def test_a_run_is_not_finished_by_a_summary_that_was_never_renamed(directory: RunDirectory) -> None:
    opened(directory)
    (directory.path / f".summary.json.{os.getpid()}").write_text('{"eval/accu')
    assert not directory.is_finished
