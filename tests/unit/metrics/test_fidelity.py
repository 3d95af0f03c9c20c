"""Agreement, divergence and calibration against slow plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from accel_kd.metrics.fidelity import expected_calibration_error, fidelity_metrics
from accel_kd.metrics.scored_rows import ScoredRows

CONFIDENT_ROWS = st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60)


def plain_calibration_error(confidence: NDArray[np.float64], correct: NDArray[np.bool_], num_bins: int) -> float:
    """Bin m holds the confidences within ((m - 1) / M, m / M]; 0 belongs to the first."""
    error = 0.0
    for number in range(1, num_bins + 1):
        inside = [
            (value, was_right)
            for value, was_right in zip(confidence.tolist(), correct.tolist(), strict=True)
            # As products, since the borders themselves have no exact floating-point number.
            if number - 1 < value * num_bins <= number or (number == 1 and value == 0)
        ]
        if inside:
            accuracy = sum(was_right for _, was_right in inside) / len(inside)
            mean_confidence = sum(value for value, _ in inside) / len(inside)
            error += len(inside) / len(confidence) * abs(accuracy - mean_confidence)
    return error


def arrays(rows: list[tuple[float, bool]]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    return np.array([value for value, _ in rows]), np.array([was_right for _, was_right in rows])


@settings(deadline=None)
@given(CONFIDENT_ROWS, st.sampled_from([1, 2, 10, 15]))
def test_the_calibration_error_equals_a_plain_loop(rows: list[tuple[float, bool]], num_bins: int) -> None:
    confidence, correct = arrays(rows)
    error = expected_calibration_error(confidence, correct, num_bins)
    assert error == pytest.approx(plain_calibration_error(confidence, correct, num_bins), abs=1e-9)
    assert 0 <= error <= 1


def test_bins_are_closed_on_the_right_and_the_edges_belong_to_the_outer_bins() -> None:
    # 0.5 lies in the first of two bins with 0.3, so that their gaps cancel; above it there would be two gaps.
    confidence = np.array([0.5, 0.3])
    assert expected_calibration_error(confidence, np.array([True, False]), 2) == pytest.approx(0.1)
    edges = np.array([0.0, 1.0])
    assert expected_calibration_error(edges, np.array([False, True])) == 0.0
    assert expected_calibration_error(edges, np.array([True, False])) == 1.0
    rounded_up = np.array([1.0 + 1e-12])
    assert expected_calibration_error(rounded_up, np.array([True])) == pytest.approx(0.0, abs=1e-9)


def test_a_model_that_is_as_often_right_as_it_is_sure_is_calibrated() -> None:
    confidence = np.full(100, 0.75)
    assert expected_calibration_error(confidence, np.arange(100) < 75) == pytest.approx(0.0, abs=1e-12)
    assert expected_calibration_error(confidence, np.arange(100) < 25) == pytest.approx(0.5)


def rows(**others: NDArray[np.generic]) -> ScoredRows:
    return ScoredRows(
        labels=np.array([0, 1, 2, 1]),
        argmax=np.array([0, 1, 1, 2]),
        confidence=np.array([0.9, 0.8, 0.7, 0.6]),
        loss=np.zeros(4),
        **others,  # type: ignore[arg-type]
    )


def test_without_a_teacher_there_is_calibration_alone() -> None:
    expected = (abs(0.9 - 1) + abs(0.8 - 1) + 0.7 + 0.6) / 4
    assert fidelity_metrics(rows()) == {"calibration_error": pytest.approx(expected)}


def test_with_a_teacher_agreement_is_about_its_argmax_and_not_about_the_label() -> None:
    teacher_kl = np.array([0.1, 0.2, 0.3, 1.0])
    metrics = fidelity_metrics(rows(teacher_argmax=np.array([0, 0, 1, 2]), teacher_kl=teacher_kl))
    assert metrics.keys() == {"calibration_error", "teacher_agreement", "teacher_kl"}
    assert metrics["teacher_agreement"] == 0.75
    assert metrics["teacher_kl"] == pytest.approx(0.4)
    assert all(type(value) is float and math.isfinite(value) for value in metrics.values())
