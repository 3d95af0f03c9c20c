"""Which settings make a run what it is."""

from __future__ import annotations

from typing import Any

_NOT_OF_IT = {
    "run": {"directory", "resume", "progress", "stop_before", "rank_timeout", "threads", "cpu_matmul"},
    # Where the teacher lives changes no logit, nor does what is said of a bad one.
    "teacher": {"on_missing", "placement", "accept_chance_accuracy"},
    # All ways of taking a step are one step, in however many pieces its batch is taken.
    "training": {"max_nonfinite_steps", "num_workers", "step_mode", "micro_batch_size"},
    "evaluation": {"micro_batch_size"},
    # Where the data live changes no batch, nor what the teacher is made of.
    "data": {"resident_megabytes"},
}


def identity(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that make a run what it is: not where it lies, how it is shown, tracked, saved or gone on with.

    Raises:
        KeyError: they lack a section, and are no recipe of this program.
    """
    kept = {name: value for name, value in settings.items() if name not in {"tracking", "checkpoint", "perf", "search"}}
    return without_what_makes_no_run(kept | {section: settings[section] for section in _NOT_OF_IT})


def without_what_makes_no_run(settings: dict[str, Any]) -> dict[str, Any]:
    """The same sections without those of their settings that make no run another one."""
    kept = {
        section: {name: value for name, value in content.items() if name not in _NOT_OF_IT[section]}
        if section in _NOT_OF_IT
        else content
        for section, content in settings.items()
    }
    teacher = kept.get("teacher", {})
    if "store" in teacher:  # how it is found, filled and looked over is not what is in it
        teacher["store"] = {"encoding": teacher["store"]["encoding"]}
    if teacher.get("finetune"):
        teacher["finetune"] = {k: v for k, v in teacher["finetune"].items() if k != "micro_batch_size"}
    return kept
