"""Recipe file plus `dotted.key=value` overrides, to a checked `RunConfig`; every mistake is one line.

recipe name or path -> YAML (duplicate keys refused) -> overrides -> schema -> rules across sections
"""

from __future__ import annotations

import typing
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from accel_kd.config.checks import check
from accel_kd.config.mistakes import did_you_mean, explain
from accel_kd.config.schema import RunConfig
from accel_kd.config.search_checks import check_search
from accel_kd.errors import UserError


def recipe_names() -> list[str]:
    """The recipes that are shipped with the package."""
    folder = resources.files("accel_kd") / "recipes"
    return sorted(Path(entry.name).stem for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def recipe_text(recipe: str) -> str:
    """The text of a shipped recipe, or of the YAML file at that path.

    Raises:
        UserError: there is neither.
    """
    names = recipe_names()
    if recipe in names:
        return (resources.files("accel_kd") / "recipes" / f"{recipe}.yaml").read_text(encoding="utf-8")
    path = Path(recipe)
    if not path.is_file():
        hint = did_you_mean(recipe, names)
        raise UserError(f"recipe: {recipe!r} is neither a file nor a shipped recipe ({', '.join(names)}){hint}")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"recipe: {recipe!r} cannot be read as text: {error}") from error


def load_recipe(recipe: str, overrides: typing.Sequence[str] = ()) -> RunConfig:
    """The checked configuration of `recipe` with `overrides`, each `dotted.key=value` with a YAML value.

    Raises:
        UserError: unreadable, not YAML, an unknown key, a value that a setting cannot take, or settings that
            contradict each other.
    """
    settings = _parse_yaml(recipe_text(recipe), f"recipe {recipe!r}")
    if not isinstance(settings, dict):
        raise UserError(f"recipe: {recipe!r} holds {type(settings).__name__}, not sections with settings")
    for override in overrides:
        _apply(settings, override)
    try:
        config = RunConfig.model_validate(settings)
    except ValidationError as error:
        raise UserError("\n".join(explain(item) for item in error.errors())) from error
    if config.run.directory is None:
        run = config.run.model_copy(update={"directory": f"runs/{Path(recipe).stem}"})
        config = config.model_copy(update={"run": run})
    check(config)
    check_search(config)
    return config


def to_yaml(config: RunConfig) -> str:
    """Every setting of `config`, defaults included, as a recipe that gives the same run."""
    return yaml.safe_dump(config.model_dump(mode="json", exclude_unset=False), sort_keys=False, allow_unicode=True)


class _Loader(yaml.SafeLoader):
    """PyYAML keeps the last of two equal keys without a word; here that is a mistake."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str | int) and key in seen:
                raise yaml.constructor.ConstructorError(
                    "while reading a section", node.start_mark, f"the key {key!r} stands twice", key_node.start_mark
                )
            seen.add(key if isinstance(key, str | int) else id(key_node))
        return super().construct_mapping(node, deep)


def _parse_yaml(text: str, source: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" at line {mark.line + 1}" if mark else ""
        raise UserError(f"{source} is not valid YAML{place}: {getattr(error, 'problem', None) or error}") from error
    except Exception as error:  # what PyYAML's constructors meet, such as the 13th month of a date, it lets through
        raise UserError(f"{source} is not valid YAML: {error}") from error


def _apply(settings: dict[str, Any], override: str) -> None:
    """Writes one `dotted.key=value` into `settings`."""
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise UserError(f"{override!r} is not an override: write section.setting=value, as in training.epochs=3")
    section = settings
    for part in parts[:-1]:
        if section.get(part) is None:
            section[part] = {}
        if not isinstance(section[part], dict):
            raise UserError(f"{key}: {part} is a setting, not a section")
        section = section[part]
    section[parts[-1]] = _parse_yaml(text, f"the value of {key}")
