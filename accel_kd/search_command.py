"""The `search` command: looks for the best settings of a recipe, or renders the same search as a W&B sweep."""

from __future__ import annotations

import argparse
import importlib.util
import re
from typing import Any

from accel_kd.config import load_recipe
from accel_kd.errors import UserError
from accel_kd.heavy_imports import heavy_imports
from accel_kd.quietness import quieten_libraries


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Adds `search` to the program's commands."""
    search = commands.add_parser(
        "search",
        help="look for the best settings of a recipe",
        description=_search.__doc__,
        epilog="Started several times on one search.directory, at once or later, all work at the same search.",
    )
    search.add_argument("recipe", help="name of a shipped recipe, or path of a YAML file")
    search.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace the recipe's")
    search.add_argument(
        "--worker", metavar="NAME", help="what this process is called in DIRECTORY/workers; default: a free number"
    )
    search.add_argument(
        "--wandb-sweep", metavar="FILE", help="search nothing; write the search as a `wandb sweep` configuration"
    )
    search.set_defaults(command=_search)


def _search(parsed: argparse.Namespace) -> str:
    """Tries settings of a recipe, each trial a run of its own, by the `search` section; then trains the best settings
    with further seeds and writes a table, pictures, and a recipe."""
    config = load_recipe(parsed.recipe, parsed.overrides)
    if parsed.worker is not None and not re.fullmatch(r"[\w][\w.-]*", parsed.worker):
        raise UserError(f"--worker: {parsed.worker!r} cannot be the name of a folder; use letters, digits and -")
    if parsed.wandb_sweep is not None:
        from accel_kd.search.wandb_sweep import write_sweep

        return write_sweep(config, parsed.recipe, parsed.overrides, parsed.wandb_sweep)
    if importlib.util.find_spec("optuna") is None:
        raise UserError("search: Optuna is not installed; pip install 'accel_kd[search]'")
    quieten_libraries()
    with heavy_imports():
        from accel_kd.search.searching import search

    return f"\n{search(config, parsed.worker)}"
