"""Which settings make a run what it is."""

from __future__ import annotations

from typing import Any


def identity(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that make a run what it is: not where it lies, how it is shown, tracked, saved or gone on with."""
    kept = {name: value for name, value in settings.items() if name not in {"tracking", "checkpoint", "perf", "search"}}
    not_of_it = {"directory", "resume", "progress", "stop_before", "rank_timeout", "threads", "cpu_matmul"}
    kept["run"] = {k: v for k, v in settings["run"].items() if k not in not_of_it}
    # Where the teacher lives changes no logit. Of a store: how it is found, filled and looked over, not what is in it.
    not_of_it = {"on_missing", "placement"}
    kept["teacher"] = {k: v for k, v in settings["teacher"].items() if k not in not_of_it}
    if "store" in kept["teacher"]:
        kept["teacher"]["store"] = {"encoding": settings["teacher"]["store"]["encoding"]}
    # All ways of taking a step are one step, in however many pieces its batch is taken.
    not_of_it = {"max_nonfinite_steps", "num_workers", "step_mode", "micro_batch_size"}
    kept["training"] = {k: v for k, v in settings["training"].items() if k not in not_of_it}
    kept["evaluation"] = {k: v for k, v in settings["evaluation"].items() if k != "micro_batch_size"}
    # Where the data live changes no batch, nor what the teacher is made of.
    kept["data"] = {k: v for k, v in settings["data"].items() if k != "resident_megabytes"}
    return kept
