"""Renders a complete batch script for SLURM: a training, the filling of a store, or a search over settings."""

from __future__ import annotations

import re
import shlex
import string
import sys
from dataclasses import dataclass
from importlib import resources
from typing import Literal

from accel_kd.errors import EXIT_STOPPED

MAX_RESTARTS = 20
"""How often a job may put itself into the queue again."""

_PURPOSES = {
    "distill": "Trains the student of a recipe on one machine or several, and goes on after every interruption.",
    "search": "Works at the search of a recipe with several tasks, each of which goes on after every interruption.",
    "cache-teacher": "Puts the logits of a recipe's teacher into a store, on one machine or several.",
}
_ARRAY_TASK = "${SLURM_ARRAY_JOB_ID}_$task # by its id alone, which for the last task is that of the whole array"
_SEARCH = "Trains a recipe once for each line of a settings file, in run directories of their own beside each other."


@dataclass(frozen=True)
class Search:
    """Several runs of one recipe, as the tasks of an array."""

    settings_file: str
    """Each line that is neither empty nor a comment holds the settings of one task."""
    num_tasks: int
    num_at_once: int | None = None
    """How many tasks may run at the same time; None: as many as the cluster gives."""


@dataclass(frozen=True)
class Workers:
    """Processes that work at one search, as the tasks of an array."""

    num_tasks: int
    num_at_once: int | None = None
    """How many tasks may run at the same time; None: as many as the cluster gives."""


@dataclass(frozen=True)
class JobScript:
    """What a batch script is to do, and on what."""

    command: Literal["distill", "cache-teacher", "search"]
    recipe: tuple[str, ...]
    """Name or path of the recipe, then settings as `dotted.key=value`."""
    usage: str
    """A comment: how the script is to be submitted."""
    environment: str
    """A line of shell that makes `python3` one that has this package."""
    job_name: str = "accel-kd"
    output: str = "%x-%j.log"
    """File of what the script itself prints, with the patterns of SLURM (`%x`: job name, `%j`: job id)."""
    nodes: int = 1
    gpus_per_node: int = 4
    """0: none are asked for, and a rank is on a CPU unless RANKS_PER_NODE says more."""
    cpus_per_gpu: int = 4
    time: str = "04:00:00"
    """Limit of one start of the job, as SLURM writes it."""
    seconds_before_end: int = 120
    """How long before the limit the run is asked to stop."""
    options: tuple[str, ...] = ()
    """Further options of sbatch, such as `--partition=gpu`."""
    search: Search | None = None
    workers: Workers | None = None
    """With the command `search`."""


def render(script: JobScript) -> str:
    """The batch script; nothing is read from the environment, so that no secret can get into it."""
    values = {
        "purpose": _SEARCH if script.search else _PURPOSES[script.command],
        "usage": script.usage,
        "nodes": script.nodes,
        "gpu_line": _gpu_line(script),
        "time": script.time,
        "job_name": option_value(script.job_name),
        "output": option_value(script.output),
        "further_options": "".join(f"#SBATCH {option}\n" for option in _further_options(script)),
        "signal": f"B:USR1@{script.seconds_before_end}",
        "recipe": shlex.join(script.recipe),
        "environment": script.environment,
        "task_lines": _task_lines(script),
        "job": _ARRAY_TASK if script.search or script.workers else "$SLURM_JOB_ID",
        # The launcher must not be slower to give up than SLURM is.
        "shutdown_seconds": max(30, script.seconds_before_end - 10),
        "command": script.command,
        "stopped": EXIT_STOPPED,
        "max_restarts": MAX_RESTARTS,
    }
    return _template("job.sbatch").substitute(values)


def option_value(text: str) -> str:
    """`text` as the value of an option in an `#SBATCH` line, which SLURM, and no shell, takes apart."""
    assert "\n" not in text, "an option ends with its line"
    if re.fullmatch(r"[\w./%+,:=@-]+", text):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def shipped_scripts() -> dict[str, str]:
    """The scripts that lie in `slurm/`, by file name: what there is to copy where `accel-kd submit` is not wanted."""
    environment = '# shellcheck source=/dev/null\nsource "$HOME/venv/bin/activate"'
    folder = "slurm"
    search = Search(f"{folder}/search_settings.txt", num_tasks=4)
    scripts = {
        "distill.sbatch": JobScript("distill", ("demo",), _usage("distill"), environment, job_name="distill", nodes=2),
        "cache_teacher.sbatch": JobScript(
            "cache-teacher", ("demo",), _usage("cache_teacher"), environment, job_name="cache-teacher"
        ),
        "search.sbatch": JobScript(
            "distill", ("demo",), _usage("search", "--array=1-4 "), environment,
            job_name="search", output="%x-%A_%a.log", gpus_per_node=1, search=search,
        ),
    }  # fmt: skip
    return {name: render(script) for name, script in scripts.items()}


class _Template(string.Template):
    """`$` is the shell's, and a single `@` stands in `"${recipe[@]}"`."""

    delimiter = "@@"


def _template(name: str) -> _Template:
    file = resources.files("accel_kd") / "slurm" / f"{name}.template"
    return _Template(file.read_text(encoding="utf-8"))


def _usage(name: str, options: str = "") -> str:
    return f"Submit it from the folder that relative paths start from: sbatch {options}slurm/{name}.sbatch"


def _gpu_line(script: JobScript) -> str:
    if script.gpus_per_node == 0:
        return "# (no GPUs; with them: --gpus-per-node=4)  # <- 2: GPUs a machine, a rank each"
    return (
        f"#SBATCH --gpus-per-node={script.gpus_per_node}  # <- 2: GPUs a machine, a rank each\n"
        f"#SBATCH --cpus-per-gpu={script.cpus_per_gpu}"
    )


def _further_options(script: JobScript) -> list[str]:
    options = list(script.options)
    if array := script.search or script.workers:
        limit = "" if array.num_at_once is None else f"%{array.num_at_once}"
        options.insert(0, f"--array=1-{array.num_tasks}{limit}")
    return options


def _task_lines(script: JobScript) -> str:
    if script.workers is not None:
        return _template("worker_task").substitute() + "\n"
    search = script.search
    if search is None:
        return ""
    return _template("search_task").substitute(settings_file=shlex.quote(search.settings_file)) + "\n"


if __name__ == "__main__":
    print(shipped_scripts()[sys.argv[1]], end="")
