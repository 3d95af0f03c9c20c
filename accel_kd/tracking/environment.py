"""Describes where a run ran: what a number needs beside it to be compared. Nothing secret, nothing personal."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from typing import Any

from accel_kd.distributed.cpu_features import cpu_fields
from accel_kd.distributed.cpu_threads import usable_cpus

_PACKAGES = ("accel_kd", "accelerate", "torch", "transformers", "datasets", "evaluate", "wandb", "deepspeed", "numpy")
_GIT_TIMEOUT_SECONDS = 5.0


def describe_environment() -> dict[str, Any]:
    """Code, packages, hardware and job, of JSON types only; what cannot be found out is None. Raises nothing.

    The GPUs are asked of torch only if it is already imported: importing it takes seconds.
    """
    return {
        "git": _git(),
        "packages": {package: _version(package) for package in _PACKAGES},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": {"model": _cpu_model(), "count": usable_cpus(), "matmul": _cpu_matmul()},
        "memory_gib": _memory_gib(),
        "gpu": _gpu(),
        "slurm": {
            "job_id": os.environ.get("SLURM_JOB_ID"),
            "restart_count": os.environ.get("SLURM_RESTART_COUNT"),
        },
    }


def _git() -> dict[str, Any]:
    """Commit of the repository that holds the working directory, and whether a tracked file differs from it.

    Untracked files do not count: runs write such files themselves. The remote is left out, as it can hold a token.
    """
    commit = _git_output("rev-parse", "--verify", "HEAD")
    changes = _git_output("status", "--porcelain", "--untracked-files=no") if commit else None
    return {"commit": commit, "is_dirty": None if changes is None else bool(changes)}


def _git_output(*arguments: str) -> str | None:
    try:
        finished = subprocess.run(
            ["git", *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_GIT_TIMEOUT_SECONDS,
            stdin=subprocess.DEVNULL,
            # `git status` would otherwise lock the index, under the hands of whoever works in it.
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return finished.stdout.strip() if finished.returncode == 0 else None


def _cpu_matmul() -> str | None:
    """What multiplies fp32 matrices; None in a process that has not started to compute."""
    module = sys.modules.get("accel_kd.distributed.cpu_matmul")
    return None if module is None else "onednn" if module.is_onednn() else "blas"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str | None:
    return cpu_fields().get("model name") or platform.processor() or None


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
    except (OSError, ValueError):
        return None


def _gpu() -> dict[str, Any]:
    torch = sys.modules.get("torch")
    if torch is None:
        return {"count": None, "names": None, "cuda": None}
    try:
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        names = [torch.cuda.get_device_name(index) for index in range(count)]
    except Exception:  # a driver in a bad state must not stop a run on behalf of its description
        count = names = None
    return {"count": count, "names": names, "cuda": getattr(torch.version, "cuda", None)}
