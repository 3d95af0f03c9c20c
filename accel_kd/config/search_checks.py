"""Whether a space can be searched: each of its settings there, each bound and choice one that the setting takes."""

from __future__ import annotations

import json
import math
import typing
from typing import Any

from pydantic import BaseModel, ValidationError

from accel_kd.config.checks import check_metric
from accel_kd.config.mistakes import explain, near_miss, sections_at
from accel_kd.config.schema import RunConfig
from accel_kd.config.search_section import RangeConfig
from accel_kd.errors import UserError

_NOT_SEARCHED = {
    "run": "say where and how a run goes, and make none better",
    "tracking": "say how a run is shown, and make none better",
    "checkpoint": "say what is saved of a run, and make none better",
    "perf": "say how a run is measured, and make none better",
    "search": "say how the search itself goes",
    "evaluation.metric": "is what trials are judged by",
    "training.precision": "is one and the same for all trials of a process",
}
_LARGEST_GRID = 100_000


def check_search(config: RunConfig) -> None:
    """Raises `UserError` for the first thing in the `search` section that cannot be."""
    if config.search.metric is not None:
        check_search_metric(config, config.search.metric)
    for name, tried in config.search.searched.items():
        _check_place(name)
        if isinstance(tried, RangeConfig):
            _check_range(name, tried, config)
        else:
            _check_choices(name, tried, config)
    if config.search.sampler == "grid":
        grid_size(config)


def number_type(name: str) -> type[int] | type[float] | None:
    """The numbers that the setting `name` takes: whole ones or any; None where it takes none."""
    annotation = _field_type(name)
    kinds = _kinds(annotation)
    return int if int in kinds else float if float in kinds else None


def values_on_grid(name: str, tried: RangeConfig | list[Any]) -> list[Any]:
    """All values that are tried of the setting `name`.

    Raises:
        UserError: it is a range of numbers without a step, which has no end of them.
    """
    if isinstance(tried, list):
        return list(tried)
    kind = number_type(name)
    step = tried.step if tried.step is not None else (1 if kind is int else None)
    if step is None or tried.log:
        raise UserError(
            f"search.space.{name}: a grid needs values that can be counted: give a step (and no log), or a list of them"
        )
    count = math.floor((tried.high - tried.low) / step + 1e-9) + 1
    return [(kind or float)(tried.low + number * step) for number in range(count)]


def grid_size(config: RunConfig) -> int:
    """How many combinations the grid of `config` has.

    Raises:
        UserError: a range has no end of values, or there are too many combinations.
    """
    size = math.prod(len(values_on_grid(name, tried)) for name, tried in config.search.searched.items())
    if size > _LARGEST_GRID:
        raise UserError(
            f"search.space: a grid of {size:,} combinations; leave values out, or use another search.sampler"
        )
    return size


def with_settings(recipe: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """A copy of the sections of `recipe` with `settings`, by their dotted names, in place of what is there."""
    copy: dict[str, Any] = json.loads(json.dumps(recipe))
    for name, value in settings.items():
        *path, last = name.split(".")
        section = copy
        for part in path:
            if section.get(part) is None:
                section[part] = {}
            section = section[part]
        section[last] = value
    return copy


def check_search_metric(config: RunConfig, metric: str) -> None:
    """Raises `UserError` where a run of `config` cannot be judged by `metric`."""
    evaluation = config.evaluation.model_copy(update={"metric": metric})
    try:
        check_metric(config.model_copy(update={"evaluation": evaluation}))
    except UserError as error:
        raise UserError(str(error).replace("evaluation.metric:", "search.metric:")) from error


def _check_place(name: str) -> None:
    for place, reason in _NOT_SEARCHED.items():
        if name == place or name.startswith(f"{place}."):
            what = "its settings " if "." not in place else "it "
            raise UserError(f"search.space.{name}: cannot be searched; {what}{reason}")
    path = name.split(".")
    if len(path) < 2:
        raise UserError(f"search.space.{name}: names no setting; write section.setting, as in training.epochs")
    for length in range(2, len(path)):
        within = ".".join(path[:length])
        if _speaks_of_list(_field_type(within)):
            raise UserError(f"search.space.{name}: leads into a list; search {within} as a whole, by choices of lists")
    if _field_type(name) is None:
        raise UserError(f"search.space.{name}: unknown{near_miss(path)}")


def _check_range(name: str, tried: RangeConfig, config: RunConfig) -> None:
    setting, kind = f"search.space.{name}", number_type(name)
    if kind is None:
        raise UserError(f"{setting}: takes no numbers, hence no range; give a list of choices, as in [a, b]")
    if tried.low >= tried.high:
        raise UserError(f"{setting}: low {tried.low} is not below high {tried.high}; exchange them, or give a list")
    if kind is int and not all(float(n).is_integer() for n in (tried.low, tried.high, tried.step) if n is not None):
        raise UserError(f"{setting}: takes whole numbers; found a range from {tried.low} to {tried.high}")
    if tried.step is not None and tried.step <= 0:
        raise UserError(f"{setting}.step: {tried.step} must be greater than 0")
    if tried.log and tried.low <= 0:
        raise UserError(f"{setting}: log needs a low above 0; found {tried.low}")
    if tried.log and tried.step is not None:
        raise UserError(f"{setting}: log and step exclude each other; leave one of them out")
    if tried.step is not None:
        steps = (tried.high - tried.low) / tried.step
        if abs(steps - round(steps)) > 1e-9 or round(steps) < 1:
            raise UserError(f"{setting}: from {tried.low} to {tried.high} is no number of steps of {tried.step}")
    for bound in ("low", "high"):
        _check_value(name, getattr(tried, bound), f"{setting}.{bound}", config)


def _check_choices(name: str, choices: list[Any], config: RunConfig) -> None:
    for position, choice in enumerate(choices):
        _check_value(name, choice, f"search.space.{name}[{position}]", config)
    written = [json.dumps(choice, sort_keys=True) for choice in choices]
    if len(set(written)) < len(written):
        raise UserError(f"search.space.{name}: a choice stands twice in {choices}")


def _check_value(name: str, value: Any, shown: str, config: RunConfig) -> None:
    """The schema's own word on `value`; that settings may exclude each other is found out trial by trial."""
    try:
        recipe = with_settings(config.model_dump(mode="json"), {name: value})
        RunConfig.model_validate(recipe)
    except ValidationError as error:
        mistake = explain(error.errors()[0])
        raise UserError(f"{shown}: {mistake.removeprefix(f'{name}: ')}") from error
    except TypeError as error:
        raise UserError(f"{shown}: {value!r} is nothing that a setting takes") from error


def _field_type(name: str) -> Any:
    """The annotation of the setting `name`; None where there is no such setting."""
    *path, last = name.split(".")
    for section in sections_at(path):
        if last in section.model_fields:
            return section.model_fields[last].annotation
    return None


def _speaks_of_list(annotation: Any) -> bool:
    return typing.get_origin(annotation) is list or any(map(_speaks_of_list, typing.get_args(annotation)))


def _kinds(annotation: Any) -> set[Any]:
    """The plain types that an annotation speaks of, but for those within lists."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return set()
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is None:
        return {annotation}
    if origin in (list, dict, typing.Literal):
        return set()
    if origin is typing.Annotated:
        parts = parts[:1]
    return {kind for part in parts for kind in _kinds(part)}
