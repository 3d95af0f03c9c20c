"""The recipes that a search runs are plain ones, and as the user's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from accel_kd.config import load_recipe
from accel_kd.config.schema import RunConfig
from accel_kd.errors import UserError
from accel_kd.search.directory import SearchDirectory
from accel_kd.search.recipes import best_recipe, final_recipes, shares_a_teacher, teacher_recipe, trial_recipe

DIRECTORY = SearchDirectory(Path("/runs/demo-search"))
WHOLE = ["data.labelled_fraction=1", "objective.alpha=0.5"]


def trial(config: RunConfig, look_at_store: bool = True, **settings: object) -> RunConfig:
    named = {name.replace("__", "."): value for name, value in settings.items()}
    return trial_recipe(config, DIRECTORY, 7, named, look_at_store=look_at_store)


def test_a_trial_is_a_run_of_its_own_among_those_of_the_search() -> None:
    recipe = trial(load_recipe("demo", ["tracking.tags=[mine]", "search.num_trials=3"]), training__epochs=9)
    assert recipe.training.epochs == 9 and recipe.run.directory == "/runs/demo-search/trial-0007"
    assert recipe.run.control is False, "a control for each trial would be trained for nothing"
    assert (recipe.tracking.group, recipe.tracking.name) == ("demo-search", "demo-search-trial-0007")
    assert recipe.tracking.tags == ["mine", "search", "trial"]
    assert recipe.search == load_recipe("demo").search, "a plain recipe, of no search"
    named = trial(load_recipe("demo", ["tracking.group=g", "tracking.name=n"]))
    assert (named.tracking.group, named.tracking.name) == ("g", "n-trial-0007")


def test_trials_read_the_store_unless_the_recipe_says_otherwise() -> None:
    assert trial(load_recipe("demo")).teacher.source == "cached"
    assert trial(load_recipe("demo", ["teacher.source=streaming"])).teacher.source == "streaming"
    hidden = ["objective={terms: [{type: hard_label}, {type: hidden_states}]}", "search.space.training.epochs=[1]"]
    assert trial(load_recipe("demo", hidden)).teacher.source == "streaming", "a store holds logits only"


def test_the_stored_answers_are_looked_over_once_for_each_process() -> None:
    assert trial(load_recipe("demo")).teacher.store.canary_rows == 16
    assert trial(load_recipe("demo"), look_at_store=False).teacher.store.canary_rows == 0


@pytest.mark.parametrize("more", [[], ["teacher.source=cached"], ["teacher.source=cached", "teacher.placement=cached"]])
def test_a_trial_of_the_labels_alone_asks_no_teacher(more: list[str]) -> None:
    config = load_recipe("demo", [*WHOLE, *more])
    recipe = trial(config, objective__alpha=1.0)
    assert recipe.teacher.source == "streaming" and recipe.teacher.placement == "auto"
    best = best_recipe(config, DIRECTORY, {"objective.alpha": 1.0})
    assert best.run.control is False


def test_a_fine_tuned_teacher_is_shared_unless_the_space_makes_several() -> None:
    config = load_recipe("demo")
    assert shares_a_teacher(config)
    assert teacher_recipe(config, DIRECTORY).teacher.finetune == config.teacher.finetune
    recipe = trial(config, training__seed=3)
    assert recipe.teacher.finetune is None and recipe.teacher.model == "/runs/demo-search/shared/teacher/model"
    several = load_recipe("demo", ["search.space.teacher.finetune.epochs=[1, 2]"])
    assert not shares_a_teacher(several)
    own = trial(several, teacher__finetune__epochs=2).teacher
    assert own.finetune is not None and own.finetune.epochs == 2 and own.model == several.teacher.model
    assert not shares_a_teacher(load_recipe("demo", ["teacher.finetune=null"]))


def test_settings_that_exclude_each_other_are_refused_by_the_rule_that_they_break() -> None:
    with pytest.raises(UserError, match="data.labelled_fraction: rows without a label need a teacher"):
        trial(load_recipe("demo"), objective__alpha=1.0)


def test_a_trial_that_lacks_the_metric_of_the_search_is_refused() -> None:
    config = load_recipe("demo", [*WHOLE, "search.metric=teacher_kl"])
    assert trial(config, objective__alpha=0.9).evaluation.metric == "accuracy"
    with pytest.raises(UserError, match="search.metric: teacher_kl compares with a teacher"):
        trial(config, objective__alpha=1.0)


def test_the_best_settings_get_seeds_that_no_trial_had_and_the_control_that_the_recipe_wants() -> None:
    config = load_recipe("demo", ["search.final_seeds=2"])
    first, second = final_recipes(config, DIRECTORY, 7, {"training.epochs": 7})
    assert (first.training.seed, second.training.seed) == (43, 44) and first.training.epochs == 7
    assert first.run.control and first.run.directory == "/runs/demo-search/best-trial-0007-seed-43"
    assert first.tracking.name == "demo-search-best-trial-0007-seed-43"
    varied = final_recipes(config, DIRECTORY, 7, {"training.seed": 5})
    assert [recipe.training.seed for recipe in varied] == [6, 7]
    for space in ("[1, 9, 3]", "{low: 1, high: 9}"):
        config = load_recipe("demo", ["search.final_seeds=2", f"search.space={{training.seed: {space}}}"])
        further = final_recipes(config, DIRECTORY, 7, {"training.seed": 3})
        assert [recipe.training.seed for recipe in further] == [10, 11]


def test_the_best_recipe_is_the_users_own_with_other_values() -> None:
    config = load_recipe("demo")
    best = best_recipe(config, DIRECTORY, {"training.epochs": 7})
    assert best.training.epochs == 7 and best.run.directory is None and best.run.control
    assert best.tracking == config.tracking and best.teacher.source == "cached"
