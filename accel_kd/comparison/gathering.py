"""From what was named to runs: directories of runs, parts of runs, folders with many runs, files of W&B.

A folder stands for all runs in it; where there is one student alone, its control and its teacher come with it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from accel_kd.comparison.read_run import ReadRun
from accel_kd.comparison.run_directories import (
    companions,
    identity_of,
    is_finished,
    is_run,
    progress,
    read_run_directory,
)
from accel_kd.comparison.wandb_offline import is_wandb_part, read_offline, run_of
from accel_kd.comparison.wandb_records import is_model
from accel_kd.errors import UserError
from accel_kd.locations import expanded
from accel_kd.run_directory import is_part_of_run, through_links

_SEARCH, _SHARED = "study.journal", "shared"
"""As `search.directory` names them."""
_GO_ON = "the command that began it goes on with it, and --unfinished takes it as it is"


@dataclass(frozen=True)
class Gathered:
    """The runs in the order in which they were named, and what is to be said of them."""

    runs: tuple[ReadRun, ...]
    notes: tuple[str, ...]


def gather(names: Sequence[str], split: str, *, unfinished: bool = False) -> Gathered:
    """Reads all that `names` name.

    Args:
        names: paths of run directories, of their `control` or `teacher`, of W&B's files or folders, or of folders
            with any of these.
        split: whose predictions are read.
        unfinished: whether runs that have not finished are taken as they are.

    Raises:
        UserError: a path that does not exist or holds no run, an unfinished run that was named.
    """
    runs: list[ReadRun] = []
    notes: list[str] = []
    directories: list[Path] = []
    for name in names:
        path = through_links(expanded(name, "compare"))
        if not path.exists() and not is_part_of_run(path):
            raise UserError(f"compare: {name} does not exist (looked from {Path.cwd()})")
        found = [path] if is_run(path) or is_part_of_run(path) else _runs_below(path)
        taken = _finished(path, found, unfinished, notes) if found else []
        directories += taken
        there = [read_run_directory(directory, split) for directory in taken]
        if path not in found:
            there += _from_wandb(path, split, unfinished, notes, beside={identity_of(run) for run in found})
        if not there and not found:
            raise UserError(f"compare: {path} holds no run, nor runs of W&B; name a run.directory or a folder of them")
        runs += there
    if len(runs) == len(directories) == 1 and runs[0].part == "student":
        runs += companions(directories[0], split)
    return together(Gathered(tuple(runs), tuple(notes)))


def together(*several: Gathered) -> Gathered:
    """All runs and notes of several.

    Raises:
        UserError: a run is there twice.
    """
    runs = tuple(run for one in several for run in one.runs)
    _refuse_the_same_twice(runs)
    return Gathered(runs, tuple(note for one in several for note in one.notes))


def _finished(path: Path, found: Sequence[Path], unfinished: bool, notes: list[str]) -> list[Path]:
    """Those of the runs `found` in `path` that are taken: one that was named has to be finished."""
    taken = [directory for directory in found if is_finished(directory)]
    others = [directory for directory in found if directory not in taken]
    if unfinished:
        notes += [f"{directory} is {progress(directory)}." for directory in others]
        return list(found)
    if others and not taken:
        raise UserError(f"compare: {others[0]} is {progress(others[0])}; {_GO_ON}")
    if others:
        notes.append(_left_out(str(path), len(others), len(found)))
    return taken


def _from_wandb(
    path: Path, split: str, unfinished: bool, notes: list[str], *, beside: Collection[str]
) -> list[ReadRun]:
    """The runs that W&B has in `path`, but for those `beside`, by their ids, whose own directories are there too."""
    files = [path] if path.suffix == ".wandb" else _wandb_files_below(path)
    there = [run for run in read_offline(files) if is_model(run.job_type) and run.run_id not in beside]
    others = [run for run in there if not run.is_finished]
    if unfinished:
        notes += [f"{run.folders[-1]} is {run.progress}." for run in others]
        return [run_of(run, split) for run in there]
    if others and len(others) == len(there) and not beside:
        raise UserError(f"compare: {others[0].folders[-1]} is {others[0].progress}; {_GO_ON}")
    if others:
        notes.append(_left_out(str(path), len(others), len(there)))
    return [run_of(run, split) for run in there if run.is_finished]


def _left_out(where: str, number: int, of: int) -> str:
    are = "is" if number == 1 else "are"
    return f"{number} of the {of} runs in {where} {are} not finished and left out; --unfinished takes all."


def _runs_below(path: Path) -> list[Path]:
    """The run directories in a folder, at any depth, but not what lies within a run or belongs to W&B."""
    if not path.is_dir() or is_wandb_part(path):
        return []
    if is_run(path):
        return [path]
    return [run for inner in _folders_in(path) for run in _runs_below(inner)]


def _wandb_files_below(path: Path) -> list[Path]:
    """Of W&B's folders at any depth, but not of those within a run, which is read from its own files."""
    if is_wandb_part(path):
        return sorted(path.glob("run-*.wandb"))
    if is_run(path):
        return []
    return [file for inner in _folders_in(path) for file in _wandb_files_below(inner)] if path.is_dir() else []


def _folders_in(path: Path) -> list[Path]:
    """Without links: `wandb/latest-run` leads to a folder that is there under its own name. Without what the trials of
    a search share, which has a recipe and trains no student."""
    is_search = (path / _SEARCH).is_file()
    folders = (inner for inner in path.iterdir() if inner.is_dir() and not inner.is_symlink())
    return sorted(inner for inner in folders if not (is_search and inner.name == _SHARED))


def _refuse_the_same_twice(runs: Sequence[ReadRun]) -> None:
    seen: dict[str, ReadRun] = {}
    for run in runs:
        if run.identity in seen:
            first = seen[run.identity].origin
            where = "twice" if first == run.origin else f"in {first} and in {run.origin}"
            raise UserError(f"compare: the same run is given {where}: leave one out")
        seen[run.identity] = run
