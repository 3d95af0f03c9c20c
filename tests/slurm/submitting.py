"""A recipe to submit, and `accel-kd submit` on a cluster's login node."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from tests.slurm.cluster import Cluster
from tests.support import tiny


def write_recipe(folder: Path) -> Path:
    """Fills `folder` with `recipe.yaml`, whose paths are relative, and what they lead to."""
    tiny.write_data(folder / "data")
    tiny.write_model(folder / "teacher")
    tiny.write_model(folder / "student", "distilbert", layers=2, seed=1)
    recipe: dict[str, Any] = {
        "data": {"path": "data", "max_length": 32},
        "teacher": {"model": "teacher", "accept_chance_accuracy": True},
        "student": {"model": "student"},
        "training": {"epochs": 1, "batch_size": 24, "learning_rate": 1.0e-3},
        "tracking": {"mode": "disabled"},
        "run": {"threads": 1},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return folder


def accel_kd(cluster: Cluster, folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The program on the login node, in `folder`."""
    command = [sys.executable, "-m", "accel_kd", *arguments]
    settings = cluster.environment | environment
    return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=folder, env=settings, check=False)


def submitted(cluster: Cluster, folder: Path, *arguments: str) -> list[tuple[Path, str]]:
    """The scripts that `accel-kd submit` has written, each with the id of its job."""
    done = accel_kd(cluster, folder, "submit", *arguments)
    assert done.returncode == 0, done.stderr
    words = done.stdout.splitlines()
    assert [line.split()[0] for line in words] == ["script", "job"] * (len(words) // 2)
    pairs = zip(words[::2], words[1::2], strict=True)
    return [(Path(script.removeprefix("script  ")), job.split()[1]) for script, job in pairs]


def logs(run: Path) -> str:
    """All that the jobs of a run have printed."""
    return "\n".join(path.read_text() for path in sorted((run / "slurm").glob("*.log")))
