"""The figures of a run, model by model, read back from what the run wrote."""

from __future__ import annotations

from typing import Any

from accel_kd.run_directory import RunDirectory

_TEACHER = "teacher/"


def figures_of(directory: RunDirectory) -> dict[str, dict[str, Any]]:
    """Teacher, control and student of a finished run, each with the keys of its summary."""
    summary = directory.read_summary()
    figures: dict[str, dict[str, Any]] = {}
    teacher = {
        key.removeprefix(_TEACHER).replace("_", "/", 1) if key.startswith((f"{_TEACHER}eval_", f"{_TEACHER}test_")) else
        key.removeprefix(_TEACHER): value
        for key, value in summary.items()
        if key.startswith(_TEACHER)
    }  # fmt: skip
    control = directory.part("control")
    if teacher:
        figures["teacher"] = teacher
    if control.is_finished:
        figures["student without teacher"] = control.read_summary()
    figures["student with teacher" if teacher else "student"] = summary
    return figures
