"""A stand-in for the program: takes its command line, trains nothing, and misbehaves as its first argument says.

`python stand_in.py FAULT CALLS distill RECIPE key=value ...` adds what it was called with to the file CALLS. A run of a
million steps goes on until SIGTERM; a shorter one is over at once, with figures that depend on its settings alone.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

SECONDS_TO_CHECKPOINT = 0.05
SECONDS_TO_EXIT = 0.5
"""After the checkpoint."""


def main(fault: str, calls: str, command: str, recipe: str, *overrides: str) -> int:
    settings = dict(override.split("=", 1) for override in overrides)
    with open(calls, "a") as file:
        file.write(json.dumps({"command": command, "recipe": recipe, **settings}) + "\n")
    if fault == "mistake":
        print("some library's chatter\naccel-kd: data.path: 'nowhere' is no file\naccel-kd: data.text: unknown")
        return 2
    if fault == "failure":
        print("accel-kd: failed: the disk is full")
        return 1
    directory = Path(settings["run.directory"])
    (directory / "checkpoints").mkdir(parents=True, exist_ok=True)
    if settings["training.max_steps"] == "1000000":
        return run_until_stopped(fault, directory)
    finish(fault, directory, settings)
    return 0


def finish(fault: str, directory: Path, settings: dict[str, str]) -> None:
    steps, every = int(settings["training.max_steps"]), int(settings["checkpoint.every_steps"])
    in_background = settings["checkpoint.background"] == "true"
    num_checkpoints = len({*range(every, steps + 1, every), steps})
    checkpoint = directory / "checkpoints" / f"step-{steps:08d}"
    checkpoint.mkdir()
    (checkpoint / "manifest.json").write_bytes(bytes(500_000))
    (checkpoint / "student.safetensors").write_bytes(bytes(1_000_000))
    weights = b"same"
    if fault == "other weights in the background" and in_background:
        weights = b"other"
    if fault == "other weights every time":
        weights = os.urandom(8)
    (directory / "student").mkdir()
    (directory / "student" / "model.safetensors").write_bytes(weights)
    summary: dict[str, Any] = {
        "train/steps": steps - 1 if fault == "fewer steps" else steps,
        "perf/training_seconds": 2.5 if in_background else 2.0,
        "perf/checkpoint_seconds": num_checkpoints * (0.02 if in_background else 0.1),
        "device": "abacus",
    }
    (directory / "summary.json").write_text(json.dumps(summary))


def run_until_stopped(fault: str, directory: Path) -> int:
    requests: list[int] = []
    time.sleep(0.2)  # a signal that comes before there are steps ends the process
    signal.signal(signal.SIGTERM, lambda number, frame: requests.append(number))
    if fault == "ends of itself":
        return 0
    newest = max((int(path.name[5:]) for path in (directory / "checkpoints").iterdir()), default=0)
    step = newest
    with (directory / "metrics.jsonl").open("a") as metrics:
        metrics.write('{"run": {}}\n')
        while not requests:
            step += 1
            row = json.dumps({"step": step, "train/loss": 1.0}) + "\n"
            for half in (row[:14], row[14:]):  # whoever reads it now reads a torn line
                metrics.write(half)
                metrics.flush()
                time.sleep(0.01 if half == row[:14] else 0)
    if fault == "orphan":
        subprocess.Popen(["sleep", "600"])
    time.sleep(SECONDS_TO_CHECKPOINT)
    if fault != "no checkpoint":
        (directory / "checkpoints" / f"step-{step:08d}").mkdir()
    time.sleep(SECONDS_TO_EXIT)
    return 0 if fault == "wrong exit code" else 85


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
