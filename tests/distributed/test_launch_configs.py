"""Each file in `launch_configs/` starts the strategy that it is named for, as `accelerate launch` starts it."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.launch_configs import EXPECTED, FILES, recipe
from tests.support.processes import ROOT, accelerate_launch, free_port, run, step_rows, succeeded, summary


def test_every_file_is_here() -> None:
    assert {file.stem for file in FILES} == set(EXPECTED)


@pytest.mark.parametrize("file", [file for file in FILES if file.stem != "multi_node"], ids=lambda file: file.stem)
def test_it_starts_what_it_is_named_for(file: Path, tiny_data: Path, tiny_teacher: Path, tmp_path: Path) -> None:
    ranks, strategy, precision = EXPECTED[file.stem]
    command = recipe(tiny_data, tiny_teacher, tmp_path / "run")
    process = succeeded(accelerate_launch(["--config_file", file], *command))
    named = f"start: {ranks} rank{'s' if ranks > 1 else ''} on cpu (1 threads), {strategy}, precision {precision}"
    assert named in process.stderr
    assert len(step_rows(tmp_path / "run")) == 2 and summary(tmp_path / "run")["world_size"] == ranks


def test_two_machines_are_one_run(tiny_data: Path, tiny_teacher: Path, tmp_path: Path) -> None:
    """Both are this machine; each gets its rank as its own launcher gives it."""
    port = str(free_port())
    command = [*recipe(tiny_data, tiny_teacher, tmp_path / "run"), "run.threads=1"]

    def start(machine: int) -> subprocess.CompletedProcess[str]:
        options = ["--config_file", str(ROOT / "launch_configs" / "multi_node.yaml"), "--machine_rank", str(machine)]
        launcher = [sys.executable, "-m", "accelerate.commands.launch", *options, "--main_process_port", port]
        return run([*launcher, "-m", "accel_kd", *command])

    with ThreadPoolExecutor(2) as machines:
        first, second = map(succeeded, machines.map(start, (0, 1)))
    assert "start: 2 ranks on cpu (1 threads), DDP over gloo" in first.stderr and "start:" not in second.stderr
    assert summary(tmp_path / "run")["world_size"] == 2
