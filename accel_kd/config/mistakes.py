"""What pydantic finds wrong with a recipe, as one line each: the setting, what was found, which one was meant."""

from __future__ import annotations

import difflib
import typing
from typing import Any

from pydantic import BaseModel

from accel_kd.config.fields import A_KEY, A_LIST, A_RANGE, ONE_NUMBER
from accel_kd.config.schema import RunConfig


def explain(item: Any) -> str:
    """One pydantic error as one line: the setting, what was found, what it may be."""
    location = [str(part) for part in item["loc"] if part not in (ONE_NUMBER, A_LIST, A_RANGE, A_KEY)]
    setting = ".".join(_as_written(location))
    if item["type"] == "extra_forbidden":
        return f"{setting}: unknown{near_miss(location)}"
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
    return [key for position, key in enumerate(location) if key not in types_at(location[:position])]


def near_miss(location: list[str]) -> str:
    """Names the setting that was probably meant: in the same section, or the same name in another one."""
    *path, wanted = location
    section = _section_at(path)
    siblings = list(section.model_fields) if section is not None else []
    types = types_at(path[:-1])
    of_type = f" for {path[-1]}" if path and path[-1] in types else ""
    owners = [name for name, other in types.items() if wanted in other.model_fields] if of_type else []
    # `dtype` is one letter from `type`, and where another type has it not meant for it.
    if hint := did_you_mean(wanted, [name for name in siblings if name != "type" or not owners]):
        return of_type + hint
    if owners:
        return f"{of_type}; it is a setting of type {' and '.join(owners)}"
    if elsewhere := _settings_called(wanted, ".".join(path)):
        return f"{of_type}; did you mean {' or '.join(elsewhere)}?"
    return of_type + (f"; known here: {', '.join(siblings)}" if siblings else "")


def did_you_mean(wanted: str, known: list[str]) -> str:
    """The known name that is nearly `wanted`, as the end of a message; empty where none is."""
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
    sections = sections_at(location)
    return sections[0] if len(sections) == 1 else None


def types_at(location: list[str]) -> dict[str, type[BaseModel]]:
    """The types that the section there comes in; none where there is one only, or within a list."""
    sections = sections_at(location)
    if len(sections) < 2 or location[-1].isdecimal():
        return {}
    return {typing.get_args(section.model_fields["type"].annotation)[0]: section for section in sections}


def sections_at(location: list[str]) -> list[type[BaseModel]]:
    """The section classes that the keys in `location` may lead to; several where there is a choice of types."""
    sections: list[type[BaseModel]] = [RunConfig]
    for key in location:
        fields = [section.model_fields[key] for section in sections if key in section.model_fields]
        if fields:
            sections = _sections_within(fields[0].annotation)
        elif not key.isdecimal():
            # Sections of several types: pydantic puts the type into the location, behind the index within a list. Of
            # one type: it is the name under which a section stands among others.
            typed = [s for s in sections if "type" in s.model_fields]
            sections = [s for s in typed if key in typing.get_args(s.model_fields["type"].annotation)] or [
                s for s in sections if s not in typed
            ]
    return sections


def _sections_within(annotation: Any) -> list[type[BaseModel]]:
    """The section classes that an annotation speaks of, within lists and unions too."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for part in typing.get_args(annotation) for section in _sections_within(part)]
