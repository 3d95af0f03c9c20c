"""The `status` command: how far a run is and how it ended, for people and for batch scripts."""

from __future__ import annotations

import argparse
from typing import Any

from accel_kd.errors import EXIT_FAILURE, EXIT_STOPPED, EXIT_SUCCESS
from accel_kd.locations import expanded
from accel_kd.run_status import Status, read_status

_MAX_FRUITLESS_ATTEMPTS = 3
"""A run that has stopped as often without a step more will not get further by being started again."""


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Adds `status` to the program's commands."""
    status = commands.add_parser("status", help="how far a run is, and how it ended", description=_status.__doc__)
    status.add_argument("run_directory", help="folder of the run")
    status.add_argument(
        "--command",
        dest="of_command",
        choices=["distill", "cache-teacher", "search"],
        help="only the status of this command",
    )
    status.add_argument(
        "--exit-code", action="store_true",
        help=f"exit with {EXIT_SUCCESS} if it has finished, {EXIT_STOPPED} if it has stopped and is to be started "
        f"again, {EXIT_FAILURE} otherwise",
    )  # fmt: skip
    status.set_defaults(command=_status)


def _status(parsed: argparse.Namespace) -> str | tuple[str, int]:
    """Says in one line how far a run is; with --exit-code for batch scripts, too."""
    status = read_status(expanded(parsed.run_directory, "status"))
    if status is not None and parsed.of_command not in (None, status.command):
        status = None
    text = f"{parsed.run_directory}: {_sentence(status)}"
    return (text, _exit_code(status)) if parsed.exit_code else text


def _sentence(status: Status | None) -> str:
    if status is None:
        return "no status"
    progress = f" at step {status.step} of {status.total_steps} ({status.part})" if status.part else ""
    sentence = f"{status.command} {status.state}{progress}, attempt {status.attempt}, {status.time}"
    if status.reason is not None:
        sentence += f": {status.reason}"
    if status.state == "stopped":
        if status.attempts_without_progress >= _MAX_FRUITLESS_ATTEMPTS:
            return f"{sentence}; not to be started again: {status.attempts_without_progress} attempts brought no step"
        return f"{sentence}; the same command goes on"
    return sentence


def _exit_code(status: Status | None) -> int:
    if status is None or status.state in ("running", "failed"):
        return EXIT_FAILURE
    if status.state in ("finished", "pruned"):
        return EXIT_SUCCESS
    is_stuck = status.attempts_without_progress >= _MAX_FRUITLESS_ATTEMPTS
    return EXIT_FAILURE if is_stuck else EXIT_STOPPED
