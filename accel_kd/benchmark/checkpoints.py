"""Measures what checkpoints cost a run, in speed and in time to stop: `python -m accel_kd.benchmark.checkpoints demo`.

price: the recipe without checkpoints, with them, and with them in the background, round after round
stop:  the recipe, sent SIGTERM again and again -> tables on standard output, rows of JSON in a file
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from accel_kd.benchmark.command_line import (
    answered,
    append_rows,
    count,
    recipe_parser,
    report,
    run_as_program,
)
from accel_kd.benchmark.price import Trial, Variant, measure_prices, run_trial, unequal_weights, variants
from accel_kd.benchmark.program import PROGRAM
from accel_kd.benchmark.report import circumstances, heading, price_rows, price_table, stop_row, stop_table
from accel_kd.benchmark.stops import measure_stops
from accel_kd.config import RunConfig, load_recipe
from accel_kd.errors import EXIT_FAILURE, EXIT_SUCCESS, UserError

_ENDLESS = 1_000_000
"""Steps of the run that is stopped; it never gets as far."""
_SPREAD_STEPS = 10
"""The signal comes within as many steps, at random."""


def main(arguments: Sequence[str] | None = None, program: Sequence[str] = PROGRAM) -> int:
    """Runs the benchmark's command line; `program` is what it measures.

    Returns:
        0; 2 for a mistake of the user's; 1 where a run failed or the final weights are not equal.
    """
    return answered(lambda: _benchmark(_parser().parse_intermixed_args(arguments), program))


def _benchmark(parsed: argparse.Namespace, program: Sequence[str]) -> int:
    config = _checked(parsed)
    append_rows(parsed.output, [])  # a file that cannot be written is better known now than in an hour
    given = dict(_setting(override) for override in parsed.overrides)
    with tempfile.TemporaryDirectory(prefix="accel_kd_benchmark_") as name:
        folder = Path(name)
        where = circumstances(folder) | {
            "recipe": parsed.recipe,
            "overrides": parsed.overrides,
            "config": config.model_dump(mode="json"),
        }

        def trial(variant: Variant) -> Trial:
            settings = given | _settings(config, parsed.steps) | variant.settings
            return run_trial(program, parsed.recipe, settings, parsed.steps, folder / "price")

        prices = measure_prices(variants(parsed.every, parsed.steps), parsed.repeats, trial, report)
        device = prices[0].trials[0].device
        append_rows(parsed.output, [row | where for row in price_rows(prices)])
        what = f"{' '.join([parsed.recipe, *parsed.overrides])}, {parsed.steps} steps, repeats: {parsed.repeats}"
        print(f"{heading(where, device, what)}\n\n{price_table(prices)}", flush=True)

        if parsed.stops:
            settings = given | _settings(config, _ENDLESS) | Variant("", _ENDLESS).settings
            spread_seconds = _SPREAD_STEPS / min(prices[0].steps_per_second)
            stops = measure_stops(
                program, parsed.recipe, settings, parsed.stops, spread_seconds, folder / "stop", report
            )
            append_rows(parsed.output, [stop_row(stops, device) | where])
            print(f"\n{stop_table(stops)}", flush=True)
    return EXIT_SUCCESS if unequal_weights(prices) is None else EXIT_FAILURE


def _checked(parsed: argparse.Namespace) -> RunConfig:
    """The recipe with the user's settings.

    Raises:
        UserError: these are wrong, or the benchmark's own.
    """
    config = load_recipe(parsed.recipe, parsed.overrides)
    own = {**_settings(config, 1), **Variant("", 1).settings, "run.directory": ""}
    for override in parsed.overrides:
        key, _ = _setting(override)
        if key in own:
            raise UserError(f"{key}: the benchmark sets it itself; leave it out (see --steps and --every)")
    if parsed.every >= parsed.steps:
        raise UserError(
            f"--every: {parsed.every} gives no checkpoint before the last of {parsed.steps} steps (--steps)"
        )
    return config


def _settings(config: RunConfig, num_steps: int) -> dict[str, str]:
    """What all runs of the benchmark have in common beside what the user says."""
    settings = {
        "training.epochs": str(num_steps),  # each has a step at least
        "training.max_steps": str(num_steps),
        "evaluation.every_steps": str(num_steps),
        "checkpoint.when_finished": "keep",
        "tracking.mode": "disabled",
        "run.control": "false",
        "run.resume": "auto",
    }
    if config.teacher.finetune is not None:
        # Every run would fine-tune it anew, and what it has learnt does not change what a checkpoint costs.
        settings["teacher.finetune.max_steps"] = "1"
    return settings


def _setting(override: str) -> tuple[str, str]:
    key, _, value = override.partition("=")
    return key.strip(), value


def _parser() -> argparse.ArgumentParser:
    parser = recipe_parser(
        "accel_kd.benchmark.checkpoints",
        "Measures what checkpoints cost a run of a recipe, in speed and in time to stop.",
        "The runs go to a temporary folder; set TMPDIR to choose its disk. A teacher that the recipe fine-tunes "
        "is fine-tuned for one step.",
    )
    parser.add_argument("--every", type=count, default=10, help="steps between two checkpoints; default: 10")
    parser.add_argument("--repeats", type=count, default=3, help="runs of each variant; default: 3")
    parser.add_argument("--steps", type=count, default=200, help="steps of each run; default: 200")
    parser.add_argument("--stops", type=_number, default=20, help="how often a run is stopped; default: 20, 0: never")
    return parser


def _number(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0")
    return int(text)


if __name__ == "__main__":
    run_as_program(main)
