"""What the benchmarks' command lines have in common."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, NoReturn

from accel_kd.errors import EXIT_FAILURE, EXIT_USER_ERROR, RunFailure, UserError


class Parser(argparse.ArgumentParser):
    """A mistake on the command line is one line, as in the program itself."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message.removeprefix('argument ')} (see {self.prog} --help)")


def answered(benchmark: Callable[[], int]) -> int:
    """The exit code of `benchmark`; what is wrong is said in a line, as the program says it."""
    try:
        return benchmark()
    except UserError as error:
        print("\n".join(f"accel-kd: {mistake}" for mistake in str(error).splitlines()), file=sys.stderr)
        return EXIT_USER_ERROR
    except RunFailure as error:
        print(f"accel-kd: failed: {error}", file=sys.stderr)
        return EXIT_FAILURE


def run_as_program(main: Callable[[], int]) -> NoReturn:
    """Runs `main` and ends the process with its code. SIGTERM takes the ordinary way out, on which what is measured,
    a process of its own, is ended too."""
    signal.signal(signal.SIGTERM, take_the_way_out)
    sys.exit(main())


def take_the_way_out(number: int, frame: FrameType | None) -> NoReturn:
    """A handler of signals: ends the process as an exception does, so that trials are ended and models and stores
    removed."""
    sys.exit(128 + number)


def report(line: str) -> None:
    """Says how far it is."""
    print(line, file=sys.stderr, flush=True)


def recipe_parser(module: str, description: str, epilog: str) -> Parser:
    """What each takes: a recipe with settings, and a file for the rows."""
    parser = Parser(prog=f"python -m {module}", description=description, epilog=epilog)
    parser.add_argument("recipe", help="name of a shipped recipe, or path of a YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace the recipe's")
    parser.add_argument("--output", metavar="FILE.jsonl", help="rows of JSON are appended to this file")
    return parser


def count(text: str) -> int:
    """A whole number from 1, as `argparse` wants types."""
    if not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def append_rows(output: str | None, rows: Sequence[dict[str, Any]]) -> None:
    """Adds `rows` of JSON to the file `output`, if there is to be one.

    Raises:
        UserError: it cannot be written.
    """
    if output is None:
        return
    try:
        with open(output, "a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    except OSError as error:
        raise UserError(f"--output: {output} cannot be written: {error.strerror}") from error
