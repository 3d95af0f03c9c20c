"""Every figure for which there is data, and a reason for each that there is not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from accel_kd.comparison.compared import Comparison
from accel_kd.comparison.figures.drawn import DrawnFigure, LeftOut, drawn_figures
from accel_kd.comparison.figures.files import write_pngs
from accel_kd.errors import UserError
from tests.support.made_up_comparison import Wanted, made_up_comparison


def without_data(comparison: Comparison) -> Comparison:
    settings = tuple(
        replace(setting, runs=tuple(replace(run, predictions=None, curve=None, measured=()) for run in setting.runs))
        for setting in comparison.settings
    )
    return replace(comparison, settings=settings, differences=())


def captions(comparison: Comparison) -> dict[str, str]:
    return {one.stem: one.caption for one in drawn_figures(comparison) if isinstance(one, DrawnFigure)}


def test_with_all_data_there_are_all_figures_and_their_files(tmp_path: Path) -> None:
    comparison = made_up_comparison()
    stems = [one.stem for one in drawn_figures(comparison) if isinstance(one, DrawnFigure)]
    assert stems == [
        "paired_differences", "accuracy_latency", "learning_curves", "calibration", "confusion_pairs_1",
        "confusion_pairs_2",
    ]  # fmt: skip
    files = write_pngs(comparison, tmp_path / "new" / "folder")
    assert files == [tmp_path / "new" / "folder" / f"{stem}.png" for stem in stems]
    for file in files:
        assert file.read_bytes().startswith(b"\x89PNG")


def test_without_data_nothing_is_drawn_and_each_reason_is_given(tmp_path: Path) -> None:
    comparison = without_data(made_up_comparison())
    figures = drawn_figures(comparison)
    assert all(isinstance(one, LeftOut) for one in figures)
    assert [(one.title, one.reason) for one in figures if isinstance(one, LeftOut)] == [
        ("Differences on the same rows", "no two settings have predictions of the same rows"),
        ("Accuracy against latency", "no run was measured by accel-kd benchmark model"),
        ("Learning curves", "no run has a log of its training loss"),
        ("Calibration", "no run has predictions with their confidence"),
        ("Confusions that differ", "no setting confuses labels unlike often than control on the same rows"),
    ]
    assert write_pngs(comparison, tmp_path) == []


def test_rows_that_are_not_the_same_are_not_set_against_each_other() -> None:
    comparison = made_up_comparison()
    baseline, *others = comparison.settings
    moved = [
        replace(run, predictions=replace(run.predictions, ids=run.predictions.ids[::-1]))
        for run in baseline.runs
        if run.predictions is not None
    ]
    figures = drawn_figures(replace(comparison, settings=(replace(baseline, runs=tuple(moved)), *others)))
    assert any(isinstance(one, LeftOut) and one.title == "Confusions that differ" for one in figures)


def test_of_many_settings_some_are_drawn_and_the_captions_say_so() -> None:
    wanted = [Wanted(f"trial {n:02d}", 0.7 + 0.015 * n) for n in range(12)]
    said = captions(made_up_comparison(wanted))
    assert [stem for stem in said if stem.startswith("confusion")] == [f"confusion_pairs_{n}" for n in (1, 2, 3, 4)]
    assert "The 4 settings most unlike the baseline are drawn, of 11." in said["confusion_pairs_1"]
    assert "The first 10 settings of 12 are drawn." in said["learning_curves"]
    assert "The first 10 settings of 12 are drawn." in said["calibration"]
    assert "22 more stand in the table alone." in said["paired_differences"]
    assert "of 24: than those, none is both faster and more often right." in said["accuracy_latency"]


def test_what_was_measured_without_an_accuracy_is_counted_in_the_caption() -> None:
    comparison = made_up_comparison()
    first, *others = comparison.settings
    run, *runs = first.runs
    run = replace(run, measured=tuple(replace(one, accuracy=None) for one in run.measured))
    settings = (replace(first, runs=(run, *runs)), *others)
    assert (
        "Left out: 2 measured without an accuracy."
        in captions(replace(comparison, settings=settings))["accuracy_latency"]
    )


def test_a_folder_that_cannot_be_written_is_the_users_to_change(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"^figures: .*file cannot be written: .*; name another folder$"):
        write_pngs(made_up_comparison(), tmp_path / "file")
