"""Searches of tiny models: their command line, and several processes at one search."""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any


def command(data: Path, teacher: Path, directory: Path, *more: str) -> list[str]:
    """A search in `directory` over epochs and alpha; a trial has up to three epochs of five steps."""
    return [
        "search", "clinc150_minilm",
        f"data.path={data}", "data.max_length=32", "data.max_train_examples=80",
        f"teacher.model={teacher}", "teacher.finetune=null", "teacher.accept_chance_accuracy=true",
        f"teacher.store.path={directory.parent / 'stores'}",
        "student.layers=1", "objective.temperature=2",
        "training.batch_size=16", "training.learning_rate=2e-3",
        "tracking.mode=disabled", "checkpoint.every_steps=4", f"run.directory={directory}-run",
        "search.num_trials=4", "search.final_seeds=0", f"search.directory={directory}",
        "search.space.training.epochs={low: 2, high: 3}", "search.space.objective.alpha={low: 0.1, high: 0.9}",
        *more,
    ]  # fmt: skip


def results(directory: Path) -> dict[str, Any]:
    """What a search left for programs."""
    content: dict[str, Any] = json.loads((directory / "search.json").read_text())
    return content


def together(output: str, faults: str, *arguments: str) -> None:
    """Two processes of one command at once, to their end; the first has `faults` (JSON).

    The exit code and what each printed are in the files `output`.0 and .1.
    """
    children = []
    for number in range(2):
        child = os.fork()
        if child == 0:
            _become(f"{output}.{number}", json.loads(faults) if number == 0 else [], arguments)
        children.append(child)
    for number, child in enumerate(children):
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        with open(f"{output}.{number}", "a") as file:
            file.write(f"\nexit {code}")


def _become(output: str, faults: list[dict[str, Any]], arguments: tuple[str, ...]) -> None:
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    code = 70
    try:
        from accel_kd.cli import main
        from tests.support.faults import install

        for fault in faults:
            install(fault)
        code = main(arguments)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
