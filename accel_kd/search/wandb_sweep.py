"""The same search as a configuration for `wandb sweep`: its agents then start plain runs, one for each choice."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from accel_kd.config.checks import needs_teacher_signal
from accel_kd.config.objective_section import ObjectiveConfig, hidden_states_term
from accel_kd.config.schema import RunConfig
from accel_kd.config.search_checks import number_type, values_on_grid, with_settings
from accel_kd.config.search_section import RangeConfig
from accel_kd.errors import UserError
from accel_kd.metrics.direction import is_minimised
from accel_kd.search.directory import search_directory

_METHODS = {"tpe": "bayes", "random": "random", "grid": "grid"}


def write_sweep(config: RunConfig, recipe: str, overrides: Sequence[str], file: str) -> str:
    """Writes the configuration.

    Args:
        config: the recipe with the overrides.
        recipe: its name, or its file.
        overrides: settings that replace the recipe's.
        file: where it goes.

    Returns:
        What is to be done with it.

    Raises:
        UserError: each run of the sweep would fine-tune a teacher of its own, some would ask other things of a teacher
            than others, or the file cannot be written.
    """
    _refuse_fine_tuning(config)
    _refuse_objectives_of_several_kinds(config)
    sweep = sweep_of(config, recipe, overrides)
    try:
        Path(file).write_text(yaml.safe_dump(sweep, sort_keys=False, width=120), encoding="utf-8")
    except OSError as error:
        raise UserError(f"--wandb-sweep: {file} cannot be written: {error.strerror}") from error
    return f"{file} is a sweep of up to {config.search.num_trials} runs:\n  wandb sweep {file}"


def _refuse_fine_tuning(config: RunConfig) -> None:
    """To W&B a run of a sweep is one run, whatever id it is given: two trainings would be written into one."""
    tuned = [name for name in config.search.searched if f"{name}.".startswith("teacher.finetune.")]
    if tuned:
        raise UserError(
            f"search.space.{tuned[0]}: a run of a sweep trains one model, and no teacher first; leave it out, or "
            "search without --wandb-sweep"
        )
    if config.teacher.finetune is not None:
        raise UserError(
            "teacher.finetune: a run of a sweep trains one model; fine-tune first (accel-kd cache-teacher with this "
            "recipe), then use teacher.model=RUN_DIRECTORY/teacher/model and teacher.finetune=null"
        )


def _reads_a_store(config: RunConfig) -> bool:
    """Whether the runs read the teacher's logits from a store, as trials do, where the recipe does not say."""
    return _asks(config.objective) == "its logits alone" and "source" not in config.teacher.model_fields_set


def _asks(objective: ObjectiveConfig) -> str:
    """What of a teacher."""
    if not needs_teacher_signal(objective):
        return "nothing"
    return "its logits alone" if hidden_states_term(objective) is None else "its hidden states"


def _refuse_objectives_of_several_kinds(config: RunConfig) -> None:
    """A sweep gives all runs one command, and runs that ask other things of a teacher want other ones."""
    recipe, asked = config.model_dump(mode="json"), _asks(config.objective)
    for name, tried in config.search.searched.items():
        if not name.startswith("objective.") or not _is_tried_by_values(config, tried):
            continue
        for value in values_on_grid(name, tried):
            other = _asks(RunConfig.model_validate(with_settings(recipe, {name: value})).objective)
            if other != asked:
                raise UserError(
                    f"search.space.{name}: {value} asks {other} of a teacher, and what the recipe has {asked}; a sweep "
                    "gives all its runs one command: leave it out, or search without --wandb-sweep"
                )


def _is_tried_by_values(config: RunConfig, tried: RangeConfig | list[Any]) -> bool:
    """And not as a range: W&B's steps begin at 0 (its q_uniform), and those of a range at its low end."""
    return isinstance(tried, list) or config.search.sampler == "grid" or tried.step is not None


def sweep_of(config: RunConfig, recipe: str, overrides: Sequence[str]) -> dict[str, Any]:
    """What `wandb sweep` reads.

    The agent gives each run its id in the environment, which only a shell puts into a name: each has a directory of its
    own by it, so that a run that was stopped goes on.
    """
    section = config.search
    metric = section.metric or config.evaluation.metric
    directory = search_directory(config).path
    own = [one for one in overrides if not one.startswith(("search.", "run.directory="))]
    if _reads_a_store(config):
        own.append("teacher.source=cached")
    own.append("run.control=false")  # it would be tracked as the very run that the student is
    script = f'exec "$0" -m accel_kd distill "$@" run.directory="{directory}/$WANDB_RUN_ID"'
    sweep: dict[str, Any] = {
        "name": directory.name,
        "project": config.tracking.project,
        "method": _METHODS[section.sampler],
        "metric": {"name": f"eval/{metric}", "goal": "minimize" if is_minimised(metric) else "maximize"},
        "run_cap": section.num_trials,
        "parameters": {name: _parameter(config, name, tried) for name, tried in section.searched.items()},
        "program": "accel_kd",
        "command": ["${env}", "sh", "-c", script, "${interpreter}", recipe, *own, "${args_no_hyphens}"],
    }
    if config.tracking.entity is not None:
        sweep["entity"] = config.tracking.entity
    if section.pruner == "hyperband":
        sweep["early_terminate"] = {"type": "hyperband", "min_iter": 1}
    return sweep


def _parameter(config: RunConfig, name: str, tried: RangeConfig | list[Any]) -> dict[str, Any]:
    if _is_tried_by_values(config, tried):
        return {"values": [_as_text_if_compound(value) for value in values_on_grid(name, tried)]}
    assert isinstance(tried, RangeConfig), "a list is values"
    number = number_type(name) or float
    is_whole = number is int
    if tried.log:
        kind = "q_log_uniform_values" if is_whole else "log_uniform_values"
    else:
        kind = "int_uniform" if is_whole else "uniform"
    parameter: dict[str, Any] = {"distribution": kind, "min": number(tried.low), "max": number(tried.high)}
    if kind.startswith("q_"):
        parameter["q"] = 1
    return parameter


def _as_text_if_compound(value: Any) -> Any:
    """An agent hands a value on as Python writes it; what YAML would not read back so goes as JSON."""
    return json.dumps(value) if value is None or isinstance(value, list | dict) else value
