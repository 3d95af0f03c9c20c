"""What a comparison of logits finds, and what it lets pass."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from accel_kd.formats.agreement import compare
from accel_kd.formats.base import Limits

STRICT = Limits(min_agreement=1.0, max_relative_difference=1e-4, tie_margin=1e-3)
LOOSE = Limits(min_agreement=0.97, max_relative_difference=0.1)


@pytest.fixture
def logits() -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(0.0, 2.0, (400, 7)).astype(np.float32)


def test_figures_are_those_of_plain_arithmetic() -> None:
    student = np.array([[3.0, 1.0], [0.0, 2.0], [1.0, 0.0]], dtype=np.float32)
    form = np.array([[3.0, 1.5], [0.0, 2.0], [0.0, 1.0]], dtype=np.float32)
    found = compare(student, form, np.array([0, 1, 1]))
    assert (found.num_rows, found.agreement, found.num_ties) == (3, pytest.approx(2 / 3), 0)
    assert (found.largest_difference, found.mean_difference) == (1.0, pytest.approx(2.5 / 6))
    assert found.relative_difference == pytest.approx(2.5 / 6 / student.astype(np.float64).std())
    assert (found.student_accuracy, found.form_accuracy) == (pytest.approx(2 / 3), 1.0)


def test_rounding_passes_the_strictest_limits(logits: NDArray[np.float32]) -> None:
    found = compare(logits, logits + np.float32(1e-5), logits.argmax(axis=1), STRICT.tie_margin)
    assert found.broken(STRICT) == [] and found.agreement == found.student_accuracy == 1.0


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda logits: 1.25 * logits, "logits differ by"),
        (lambda logits: 0.8 * logits, "logits differ by"),
        (lambda logits: logits[:, [1, 0, 2, 3, 4, 5, 6]], "labels agree, and a share of"),
        (lambda logits: np.roll(logits, 1, axis=0), "labels agree, and a share of"),
        (lambda logits: np.full_like(logits, np.nan), "logits differ by nan"),
    ],
    ids=["scale too large", "scale too small", "two labels swapped", "rows shifted", "not a number"],
)
@pytest.mark.parametrize("limits", [STRICT, LOOSE], ids=["strict", "loose"])
def test_a_spoilt_form_is_found(logits: NDArray[np.float32], limits: Limits, spoil: object, said: str) -> None:
    found = compare(logits, spoil(logits), logits.argmax(axis=1), limits.tie_margin)  # type: ignore[operator]
    assert any(said in line for line in found.broken(limits)), found


def test_two_labels_as_good_as_equal_are_a_tie_and_agree() -> None:
    student = np.array([[1.0, 0.9995, 0.0], [1.0, 0.9, 0.0]], dtype=np.float32)
    swapped = student[:, [1, 0, 2]]
    found = compare(student, swapped, np.array([0, 0]), tie_margin=1e-3)
    assert (found.agreement, found.num_same, found.num_ties) == (0.5, 0, 1)
    assert compare(student, swapped, np.array([0, 0])).agreement == 0.0
