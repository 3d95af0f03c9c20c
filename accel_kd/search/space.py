"""The space of a search in Optuna's words, and back: what a trial's parameters are as settings of a recipe."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from accel_kd.config.schema import RunConfig
from accel_kd.config.search_checks import number_type, values_on_grid
from accel_kd.config.search_section import RangeConfig


def distributions(config: RunConfig) -> dict[str, BaseDistribution]:
    """A distribution for each setting that is searched, by its dotted name.

    Optuna's choices are single values; a choice here may be a list, or terms of a loss: each stands there as JSON.
    """
    return {name: _distribution(name, tried) for name, tried in config.search.searched.items()}


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


def _distribution(name: str, tried: RangeConfig | list[Any]) -> BaseDistribution:
    if isinstance(tried, list):
        return CategoricalDistribution([json.dumps(choice) for choice in tried])
    if number_type(name) is int:
        step = 1 if tried.step is None else int(tried.step)
        return IntDistribution(int(tried.low), int(tried.high), log=tried.log, step=step)
    return FloatDistribution(float(tried.low), float(tried.high), log=tried.log, step=tried.step)
