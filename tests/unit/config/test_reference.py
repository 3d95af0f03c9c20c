"""The reference leaves no setting out, and says which type of a section a setting belongs to."""

from __future__ import annotations

import typing

from pydantic import BaseModel

from accel_kd.config.model_sections import EncodingConfig
from accel_kd.config.reference import reference
from accel_kd.config.schema import RunConfig

_ROWS = reference().splitlines()


def row_of(first_cell: str) -> str:
    [row] = [row for row in _ROWS if row.startswith(f"| {first_cell} |")]
    return row


def test_every_section_has_a_table_with_a_row_for_each_of_its_settings_and_each_row_has_a_meaning() -> None:
    for name, section in RunConfig.model_fields.items():
        table = reference().partition(f"**`{name}`**")[2].partition("**`")[0]
        for setting in typing.cast(type[BaseModel], section.annotation).model_fields:
            assert f"\n| `{setting}" in table, f"{name}.{setting}"
    for row in _ROWS:
        if row.startswith("| `"):
            assert row.replace("\\|", "").count("|") == 5 and not row.endswith("|  |"), row


def test_the_settings_of_an_encoding_stand_under_its_type() -> None:
    union = typing.get_args(EncodingConfig)[0]
    types = {section.model_fields["type"].annotation: section for section in typing.get_args(union)}
    assert len(types) == 3
    for annotation, section in types.items():
        [name] = typing.get_args(annotation)
        for setting in section.model_fields.keys() - {"type"}:
            assert row_of(f"`store.encoding.{setting}` (`{name}`)")
        assert f"`{name}`" in row_of("`store.encoding.type`")
    assert "| `8`, `16` | `16` |" in row_of("`store.encoding.value_bits` (`top_k`)")
