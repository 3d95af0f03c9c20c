"""Every run is a line, every setting a colour."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from accel_kd.comparison.compared import ComparedSetting, LearningCurve
from accel_kd.comparison.figures.learning_curves import accuracies_of, binned, has_losses, learning_curves
from accel_kd.comparison.figures.style import series_colours
from tests.support.made_up_comparison import made_up_comparison


def with_curve(setting: ComparedSetting, curve: LearningCurve | None) -> ComparedSetting:
    return replace(setting, runs=tuple(replace(run, curve=curve) for run in setting.runs))


def test_the_runs_of_a_setting_share_a_colour_and_are_lines_of_their_own() -> None:
    settings = made_up_comparison().settings
    colours = series_colours(setting.name for setting in settings)
    losses, accuracies = learning_curves(settings, colours).axes
    wanted = [colours[setting.name] for setting in settings for _ in setting.runs]
    assert [line.get_color() for line in losses.lines] == wanted
    assert [line.get_color() for line in accuracies.lines] == wanted
    curve = settings[0].runs[0].curve
    assert curve is not None
    np.testing.assert_allclose(accuracies.lines[0].get_ydata(), 100 * curve.evaluations["eval/accuracy"])
    assert losses.get_ylabel() == "training loss\nmean of 5 steps" and accuracies.get_xlabel() == "step"


def test_without_a_validation_there_are_losses_alone() -> None:
    setting = made_up_comparison().settings[2]
    steps = np.arange(1, 11)
    curve = LearningCurve(steps, 1.0 / steps, np.zeros(0, dtype=np.int64), {})
    (losses,) = learning_curves([with_curve(setting, curve)], series_colours([setting.name])).axes
    np.testing.assert_allclose(losses.lines[0].get_ydata(), 1.0 / steps)
    assert losses.get_xlabel() == "step" and losses.get_ylabel() == "training loss"


def test_binned_losses_are_the_means_of_those_that_are_numbers() -> None:
    steps = np.array([1, 2, 3, 4, 5, 8, 9])
    losses = np.array([4.0, 2.0, np.nan, 1.0, np.inf, 7.0, 5.0])
    at, means = binned(steps, losses, 2)
    assert at.tolist() == [1.5, 4.0, 8.0, 9.0]
    assert means.tolist() == [3.0, 1.0, 7.0, 5.0]


def test_accuracies_that_are_not_numbers_are_no_points() -> None:
    curve = LearningCurve(np.array([1]), np.array([1.0]), np.array([5, 10]), {"eval/accuracy": np.array([np.nan, 0.5])})
    steps, accuracies = accuracies_of(curve)
    assert steps.tolist() == [10] and accuracies.tolist() == [0.5]


def test_a_setting_without_a_finite_loss_has_none() -> None:
    setting = made_up_comparison().settings[0]
    steps = np.array([1, 2])
    nothing = LearningCurve(steps, np.full(2, np.nan), np.zeros(0, dtype=np.int64), {})
    assert has_losses(setting)
    assert not has_losses(with_curve(setting, nothing)) and not has_losses(with_curve(setting, None))
