"""What a search says at its end, from a study whose trials were made up."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import pytest

from accel_kd.config import load_recipe
from accel_kd.search import results
from accel_kd.search.directory import SearchDirectory
from accel_kd.search.records import best_of
from accel_kd.search.results import write_results
from accel_kd.search.study import SharedStudy

SPACE = "search.space={objective.temperature: {low: 1, high: 20}, training.schedule: [linear, cosine]}"


def searched(folder: Path, num_trials: int, *overrides: str, failures: Sequence[str] = ()) -> str:
    """Trials whose value is by the temperature alone; every sixth fails, every seventh is pruned."""
    config = load_recipe("demo", [SPACE, f"search.num_trials={num_trials}", "search.max_failed_trials=99", *overrides])
    directory = SearchDirectory(folder)
    study = SharedStudy(config, directory, {})
    while (assignment := study.next_trial()) is not None:
        value = 1.0 - abs(assignment.settings["objective.temperature"] - 7.0) / 20
        study.report(1, value, True)
        if assignment.number % 6 == 5:
            study.end_trial("failed", reason="too bad")
        elif assignment.number % 7 == 6:
            study.end_trial("pruned", reason="worse")
        else:
            study.end_trial("complete", value)
    best = best_of(study.records(), is_minimised="search.metric=loss" in overrides)
    return write_results(config, directory, study, best, [], failures)


def test_importance_is_told_of_what_mattered_and_not_where_trials_are_too_few(tmp_path: Path) -> None:
    text = searched(tmp_path / "many", 30)
    shares = json.loads((tmp_path / "many" / "search.json").read_text())["importances"]
    assert shares["objective.temperature"] > 0.8 > shares["training.schedule"]
    assert text.index("objective.temperature\n") < text.index("training.schedule\n", text.index("Importance"))
    assert (tmp_path / "many" / "importances.png").is_file()
    text = searched(tmp_path / "few", 8)
    assert "too few complete trials to tell (6, and 10 are needed)" in text
    assert not (tmp_path / "few" / "importances.png").exists()


def test_the_table_begins_with_the_best_and_ends_with_what_failed_each_with_its_reason(tmp_path: Path) -> None:
    for metric, order in (("accuracy", -1), ("loss", 1)):
        text = searched(tmp_path / metric, 8, f"search.metric={metric}")
        lines = [line for line in text.splitlines() if line.startswith("| ")][1:]
        found = json.loads((tmp_path / metric / "search.json").read_text())
        complete = sorted(
            (order * trial["value"], trial["number"]) for trial in found["trials"] if trial["outcome"] == "complete"
        )
        numbers = [int(line.split("|")[1]) for line in lines]
        assert numbers[:6] == [number for _, number in complete] and numbers[6:] == [6, 5]
        assert found["best"] == complete[0][1] and f"Best: trial {complete[0][1]}, {metric}" in text
        assert "trial 5 failed: too bad" in text and found["direction"] == ("minimise" if order == 1 else "maximise")


def test_results_are_written_by_one_process_at_a_time(tmp_path: Path) -> None:
    directory = SearchDirectory(tmp_path)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        claim = directory.claim("results")
        os.write(writing, b"!")
        time.sleep(1.0)
        os._exit(1 if claim is None or directory.results.exists() else 0)
    os.read(reading, 1)
    searched(tmp_path, 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, "the other process had not ended with it"
    assert directory.results.is_file()


def test_a_search_without_a_complete_trial_says_so(tmp_path: Path) -> None:
    config = load_recipe("demo", [SPACE, "search.num_trials=1"])
    study = SharedStudy(config, SearchDirectory(tmp_path), {})
    assert study.next_trial() is not None
    study.end_trial("failed", reason="too bad")
    text = write_results(config, SearchDirectory(tmp_path), study, None, [])
    assert "No trial is complete" in text and not (tmp_path / "best.yaml").exists()


@pytest.mark.parametrize(
    "tried",
    [
        "student.dropout: [null, 0.1]", "student.dropout: [0.1, null]", "student.dropout: [0.1, 0.2]",
        "student.layers: [2, [0, 5]]", "training.group_by_length: [true, false]",
    ],
)  # fmt: skip
def test_choices_of_any_kind_are_drawn(tried: str, tmp_path: Path) -> None:
    space = f"search.space={{objective.temperature: {{low: 1, high: 20}}, {tried}}}"
    text = searched(tmp_path, 8, space)
    assert "slices.png" in text and (tmp_path / "slices.png").read_bytes().startswith(b"\x89PNG")


def test_a_picture_that_cannot_be_drawn_takes_no_figure_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*given: object) -> NoReturn:
        raise ValueError("no picture")

    monkeypatch.setattr(results, "draw", fails)
    with pytest.raises(ValueError, match="no picture"):
        searched(tmp_path, 8)
    assert "Best: trial" in (tmp_path / "search.md").read_text()


def test_seeds_that_failed_are_told_of(tmp_path: Path) -> None:
    text = searched(tmp_path, 3, failures=["Seed 44 of the best settings failed: train/loss is nan"])
    assert "Seed 44 of the best settings failed: train/loss is nan" in text == (tmp_path / "search.md").read_text()[:-1]
