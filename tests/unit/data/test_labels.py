"""Labels of every kind become integers that index one list of names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from accel_kd.data.examples import RawSplit
from accel_kd.data.labels import LabelledSplits, encode_labels
from accel_kd.errors import UserError
from accel_kd.signals import IGNORED_LABEL


def raw(labels: Sequence[Any]) -> RawSplit:
    return RawSplit(
        [f"id{n}" for n in range(len(labels))], [f"text {n}" for n in range(len(labels))], None, list(labels)
    )


def encode(train: Sequence[Any], label_names: list[str] | None = None, **others: Any) -> LabelledSplits:
    options = {name: others.pop(name) for name in ("other_names", "allow_unlabelled") if name in others}
    splits = {"train": raw(train), **{split: raw(labels) for split, labels in others.items()}}
    return encode_labels(splits, label_names=label_names, **options)


def numbers(data: LabelledSplits) -> dict[str, list[int]]:
    return {split: examples.labels.tolist() for split, examples in data.splits.items()}


def test_names_are_sorted_and_shared_by_all_splits() -> None:
    data = encode(["music", "alarm", "music", "bank"], validation=["bank"], test=["alarm", "music"])
    assert data.label_names == ["alarm", "bank", "music"]
    assert numbers(data) == {"train": [2, 0, 2, 1], "validation": [1], "test": [0, 2]}
    assert data.splits["train"].labels.dtype == "int64"


def test_names_that_look_like_numbers_stay_names_in_the_order_of_the_numbers() -> None:
    data = encode(["10", "9", "10"])
    assert data.label_names == ["9", "10"] and numbers(data) == {"train": [1, 0, 1]}
    assert encode(["LABEL_10", "LABEL_2", "a"]).label_names == ["LABEL_2", "LABEL_10", "a"]


def test_label_names_give_the_order_and_may_hold_labels_that_train_lacks() -> None:
    data = encode(["music", "alarm"], ["music", "weather", "alarm"], test=["weather"])
    assert data.label_names == ["music", "weather", "alarm"]
    assert numbers(data) == {"train": [0, 2], "test": [1]}


def test_integers_index_the_names_that_the_column_brings() -> None:
    """As a `ClassLabel` column does: its integers, its names, whatever the alphabet says."""
    data = encode([1, 0, 1], ["music", "alarm"], test=[0])
    assert data.label_names == ["music", "alarm"] and numbers(data) == {"train": [1, 0, 1], "test": [0]}


def test_integers_without_names_take_the_teachers() -> None:
    data = encode([0, 2], other_names=lambda: ["zebra", "ant", "cow"])
    assert data.label_names == ["zebra", "ant", "cow"] and numbers(data) == {"train": [0, 2]}


def test_integers_without_any_names_get_placeholders_up_to_the_highest() -> None:
    assert encode([0, 3]).label_names == ["LABEL_0", "LABEL_1", "LABEL_2", "LABEL_3"]
    assert encode([0, 3], other_names=lambda: ["only", "three", "names"]).label_names[3] == "LABEL_3"


def test_the_teachers_names_are_not_asked_for_where_the_data_have_their_own() -> None:
    def must_not_be_read() -> Sequence[str]:
        raise AssertionError("the teacher was read")

    assert encode(["b", "a"], other_names=must_not_be_read).label_names == ["a", "b"]
    assert encode([0, 1], ["b", "a"], other_names=must_not_be_read).label_names == ["b", "a"]


def test_floats_from_a_column_with_gaps_are_the_integers_that_they_were() -> None:
    data = encode([1.0, None, 0.0, 2.0], allow_unlabelled=True, test=[2])
    assert numbers(data) == {"train": [1, IGNORED_LABEL, 0, 2], "test": [2]}
    with pytest.raises(UserError, match=r"row 1 of the split 'train' holds 0\.5"):
        encode([1.0, 0.5, 0.0])


def test_booleans_are_two_labels() -> None:
    data = encode([True, False])
    assert data.label_names == ["LABEL_0", "LABEL_1"] and numbers(data) == {"train": [1, 0]}


def test_unlabelled_rows_are_kept_where_they_are_allowed_and_only_in_train() -> None:
    data = encode([None, "b", "a"], allow_unlabelled=True, validation=["a"])
    assert numbers(data)["train"] == [IGNORED_LABEL, 1, 0]
    assert data.splits["train"].texts == ["text 0", "text 1", "text 2"]
    with pytest.raises(UserError, match=r"row 0 of the split 'train' has no label.*data\.allow_unlabelled=true"):
        encode([None, "b", "a"])
    with pytest.raises(UserError, match=r"row 1 of the split 'validation' has no label"):
        encode(["a", "b"], allow_unlabelled=True, validation=["a", None])


@pytest.mark.parametrize(
    ("splits", "complaint"),
    [
        ({"train": ["a", "b"], "test": ["a", "c"]}, r"row 1 of the split 'test' holds 'c'"),
        ({"train": ["a", "b", 3]}, r"row 2 of the split 'train' holds 3\b"),
        ({"train": [0, 1, "b"]}, r"row 2 of the split 'train' holds 'b'"),
        ({"train": [0, 1], "test": [2]}, r"row 0 of the split 'test' holds 2, outside 0 to 1"),
        ({"train": [0, 1, -1]}, r"row 2 of the split 'train' holds -1, outside 0 to 1"),
        ({"train": ["a", "a"]}, r"only one label \('a'\)"),
    ],
)
def test_a_label_that_does_not_fit_is_named_with_its_row(splits: dict[str, list[Any]], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        encode(**splits)


def test_a_train_split_without_any_label_is_refused() -> None:
    with pytest.raises(UserError, match="no train row has a label"):
        encode([None, None], allow_unlabelled=True)
