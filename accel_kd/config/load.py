"""Recipe file plus `dotted.key=value` overrides, to a checked `RunConfig`; every mistake is one line.

recipe name or path -> YAML (duplicate keys refused) -> overrides -> schema -> rules across sections
"""

from __future__ import annotations

import difflib
import typing
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from accel_kd.config.checks import check
from accel_kd.config.fields import A_KEY, A_LIST, ONE_NUMBER
from accel_kd.config.schema import RunConfig
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
        hint = _did_you_mean(recipe, names)
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
        raise UserError("\n".join(_explain(item) for item in error.errors())) from error
    if config.run.directory is None:
        run = config.run.model_copy(update={"directory": f"runs/{Path(recipe).stem}"})
        config = config.model_copy(update={"run": run})
    check(config)
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


def _explain(item: Any) -> str:
    """One pydantic error as one line: the setting, what was found, what it may be."""
    location = [str(part) for part in item["loc"] if part not in (ONE_NUMBER, A_LIST, A_KEY)]
    setting = ".".join(_as_written(location))
    if item["type"] == "extra_forbidden":
        return f"{setting}: unknown{_near_miss(location)}"
    if item["type"] == "missing":
        return f"{setting}: missing; this setting is required"
    if item["type"] == "union_tag_not_found":
        return f"{setting}.type: missing; this setting is required"
    found = item["input"]
    if item["type"] == "union_tag_invalid":
        expected = item["ctx"]["expected_tags"].replace("'", "")
        return f"{setting}.type: {found['type']!r} is unknown; it may be {expected}"
    if item["type"] in ("model_type", "model_attributes_type"):
        return f"{setting}: is a section, with settings of its own; found {found!r}"
    # What a section holds can be long; what a setting holds is shown.
    shown = f"; found {found!r}" if not isinstance(found, (dict, list)) else ""
    message = item["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    return f"{setting}: {message}{shown}"


def _as_written(location: list[str]) -> list[str]:
    """The keys that lead there in the recipe: pydantic adds the type of a section that comes in several.

    A term's stays, for in a list it says more than the number before it.
    """
    return [key for position, key in enumerate(location) if key not in _types_at(location[:position])]


def _near_miss(location: list[str]) -> str:
    """Names the setting that was probably meant: in the same section, or the same name in another one."""
    *path, wanted = location
    section = _section_at(path)
    siblings = list(section.model_fields) if section is not None else []
    types = _types_at(path[:-1])
    of_type = f" for {path[-1]}" if path and path[-1] in types else ""
    owners = [name for name, other in types.items() if wanted in other.model_fields] if of_type else []
    # `dtype` is one letter from `type`, and where another type has it not meant for it.
    if hint := _did_you_mean(wanted, [name for name in siblings if name != "type" or not owners]):
        return of_type + hint
    if owners:
        return f"{of_type}; it is a setting of type {' and '.join(owners)}"
    if elsewhere := _settings_called(wanted, ".".join(path)):
        return f"{of_type}; did you mean {' or '.join(elsewhere)}?"
    return of_type + (f"; known here: {', '.join(siblings)}" if siblings else "")


def _did_you_mean(wanted: str, known: list[str]) -> str:
    close = difflib.get_close_matches(wanted, known, n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


def _settings_called(wanted: str, here: str) -> list[str]:
    """The settings of that name within the section `here` and right below other sections, else anywhere."""
    places = [name for name, settings in _settings_by_section(RunConfig).items() if wanted in settings]
    close = [name for name in places if name.startswith(f"{here}.") or "." not in name]
    return [f"{name}.{wanted}" for name in close or places]


def _settings_by_section(outer: type[BaseModel], prefix: str = "") -> dict[str, list[str]]:
    """The names of all settings, by the dotted name of their section."""
    found: dict[str, list[str]] = {}
    for name, field in outer.model_fields.items():
        for section in _sections_within(field.annotation):
            found.setdefault(prefix + name, []).extend(section.model_fields)
            found |= _settings_by_section(section, f"{prefix}{name}.")
    return found


def _section_at(location: list[str]) -> type[BaseModel] | None:
    """The section class that the keys in `location` lead to."""
    sections = _sections_at(location)
    return sections[0] if len(sections) == 1 else None


def _types_at(location: list[str]) -> dict[str, type[BaseModel]]:
    """The types that the section there comes in; none where there is one only, or within a list."""
    sections = _sections_at(location)
    if len(sections) < 2 or location[-1].isdecimal():
        return {}
    return {typing.get_args(section.model_fields["type"].annotation)[0]: section for section in sections}


def _sections_at(location: list[str]) -> list[type[BaseModel]]:
    """The section classes that the keys in `location` may lead to; several where there is a choice of types."""
    sections: list[type[BaseModel]] = [RunConfig]
    for key in location:
        fields = [section.model_fields[key] for section in sections if key in section.model_fields]
        if fields:
            sections = _sections_within(fields[0].annotation)
        elif not key.isdecimal():
            # Sections of several types: pydantic puts the type into the location, behind the index within a list.
            sections = [s for s in sections if key in typing.get_args(s.model_fields["type"].annotation)]
    return sections


def _sections_within(annotation: Any) -> list[type[BaseModel]]:
    """The section classes that an annotation speaks of, within lists and unions too."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for part in typing.get_args(annotation) for section in _sections_within(part)]
