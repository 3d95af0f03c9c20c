"""The best settings are trained again, and so are others that further trials find to be better."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

from accelerate import Accelerator

from accel_kd.assembly.session import Trial, open_run_directory, run_directory
from accel_kd.config import load_recipe
from accel_kd.config.schema import RunConfig
from accel_kd.distill import run_recipe
from accel_kd.run_directory import RunState
from accel_kd.search.directory import SearchDirectory
from accel_kd.search.recipes import final_recipes
from accel_kd.search.records import best_of
from accel_kd.search.study import SharedStudy
from accel_kd.training.loop import ask_nobody

SPACE = "search.space={objective.temperature: {low: 1, high: 20}}"
A_TRIAL = Trial(cast(Any, None), ask_nobody)


def best_again(directory: SearchDirectory, values: list[float]) -> RunConfig:
    """The recipe of the best settings with a further seed, after as many trials as there are `values`."""
    config = load_recipe("demo", [SPACE, f"search.num_trials={len(values)}", "search.final_seeds=1"])
    study = SharedStudy(config, directory, {})
    while (assignment := study.next_trial()) is not None:
        study.end_trial("complete", values[assignment.number])
    best = best_of(study.records(), is_minimised=False)
    assert best is not None
    [recipe] = final_recipes(config, directory, best.number, best.settings)
    assert recipe.objective.temperature == best.settings["objective.temperature"]
    return recipe


def opened(recipe: RunConfig) -> RunState:
    with ExitStack() as until:
        return open_run_directory(recipe, until, may_reopen=False)


def finish(recipe: RunConfig) -> None:
    own = run_directory(recipe)
    own.model.mkdir(parents=True)
    (own.model / "README.md").touch()
    own.write_summary({})


def test_other_best_settings_of_further_trials_are_trained_beside_those_before(tmp_path: Path) -> None:
    directory = SearchDirectory(tmp_path)
    first = best_again(directory, [0.5, 0.25])
    assert opened(first) is RunState.NEW
    finish(first)
    assert opened(best_again(directory, [0.5, 0.25, 0.4])) is RunState.FINISHED, "the same are the best"
    better = best_again(directory, [0.5, 0.25, 0.4, 0.75])
    assert better.training.seed == first.training.seed and opened(better) is RunState.NEW


def test_a_run_of_a_search_that_is_finished_is_not_made_longer(tmp_path: Path) -> None:
    recipe = load_recipe("demo", [f"run.directory={tmp_path}"])
    assert opened(recipe) is RunState.NEW
    finish(recipe)
    epochs = recipe.training.epochs
    longer = recipe.model_copy(update={"training": recipe.training.model_copy(update={"epochs": epochs + 1})})
    run_recipe(longer, Accelerator(cpu=True), A_TRIAL)
    assert run_directory(recipe).is_finished and json.loads((tmp_path / "status.json").read_text())["attempt"] == 1
