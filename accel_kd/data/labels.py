"""Labels as the source wrote them, to one list of names and integers that index it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from accel_kd.data.examples import Examples, RawSplit, digest_of_ids
from accel_kd.errors import UserError
from accel_kd.signals import IGNORED_LABEL

_MOST_UNNAMED_LABELS = 100_000
"""An integer beyond is an id or a time, not a class; a head for it would take all the memory there is."""


@dataclass(frozen=True)
class LabelledSplits:
    """All splits with labels that index `label_names`."""

    splits: dict[str, Examples]
    label_names: list[str]
    are_numbers_of_others: bool = False
    """Whether the labels were integers without names, taken for the numbers of `other_names`: nothing proves that."""

    @cached_property
    def digests(self) -> dict[str, str]:
        """Of each split's examples, whatever their order: another row, or another label, gives another one."""
        return {name: digest_of_ids(examples.ids) for name, examples in sorted(self.splits.items())}

    @property
    def order_digest(self) -> str:
        """Of all splits and of the order of their rows, by which ranks share them."""
        ids = [[name, *examples.ids] for name, examples in sorted(self.splits.items())]
        return hashlib.blake2b(json.dumps([self.label_names, ids]).encode(), digest_size=16).hexdigest()

    @property
    def digest(self) -> str:
        """Of all splits, as `digests`."""
        return hashlib.blake2b("\n".join(self.digests.values()).encode(), digest_size=16).hexdigest()

    def texts_by_id(self) -> dict[str, str]:
        """Each example's text, of all splits."""
        return {id: text for split in self.splits.values() for id, text in zip(split.ids, split.texts, strict=True)}


def encode_labels(
    splits: Mapping[str, RawSplit],
    *,
    label_names: Sequence[str] | None,
    other_names: Callable[[], Sequence[str] | None] = lambda: None,
    allow_unlabelled: bool = False,
) -> LabelledSplits:
    """Integers for the labels of every split.

    Args:
        splits: the raw splits; `train` among them.
        label_names: the names in order where the data or the recipe bring them.
        other_names: reads the teacher's names, which integer labels without names of their own are taken to mean.
        allow_unlabelled: train rows may lack a label.

    Raises:
        UserError: a label that is missing, not known from train, out of range, or of another kind than the rest.
    """
    for split, raw in splits.items():
        if split == "train" and allow_unlabelled:
            continue
        for row, value in enumerate(raw.labels):
            if value is None:
                hint = "; data.allow_unlabelled=true accepts such rows" if split == "train" else ""
                raise UserError(f"data.label: {raw.where(row, split)} has no label{hint}")
    given = [value for value in splits["train"].labels if value is not None]
    if not given:
        raise UserError("data.label: no train row has a label; some must, also where a teacher answers for the rest")
    by_name, are_numbers_of_others = isinstance(given[0], str), False
    if by_name:
        names = (
            list(label_names)
            if label_names is not None
            else sorted({str(value) for value in given}, key=_with_numbers_in_order)
        )
    else:
        theirs = None if label_names is not None else other_names()
        names = _names_of_integers(given, label_names, theirs)
        are_numbers_of_others = names == list(theirs or ())
    train = _encode(splits["train"], "train", names, by_name)
    if len(names) < 2:
        raise UserError(f"data.label: only one label ({names[0]!r}) in the train split; a classifier needs two")
    held_out = {split: _encode(raw, split, names, by_name) for split, raw in splits.items() if split != "train"}
    return LabelledSplits({"train": train, **held_out}, names, are_numbers_of_others)


def _with_numbers_in_order(name: str) -> list[tuple[bool, int, str]]:
    """Sorts "2" before "10" and LABEL_2 before LABEL_10, as whoever numbered them meant it."""
    return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in re.split(r"(\d+)", name) if part]


def _names_of_integers(
    given: Sequence[Any], label_names: Sequence[str] | None, theirs: Sequence[str] | None
) -> list[str]:
    if label_names is not None:
        return list(label_names)
    highest = max((int(value) for value in given if _as_integer(value) is not None), default=0)
    if theirs is not None and len(theirs) > highest:
        return list(theirs)
    if highest >= _MOST_UNNAMED_LABELS:
        raise UserError(f"data.label: holds the integer {highest}, which is no class; name the column of the labels")
    return [f"LABEL_{number}" for number in range(highest + 1)]


def _encode(raw: RawSplit, split: str, names: list[str], by_name: bool) -> Examples:
    index = {name: number for number, name in enumerate(names)}
    labels = np.full(len(raw.ids), IGNORED_LABEL, dtype=np.int64)
    for row, value in enumerate(raw.labels):
        if value is None:
            continue
        where = f"data.label: {raw.where(row, split)}"
        if by_name:
            if not isinstance(value, str):
                raise UserError(f"{where} holds {value!r}, but other rows hold names")
            if value not in index:
                raise UserError(f"{where} holds {value!r}, a label that is not among the {len(names)} known ones")
            labels[row] = index[value]
        else:
            number = _as_integer(value)
            if number is None:
                what = "other rows hold integers" if isinstance(value, str) else "a label is a name or an integer"
                raise UserError(f"{where} holds {value!r}, but {what}")
            if not 0 <= number < len(names):
                raise UserError(f"{where} holds {number}, outside 0 to {len(names) - 1} ({len(names)} labels)")
            labels[row] = number
    return Examples(raw.ids, raw.texts, raw.pairs, labels)


def _as_integer(value: Any) -> int | None:
    """The integer in `value`; a column with gaps reaches us as floats."""
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, int):
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return None
