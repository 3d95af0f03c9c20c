"""The `submit` command: checks a recipe, writes batch scripts for it into its run directory, and submits them.

recipe and options checked -> scripts rendered -> printed (--dry-run), or written and handed to sbatch
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from accel_kd.config import RunConfig, load_recipe
from accel_kd.config.checks import accumulation_steps
from accel_kd.errors import UserError
from accel_kd.locations import expanded
from accel_kd.run_directory import write_atomically
from accel_kd.search.directory import search_directory
from accel_kd.slurm.job_script import JobScript, Search, Workers, option_value, render
from accel_kd.slurm.queue import cancel_job, refuse_without_sbatch, submit_job
from accel_kd.slurm.search_settings import read_search_settings
from accel_kd.slurm.time_limit import seconds_of

_OPTIONS = ("partition", "account", "qos")
_SETTINGS_FILE = "search_settings.txt"


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Adds `submit` to the program's commands."""
    submit = commands.add_parser("submit", help="run a recipe as a SLURM job", description=_submit.__doc__)
    submit.add_argument("recipe", help="name of a shipped recipe, or path of a YAML file")
    submit.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace the recipe's")
    size = submit.add_argument_group("size")
    size.add_argument("--nodes", type=int, default=1, help="machines (default: 1)")
    size.add_argument("--gpus-per-node", type=int, default=1, help="GPUs a machine, a rank each; 0: CPUs (default: 1)")
    size.add_argument("--cpus-per-gpu", type=int, default=4, help="CPU cores beside each GPU (default: 4)")
    size.add_argument(
        "--time", default="04:00:00", help="limit of one start, days-hours:minutes:seconds (default: 4 h)"
    )
    size.add_argument(
        "--stop-before", type=int, default=120, metavar="SECONDS",
        help="ask the run to save and stop so long before the limit (default: 120)",
    )  # fmt: skip
    for name in _OPTIONS:
        size.add_argument(f"--{name}", help=f"the cluster's {name} to use")
    size.add_argument(
        "--sbatch-option",
        action="append",
        default=[],
        metavar="OPTION",
        help="any other, as in --sbatch-option=--mem=64G",
    )
    work = submit.add_argument_group("work")
    work.add_argument("--setup", metavar="FILE", help="shell lines (modules, conda, venv) that the job starts with")
    work.add_argument("--array", metavar="FILE", help="a run for each line of settings in this file")
    work.add_argument("--search", type=int, metavar="N", help="N tasks that work at the search of the recipe")
    work.add_argument("--at-once", type=int, metavar="N", help="with --array or --search: how many at the same time")
    work.add_argument("--after", metavar="cache|JOB", help="`cache`: fill the teacher's store first; or a job's id")
    work.add_argument("--cache-only", action="store_true", help="fill the teacher's store and train nothing")
    work.add_argument("--dry-run", action="store_true", help="print what would be submitted, and touch nothing")
    submit.set_defaults(command=_submit)


@dataclass(frozen=True)
class _Job:
    """A script and where it is written."""

    path: Path
    script: JobScript


def _submit(parsed: argparse.Namespace) -> str:
    """Checks a recipe, writes a batch script into its run directory and submits it. The job is stopped in time, put
    into the queue again and goes on until the run is finished."""
    config = load_recipe(parsed.recipe, parsed.overrides)
    _check_size(parsed)
    _check_work(parsed, config)
    num_tasks = 0 if parsed.array is None else _check_tasks(parsed)
    assert config.run.directory is not None, "load_recipe sets it"
    directory = expanded(config.run.directory, "run.directory").absolute()
    if parsed.search is not None:
        directory = search_directory(config).path
    _check_file_name(directory)
    jobs = _jobs(parsed, directory, num_tasks)
    if parsed.dry_run:
        return _shown(jobs)
    refuse_without_sbatch()
    _write(jobs, None if parsed.array is None else Path(parsed.array))
    return _submitted(jobs, None if parsed.after == "cache" else parsed.after)


def _check_size(parsed: argparse.Namespace) -> None:
    for option, least in (
        ("nodes", 1),
        ("gpus_per_node", 0),
        ("cpus_per_gpu", 1),
        ("stop_before", 1),
        ("at_once", 1),
        ("search", 1),
    ):
        value = getattr(parsed, option)
        if value is not None and value < least:
            raise UserError(f"--{option.replace('_', '-')}: {value} is too few; it may be {least} or more")
    seconds = seconds_of(parsed.time)
    if seconds is None:
        raise UserError(f"--time: {parsed.time!r} is no time limit; write days-hours:minutes:seconds, as in 4:00:00")
    if seconds <= parsed.stop_before:
        raise UserError(
            f"--time: {parsed.time} is {seconds} seconds, and the run is asked to stop {parsed.stop_before} seconds "
            "before its end (--stop-before): no time is left to train"
        )
    for option in _OPTIONS:
        value = getattr(parsed, option)
        if value is not None and (not value.strip() or "\n" in value):
            raise UserError(f"--{option}: {value!r} cannot be the name of one")
    for option in parsed.sbatch_option:
        if not option.startswith("-") or "\n" in option:
            raise UserError(
                f"--sbatch-option: {option!r} is no option of sbatch; write it as --sbatch-option=--mem=64G"
            )


def _check_work(parsed: argparse.Namespace, config: RunConfig) -> None:
    _check_ranks(parsed, config)
    if parsed.setup is not None and not expanded(parsed.setup, "--setup").is_file():
        raise UserError(f"--setup: {parsed.setup!r} is no file (looked from {Path.cwd()})")
    if parsed.at_once is not None and parsed.array is None and parsed.search is None:
        raise UserError("--at-once: says how many runs of an --array may run at the same time, and there is no --array")
    if parsed.search is not None and (parsed.array is not None or parsed.cache_only or parsed.after == "cache"):
        raise UserError(
            "--search: chooses settings and fills the store itself; leave --array, --cache-only and --after cache out"
        )
    if parsed.cache_only and parsed.array is not None:
        raise UserError("--cache-only: trains nothing, so that there is nothing to try the settings of --array with")
    if (
        parsed.after is not None
        and parsed.after != "cache"
        and not (parsed.after.isascii() and parsed.after.isdecimal())
    ):
        raise UserError(f"--after: {parsed.after!r} is neither `cache` nor the number of a job")
    if parsed.after == "cache" and parsed.cache_only:
        raise UserError("--after: cache, and --cache-only, say the same; leave --after out")
    if parsed.after != "cache" and not parsed.cache_only:
        return
    if config.teacher.model is None:
        raise UserError("teacher.model: missing; a store is filled with the logits of a teacher")
    if parsed.after == "cache" and config.teacher.source != "cached":
        raise UserError(
            f"--after: the store would be filled and not be read, since teacher.source is {config.teacher.source}; "
            "add teacher.source=cached"
        )


def _check_ranks(parsed: argparse.Namespace, config: RunConfig) -> None:
    """What else would be refused once the job has waited in the queue."""
    given = os.environ.get("RANKS_PER_NODE")
    if given is not None and not (given.isdecimal() and int(given) > 0):
        raise UserError(f"RANKS_PER_NODE: {given!r} is no number of ranks; unset it or give one")
    ranks_per_node = int(given) if given is not None else max(1, parsed.gpus_per_node)
    if not parsed.cache_only:
        accumulation_steps(config.training, parsed.nodes * ranks_per_node)


def _check_tasks(parsed: argparse.Namespace) -> int:
    """The number of tasks, the settings of each checked with the recipe."""
    tasks = read_search_settings(expanded(parsed.array, "--array"))
    for place, settings in tasks:
        try:
            _check_ranks(parsed, load_recipe(parsed.recipe, [*parsed.overrides, *settings]))
        except UserError as error:
            raise UserError("\n".join(f"--array: {place}: {mistake}" for mistake in str(error).splitlines())) from error
    return len(tasks)


def _check_file_name(directory: Path) -> None:
    """SLURM puts values in place of `%` in the names of output files, and ends an option with its line."""
    for path, name in ((directory, "run.directory"), (Path.cwd(), "submit: the working directory")):
        if any(character in str(path) for character in "%\\\n"):
            raise UserError(
                f"{name}: {str(path)!r} holds a character that SLURM cannot have in a path: %, \\ or a new line"
            )


def _jobs(parsed: argparse.Namespace, directory: Path, num_tasks: int) -> list[_Job]:
    """The jobs in the order in which they run."""
    folder = directory / "slurm"
    common = JobScript(
        command="cache-teacher",
        recipe=(parsed.recipe, *parsed.overrides, f"run.directory={directory}"),
        usage="",
        environment=_environment(parsed.setup),
        nodes=parsed.nodes,
        gpus_per_node=parsed.gpus_per_node,
        cpus_per_gpu=parsed.cpus_per_gpu,
        time=parsed.time,
        seconds_before_end=parsed.stop_before,
        options=_further_options(parsed),
    )
    jobs = []
    if parsed.cache_only or parsed.after == "cache":
        jobs.append(_job(folder, common, f"{directory.name}-cache"))
    if parsed.search is not None:
        workers = Workers(parsed.search, parsed.at_once)
        recipe = (*common.recipe, f"search.directory={directory}")
        jobs.append(_job(folder, replace(common, command="search", recipe=recipe, workers=workers), directory.name))
    elif not parsed.cache_only:
        search = Search(str(folder / _SETTINGS_FILE), num_tasks, parsed.at_once) if num_tasks else None
        jobs.append(_job(folder, replace(common, command="distill", search=search), directory.name))
    return jobs


def _job(folder: Path, script: JobScript, name: str) -> _Job:
    kind: Literal["search", "distill", "cache-teacher"] = "search" if script.search else script.command
    path = folder / f"{kind}.sbatch"
    script = replace(
        script,
        job_name=name,
        output=f"{folder}/{kind}-{'%A_%a' if script.search or script.workers else '%j'}.log",
        usage=f"Written by `accel-kd submit`; to submit it once more: sbatch {shlex.quote(str(path))}",
    )
    return _Job(path, script)


def _environment(setup: str | None) -> str:
    """A line that brings the Python of this process, or what the user's own lines bring."""
    if setup is not None:
        return f"# shellcheck source=/dev/null\nsource {shlex.quote(str(expanded(setup, '--setup').absolute()))}"
    return f'PATH={shlex.quote(str(Path(sys.executable).parent))}:"$PATH"'


def _further_options(parsed: argparse.Namespace) -> tuple[str, ...]:
    given = {option: getattr(parsed, option) for option in _OPTIONS}
    return (
        f"--chdir={option_value(str(Path.cwd()))}",
        *(f"--{option}={option_value(value)}" for option, value in given.items() if value is not None),
        *parsed.sbatch_option,
    )


def _shown(jobs: list[_Job]) -> str:
    """The script, ready to be sent to a file; several with their names above them."""
    texts = [render(job.script).rstrip("\n") for job in jobs]
    if len(jobs) == 1:
        return texts[0]
    return "\n\n".join(f"##### {job.path}\n{text}" for job, text in zip(jobs, texts, strict=True))


def _write(jobs: list[_Job], settings_file: Path | None) -> None:
    folder = jobs[0].path.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if settings_file is not None:
            _keep_settings(settings_file.expanduser(), folder / _SETTINGS_FILE)
        for job in jobs:
            write_atomically(job.path, render(job.script))
    except OSError as error:
        raise UserError(f"run.directory: {folder} cannot be made or written: {error.strerror}") from error


def _keep_settings(source: Path, target: Path) -> None:
    """The job reads a copy, so that the file may be edited meanwhile; tasks that there are already keep their numbers.

    Raises:
        UserError: the run directory belongs to a search with other settings.
    """
    text = source.read_text(encoding="utf-8")
    if target.is_file():
        before = [settings for _, settings in read_search_settings(target)]
        now = [settings for _, settings in read_search_settings(source)]
        if now[: len(before)] != before:
            raise UserError(
                f"--array: {target} has the settings of a search that is there already, and {source} does not begin "
                "with them; add lines at its end, or choose another run.directory"
            )
    write_atomically(target, text)


def _submitted(jobs: list[_Job], after: str | None) -> str:
    """Submits each job to run after the one before it."""
    lines: list[str] = []
    queued: list[str] = []
    for job in jobs:
        try:
            after = submit_job(job.path, after=after)
        except UserError:
            for earlier in queued:
                cancel_job(earlier)
            raise
        queued.append(after)
        lines += [f"script  {job.path}", f"job     {after}"]
    return "\n".join(lines)
