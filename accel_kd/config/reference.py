"""The recipe reference in Markdown, from the schema itself: `python -m accel_kd.config.reference`."""

from __future__ import annotations

import types
import typing
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

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
        nested = _section_in(field.annotation)
        meaning = " ".join((field.description or "").split()).replace("|", "\\|")
        if nested is not None:
            if meaning:
                lines.append(f"| `{prefix}{name}` | section | {_default(field)} | {meaning} |")
            lines.append(_table(nested, f"{prefix}{name}."))
            continue
        lines.append(f"| `{prefix}{name}` | {_takes(field)} | {_default(field)} | {meaning} |")
    return "\n".join(lines)


def _section_in(annotation: Any) -> type[BaseModel] | None:
    """The section that a setting holds, optional or not; lists of sections are described by their setting."""
    for candidate in (annotation, *typing.get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def _takes(field: FieldInfo) -> str:
    return _name(field.annotation).replace("|", "\\|")


def _name(annotation: Any) -> str:
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _name(typing.get_args(annotation)[0])
    if origin is typing.Literal:
        return ", ".join(f"`{value}`" for value in typing.get_args(annotation))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_name(part) for part in typing.get_args(annotation) if part is not type(None))
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
