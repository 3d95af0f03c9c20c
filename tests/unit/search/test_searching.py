"""What a process does on its own at a search: it has a place that no other has, and finds what trials are judged by."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from accelerate import Accelerator

from accel_kd.assembly.session import run_directory
from accel_kd.config import load_recipe
from accel_kd.config.schema import RunConfig
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


def test_a_seed_that_failed_for_a_process_which_has_gone_on_is_tried_by_the_last_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At first the other process has it; when this one has trained the rest it fails here, too, and is told of."""
    config = load_recipe("demo", ["search.final_seeds=2"])
    given: list[list[Any]] = []
    passes: list[int] = []

    def run_final(recipe: RunConfig) -> str | None:
        seed = recipe.training.seed
        passes.append(seed)
        if seed == 44:
            run_directory(recipe).path.mkdir(parents=True, exist_ok=True)
            run_directory(recipe).write_summary({})
        return "train/loss is nan" if seed == 43 and passes.count(43) == 2 else None

    monkeypatch.setattr(searching, "best_of", lambda *_, **__: SimpleNamespace(number=7, settings={}))
    monkeypatch.setattr(searching, "write_results", lambda *arguments: given.append(list(arguments)) or "results")
    search: Any = SimpleNamespace(
        _config=config, _directory=SearchDirectory(tmp_path), _metric="accuracy", _shared_study=None,
        _accelerator=Accelerator(cpu=True), _run_final=run_final,
    )  # fmt: skip
    assert searching._Search._finish(search, []) == "results"
    *_, finals, failures = given[0]
    assert [recipe.training.seed for recipe in finals] == [44]
    assert failures == ["Seed 43 of the best settings failed: train/loss is nan"]
