"""The figures of a run, model by model, read back from what the run wrote."""

from __future__ import annotations

from typing import Any

from accel_kd.run_directory import RunDirectory

_TEACHER = "teacher/"


def figures_of(directory: RunDirectory) -> dict[str, dict[str, Any]]:
    """Teacher, control and student of a finished run, each with the keys of its summary."""
    summary = directory.read_summary()
    figures: dict[str, dict[str, Any]] = {}
    # In the summary of a student its teacher's test/accuracy is teacher/test_accuracy.
    teacher = {
        key.removeprefix(_TEACHER).replace("eval_", "eval/", 1).replace("test_", "test/", 1): value
        for key, value in summary.items()
        if key.startswith(_TEACHER)
    }
    control = directory.part("control")
    if teacher:
        figures["teacher"] = teacher
    if control.is_finished:
        figures["student without teacher"] = control.read_summary()
    figures["student with teacher" if teacher else "student"] = summary
    return figures
