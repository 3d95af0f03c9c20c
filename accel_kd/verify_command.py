"""The `verify` command: every way of running a recipe against the plain one, on this machine."""

from __future__ import annotations

import argparse
import os
from typing import Any

from accel_kd.config import load_recipe
from accel_kd.errors import EXIT_FAILURE, EXIT_SUCCESS, UserError
from accel_kd.heavy_imports import heavy_imports
from accel_kd.quietness import quieten_libraries

_MOST_RANKS = 64


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Adds `verify` to the program's commands."""
    verify = commands.add_parser(
        "verify", help="prove that all ways of running a recipe agree", description=_verify.__doc__
    )
    verify.add_argument("recipe", help="name of a shipped recipe, or path of a YAML file")
    verify.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace the recipe's")
    verify.add_argument("--ranks", type=int, default=2, help="ranks of the ways that have several (default: 2)")
    verify.add_argument("--steps", type=int, default=8, help="optimizer steps of each way (default: 8)")
    verify.add_argument(
        "--only", action="append", default=[], metavar="PART", help="only ways whose name has this part"
    )
    verify.add_argument("--keep", action="store_true", help="keep the runs of the ways that passed too")
    verify.set_defaults(command=_verify)


def _verify(parsed: argparse.Namespace) -> tuple[str, int]:
    """Runs a recipe for a few steps the plain way (one process, fp32, streaming), then each other way that this machine
    allows (accumulation, ranks, stores, killed and resumed, compiled, graphed, FSDP2, DeepSpeed, bf16), and compares
    losses, gradients, parameters and metrics. Exit code 1 if one differs by more than it may."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("verify: it starts its ranks itself; call it without accelerate launch or torchrun")
    if not 1 <= parsed.ranks <= _MOST_RANKS:
        raise UserError(f"--ranks: {parsed.ranks}; give a number from 1 to {_MOST_RANKS}")
    if parsed.steps < 4 or parsed.steps % 2:
        raise UserError(f"--steps: {parsed.steps}; give an even number of at least 4, so that there are two epochs")
    config = load_recipe(parsed.recipe, parsed.overrides)
    quieten_libraries()
    with heavy_imports():
        from accel_kd.verify.verification import Settings, verify

    report = verify(config, Settings(parsed.ranks, parsed.steps, tuple(parsed.only), parsed.keep))
    failed = report.failed
    verdict = f"{len(failed)} of {len(report.rows)} ways differ: {', '.join(failed)}" if failed else "all ways agree"
    text = f"\n{report.text}\n\n{verdict}; all of it is in {report.folder}/verification.json"
    return text, EXIT_FAILURE if failed else EXIT_SUCCESS
