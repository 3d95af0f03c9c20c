"""A search is plain runs, by however many processes and with whatever interruptions, and ends with what they found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from accel_kd.config import load_recipe
from accel_kd.errors import EXIT_FAILURE, EXIT_STOPPED, EXIT_USER_ERROR
from tests.support.exactness import differences, rows
from tests.support.forks import Forks
from tests.support.processes import summary
from tests.support.searches import command, results

NUM_TRIALS = 10


@pytest.fixture(scope="module")
def searched(forks: Forks, tiny_data: Path, tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole search, with pruning and the best settings again."""
    directory = tmp_path_factory.mktemp("searched") / "search"
    more = [f"search.num_trials={NUM_TRIALS}", "search.pruner=median", "search.final_seeds=2"]
    forks.run(*command(tiny_data, tiny_teacher, directory, *more)).succeeded()
    return directory


def settings_of(trial: dict[str, Any]) -> list[str]:
    return [f"{name}={value}" for name, value in trial["settings"].items()]


def plain_run(forks: Forks, trial: Path, directory: Path, *more: str, **options: Any) -> Path:
    """The run that a user starts with the recipe of a trial."""
    forks.run("distill", trial / "config.yaml", f"run.directory={directory}", *more, **options).succeeded()
    return directory


def test_a_search_ends_with_a_table_of_its_trials_a_recipe_of_the_best_and_pictures(searched: Path) -> None:
    found = results(searched)
    trials = found["trials"]
    assert [trial["number"] for trial in trials] == list(range(NUM_TRIALS))
    complete = [trial for trial in trials if trial["outcome"] == "complete"]
    pruned = [trial for trial in trials if trial["outcome"] == "pruned"]
    assert len(complete) + len(pruned) == NUM_TRIALS and pruned
    for trial in complete:
        assert trial["value"] == summary(Path(trial["directory"]))["eval/accuracy"]
        assert len(trial["evaluations"]) == trial["settings"]["training.epochs"] and trial["seconds"] > 0
    best = trials[found["best"]]
    assert best["value"] == max(trial["value"] for trial in complete)
    assert found["importances"] is None
    assert found["environment"]["packages"]["torch"] and found["optuna"]
    table = (searched / "search.md").read_text()
    assert table.count("| complete |") == len(complete) and f"Best: trial {best['number']}" in table
    assert f"too few complete trials to tell ({len(complete)}, and 10 are needed)" in table
    for picture in ("history.png", "slices.png"):
        assert (searched / picture).read_bytes().startswith(b"\x89PNG")
    recipe = load_recipe(str(searched / "best.yaml"))
    assert recipe.training.epochs == best["settings"]["training.epochs"]
    assert recipe.objective.alpha == best["settings"]["objective.alpha"]


def test_the_best_settings_are_trained_again_with_seeds_that_had_no_part_in_choosing_them(searched: Path) -> None:
    found = results(searched)
    best = found["trials"][found["best"]]
    assert [final["seed"] for final in found["finals"]] == [43, 44]
    for final in found["finals"]:
        recipe = load_recipe(str(Path(final["directory"]) / "config.yaml"))
        assert recipe.training.seed == final["seed"] and recipe.objective.alpha == best["settings"]["objective.alpha"]
        assert final["figures"]["test/accuracy"] == summary(Path(final["directory"]))["test/accuracy"]


def test_a_trial_is_the_plain_run_of_its_recipe_bit_for_bit(forks: Forks, searched: Path, tmp_path: Path) -> None:
    complete = [trial for trial in results(searched)["trials"] if trial["outcome"] == "complete"]
    for trial in (complete[0], complete[-1]):  # the last was not the first of its process
        own = Path(trial["directory"])
        assert differences(own, plain_run(forks, own, tmp_path / own.name)) == []


def test_the_best_recipe_gives_the_best_trial(forks: Forks, searched: Path, tmp_path: Path) -> None:
    found = results(searched)
    forks.run("distill", searched / "best.yaml", f"run.directory={tmp_path / 'best'}").succeeded()
    assert differences(Path(found["trials"][found["best"]]["directory"]), tmp_path / "best") == []


def test_a_pruned_trial_is_the_beginning_of_the_plain_run(forks: Forks, searched: Path, tmp_path: Path) -> None:
    trial = next(trial for trial in results(searched)["trials"] if trial["outcome"] == "pruned")
    own = Path(trial["directory"])
    status = json.loads((own / "status.json").read_text())
    assert status["state"] == "pruned" and status["reason"] == trial["reason"] and not (own / "summary.json").exists()
    whole = rows(plain_run(forks, own, tmp_path / "whole"))
    assert rows(own) == whole[: len(rows(own))] and len(rows(own)) < len(whole)
    assert rows(own)[-1]["eval/accuracy"] == trial["value"] == list(trial["evaluations"].values())[-1]


def test_trials_are_tracked_as_runs_of_one_group(searched: Path) -> None:
    run = json.loads((searched / "trial-0003" / "metrics.jsonl").read_text().splitlines()[0])["run"]
    assert (run["group"], run["job_type"], run["name"]) == ("search", "search", "search-trial-0003")
    assert run["tags"] == ["search", "trial"]


def test_the_same_command_on_a_finished_search_trains_nothing_and_more_trials_go_on_with_it(
    forks: Forks, searched: Path, tiny_data: Path, tiny_teacher: Path
) -> None:
    more = ["search.pruner=median", "search.final_seeds=2"]
    before = {file: file.stat().st_mtime_ns for file in searched.glob("*/summary.json")}
    again = forks.run(*command(tiny_data, tiny_teacher, searched, *more, f"search.num_trials={NUM_TRIALS}"))
    assert f"Best: trial {results(searched)['best']}" in again.succeeded().text
    assert {file: file.stat().st_mtime_ns for file in searched.glob("*/summary.json")} == before
    other = forks.run(*command(tiny_data, tiny_teacher, searched, "search.sampler=random", "training.batch_size=8"))
    assert other.codes == [EXIT_USER_ERROR]
    assert "search.sampler: tpe there, random here; training.batch_size: 16 there, 8 here" in other.text


def test_two_processes_share_the_trials_and_one_that_is_killed_loses_none(
    forks: Forks, tiny_data: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    directory, output = tmp_path / "search", tmp_path / "output"
    # The first process dies in the middle of its first trial, of which the fourth step is in a checkpoint.
    faults = json.dumps([{"at": "step", "count": 7, "do": "kill"}])
    arguments = command(tiny_data, tiny_teacher, directory, "search.num_trials=8", "search.final_seeds=1")
    forks.run("tests.support.searches:together", output, faults, *arguments).succeeded()
    killed, survivor = (Path(f"{output}.{number}").read_text() for number in range(2))
    assert killed.endswith("exit -9") and survivor.endswith("exit 0")
    found = results(directory)
    assert [trial["number"] for trial in found["trials"]] == list(range(8))
    assert {trial["outcome"] for trial in found["trials"]} == {"complete"}
    assert len(list(directory.glob("trial-*"))) == 8 and len(found["finals"]) == 1
    begun = [line for line in (killed + survivor).splitlines() if " begins: " in line]
    assert len(begun) == 8 and killed.count(" begins: ") == 1
    [taken] = [line for line in survivor.splitlines() if "is taken up again" in line]
    number = int(taken.split("trial ")[1].split()[0])
    own = directory / f"trial-{number:04}"
    assert json.loads((own / "status.json").read_text())["attempt"] == 2
    assert "distill: goes on after step 4 of" in survivor
    assert differences(own, plain_run(forks, own, tmp_path / "plain")) == []


def test_a_search_that_is_asked_to_stop_goes_on_and_ends_as_if_it_had_not(
    forks: Forks, tiny_data: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    forks.run(*command(tiny_data, tiny_teacher, whole)).succeeded()
    arguments = command(tiny_data, tiny_teacher, parts)
    stopped = forks.run(*arguments, faults=[{"at": "step", "count": 18, "do": "SIGTERM"}])
    assert stopped.codes == [EXIT_STOPPED] and "stopped by SIGTERM; the same command goes on" in stopped.text
    status = json.loads((parts / "workers" / "1" / "status.json").read_text())
    assert (status["state"], status["command"]) == ("stopped", "search") and status["step"] > 0
    (parts / "workers" / "1" / "stop").touch()
    assert forks.run(*arguments).codes == [EXIT_STOPPED] and not (parts / "workers" / "1" / "stop").exists()
    forks.run(*arguments).succeeded()
    kept = ("number", "settings", "outcome", "value", "evaluations")
    one, other = ([{key: t[key] for key in kept} for t in results(d)["trials"]] for d in (whole, parts))
    assert one == other
    for number in range(4):
        assert differences(whole / f"trial-{number:04}", parts / f"trial-{number:04}") == []


def test_two_ranks_run_the_same_trials_and_one_that_is_not_finite_fails_alone(
    forks: Forks, tiny_data: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "search"
    arguments = command(tiny_data, tiny_teacher, directory, "search.num_trials=3", "search.pruner=hyperband")
    searched = forks.run(*arguments, ranks=2, faults=[{"at": "step", "count": 4, "do": "spoil"}]).succeeded()
    assert searched.text.count("trial 1 begins") == 1
    first, second, third = results(directory)["trials"]
    assert first["outcome"] == "failed" and "train/loss is" in first["reason"] and "at step 4" in first["reason"]
    assert second["outcome"] == "complete" and third["outcome"] in ("complete", "pruned")
    own = Path(second["directory"])
    assert summary(own)["world_size"] == 2
    assert differences(own, plain_run(forks, own, tmp_path / "plain", ranks=2)) == []


def test_a_teacher_is_fine_tuned_once_for_all_trials_which_are_the_runs_that_fine_tune_their_own(
    forks: Forks, tiny_data: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "search"
    tuned = ["teacher.finetune.epochs=2", "teacher.finetune.learning_rate=1e-3"]
    arguments = [a for a in command(tiny_data, tiny_teacher, directory, *tuned) if a != "teacher.finetune=null"]
    # What a fine-tuning takes over from `training` is the recipe's own there: trials do not differ in it.
    forks.run(*arguments, "search.num_trials=2").succeeded()
    assert (directory / "shared" / "teacher" / "summary.json").is_file()
    assert list(directory.glob("trial-*/teacher")) == []
    trial = results(directory)["trials"][1]
    own = Path(trial["directory"])
    assert yaml.safe_load((own / "config.yaml").read_text())["teacher"]["finetune"] is None
    settings = [a for a in arguments[2:] if not a.startswith(("search.", "run.directory"))]
    plain = ["distill", "clinc150_minilm", *settings, *settings_of(trial), "teacher.source=cached"]
    forks.run(*plain, f"run.directory={tmp_path / 'plain'}").succeeded()
    assert differences(tmp_path / "plain", own) == []


def test_what_is_the_trials_own_fault_is_noted_and_what_is_the_users_ends_the_search(
    forks: Forks, tiny_data: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "search"
    layers = ["search.sampler=grid", "search.space={student.layers: [[7], [0], [2], [8]]}"]
    arguments = command(tiny_data, tiny_teacher, directory, *layers, "student.layers=1")
    forks.run(*arguments, faults=[{"at": "step", "count": 3, "do": "exhaust"}]).succeeded()
    reasons = [trial["reason"] or "" for trial in results(directory)["trials"] if trial["outcome"] == "failed"]
    assert len(reasons) == 3
    assert sum(reason.startswith("student.layers: ") for reason in reasons) == 2
    assert sum(reason.startswith("out of memory on the device") for reason in reasons) == 1
    limited = command(tiny_data, tiny_teacher, tmp_path / "limited", *layers, "search.max_failed_trials=1")
    ended = forks.run(*limited)
    assert ended.codes == [EXIT_FAILURE] and "2 trials failed (search.max_failed_trials is 1)" in ended.text
    absent = forks.run(*command(tmp_path / "absent", tiny_teacher, tmp_path / "other"))
    assert absent.codes == [EXIT_USER_ERROR] and absent.text.count("accel-kd: data.path:") == 1
    assert "Traceback" not in absent.text + ended.text
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "something").touch()
    full = forks.run(*command(tiny_data, tiny_teacher, tmp_path / "full"))
    assert full.codes == [EXIT_USER_ERROR] and "is not empty and holds no search" in full.text


def test_a_seed_of_the_best_settings_that_fails_takes_no_result_away(
    forks: Forks, tiny_data: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "search"
    more = ["search.num_trials=1", "search.final_seeds=2", "search.space={training.epochs: [2]}"]
    arguments = command(tiny_data, tiny_teacher, directory, *more)
    # The trial takes ten steps, and so does each seed.
    searched = forks.run(*arguments, faults=[{"at": "step", "count": 13, "do": "spoil"}]).succeeded()
    assert "Seed 43 of the best settings failed: train/loss is" in searched.text
    assert [final["seed"] for final in results(directory)["finals"]] == [44]
    again = forks.run(*arguments).succeeded()
    assert "failed" not in again.text and [final["seed"] for final in results(directory)["finals"]] == [43, 44]
