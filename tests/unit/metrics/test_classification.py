"""Accuracy and F1 against plain counting, on ordinary and degenerate splits, without a network."""

from __future__ import annotations

import socket

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from accel_kd.metrics.classification import accuracy_by_label, classification_metrics

LABELLED = st.integers(1, 6).flatmap(
    lambda num_labels: st.lists(
        st.tuples(st.integers(0, num_labels - 1), st.integers(0, num_labels - 1)), min_size=1, max_size=30
    )
)


def plain_scores(labels: NDArray[np.int64], argmax: NDArray[np.int64]) -> dict[str, float]:
    """Accuracy, and the mean F1 over every label that occurs as a truth or as a prediction."""
    f1 = []
    for label in sorted({*labels.tolist(), *argmax.tolist()}):
        hits = sum(1 for truth, guess in zip(labels, argmax, strict=True) if truth == guess == label)
        f1.append(2 * hits / (np.count_nonzero(labels == label) + np.count_nonzero(argmax == label)))
    return {"accuracy": sum(labels == argmax) / len(labels), "macro_f1": sum(f1) / len(f1)}


@settings(max_examples=60, deadline=None)
@given(LABELLED)
def test_scores_equal_plain_counting(pairs: list[tuple[int, int]]) -> None:
    labels, argmax = np.array(pairs, dtype=np.int64).T
    assert classification_metrics(labels, argmax) == pytest.approx(plain_scores(labels, argmax), abs=1e-12)


def test_scores_of_many_rows_equal_plain_counting() -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 151, 5_500)
    argmax = np.where(generator.random(5_500) < 0.7, labels, generator.integers(0, 151, 5_500))
    assert classification_metrics(labels, argmax) == pytest.approx(plain_scores(labels, argmax), abs=1e-12)


def test_a_split_of_one_label_and_one_row_has_a_score() -> None:
    one, other = np.array([2]), np.array([0])
    assert classification_metrics(one, one) == {"accuracy": 1.0, "macro_f1": 1.0}
    assert classification_metrics(one, other) == {"accuracy": 0.0, "macro_f1": 0.0}


def test_two_scorings_do_not_see_each_others_rows() -> None:
    labels = np.array([0, 1, 1])
    first = classification_metrics(labels, labels)
    assert classification_metrics(labels, 1 - labels)["accuracy"] == 0.0
    assert classification_metrics(labels, labels) == first == {"accuracy": 1.0, "macro_f1": 1.0}


def test_out_of_scope_rows_are_scored_apart() -> None:
    labels, argmax = np.array([0, 0, 1, 2, 2, 2, 2]), np.array([0, 2, 1, 2, 2, 2, 0])
    scores = classification_metrics(labels, argmax, out_of_scope=2)
    assert scores["accuracy"] == pytest.approx(5 / 7)
    assert scores["in_scope_accuracy"] == pytest.approx(2 / 3)
    assert scores["out_of_scope_recall"] == pytest.approx(3 / 4)
    assert scores["macro_f1"] == pytest.approx(plain_scores(labels, argmax)["macro_f1"])


def test_a_score_without_an_example_is_left_out_and_not_made_up() -> None:
    labels = np.array([0, 1, 1])
    assert classification_metrics(labels, labels, out_of_scope=2).keys() == {
        "accuracy",
        "macro_f1",
        "in_scope_accuracy",
    }
    only_outside = classification_metrics(np.array([2, 2]), np.array([2, 0]), out_of_scope=2)
    assert only_outside.keys() == {"accuracy", "macro_f1", "out_of_scope_recall"}
    assert only_outside["out_of_scope_recall"] == 0.5
    assert "in_scope_accuracy" not in classification_metrics(labels, labels)


def test_the_label_zero_can_be_the_one_out_of_scope() -> None:
    assert classification_metrics(np.array([0, 1]), np.array([1, 1]), out_of_scope=0)["out_of_scope_recall"] == 0.0


def test_accuracy_by_label_names_the_labels_that_occur() -> None:
    labels, argmax = np.array([0, 0, 2, 2, 2]), np.array([0, 1, 2, 2, 1])
    assert accuracy_by_label(labels, argmax, ["a", "b", "c"]) == {"a": 0.5, "c": pytest.approx(2 / 3)}


def test_scoring_opens_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a metric asked the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert classification_metrics(np.array([0, 1]), np.array([0, 1]))["accuracy"] == 1.0
