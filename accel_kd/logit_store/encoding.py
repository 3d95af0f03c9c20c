"""How a store keeps the teacher's logits: which encodings there are, and the one that a description means."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from accel_kd.errors import UserError
from accel_kd.logit_store.encodings.base import SETTING, Encoding
from accel_kd.logit_store.encodings.full import Full
from accel_kd.logit_store.encodings.sampled import Sampled
from accel_kd.logit_store.encodings.top_k import TopK

__all__ = ["Encoding", "Full", "Sampled", "TopK", "encoding_of"]

_CHOICES: dict[str, tuple[Callable[..., Encoding], dict[str, str]]] = {
    "full": (Full, {"dtype": "a name"}),
    "top_k": (TopK, {"k": "an integer", "value_bits": "an integer", "temperatures": "a list of numbers"}),
    "sampled": (Sampled, {"num_samples": "an integer", "temperature": "a number", "seed": "an integer"}),
}
"""Each type's encoding and, of each of its settings, what it has to be."""


def encoding_of(description: Mapping[str, Any], num_classes: int) -> Encoding:
    """The encoding that `describe` describes, for a teacher of `num_classes` classes.

    Raises:
        UserError: no encoding has such a type, or not these settings or values; a store's manifest may say anything.
    """
    if not isinstance(description, Mapping):
        raise UserError(f"{SETTING} is {description!r}: give a type and its settings")
    kind = description.get("type")
    if not isinstance(kind, str) or kind not in _CHOICES:
        raise UserError(f"{SETTING}.type is {kind!r}: use one of {', '.join(_CHOICES)}")
    encoding, expected = _CHOICES[kind]
    found = {name: value for name, value in description.items() if name != "type"}
    for name in sorted(found.keys() ^ expected.keys()):
        problem = f"unknown for {kind}" if name in found else f"missing, which {kind} needs"
        raise UserError(f"{SETTING}.{name} is {problem}: it has {', '.join(expected)}")
    for name, value in found.items():
        if not _IS[expected[name]](value):
            raise UserError(f"{SETTING}.{name} is {value!r}: give {expected[name]}")
    return encoding(num_classes, **found)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    # An integer too large for a float is none.
    return isinstance(value, float) or (_is_integer(value) and abs(value) < 2**64)


def _is_numbers(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(map(_is_number, value))


def _is_name(value: Any) -> bool:
    return isinstance(value, str)


_IS = {"a name": _is_name, "an integer": _is_integer, "a number": _is_number, "a list of numbers": _is_numbers}
