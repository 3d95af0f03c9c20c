"""One split as checked texts and labels, each row with an id of its content that survives any reordering."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from accel_kd.errors import UserError
from accel_kd.signals import IGNORED_LABEL


@dataclass(frozen=True)
class Columns:
    """The columns that make an example."""

    text: str
    label: str
    text_pair: str | None = None


@dataclass(frozen=True)
class RawSplit:
    """Checked texts beside labels as the source wrote them (None: no label)."""

    ids: list[str]
    texts: list[str]
    pairs: list[str] | None
    labels: list[Any]
    train_rows: list[int] | None = None
    """Which rows of the source's train split these are, where they were cut from it."""

    def where(self, row: int, split: str) -> str:
        """Names a row as whoever looks into the source finds it."""
        if self.train_rows is None:
            return f"row {row} of the split {split!r}"
        return f"row {self.train_rows[row]} of the split 'train'"


@dataclass(frozen=True)
class Examples:
    """A split ready to be tokenised; `labels` `[n]` int64 with `IGNORED_LABEL` where there is none."""

    ids: list[str]
    texts: list[str]
    pairs: list[str] | None
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: Sequence[int] | NDArray[np.int64]) -> Examples:
        """The examples at `rows`, in that order."""
        index = np.asarray(rows, dtype=np.int64)
        pairs = None if self.pairs is None else [self.pairs[i] for i in index]
        return Examples([self.ids[i] for i in index], [self.texts[i] for i in index], pairs, self.labels[index])

    def without_labels(self, rows: Sequence[int] | NDArray[np.int64]) -> Examples:
        """The same examples, those at `rows` without their label."""
        labels = self.labels.copy()
        labels[np.asarray(rows, dtype=np.int64)] = IGNORED_LABEL
        return Examples(self.ids, self.texts, self.pairs, labels)


def read_examples(dataset: Dataset, columns: Columns, split: str) -> RawSplit:
    """Checks the columns of one split and gives each row its id.

    Raises:
        UserError: a column that is missing, or a row whose text is no text; the message names the column and the row.
    """
    wanted = {"text": columns.text, "label": columns.label, "text_pair": columns.text_pair}
    for setting, column in wanted.items():
        if column is not None and column not in dataset.column_names:
            there = ", ".join(dataset.column_names)
            raise UserError(f"data.{setting}: the split {split!r} has no column {column!r}; it has {there}")
    texts = _texts(dataset, columns.text, "text", split)
    pairs = None if columns.text_pair is None else _texts(dataset, columns.text_pair, "text_pair", split)
    labels = [None if _is_missing(value) else value for value in _values(dataset, columns.label)]
    fields = zip(texts, pairs if pairs is not None else [None] * len(texts), labels, strict=True)
    return RawSplit(content_ids([list(row) for row in fields]), texts, pairs, labels)


def content_ids(rows: Sequence[Sequence[Any]]) -> list[str]:
    """An id a row: BLAKE2b-128 of its fields, in hex, and `-1`, `-2`, ... for the second, third, ... equal row.

    Equal rows are interchangeable, so that the ids of a data set do not depend on its order.
    """
    seen: Counter[str] = Counter()
    ids = []
    for row in rows:
        digest = hashlib.blake2b(digest_size=16)
        for value in row:
            # Type and length stand before each field: ("ab", "c") and ("a", "bc") must differ, and so must 1 and "1".
            encoded = repr(value).encode() if not isinstance(value, str) else value.encode()
            digest.update(f"{type(value).__name__}:{len(encoded)}:".encode())
            digest.update(encoded)
        key = digest.hexdigest()
        ids.append(f"{key}-{seen[key]}" if seen[key] else key)
        seen[key] += 1
    return ids


def digest_of_ids(ids: Sequence[str]) -> str:
    """The same whatever their order."""
    return hashlib.blake2b("\n".join(sorted(ids)).encode(), digest_size=16).hexdigest()


def content_order(ids: Sequence[str], salt: str) -> NDArray[np.int64]:
    """Row numbers `[n]` in an order that depends on content and `salt` alone; equal rows stay together."""

    def key(row: int) -> tuple[bytes, str]:
        content = ids[row].partition("-")[0]
        return hashlib.blake2b(f"{salt}:{content}".encode(), digest_size=16).digest(), ids[row]

    return np.array(sorted(range(len(ids)), key=key), dtype=np.int64)


def cut_validation(train: RawSplit, fraction: float) -> tuple[RawSplit, RawSplit]:
    """Train and validation, cut by content: equal rows fall on the same side, and the file's order does not matter.

    It is the rows with a label that are cut; the others stay in train, since nothing can be scored on them.

    Raises:
        UserError: too few rows to leave both sides one.
    """
    order = content_order(train.ids, "validation")
    has_label = np.array([label is not None for label in train.labels])
    if has_label.any():  # else the labels are refused when they are encoded
        order = order[has_label[order]]
    size = max(1, round(fraction * len(order)))
    contents = [train.ids[row].partition("-")[0] for row in order]
    while size < len(order) and contents[size - 1] == contents[size]:
        size += 1
    if size >= len(order):
        raise UserError(
            f"data.validation_fraction: {fraction} of {len(order)} labelled train rows leaves none to train on; "
            "name a validation split or lower it"
        )
    validation = np.sort(order[:size])
    return _pick(train, np.setdiff1d(np.arange(len(train.ids)), validation)), _pick(train, validation)


def _pick(split: RawSplit, rows: NDArray[np.int64]) -> RawSplit:
    pairs = None if split.pairs is None else [split.pairs[i] for i in rows]
    labels = [split.labels[i] for i in rows]
    return RawSplit([split.ids[i] for i in rows], [split.texts[i] for i in rows], pairs, labels, rows.tolist())


def _texts(dataset: Dataset, column: str, setting: str, split: str) -> list[str]:
    values = _values(dataset, column)
    for row, value in enumerate(values):
        if not isinstance(value, str):
            what = "no value" if _is_missing(value) else f"{value!r} ({type(value).__name__})"
            raise UserError(
                f"data.{setting}: row {row} of the split {split!r} holds {what} in column {column!r}, not text"
            )
    return values


def _values(dataset: Dataset, column: str) -> list[Any]:
    """A column in one piece; to go over its rows decodes each of them by itself."""
    return list(dataset[column][:])


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))
