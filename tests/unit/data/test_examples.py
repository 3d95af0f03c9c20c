"""Ids of content, and everything that is chosen by them: the same whatever order the file has."""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from accel_kd.assembly.data import read_data
from accel_kd.config.load import load_recipe
from accel_kd.data.examples import (
    Columns,
    Examples,
    RawSplit,
    content_ids,
    content_order,
    cut_validation,
    read_examples,
)
from accel_kd.errors import UserError
from accel_kd.signals import IGNORED_LABEL
from tests.support.tiny import rows as tiny_rows

Row = tuple[str, str | None, Any]
# A small alphabet, so that equal rows and shifted borders between fields come often.
ROW = st.tuples(st.text("ab1", max_size=3), st.text("ab1", max_size=2) | st.none(), st.sampled_from([None, 0, 1, "1"]))
SHUFFLED_ROWS = st.lists(ROW, max_size=30).flatmap(lambda rows: st.tuples(st.just(rows), st.permutations(rows)))


def raw_split(contents: Sequence[tuple[str, Any]]) -> RawSplit:
    texts, labels = [text for text, _ in contents], [label for _, label in contents]
    return RawSplit(content_ids([[text, None, label] for text, label in contents]), texts, None, labels)


def dataset_of(rows: Sequence[dict[str, Any]]) -> Dataset:
    return Dataset.from_list([dict(row) for row in rows])


@settings(deadline=None)
@given(SHUFFLED_ROWS)
def test_ids_are_different_and_belong_to_the_content_in_any_order(lists: tuple[list[Row], list[Row]]) -> None:
    rows, shuffled = lists
    ids, other_ids = content_ids(rows), content_ids(shuffled)
    assert len(set(ids)) == len(rows)
    # Equal rows share the ids of their content: which of them gets which is nobody's business.
    assert Counter(zip(map(repr, rows), ids, strict=True)) == Counter(zip(map(repr, shuffled), other_ids, strict=True))


@settings(deadline=None)
@given(SHUFFLED_ROWS, st.data())
def test_filtering_changes_no_id_of_content(lists: tuple[list[Row], list[Row]], data: st.DataObject) -> None:
    rows = list(dict.fromkeys(lists[0]))
    kept = [row for row in rows if data.draw(st.booleans())]
    by_row = dict(zip(rows, content_ids(rows), strict=True))
    assert content_ids(kept) == [by_row[row] for row in kept]


def test_the_border_between_fields_and_the_type_of_a_value_are_part_of_the_id() -> None:
    pairs = [
        ([("ab", "c")], [("a", "bc")]),
        ([("a", None, 1)], [("a", None, "1")]),
        ([("a", None, 1)], [("a", None, 1.0)]),
        ([("a", None, 1)], [("a", None, True)]),
        ([("a", None, "b")], [("a", "None", "b")]),
        ([("a", "", "b")], [("a", None, "b")]),
        ([("str:1:a", "b")], [("a", "str:1:ab")]),
    ]
    for one, other in pairs:
        assert content_ids(one) != content_ids(other), (one, other)


def test_true_duplicates_are_counted() -> None:
    first, other, second, third = content_ids([("a", "x"), ("b", "x"), ("a", "x"), ("a", "x")])
    assert (second, third) == (f"{first}-1", f"{first}-2")
    assert other.partition("-")[0] != first


def test_ids_stay_what_they_were() -> None:
    """Stored predictions and logits are found again by them."""
    spelled_out = b"str:7:wake me" + b"NoneType:4:None" + b"str:5:alarm"
    assert content_ids([("wake me", None, "alarm")]) == [hashlib.blake2b(spelled_out, digest_size=16).hexdigest()]


@settings(deadline=None)
@given(SHUFFLED_ROWS, st.sampled_from(["validation", "subset", "labelled"]))
def test_the_order_by_content_does_not_see_the_order_of_the_file(lists: tuple[list[Row], list[Row]], salt: str) -> None:
    rows, shuffled = lists
    ids, other_ids = content_ids(rows), content_ids(shuffled)
    in_order = [ids[row] for row in content_order(ids, salt)]
    assert in_order == [other_ids[row] for row in content_order(other_ids, salt)]
    assert sorted(in_order) == sorted(ids)
    contents = [name.partition("-")[0] for name in in_order]
    changes = sum(one != other for one, other in pairwise(contents))
    assert changes == max(0, len(set(contents)) - 1), "equal rows stand together"


def test_two_salts_give_two_orders() -> None:
    ids = content_ids([(str(number),) for number in range(50)])
    assert content_order(ids, "subset").tolist() != content_order(ids, "labelled").tolist()
    assert content_order(ids, "subset").tolist() != list(range(50)), "not the order of the file"


SPLITS_TO_CUT = st.lists(
    st.tuples(st.text("abc", max_size=2), st.sampled_from(["x", "y"])), min_size=2, max_size=60
).flatmap(lambda rows: st.tuples(st.just(rows), st.permutations(rows), st.floats(0.01, 0.6)))


@settings(max_examples=200, deadline=None)
@given(SPLITS_TO_CUT)
def test_the_validation_cut_is_disjoint_complete_and_blind_to_order(
    case: tuple[list[tuple[str, str]], list[tuple[str, str]], float],
) -> None:
    contents, shuffled, fraction = case
    split = raw_split(contents)
    try:
        train, validation = cut_validation(split, fraction)
    except UserError:
        assert len(set(contents)) == 1 or fraction * len(contents) > 1, "a cut is refused only where nothing is left"
        return
    assert sorted(train.ids + validation.ids) == sorted(split.ids)
    assert not {name.partition("-")[0] for name in train.ids} & {name.partition("-")[0] for name in validation.ids}
    assert not set(zip(train.texts, train.labels, strict=True)) & set(
        zip(validation.texts, validation.labels, strict=True)
    )
    assert train.texts and len(validation.texts) >= max(1, round(fraction * len(contents)))
    other_train, other_validation = cut_validation(raw_split(shuffled), fraction)
    for one, other in ((train, other_train), (validation, other_validation)):
        assert sorted(zip(one.ids, one.texts, one.labels, strict=True)) == sorted(
            zip(other.ids, other.texts, other.labels, strict=True)
        )


def test_the_validation_cut_has_the_size_that_was_asked_for_and_keeps_rows_together() -> None:
    contents = [(f"text {number}", f"label {number}") for number in range(200)]
    split = RawSplit(
        content_ids([[t, f"pair of {t}", y] for t, y in contents]),
        [t for t, _ in contents],
        [f"pair of {t}" for t, _ in contents],
        [y for _, y in contents],
    )
    train, validation = cut_validation(split, 0.1)
    assert (len(train.ids), len(validation.ids)) == (180, 20)
    for part in (train, validation):
        assert part.pairs is not None
        for name, text, pair, label in zip(part.ids, part.texts, part.pairs, part.labels, strict=True):
            row = split.ids.index(name)
            assert (text, pair, label) == (split.texts[row], split.pairs[row], split.labels[row])
    numbers = [int(text.split()[1]) for text in validation.texts]
    assert numbers == sorted(numbers) and numbers != list(range(20)) and numbers != list(range(180, 200))


def test_a_cut_that_leaves_nothing_to_train_on_is_refused() -> None:
    with pytest.raises(UserError, match=r"data\.validation_fraction: 1\.0 of 3 labelled train rows leaves none"):
        cut_validation(raw_split([("a", 0), ("b", 1), ("c", 0)]), 1.0)
    with pytest.raises(UserError, match=r"data\.validation_fraction"):
        cut_validation(raw_split([("a", 0)] * 4), 0.25)


def test_the_columns_named_make_the_example_and_no_other_column_enters_its_id() -> None:
    rows = [{"q": "wake", "r": "me", "y": 1, "note": "x"}, {"q": "play", "r": "on", "y": None, "note": "x"}]
    split = read_examples(dataset_of(rows), Columns("q", "y", "r"), "train")
    assert (split.texts, split.pairs, split.labels) == (["wake", "play"], ["me", "on"], [1, None])
    other_notes = dataset_of([{**row, "note": str(n)} for n, row in enumerate(rows)])
    assert read_examples(other_notes, Columns("q", "y", "r"), "train").ids == split.ids
    without_pair = read_examples(dataset_of(rows), Columns("q", "y"), "train")
    assert without_pair.pairs is None and not set(without_pair.ids) & set(split.ids)


def test_a_gap_among_numbers_is_a_missing_label() -> None:
    rows = Dataset.from_dict({"text": ["a", "b"], "label": [float("nan"), 2.0]})
    assert read_examples(rows, Columns("text", "label"), "train").labels == [None, 2.0]


@pytest.mark.parametrize(
    ("columns", "complaint"),
    [
        (Columns("body", "label"), r"data\.text: the split 'test' has no column 'body'; it has text, label"),
        (Columns("text", "intent"), r"data\.label: the split 'test' has no column 'intent'"),
        (Columns("text", "label", "other"), r"data\.text_pair: the split 'test' has no column 'other'"),
        (
            Columns("label", "text"),
            r"data\.text: row 0 of the split 'test' holds 7 \(int\) in column 'label', not text",
        ),
    ],
)
def test_a_missing_column_or_a_text_that_is_none_is_named(columns: Columns, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        read_examples(Dataset.from_dict({"text": ["a"], "label": [7]}), columns, "test")


def test_a_row_without_text_is_named() -> None:
    rows = Dataset.from_dict({"text": ["a", None], "label": [0, 1]})
    with pytest.raises(UserError, match=r"data\.text: row 1 of the split 'train' holds no value"):
        read_examples(rows, Columns("text", "label"), "train")


def test_taking_rows_and_hiding_labels_leaves_the_original_alone() -> None:
    examples = Examples(["i", "j", "k"], ["a", "b", "c"], ["x", "y", "z"], np.array([0, 1, 2]))
    taken = examples.take([2, 0])
    assert (taken.ids, taken.texts, taken.pairs, taken.labels.tolist()) == (["k", "i"], ["c", "a"], ["z", "x"], [2, 0])
    hidden = examples.without_labels([1])
    assert hidden.labels.tolist() == [0, IGNORED_LABEL, 2] and hidden.ids == examples.ids
    assert examples.labels.tolist() == [0, 1, 2]


@pytest.fixture
def read_shuffled(tmp_path: Path) -> Any:
    """Reads 120 train rows in an order of `seed`'s, through a recipe, to {id: (text, label name or None)}."""
    everything = tiny_rows(180)

    def read(seed: int, *overrides: str) -> dict[str, dict[str, tuple[str, str | None]]]:
        folder = tmp_path / f"order{seed}"
        folder.mkdir(exist_ok=True)
        for split, part in {"train": everything[:120], "test": everything[120:]}.items():
            shuffled = random.Random(seed).sample(part, len(part))
            (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in shuffled))
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(f"data: {{path: {folder}}}\nteacher: {{model: t}}\nstudent: {{model: s}}\n")
        data = read_data(load_recipe(str(recipe), overrides))
        return {
            split: {
                name: (text, None if label == IGNORED_LABEL else data.label_names[label])
                for name, text, label in zip(examples.ids, examples.texts, examples.labels, strict=True)
            }
            for split, examples in data.splits.items()
        }

    return read


def test_a_split_read_through_a_recipe_is_the_same_in_any_order_of_the_file(read_shuffled: Any) -> None:
    one, other = read_shuffled(0), read_shuffled(1)
    assert one == other
    assert {split: len(rows) for split, rows in one.items()} == {"train": 108, "validation": 12, "test": 60}
    truth = {row["text"]: row["label"] for row in tiny_rows(180)}
    assert all(truth[text] == label for rows in one.values() for text, label in rows.values())


def test_max_train_examples_are_chosen_by_content_and_smaller_choices_lie_within_larger(read_shuffled: Any) -> None:
    cut = "data.max_train_examples"
    one, other = read_shuffled(0, f"{cut}=40"), read_shuffled(1, f"{cut}=40")
    assert one == other and len(one["train"]) == 40
    assert read_shuffled(2, f"{cut}=10")["train"].items() <= one["train"].items()
    whole = read_shuffled(0)
    assert one["train"].items() < whole["train"].items()
    assert {k: v for k, v in one.items() if k != "train"} == {k: v for k, v in whole.items() if k != "train"}
    assert read_shuffled(0, f"{cut}=5000") == whole


def test_the_labelled_fraction_is_chosen_by_content_and_keeps_every_text(read_shuffled: Any) -> None:
    one, other = (read_shuffled(seed, "data.labelled_fraction=0.25") for seed in (0, 1))
    assert one == other
    whole = read_shuffled(0)
    assert one["train"].keys() == whole["train"].keys()
    labelled = {name: row for name, row in one["train"].items() if row[1] is not None}
    assert len(labelled) == 27 and labelled.items() <= whole["train"].items()
    assert one["validation"] == whole["validation"] and one["test"] == whole["test"], "scored splits keep every label"
    more = read_shuffled(0, "data.labelled_fraction=0.5")["train"]
    assert labelled.items() <= {name: row for name, row in more.items() if row[1] is not None}.items()


def test_the_smallest_labelled_fraction_leaves_one_label(read_shuffled: Any) -> None:
    train = read_shuffled(0, "data.labelled_fraction=0.0001")["train"]
    assert sum(label is not None for _, label in train.values()) == 1


def test_rows_without_a_label_are_never_cut_off_for_validation(tmp_path: Path) -> None:
    rows: list[dict[str, str | None]] = [dict(row) for row in tiny_rows(100)]
    for row in rows[20:]:
        row["label"] = None
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"data: {{path: {tmp_path}, allow_unlabelled: true}}\nteacher: {{model: t}}\nstudent: {{model: s}}\n"
    )
    splits = read_data(load_recipe(str(recipe))).splits
    assert np.count_nonzero(splits["validation"].labels == IGNORED_LABEL) == 0
    assert np.count_nonzero(splits["train"].labels == IGNORED_LABEL) == 80
    assert {split: len(examples) for split, examples in splits.items()} == {"train": 98, "validation": 2}
