"""Measures what a search from a store takes beside streaming runs: `python -m accel_kd.benchmark.search demo`.

teacher, if it is fine-tuned (for both, not timed) -> a search of k trials from an empty store, in one process
-> the same settings as k streaming runs, a process each -> a table on standard output, rows of JSON in a file
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accel_kd.benchmark.command_line import (
    answered,
    append_rows,
    count,
    recipe_parser,
    report,
    run_as_program,
)
from accel_kd.benchmark.program import PROGRAM, run_to_end
from accel_kd.benchmark.report import circumstances, heading, markdown
from accel_kd.config import RunConfig, load_recipe
from accel_kd.errors import EXIT_SUCCESS, RunFailure, UserError
from accel_kd.run_directory import RunDirectory

_OWN = ("run.", "search.directory", "search.num_trials", "search.final_seeds", "search.pruner", "search.sampler",
        "teacher.source", "teacher.store.path", "tracking.mode")  # fmt: skip
"""What the benchmark sets itself."""


@dataclass(frozen=True)
class Pair:
    """One choice of settings both ways; seconds."""

    settings: dict[str, Any]
    trial_seconds: float
    """Of the trial within the search; the filling of the store is in the first one's."""
    run_seconds: float
    """Of the streaming run, from the start of its process to its end."""
    trial_training_seconds: float
    run_training_seconds: float
    """Taking steps, evaluation and checkpoints left out."""
    trial_value: float
    run_value: float
    """Of the metric."""


@dataclass(frozen=True)
class Measured:
    """A search and the runs beside it."""

    search_seconds: float
    """From the start of its process to its end, the start and the filling of the store included."""
    pairs: list[Pair]
    device: str

    @property
    def ratio(self) -> float:
        """The search's time over that of all runs."""
        return self.search_seconds / sum(pair.run_seconds for pair in self.pairs)

    @property
    def training_ratio(self) -> float:
        """The same of the steps alone."""
        run_seconds = sum(pair.run_training_seconds for pair in self.pairs)
        return sum(pair.trial_training_seconds for pair in self.pairs) / run_seconds


def main(arguments: Sequence[str] | None = None, program: Sequence[str] = PROGRAM) -> int:
    """Runs the benchmark's command line; `program` is what it measures.

    Returns:
        0; 2 for a mistake of the user's; 1 where a run failed.
    """
    return answered(lambda: _benchmark(_parser().parse_intermixed_args(arguments), program))


def _benchmark(parsed: argparse.Namespace, program: Sequence[str]) -> int:
    config = _checked(parsed)
    append_rows(parsed.output, [])  # a file that cannot be written is better known now than in an hour
    with tempfile.TemporaryDirectory(prefix="accel_kd_benchmark_") as name:
        where = circumstances(Path(name)) | {
            "recipe": parsed.recipe, "overrides": parsed.overrides, "load_average": os.getloadavg()[0],
        }  # fmt: skip
        measured = _measure(config, parsed, program, Path(name))
    row = {
        "measured": "search", "trials": parsed.trials, "ratio": measured.ratio,
        "training_ratio": measured.training_ratio, "search_seconds": measured.search_seconds,
        "device": measured.device, "pairs": [vars(pair) for pair in measured.pairs],
    }  # fmt: skip
    append_rows(parsed.output, [row | where])
    what = f"{' '.join([parsed.recipe, *parsed.overrides])}, {parsed.trials} trials"
    print(f"{heading(where, measured.device, what)}\n\n{_table(measured)}", flush=True)
    return EXIT_SUCCESS


def _checked(parsed: argparse.Namespace) -> RunConfig:
    config = load_recipe(parsed.recipe, parsed.overrides)
    for override in parsed.overrides:
        if override.startswith(_OWN):
            raise UserError(f"{override.partition('=')[0]}: the benchmark sets it itself; leave it out (see --trials)")
    if config.teacher.model is None:
        raise UserError("teacher.model: missing; without a teacher there is no store")
    return config


def _measure(config: RunConfig, parsed: argparse.Namespace, program: Sequence[str], folder: Path) -> Measured:
    common = [*parsed.overrides, "tracking.mode=disabled"]
    if config.teacher.finetune is not None:
        common += _fine_tuned(parsed.recipe, common, program, folder)
    directory = folder / "search"
    search = [
        *common, "teacher.source=cached", f"teacher.store.path={folder / 'stores'}", f"search.directory={directory}",
        f"search.num_trials={parsed.trials}", "search.sampler=random", "search.pruner=none", "search.final_seeds=0",
    ]  # fmt: skip
    search_seconds = _timed([*program, "search", parsed.recipe, *search], folder / "log")
    report(f"search of {parsed.trials} trials: {search_seconds:.1f} s")
    found = json.loads((directory / "search.json").read_text(encoding="utf-8"))
    pairs, device = [], ""
    for trial in found["trials"]:
        if trial["outcome"] != "complete":
            raise RunFailure(f"trial {trial['number']} of the search failed: {trial['reason']}")
        settings = [f"{name}={json.dumps(value)}" for name, value in trial["settings"].items()]
        own = RunDirectory(folder / f"run-{trial['number']}")
        run = [*common, *settings, "teacher.source=streaming", "run.control=false", f"run.directory={own.path}"]
        seconds = _timed([*program, "distill", parsed.recipe, *run], folder / "log")
        report(f"run {trial['number'] + 1} of {parsed.trials}: {seconds:.1f} s")
        mine, others = RunDirectory(Path(trial["directory"])).read_summary(), own.read_summary()
        device = others["device"]
        pairs.append(
            Pair(
                trial["settings"], trial["seconds"], seconds,
                mine["perf/training_seconds"], others["perf/training_seconds"],
                trial["value"], others[f"eval/{found['metric']}"],
            )
        )  # fmt: skip
    return Measured(search_seconds, pairs, device)


def _fine_tuned(recipe: str, common: Sequence[str], program: Sequence[str], folder: Path) -> list[str]:
    """Settings that give both the teacher that the recipe fine-tunes; its store is another one and thrown away."""
    directory = folder / "teacher"
    settings = [*common, f"run.directory={directory}", f"teacher.store.path={folder / 'unused'}"]
    seconds = _timed([*program, "cache-teacher", recipe, *settings], folder / "log")
    report(f"teacher for both, not counted: {seconds:.1f} s")
    model = RunDirectory(directory).part("teacher").model
    return [f"teacher.model={model}", "teacher.finetune=null"]


def _timed(command: Sequence[str], log: Path) -> float:
    started = time.perf_counter()
    run_to_end(command, log)
    return time.perf_counter() - started


def _table(measured: Measured) -> str:
    names = list(measured.pairs[0].settings)
    lines = [[*names, "trial, s", "streaming run, s", "steps of it, s", "of that, s", "metric", "of that"]]
    for pair in measured.pairs:
        shown = [f"{value:.4g}" if isinstance(value, float) else str(value) for value in pair.settings.values()]
        seconds = (pair.trial_seconds, pair.run_seconds, pair.trial_training_seconds, pair.run_training_seconds)
        lines.append(
            [*shown, *(f"{value:.1f}" for value in seconds), f"{pair.trial_value:.4f}", f"{pair.run_value:.4f}"]
        )
    total = sum(pair.run_seconds for pair in measured.pairs)
    return (
        f"{markdown(lines)}\n\n"
        f"The search took {measured.search_seconds:.1f} s, start and filling of the store included, "
        f"and the streaming runs {total:.1f} s: {measured.ratio:.1%}. Their steps alone: "
        f"{measured.training_ratio:.1%}."
    )


def _parser() -> argparse.ArgumentParser:
    parser = recipe_parser(
        "accel_kd.benchmark.search",
        "Measures a search from a store beside streaming runs of the same settings.",
        "The runs go to a temporary folder; set TMPDIR to choose its disk. A teacher that the recipe fine-tunes "
        "is fine-tuned once, for both, and not counted.",
    )
    parser.add_argument("--trials", type=count, default=20, help="trials of the search; default: 20")
    return parser


if __name__ == "__main__":
    run_as_program(main)
