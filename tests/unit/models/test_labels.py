"""A model's label order against the data's: reconciled by name, never guessed, refused with what differs."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertConfig

from accel_kd.errors import UserError
from accel_kd.models.labels import (
    are_unnamed,
    balanced_accuracy,
    columns_by_name,
    guessing_threshold,
    names_in_order,
)
from tests.support.tiny import LABELS, config

PLACEHOLDERS = [f"LABEL_{number}" for number in range(5)]


def test_names_come_by_logit_column_and_not_by_the_order_in_the_file() -> None:
    assert names_in_order(config(labels=LABELS)) == LABELS
    assert names_in_order(BertConfig(id2label={2: "c", 0: "a", 1: "b"})) == ["a", "b", "c"]
    assert names_in_order(BertConfig(id2label={"1": "b", "0": "a"})) == ["a", "b"]
    assert names_in_order(BertConfig(num_labels=5)) == PLACEHOLDERS


def test_only_the_placeholders_of_transformers_are_unnamed() -> None:
    assert are_unnamed(PLACEHOLDERS)
    assert not are_unnamed(["LABEL_0", "alarm"])
    assert not are_unnamed(["label_0", "label_1"])
    assert not are_unnamed(["LABEL_0b", "LABEL_1b"])


@settings(deadline=None)
@given(st.permutations(LABELS), st.permutations(LABELS))
def test_the_column_of_each_label_is_the_one_with_its_name(model_names: list[str], data_names: list[str]) -> None:
    columns = columns_by_name(model_names, data_names, "teacher.model")
    if model_names == data_names:
        assert columns is None
    else:
        assert columns is not None and [model_names[column] for column in columns] == data_names


def test_names_are_compared_to_the_letter() -> None:
    with pytest.raises(UserError, match="only the model has Alarm; only the data have alarm"):
        columns_by_name(["Alarm", "bank"], ["alarm", "bank"], "teacher.model")


def test_labels_without_names_on_either_side_are_taken_in_their_order() -> None:
    assert columns_by_name(PLACEHOLDERS, LABELS, "teacher.model") is None
    assert columns_by_name(LABELS, PLACEHOLDERS, "teacher.model") is None
    assert columns_by_name(PLACEHOLDERS, PLACEHOLDERS, "teacher.model") is None


def test_other_labels_are_refused_with_what_each_side_has_alone() -> None:
    with pytest.raises(UserError, match=r"^teacher\.model: .*only the model has news; only the data have weather$"):
        columns_by_name(["alarm", "news"], ["alarm", "weather"], "teacher.model")
    many = [f"intent {number:02}" for number in range(20)]
    with pytest.raises(UserError, match=r"only the model has intent 00, .*, intent 04 and 15 more; only the data"):
        columns_by_name(many, [f"other {number}" for number in range(20)], "teacher.model")


def test_another_number_of_labels_is_refused_named_or_not() -> None:
    with pytest.raises(UserError, match=r"has 4 labels, the data have 5: only the data have weather$"):
        columns_by_name(LABELS[:4], LABELS, "teacher.model")
    with pytest.raises(UserError, match="has 5 labels, the data have 4$"):
        columns_by_name(PLACEHOLDERS, LABELS[:4], "teacher.model")


def test_a_name_that_stands_twice_cannot_be_told_apart() -> None:
    with pytest.raises(UserError, match="one name to several labels"):
        columns_by_name(["a", "b", "b"], ["b", "a", "b"], "teacher.model")


def test_the_threshold_is_four_deviations_above_what_answering_by_lot_gives() -> None:
    labels = np.arange(300) % 3
    answers = np.repeat([0, 1, 2], 100)  # each label a third of the time
    assert guessing_threshold(labels, answers) == pytest.approx(1 / 3 + 4 * math.sqrt(3 * (2 / 9) / 100) / 3)
    # One answer for all: right on all of one label, which is a third whatever the luck.
    assert guessing_threshold(labels, np.zeros(300, dtype=np.int64)) == pytest.approx(1 / 3)


def test_guessing_stays_below_the_threshold_and_a_model_that_knows_little_lies_above() -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 10, 500)
    for _ in range(200):
        guesses = generator.integers(0, 10, 500)
        assert balanced_accuracy(labels, guesses) <= guessing_threshold(labels, guesses)
    knows_little = np.where(generator.random(500) < 0.2, labels, generator.integers(0, 10, 500))
    assert balanced_accuracy(labels, knows_little) > guessing_threshold(labels, knows_little)


def test_a_good_model_on_lopsided_data_is_no_guesser_and_the_commonest_answer_is() -> None:
    labels = np.array([0] * 950 + [1] * 50)
    good = np.array([0] * 940 + [1] * 10 + [0] * 20 + [1] * 30)
    assert balanced_accuracy(labels, good) > guessing_threshold(labels, good)
    always = np.zeros(1000, dtype=np.int64)
    assert balanced_accuracy(labels, always) <= guessing_threshold(labels, always)


def test_a_permuted_teacher_looks_like_a_guesser() -> None:
    labels = np.arange(400) % 20
    permuted = (labels + 7) % 20
    assert balanced_accuracy(labels, permuted) <= guessing_threshold(labels, permuted)


def test_equal_sets_of_names_are_matched_by_name_also_where_they_look_like_placeholders() -> None:
    names = [f"LABEL_{number}" for number in range(12)]
    by_text = sorted(names)
    columns = columns_by_name(names, by_text, "teacher.model")
    assert columns is not None
    assert [names[column] for column in columns] == by_text
