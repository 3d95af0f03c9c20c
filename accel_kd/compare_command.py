"""The `compare` command: which of several trained models is better, as far as their test rows can tell."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accel_kd.errors import RunFailure, UserError

if TYPE_CHECKING:
    from accel_kd.comparison.compared import Comparison
    from accel_kd.comparison.gathering import Gathered


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Adds `compare` to the program's commands."""
    compare = commands.add_parser(
        "compare",
        help="which of several runs is better",
        description=_compare.__doc__,
        epilog="A run directory that is named alone is compared with its control and its teacher. RUN/control and "
        "RUN/teacher name these; a folder stands for all runs in it.",
    )
    compare.add_argument("runs", nargs="*", metavar="RUN", help="run directory, folder of them, or offline W&B folder")
    compare.add_argument(
        "--baseline", metavar="RUN", help="what the others are compared with: a run's path or name, or the name of a "
        "setting in the table; default: the control, else the first",
    )  # fmt: skip
    compare.add_argument("--split", default="test", choices=["test", "validation"], help="default: test")
    compare.add_argument("--wandb", metavar="ENTITY/PROJECT", help="read runs from W&B's server, too")
    compare.add_argument("--group", help="of W&B: with --wandb only its runs, with --push-to-wandb where it is put")
    compare.add_argument("--level", type=_level, default=0.95, help="of the intervals; default: 0.95")
    compare.add_argument("--each", action="store_true", help="compare runs singly that differ in their seed alone")
    compare.add_argument("--unfinished", action="store_true", help="take runs that have not finished as they are")
    compare.add_argument("--json", metavar="FILE", help="write everything to this file, in full precision")
    compare.add_argument("--markdown", metavar="FILE", help="write what is printed to this file")
    compare.add_argument("--html", metavar="FILE", help="write a page with tables and plots")
    compare.add_argument("--png", metavar="FOLDER", help="write the plots into this folder")
    compare.add_argument(
        "--push-to-wandb", metavar="[ENTITY/]PROJECT", help="put the tables and the page into a W&B run; without a "
        "key, into ./wandb for `wandb sync`",
    )  # fmt: skip
    compare.set_defaults(command=_compare)


def _compare(parsed: argparse.Namespace) -> str:
    """Compares trained models row by row: accuracy with paired intervals and a verdict, better, worse or not told
    apart by these rows; seeds of one setting pooled; what the settings differ in, and what the models cost."""
    if not parsed.runs and parsed.wandb is None:
        raise UserError("compare: name run directories, or --wandb ENTITY/PROJECT")
    if parsed.group is not None and parsed.wandb is None and parsed.push_to_wandb is None:
        raise UserError("--group: is of a W&B project; add --wandb ENTITY/PROJECT or --push-to-wandb PROJECT")
    if parsed.wandb is not None and len([part for part in parsed.wandb.split("/") if part]) != 2:
        raise UserError(f"--wandb: {parsed.wandb!r} is not ENTITY/PROJECT")
    if parsed.push_to_wandb is not None:
        from accel_kd.comparison.wandb_push import refuse_push

        refuse_push(parsed.push_to_wandb)
    for option, wanted in (
        ("--html", parsed.html), ("--png", parsed.png), ("--push-to-wandb", parsed.push_to_wandb),
    ):  # fmt: skip
        if wanted is not None:
            from accel_kd.comparison.figures.style import refuse_figures

            refuse_figures(option)
    from accel_kd.comparison.comparison import compare
    from accel_kd.comparison.tables import comparison_text

    gathered = _gathered(parsed)
    comparison = compare(
        gathered.runs, split=parsed.split, baseline=parsed.baseline, level=parsed.level, each=parsed.each,
        notes=gathered.notes,
    )  # fmt: skip
    text = comparison_text(comparison)
    written = _write(comparison, text, parsed)
    if parsed.push_to_wandb is not None:
        from accel_kd.comparison.wandb_push import push

        try:
            push(comparison, parsed.push_to_wandb, parsed.group)
        except (UserError, RunFailure):
            print("\n\n".join([text, *written]), flush=True)  # what was found is not lost with it
            raise
    return "\n\n".join([text, *written])


def _gathered(parsed: argparse.Namespace) -> Gathered:
    from accel_kd.comparison.gathering import Gathered, gather, together

    gathered = gather(parsed.runs, parsed.split, unfinished=parsed.unfinished)
    if parsed.wandb is None:
        return gathered
    from accel_kd.comparison.wandb_api import connect, read_group

    found, others = read_group(connect(), parsed.wandb, parsed.group, parsed.split)
    notes = [f"{name} of {parsed.wandb} is left out: W&B has it as {state}." for name, state in others]
    return together(gathered, Gathered(tuple(found), tuple(notes)))


def _write(comparison: Comparison, text: str, parsed: argparse.Namespace) -> list[str]:
    """Writes the files that were asked for, and says where they are."""
    written: list[Path] = []
    try:
        if parsed.json is not None:
            from accel_kd.comparison.json_file import comparison_json

            written.append(_write_text(parsed.json, comparison_json(comparison)))
        if parsed.markdown is not None:
            written.append(_write_text(parsed.markdown, text + "\n"))
        if parsed.html is not None:
            from accel_kd.comparison.report.page import write_page

            path = _in_folder(parsed.html)
            write_page(comparison, path)
            written.append(path)
        if parsed.png is not None:
            from accel_kd.comparison.figures.files import write_pngs

            written += write_pngs(comparison, Path(parsed.png).expanduser())
    except OSError as error:
        raise UserError(f"compare: {error.filename or 'a file'} cannot be written: {error.strerror}") from error
    return ["\n".join(f"written: {path}" for path in written)] if written else []


def _write_text(name: str, text: str) -> Path:
    path = _in_folder(name)
    path.write_text(text, encoding="utf-8")
    return path


def _in_folder(name: str) -> Path:
    """The path, in a folder that is there."""
    path = Path(name).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _level(text: str) -> float:
    try:
        level = float(text)
    except ValueError:
        level = 0.0
    if not 0.5 <= level < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a level from 0.5 up to, without, 1")
    return level
