"""The `benchmark` commands: the program beside what else one would run, and trained models, on this machine."""

from __future__ import annotations

import argparse
import os
import signal
from typing import Any

from accel_kd import benchmark_model_command
from accel_kd.benchmark.command_line import count, take_the_way_out
from accel_kd.config import load_recipe
from accel_kd.errors import UserError
from accel_kd.heavy_imports import heavy_imports
from accel_kd.quietness import quieten_libraries

_MODES = ("eager", "compiled", "graphed")


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Adds `benchmark` to the program's commands."""
    benchmark = commands.add_parser(
        "benchmark", help="measure training beside its peers, or trained models", description=__doc__
    )
    kinds = benchmark.add_subparsers(required=True, metavar="KIND")
    train = kinds.add_parser(
        "train",
        help="training, beside a Trainer's",
        description=_train.__doc__,
        epilog="The recipe gives texts, labels, tokenizer, batch size, alpha, temperature and precision; the optimizer "
        "of both is the Trainer's. Every label is used, and no more texts than the steps take. Models and store go to "
        "a temporary folder; set TMPDIR to choose its disk.",
    )
    train.add_argument("recipe", help="name of a shipped recipe, or path of a YAML file")
    train.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace the recipe's")
    train.add_argument(
        "--models",
        choices=["seed", "recipe"],
        default="seed",
        help="seed: BERT-base and DistilBERT by shape, with random weights; recipe: the recipe's own; default: seed",
    )
    train.add_argument(
        "--sources", type=_names, default=["store", "streaming"],
        help="whence our teacher's signal comes; default: store,streaming",
    )  # fmt: skip
    train.add_argument(
        "--modes", type=_names, default=["eager"], help="eager, compiled, graphed or several; default: eager"
    )
    train.add_argument("--steps", type=count, default=20, help="timed steps of a round; default: 20")
    train.add_argument("--repeats", type=count, default=5, help="rounds; default: 5")
    train.add_argument("--warm-up", type=count, default=5, help="steps of each before the first round; default: 5")
    train.add_argument("--output", metavar="FILE.jsonl", help="rows of JSON are appended to this file")
    train.add_argument("--plot", metavar="FILE.png", help="draw the speeds into this file")
    train.add_argument("--growth", action="store_true", help="measure at other batch sizes and lengths too")
    train.add_argument(
        "--batches", type=_counts, default=[16, 48, 128, 512], help="with --growth; default: 16,48,128,512"
    )
    train.add_argument("--lengths", type=_counts, default=[16, 64, 256], help="with --growth; default: 16,64,256")
    train.add_argument("--ranks", type=_counts, default=[], help="with --growth: ranks on this CPU, as in 1,2,4")
    train.add_argument(
        "--step-seconds", type=count, default=60, help="with --growth: leave out what takes longer; default: 60"
    )
    train.set_defaults(command=_train)
    benchmark_model_command.add_parser(kinds, _names)


def _train(parsed: argparse.Namespace) -> str:
    """Trains the same student on the same texts with a transformers.Trainer that runs its teacher beside it, and with
    this program, in turns in one process: examples/s, tokens/s, padding, utilisation, memory, evaluation, and whether
    the losses are the same."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("benchmark: it starts its ranks itself; call it without accelerate launch or torchrun")
    unknown = [name for name in parsed.sources if name not in ("store", "streaming")]
    if unknown:
        raise UserError(f"--sources: {unknown[0]!r} is none; give store, streaming or both")
    unknown = [name for name in parsed.modes if name not in _MODES]
    if unknown:
        raise UserError(f"--modes: {unknown[0]!r} is no way to take a step; there are {', '.join(_MODES)}")
    if parsed.ranks and not parsed.growth:
        raise UserError("--ranks: they are measured with --growth; add it")
    load_recipe(parsed.recipe, parsed.overrides)
    quieten_libraries()
    with heavy_imports():
        from accel_kd.benchmark.growth import Growth
        from accel_kd.benchmark.train import Settings, benchmark_train

    growth = Growth(parsed.batches, parsed.lengths, parsed.ranks, step_seconds=parsed.step_seconds)
    settings = Settings(
        parsed.models, parsed.sources, parsed.modes, parsed.steps, parsed.repeats, parsed.warm_up,
        growth if parsed.growth else None, parsed.output, parsed.plot,
    )  # fmt: skip
    before = signal.signal(signal.SIGTERM, take_the_way_out)
    try:
        return benchmark_train(parsed.recipe, parsed.overrides, settings)
    finally:
        signal.signal(signal.SIGTERM, before)


def _names(text: str) -> list[str]:
    """Names with commas between them, each once, and one at least."""
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise argparse.ArgumentTypeError(f"{text!r} names none")
    return names


def _counts(text: str) -> list[int]:
    """Whole numbers from 1 with commas between them."""
    return [count(name) for name in _names(text)]
