"""The `plan` command: what a recipe will take on given GPUs, before a job is queued."""

from __future__ import annotations

import argparse
import json
import re
from typing import Any

from accel_kd.config import load_recipe
from accel_kd.config.checks import accumulation_steps
from accel_kd.errors import EXIT_FAILURE, EXIT_SUCCESS, UserError
from accel_kd.heavy_imports import heavy_imports
from accel_kd.locations import expanded
from accel_kd.quietness import quieten_libraries
from accel_kd.run_directory import write_atomically

_STRATEGIES = ("one", "ddp", "fsdp2", "zero1", "zero2", "zero3")
_UNITS = {"MB": 10**6, "GB": 10**9, "MIB": 2**20, "GIB": 2**30}


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Adds `plan` to the program's commands."""
    plan = commands.add_parser("plan", help="what a recipe will take, before it is run", description=_plan.__doc__)
    plan.add_argument("recipe", help="name of a shipped recipe, or path of a YAML file")
    plan.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace the recipe's")
    plan.add_argument("--gpus", type=int, default=1, help="GPUs over all machines, a rank each (default: 1)")
    plan.add_argument("--gpu-memory", required=True, metavar="SIZE", help="of one GPU, as in 80GB or 80GiB")
    plan.add_argument("--strategy", help=f"{', '.join(_STRATEGIES)} (default: one for one GPU, ddp for several)")
    plan.add_argument("--json", metavar="FILE", help="write the plan to this file too")
    plan.set_defaults(command=_plan)


def _plan(parsed: argparse.Namespace) -> tuple[str, int]:
    """Says how much memory each part of a run takes on a rank, how much it computes, how large a store of the teacher's
    logits is and when it pays, and whether all of it fits: exit code 0, or 1 with what to change. No weights are
    loaded."""
    memory_bytes = _bytes(parsed.gpu_memory)
    _check(parsed)
    config = load_recipe(parsed.recipe, parsed.overrides)
    if any(term.type == "hidden_states" and term.weight > 0 for term in config.objective.terms or ()):
        raise UserError(
            "objective.terms: plan does not know what hidden_states holds of the layers that it compares; plan without "
            "that term, and leave room for it"
        )
    quieten_libraries()
    accumulation_steps(config.training, parsed.gpus)
    with heavy_imports():
        from accel_kd.planning.memory import Strategy
        from accel_kd.run_plan import report
        from accel_kd.run_plan.choices import advice, largest_micro_batches
        from accel_kd.run_plan.stages import Machine, Planner
        from accel_kd.run_plan.work import work

    strategy = Strategy(parsed.strategy or ("one" if parsed.gpus == 1 else "ddp"))
    planner = Planner(config, Machine(parsed.gpus, memory_bytes))
    stages = planner.stages(config, strategy)
    is_fitting = planner.fits(stages)
    arithmetic, largest = work(planner, strategy), largest_micro_batches(planner)
    sentence = report.verdict(planner, stages, None if is_fitting else advice(planner, strategy))
    if parsed.json is not None:
        found = report.record(planner, strategy, stages, arithmetic, largest, is_fitting)
        _write(parsed.json, {**found, "verdict": sentence})
    text = report.text(planner, strategy, stages, arithmetic, largest, sentence)
    return text, EXIT_SUCCESS if is_fitting else EXIT_FAILURE


def _bytes(text: str) -> int:
    """A size such as 80GB, 79.6 GiB or 500MB in bytes.

    Raises:
        UserError: it is none.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]+)", text.strip())
    unit = _UNITS.get(match[2].upper()) if match else None
    if match is None or unit is None or not float(match[1]):
        raise UserError(f"--gpu-memory: {text!r} is no size of a memory; write it as 80GB or 80GiB")
    return int(float(match[1]) * unit)


def _check(parsed: argparse.Namespace) -> None:
    if parsed.gpus < 1:
        raise UserError(f"--gpus: {parsed.gpus} is too few; it may be 1 or more")
    if parsed.strategy is None:
        return
    if parsed.strategy not in _STRATEGIES:
        raise UserError(f"--strategy: {parsed.strategy!r} is unknown; it may be {', '.join(_STRATEGIES)}")
    if (parsed.strategy == "one") != (parsed.gpus == 1):
        usable = "one" if parsed.gpus == 1 else ", ".join(_STRATEGIES[1:])
        raise UserError(f"--strategy: {parsed.strategy} does not go with --gpus {parsed.gpus}; use {usable}")


def _write(path: str, content: dict[str, Any]) -> None:
    try:
        write_atomically(expanded(path, "--json"), json.dumps(content, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"--json: {path} cannot be written: {error.strerror}") from error
