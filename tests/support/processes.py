"""The program as users start it: a command in a process of its own, or several ranks of it."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import accelerate

ROOT = Path(__file__).resolve().parents[2]
_MODULE = ["-m", "accel_kd"]
# A launched rank takes its share of the cores else; `tests/conftest.py` says why a test wants one.
_ONE_THREAD = "run.threads=1"
_FIRST_PORT, _PORTS_OF_A_WORKER = 10000, 2000
"""Below those of SLURM's jobs, and of the ports that Linux gives to whoever asks for any."""
_ports = itertools.count()


def run(command: Sequence[str | Path], *, timeout: float = 240, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs `command` to its end, with launcher variables of this process taken out."""
    launcher = {"WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "ACCELERATE_MIXED_PRECISION"}
    inherited = {name: value for name, value in os.environ.items() if name not in launcher}
    return subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=timeout, env=inherited | environment,
        check=False,
    )  # fmt: skip


def accel_kd(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """`python -m accel_kd` in one process."""
    return run([sys.executable, *_MODULE, *arguments], **options)


def on_ranks(world_size: int, *arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """`python -m accel_kd` on `world_size` ranks of torchrun."""
    launcher = ["torch.distributed.run", f"--nproc_per_node={world_size}", f"--master_port={free_port()}"]
    return run([sys.executable, "-m", *launcher, *_MODULE, *arguments, _ONE_THREAD], **options)


def accelerate_launch(
    options: Sequence[str | Path], *arguments: str | Path, **settings: Any
) -> subprocess.CompletedProcess[str]:
    """`accelerate launch OPTIONS -m accel_kd`, by the launcher that stands beside this Python."""
    assert accelerate.__version__
    launcher = ["accelerate.commands.launch", "--main_process_port", str(free_port()), *map(str, options)]
    return run([sys.executable, "-m", *launcher, *_MODULE, *arguments, _ONE_THREAD], **settings)


def succeeded(process: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str]:
    """The same process, after a look at how it ended."""
    assert process.returncode == 0, f"exit {process.returncode}\n{process.stdout}\n{process.stderr}"
    return process


def free_port() -> int:
    """A port that nobody listens on, and that nobody else is given before it is used: not one of those that the system
    gives to whoever asks for any, nor one of another worker's."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    while True:
        port = _FIRST_PORT + _PORTS_OF_A_WORKER * worker + next(_ports) % _PORTS_OF_A_WORKER
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port


def step_rows(directory: Path) -> list[dict[str, Any]]:
    """The rows of `metrics.jsonl` that belong to optimizer steps, as any reader of JSON lines gets them."""
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "train/loss" in line]


def summary(directory: Path) -> dict[str, Any]:
    """What the run ended with."""
    content: dict[str, Any] = json.loads((directory / "summary.json").read_text())
    return content
