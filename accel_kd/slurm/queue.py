"""Hands scripts to SLURM's queue, and takes jobs out of it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from accel_kd.errors import UserError

_SECONDS_TO_ANSWER = 60
_FOR_COMMANDS = {"SLURM_CONF", "SLURM_CLUSTERS"}
"""Variables that tell SLURM's commands what to do; the others tell a job what it has."""


def refuse_without_sbatch() -> None:
    """
    Raises:
        UserError: this machine cannot submit jobs.
    """
    if shutil.which("sbatch") is None:
        raise UserError(
            "submit: there is no sbatch on this machine; submit from a login node of the cluster, or take the script "
            "that --dry-run prints"
        )


def submit_job(script: Path, *, after: str | None = None) -> str:
    """Submits `script` and returns the job's id.

    Args:
        script: the batch script.
        after: id of a job that must have succeeded before; if it fails, this one is taken out of the queue.

    Raises:
        UserError: SLURM refused it or does not answer.
    """
    dependency = [] if after is None else [f"--dependency=afterok:{after}", "--kill-on-invalid-dep=yes"]
    command = ["sbatch", "--parsable", *dependency, str(script)]
    try:
        answer = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=_SECONDS_TO_ANSWER,
            env=without_job(os.environ),
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise UserError(f"submit: sbatch did not answer within {_SECONDS_TO_ANSWER} seconds: {script}") from error
    job = answer.stdout.strip().partition(";")[0]
    if answer.returncode != 0 or not job.isdecimal():
        said = " ".join(line.removeprefix("sbatch: ").removeprefix("error: ") for line in answer.stderr.splitlines())
        raise UserError(f"submit: sbatch refused {script}: {said or f'exit code {answer.returncode}'}")
    return job


def cancel_job(job: str) -> None:
    """Takes a job out of the queue, if it is still there."""
    subprocess.run(["scancel", job], capture_output=True, check=False, timeout=_SECONDS_TO_ANSWER)


def without_job(environment: Mapping[str, str]) -> dict[str, str]:
    """`environment` without what the job that this is called in, if any, has of its own: its task of an array, the
    count of its restarts and its GPUs are not those of the job that is submitted."""
    if "SLURM_JOB_ID" not in environment:
        return dict(environment)
    return {
        name: value for name, value in environment.items() if not name.startswith("SLURM_") or name in _FOR_COMMANDS
    }
