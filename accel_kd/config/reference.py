"""The recipe reference in Markdown, from the schema itself: `python -m accel_kd.config.reference`."""

from __future__ import annotations

import types
import typing
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from accel_kd.config.fields import IN_SECONDS, Seconds
from accel_kd.config.schema import RunConfig


def reference() -> str:
    """One table a section: each setting with what it takes, its default and its meaning."""
    parts = []
    for name, field in RunConfig.model_fields.items():
        parts.append(f"**`{name}`**\n\n{_table(typing.cast(type[BaseModel], field.annotation))}")
    return "\n\n".join(parts)


def _table(section: type[BaseModel], prefix: str = "") -> str:
    lines = [] if prefix else ["| setting | takes | default | meaning |", "| --- | --- | --- | --- |"]
    for name, field in section.model_fields.items():
        nested = _sections_in(field.annotation)
        if not nested:
            lines.append(f"| `{prefix}{name}` | {_takes(field)} | {_default(field)} | {_meaning(field)} |")
            continue
        if _meaning(field):
            lines.append(f"| `{prefix}{name}` | section | {_default(field)} | {_meaning(field)} |")
        if len(nested) == 1:
            lines.append(_table(nested[0], f"{prefix}{name}."))
        else:
            lines += _rows_by_type(nested, f"{prefix}{name}.", field.default)
    return "\n".join(lines)


def _rows_by_type(sections: list[type[BaseModel]], prefix: str, default: Any) -> list[str]:
    """The rows of a section that comes in several types: `type` once, then the settings of each."""
    types = {typing.get_args(section.model_fields["type"].annotation)[0]: section for section in sections}
    meanings = (f"`{name}`: {_meaning(section.model_fields['type'])}" for name, section in types.items())
    rows = [
        f"| `{prefix}type` | {', '.join(f'`{name}`' for name in types)} | `{default.type}` | {' '.join(meanings)} |"
    ]
    for name, section in types.items():
        rows += [
            f"| `{prefix}{setting}` (`{name}`) | {_takes(field)} | {_default(field)} | {_meaning(field)} |"
            for setting, field in section.model_fields.items()
            if setting != "type"
        ]
    return rows


def _meaning(field: FieldInfo) -> str:
    return " ".join((field.description or "").split()).replace("|", "\\|")


def _sections_in(annotation: Any) -> list[type[BaseModel]]:
    """The sections that a setting may hold, optional or not; lists of sections are described by their setting."""
    candidates = (annotation, *typing.get_args(annotation))
    return [part for part in candidates if isinstance(part, type) and issubclass(part, BaseModel)]


def _takes(field: FieldInfo) -> str:
    if field.annotation == Seconds | None or IN_SECONDS in field.metadata:
        return "duration: seconds, or as in `90s`, `2m`, `1h`"
    return _name(field.annotation).replace("|", "\\|")


def _name(annotation: Any) -> str:
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _name(typing.get_args(annotation)[0])
    if origin is typing.Literal:
        return ", ".join(f"`{value}`" for value in typing.get_args(annotation))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_name(part) for part in typing.get_args(annotation) if part is not type(None))
    if origin is dict:
        return "settings by name"
    if origin is list:
        inner = typing.get_args(annotation)[0]
        return "list of terms" if "Term" in str(inner) else f"list of {_name(inner)}"
    return {str: "text", int: "integer", float: "number", bool: "true or false"}.get(annotation, str(annotation))


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    default = field.default
    if default is None or isinstance(default, BaseModel):
        return ""
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


if __name__ == "__main__":
    print(reference())
