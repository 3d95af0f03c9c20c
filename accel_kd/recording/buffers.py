"""Values made of tensors (batches, signals, lists of them) as buffers of fixed shape that others are copied into."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

Value = TypeVar("Value")


def tensors_of(value: Any, name: str = "") -> list[tuple[str, Tensor]]:
    """Every tensor in `value`, named by the way to it; two values of one make give the same names in one order."""
    if isinstance(value, Tensor):
        return [(name, value)]
    return [found for part, inner in _parts(value) for found in tensors_of(inner, f"{name}.{part}")]


def empty_like(value: Value) -> Value:
    """`value` with a tensor of its own, of the same shape, dtype and device, in place of each of its tensors."""
    copy: Value = _mapped(value)
    return copy


def copy_into(buffers: Value, value: Value) -> None:
    """Copies each tensor of `value` into its place in `buffers`; the host does not wait."""
    for (name, buffer), (other, tensor) in zip(tensors_of(buffers), tensors_of(value), strict=True):
        assert name == other, f"{name} is to be filled, and {other} comes"
        buffer.copy_(tensor, non_blocking=True)


def _parts(value: Any) -> list[tuple[Any, Any]]:
    if isinstance(value, Mapping):
        return list(value.items())
    if isinstance(value, list):
        return list(enumerate(value))
    if dataclasses.is_dataclass(value):
        return [(each.name, getattr(value, each.name)) for each in dataclasses.fields(value) if _is_buffered(each)]
    return []


def _mapped(value: Any) -> Any:
    if isinstance(value, Tensor):
        return torch.empty_like(value)
    if isinstance(value, Mapping):
        return {key: _mapped(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_mapped(inner) for inner in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        changed = {name: _mapped(inner) for name, inner in _parts(value)}
        left_out = {each.name: None for each in dataclasses.fields(value) if not _is_buffered(each)}
        return dataclasses.replace(value, **changed, **left_out)
    return value


def _is_buffered(each: dataclasses.Field[Any]) -> bool:
    # Read on the host, where the store is: no recording sees it.
    return each.name != "teacher_rows"
