"""What the sections of a recipe are built from: the kinds of numbers, and the section itself."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, FiniteFloat, Tag

ONE_NUMBER, A_LIST, A_RANGE = "one number", "a list", "a range"
"""The ways to write a setting that takes several; they stand in pydantic's locations, and not in a recipe."""
A_KEY = "[key]"
"""Where pydantic says that not a value is wrong but the key that it stands under."""


def _refuse_bool(value: Any) -> Any:
    """A `yes` where a number belongs must not become 1."""
    if isinstance(value, bool):
        raise ValueError("must be a number")
    return value


Number = Annotated[FiniteFloat, BeforeValidator(_refuse_bool)]
Integer = Annotated[int, BeforeValidator(_refuse_bool)]
Fraction = Annotated[Number, Field(ge=0.0, le=1.0)]
OpenFraction = Annotated[Number, Field(gt=0.0, le=1.0)]
Positive = Annotated[Number, Field(gt=0.0)]
NonNegative = Annotated[Number, Field(ge=0.0)]
Count = Annotated[Integer, Field(ge=1)]
Seed = Annotated[Integer, Field(ge=0, le=2**32 - 1)]
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def _in_seconds(value: Any) -> Any:
    """`90`, `90s`, `1.5m` and `2h` as seconds."""
    if not isinstance(value, str):
        return _refuse_bool(value)
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smh]?)\s*", value)
    if found is None:
        raise ValueError("must be a duration such as 90s, 2m or 1h")
    return float(found[1]) * _UNITS[found[2] or "s"]


IN_SECONDS = BeforeValidator(_in_seconds)
Seconds = Annotated[FiniteFloat, IN_SECONDS, Field(gt=0.0)]
Layers = Annotated[
    Annotated[Count, Tag(ONE_NUMBER)] | Annotated[list[Annotated[Integer, Field(ge=0)]], Tag(A_LIST)],
    Discriminator(lambda value: A_LIST if isinstance(value, list) else ONE_NUMBER),
]


class Section(BaseModel):
    """A section refuses unknown keys; a docstring under a field is its documentation."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=())
