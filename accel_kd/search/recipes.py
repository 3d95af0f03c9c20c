"""The recipes that a search runs: of a trial, of the teacher that all share, of the best settings again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from accel_kd.config.checks import check, needs_teacher_signal
from accel_kd.config.mistakes import explain
from accel_kd.config.objective_section import hidden_states_term
from accel_kd.config.schema import RunConfig
from accel_kd.config.search_checks import check_search_metric, with_settings
from accel_kd.errors import UserError
from accel_kd.run_directory import RunDirectory
from accel_kd.search.directory import SearchDirectory

_MAKE_THE_TEACHER = ("model", "revision", "trust_remote_code", "allow_pickle", "finetune")


def shares_a_teacher(config: RunConfig) -> bool:
    """Whether the teacher is fine-tuned, once for all trials: it is, unless the space itself makes several of it."""
    made = [f"teacher.{name}" for name in _MAKE_THE_TEACHER]
    varied = any(name == place or name.startswith(f"{place}.") for name in config.search.searched for place in made)
    return config.teacher.finetune is not None and not varied


def teacher_recipe(config: RunConfig, directory: SearchDirectory) -> RunConfig:
    """The recipe whose teacher all trials share."""
    return _checked(_plain(config, directory.shared, f"{directory.name}-shared", directory, ()))


def trial_recipe(
    config: RunConfig, directory: SearchDirectory, number: int, settings: Mapping[str, Any], *, look_at_store: bool
) -> RunConfig:
    """The plain run that a trial is.

    Args:
        config: the recipe of the search.
        directory: see there.
        number: of the trial.
        settings: those that are tried, by their dotted names.
        look_at_store: whether the stored answers are compared with the teacher's; once for each process will do.

    Raises:
        UserError: the recipe with these settings contradicts itself, or cannot be judged by `search.metric`.
    """
    name = f"{directory.name}-trial-{number:04}"
    recipe = _plain(config, directory.trial(number), name, directory, ("search", "trial"))
    recipe["run"]["control"] = False
    if not look_at_store:
        recipe["teacher"]["store"]["canary_rows"] = 0
    trial = _checked(_with_teacher(config, directory, with_settings(recipe, dict(settings))))
    check_search_metric(trial, config.search.metric or trial.evaluation.metric)
    return trial


def final_recipes(
    config: RunConfig, directory: SearchDirectory, number: int, settings: Mapping[str, Any]
) -> list[RunConfig]:
    """The `settings` of trial `number`, the best, with as many further seeds as are asked for.

    Each is a run of that trial: where more trials bring other best settings, these are trained beside it.
    """
    return [_final(config, directory, number, settings, 1 + place) for place in range(config.search.final_seeds)]


def _final(
    config: RunConfig, directory: SearchDirectory, number: int, settings: Mapping[str, Any], after: int
) -> RunConfig:
    """The best settings with a seed that no trial had, so many `after` the last of theirs."""
    seed = max(_seeds_of_trials(config, settings)) + after
    own = directory.final(number, seed)
    recipe = _plain(config, own, f"{directory.name}-{own.path.name}", directory, ("search", "best"))
    return _checked(_with_teacher(config, directory, with_settings(recipe, {**settings, "training.seed": seed})))


def _seeds_of_trials(config: RunConfig, settings: Mapping[str, Any]) -> list[int]:
    tried = config.search.searched.get("training.seed", [])
    searched = tried if isinstance(tried, list) else [tried.high]
    return [int(seed) for seed in [settings.get("training.seed", config.training.seed), *searched]]


def best_recipe(config: RunConfig, directory: SearchDirectory, settings: Mapping[str, Any]) -> RunConfig:
    """The recipe with the best settings, for the user: in no directory yet, tracked as the recipe says."""
    recipe = config.model_dump(mode="json", exclude={"search"})
    recipe["run"]["directory"] = None
    return _checked(_with_teacher(config, directory, with_settings(recipe, dict(settings))))


def _plain(
    config: RunConfig, own: RunDirectory, name: str, directory: SearchDirectory, tags: tuple[str, ...]
) -> dict[str, Any]:
    """The sections of the recipe as a run of its own, which goes on by itself and is tracked among the others."""
    recipe = config.model_dump(mode="json", exclude={"search"})
    recipe["run"] |= {"directory": str(own.path), "resume": "auto"}
    tracking = recipe["tracking"]
    tracking |= {
        "group": config.tracking.group or directory.name,
        "name": name if config.tracking.name is None else name.replace(directory.name, config.tracking.name, 1),
        "tags": [*tracking["tags"], *tags],
    }
    return recipe


def _with_teacher(config: RunConfig, directory: SearchDirectory, recipe: dict[str, Any]) -> dict[str, Any]:
    """The teacher that was fine-tuned for all, and its logits from the store unless the recipe says otherwise."""
    teacher = recipe["teacher"]
    if shares_a_teacher(config):
        model = directory.shared.part("teacher").model
        teacher |= {"model": str(model), "revision": None, "finetune": None}
    objective = _valid(recipe).objective
    if not needs_teacher_signal(objective):
        recipe["run"]["control"] = False  # the student itself is what the control would be
        teacher["source"] = "streaming"  # as a recipe says that asks no teacher
        if teacher["placement"] == "cached":
            teacher["placement"] = "auto"
        if config.student.init != "teacher_layers":
            teacher["finetune"] = None
    elif "source" not in config.teacher.model_fields_set and hidden_states_term(objective) is None:
        teacher["source"] = "cached"
    return recipe


def _valid(recipe: dict[str, Any]) -> RunConfig:
    try:
        return RunConfig.model_validate(recipe)
    except ValidationError as error:
        raise UserError("; ".join(explain(item) for item in error.errors())) from error


def _checked(recipe: dict[str, Any]) -> RunConfig:
    config = _valid(recipe)
    check(config)
    return config
