"""The space of a search in Optuna's words, and back: what a trial's parameters are as settings of a recipe."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import optuna

from accel_kd.config.schema import RunConfig
from accel_kd.config.search_checks import number_type, values_on_grid


def choose_settings(config: RunConfig, trial: optuna.Trial) -> None:
    """Lets the sampler of the study choose a value for each setting of `trial` that has none yet.

    Optuna's choices are single values; a choice here may be a list, or terms of a loss: each stands there as JSON.
    """
    for name, tried in config.search.searched.items():
        if isinstance(tried, list):
            trial.suggest_categorical(name, [json.dumps(choice) for choice in tried])
        elif number_type(name) is int:
            step = 1 if tried.step is None else int(tried.step)
            trial.suggest_int(name, int(tried.low), int(tried.high), step=step, log=tried.log)
        else:
            trial.suggest_float(name, tried.low, tried.high, step=tried.step, log=tried.log)


def grid(config: RunConfig) -> dict[str, list[Any]]:
    """All values of each setting, as parameters."""
    return {
        name: [json.dumps(value) for value in tried] if isinstance(tried, list) else values_on_grid(name, tried)
        for name, tried in config.search.searched.items()
    }


def settings_of(config: RunConfig, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that the `parameters` of a trial stand for, by their dotted names, in the order of the space."""
    searched = config.search.searched
    return {
        name: json.loads(parameters[name]) if isinstance(searched[name], list) else parameters[name]
        for name in searched
        if name in parameters
    }
