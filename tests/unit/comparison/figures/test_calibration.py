"""The reliability diagram shows the bins of which the calibration error is the sum."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from accel_kd.comparison.figures.calibration import NUM_BINS, calibration, reliability, reliability_of
from accel_kd.comparison.figures.style import series_colours
from accel_kd.metrics.fidelity import expected_calibration_error
from tests.support.made_up_comparison import NUM_ROWS, made_up_comparison, made_up_predictions


def test_its_bins_add_up_to_the_calibration_error_of_the_results() -> None:
    rows = made_up_predictions(0.8, seed=3)
    of = reliability([(rows.confidence, rows.is_right)])
    filled = of.counts > 0
    gaps = np.abs(of.confidences - of.accuracies)[filled]
    error = expected_calibration_error(rows.confidence, rows.is_right)
    assert float((of.counts[filled] * gaps).sum() / of.counts.sum()) == pytest.approx(error)
    assert of.error == pytest.approx(error)


def test_seeds_are_pooled_and_counts_are_of_one_run() -> None:
    one = (np.array([0.95, 0.95]), np.array([True, True]))
    other = (np.array([0.95, 0.05]), np.array([False, False]))
    of = reliability([one, other])
    assert of.counts[-1] == 1.5 and of.counts[0] == 0.5
    assert of.accuracies[-1] == pytest.approx(2 / 3) and of.confidences[-1] == pytest.approx(0.95)
    assert of.error == pytest.approx((0.05 + 0.5) / 2)


def test_runs_whose_confidence_is_unknown_are_left_out() -> None:
    setting = made_up_comparison().settings[0]
    first, *others = setting.runs
    assert first.predictions is not None
    unknown = replace(first, predictions=replace(first.predictions, confidence=np.full(NUM_ROWS, np.nan)))
    of, wanted = (reliability_of(replace(setting, runs=tuple(runs))) for runs in ([unknown, *others], others))
    assert of is not None and wanted is not None
    assert of.error == wanted.error and of.counts.tolist() == wanted.counts.tolist()
    assert reliability_of(replace(setting, runs=(unknown,))) is None


def test_a_line_leaves_out_empty_bins_and_the_legend_says_the_error() -> None:
    settings = made_up_comparison().settings
    found = {setting.name: of for setting in settings if (of := reliability_of(setting)) is not None}
    figure = calibration(found, series_colours(found))
    diagram, counts = figure.axes
    assert len(diagram.lines) == 1 + len(found)
    for line, of in zip(diagram.lines[1:], found.values(), strict=True):
        assert len(line.get_xdata()) == int((of.counts > 0).sum()) < NUM_BINS
        assert np.isfinite(line.get_ydata()).all()
    for stairs, of in zip(counts.patches, found.values(), strict=True):
        np.testing.assert_allclose(stairs.get_data().values[of.counts > 0], of.counts[of.counts > 0])
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == [f"{name}: ECE {of.error:.3f}" for name, of in found.items()]
