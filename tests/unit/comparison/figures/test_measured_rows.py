"""What a bubble is called: no more than tells it from the others."""

from __future__ import annotations

from dataclasses import replace

from accel_kd.comparison.compared import ComparedSetting, Measured
from accel_kd.comparison.figures.measured_rows import bubbles_of, place_of
from tests.support.made_up_comparison import Wanted, made_up_measured, made_up_setting


def measured(*per_run: tuple[Measured, ...]) -> ComparedSetting:
    setting = made_up_setting(Wanted("student", 0.8, len(per_run)))
    runs = zip(setting.runs, per_run, strict=True)
    return replace(setting, runs=tuple(replace(run, measured=rows) for run, rows in runs))


TORCH, ONNX = made_up_measured(0.8, "torch"), made_up_measured(0.79, "onnx", latency=2.0, megabytes=18.0)


def details(*settings: ComparedSetting) -> list[str]:
    return [bubble.detail for bubble in bubbles_of(settings)]


def test_forms_runs_and_devices_are_named_where_there_are_several() -> None:
    assert details(measured((TORCH,))) == [""]
    assert details(measured((TORCH, ONNX))) == ["torch", "onnx"]
    assert details(measured((TORCH,), (TORCH,))) == ["run 1", "run 2"]
    assert details(measured((TORCH,), ())) == [""]
    assert details(measured((TORCH, replace(TORCH, device="cuda", threads=None)))) == ["cpu, 1 thread", "cuda"]


def test_a_bubble_has_what_was_measured_and_none_is_made_without_an_accuracy() -> None:
    (bubble,) = bubbles_of([measured((replace(TORCH, accuracy=None), ONNX))])
    assert (bubble.name, bubble.latency, bubble.accuracy, bubble.megabytes) == ("student", 2.0, 0.79, 18.0)


def test_threads_are_counted() -> None:
    assert [place_of(replace(TORCH, threads=n)) for n in (None, 1, 2)] == ["cpu", "cpu, 1 thread", "cpu, 2 threads"]
