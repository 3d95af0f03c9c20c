"""The commands. Parsing and checking import nothing heavy; each command imports its own work when it starts."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

from accel_kd import (
    __version__,
    benchmark_command,
    compare_command,
    export_command,
    plan_command,
    search_command,
    status_command,
    store_commands,
    submit_command,
    verify_command,
)
from accel_kd.config import RunConfig, load_recipe, recipe_names, recipe_text
from accel_kd.errors import (
    EXIT_FAILURE,
    EXIT_STOPPED,
    EXIT_SUCCESS,
    EXIT_USER_ERROR,
    RunFailure,
    StopRequested,
    UserError,
)
from accel_kd.heavy_imports import heavy_imports, may_be_quantised_by_torchao
from accel_kd.quietness import quieten_libraries

_RECIPE_HELP = "name of a shipped recipe (see `accel-kd recipes`), or path of a YAML file"
_OVERRIDES_HELP = "settings that replace the recipe's, for instance training.epochs=3"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Returns:
        0 on success, 2 for a mistake of the user's (one line on standard error), 85 where the run was asked to stop
        and is ready to go on, 1 for a failure.
    """
    _set_up_logging()
    try:
        parsed = _parse(arguments)
        # A command returns what it has to say, or that and its exit code.
        answer = parsed.command(parsed)
        text, exit_code = answer if isinstance(answer, tuple) else (answer, EXIT_SUCCESS)
        if text:
            _say(text)
        return int(exit_code)
    except UserError as error:
        _complain("\n".join(f"accel-kd: {mistake}" for mistake in str(error).splitlines()))
        return EXIT_USER_ERROR
    except RunFailure as error:
        _complain(f"accel-kd: failed: {error}")
        return EXIT_FAILURE
    except StopRequested as request:
        _say_on_error_stream(f"accel-kd: stopped by {request}; the same command goes on from where it is")
        return EXIT_STOPPED
    except BrokenPipeError:
        # Whoever read our output has seen enough; the interpreter must not complain when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception:
        # A mistake of ours: all that is known, each line with the rank that it came from.
        for line in traceback.format_exc().splitlines():
            _complain(line)
        return EXIT_FAILURE
    return EXIT_SUCCESS


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Overrides may stand anywhere on the line; argparse alone wants them in one place."""
    parser = _parser()
    parsed, rest = parser.parse_known_args(arguments)
    options = [argument for argument in rest if argument.startswith("-")]
    if options or (rest and not hasattr(parsed, "overrides")):
        parser.error(f"unrecognized arguments: {' '.join(options or rest)}")
    if rest:
        parsed.overrides = [*parsed.overrides, *rest]
    return parsed


class _Parser(argparse.ArgumentParser):
    """A mistake on the command line is one line too, and not the usage with the mistake below it."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message.removeprefix('argument ')} (see {self.prog} --help)")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="accel-kd",
        description="Distils a large Transformers model into a small one, on one device or many.",
        epilog="Several devices: accelerate launch --config_file launch_configs/ddp.yaml -m accel_kd distill RECIPE",
    )
    parser.add_argument("--version", action="version", version=f"accel_kd {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    distill = commands.add_parser("distill", help="train the student of a recipe", description=_distill.__doc__)
    distill.add_argument("recipe", help=_RECIPE_HELP)
    distill.add_argument("overrides", nargs="*", metavar="key=value", help=_OVERRIDES_HELP)
    distill.set_defaults(command=_distill)

    cache = commands.add_parser(
        "cache-teacher", help="put the teacher's logits into a store", description=_cache_teacher.__doc__
    )
    cache.add_argument("recipe", help=_RECIPE_HELP)
    cache.add_argument("--splits", help="train,validation,test or some of them; default: those that a run reads")
    cache.add_argument("overrides", nargs="*", metavar="key=value", help=_OVERRIDES_HELP)
    cache.set_defaults(command=_cache_teacher)

    store_commands.add_parser(commands)
    plan_command.add_parser(commands)
    submit_command.add_parser(commands)
    status_command.add_parser(commands)
    verify_command.add_parser(commands)
    benchmark_command.add_parser(commands)
    compare_command.add_parser(commands)
    search_command.add_parser(commands)
    export_command.add_parser(commands)

    evaluate = commands.add_parser("evaluate", help="score a checkpoint", description=_evaluate.__doc__)
    evaluate.add_argument("model", help="folder of a model, Hub id, or package:NAME/FOLDER")
    evaluate.add_argument("--recipe", required=True, help=f"whose data: {_RECIPE_HELP}")
    evaluate.add_argument("--split", default="test", choices=["train", "validation", "test"], help="default: test")
    evaluate.add_argument("--output", help="write the metrics to this JSON file too")
    evaluate.add_argument("overrides", nargs="*", metavar="key=value", help=_OVERRIDES_HELP)
    evaluate.set_defaults(command=_evaluate)

    recipes = commands.add_parser("recipes", help="list the shipped recipes", description=_recipes.__doc__)
    recipes.add_argument("action", nargs="?", choices=["show"], help="print one recipe instead")
    recipes.add_argument("recipe", nargs="?", help=_RECIPE_HELP)
    recipes.set_defaults(command=_recipes)
    return parser


def _distill(parsed: argparse.Namespace) -> None:
    """Trains the student of a recipe, with its teacher, and leaves everything in the run directory."""
    config = load_recipe(parsed.recipe, parsed.overrides)
    quieten_libraries()
    with heavy_imports():
        from accel_kd.distill import distill
        from accel_kd.export.results_table import LEGEND, results_table

    figures = distill(config)
    _say(f"\n{results_table(figures)}\n\n{LEGEND}\n\nThe student is in {config.run.directory}/student")


def _cache_teacher(parsed: argparse.Namespace) -> None:
    """Writes or completes the store of a recipe's teacher, and prints its path, size and fidelity."""
    config = load_recipe(parsed.recipe, parsed.overrides)
    quieten_libraries()
    with heavy_imports():
        from accel_kd.cache_teacher import cache_teacher

    splits = None if parsed.splits is None else [name.strip() for name in parsed.splits.split(",") if name.strip()]
    _say(cache_teacher(config, splits))


def _evaluate(parsed: argparse.Namespace) -> None:
    """Scores a checkpoint on one split of a recipe's data, with the metrics that training reports."""
    config: RunConfig = load_recipe(parsed.recipe, parsed.overrides)
    quieten_libraries()
    with heavy_imports(with_torchao=may_be_quantised_by_torchao(parsed.model)):
        from accel_kd.evaluate_checkpoint import evaluate_checkpoint

    _say(evaluate_checkpoint(config, parsed.model, parsed.split, parsed.output))


def _recipes(parsed: argparse.Namespace) -> None:
    """Lists the recipes that are shipped, or prints one (`recipes show NAME`)."""
    if parsed.action == "show":
        if parsed.recipe is None:
            raise UserError(f"recipes show: which one? There are {', '.join(recipe_names())}")
        _say(recipe_text(parsed.recipe).rstrip("\n"))
        return
    width = max(map(len, recipe_names()))
    for name in recipe_names():
        first_line = recipe_text(name).splitlines()[0]
        _say(f"{name:{width}}  {first_line.removeprefix('# ')}")


def _is_main_process() -> bool:
    """Known from the launcher's environment, long before any rank is started."""
    return os.environ.get("RANK", "0") == "0"


def _say(text: str) -> None:
    if _is_main_process():
        print(text, flush=True)


def _say_on_error_stream(text: str) -> None:
    if _is_main_process():
        print(text, file=sys.stderr, flush=True)


def _complain(text: str) -> None:
    """Every rank prints what it met; the lines of the other ranks carry their number."""
    print(text if _is_main_process() else f"[rank {os.environ['RANK']}] {text}", file=sys.stderr, flush=True)


def _set_up_logging() -> None:
    """Our own lines on standard error, from rank 0; warnings from every rank."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    logger = logging.getLogger("accel_kd")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO if _is_main_process() else logging.WARNING)
    logger.propagate = False
