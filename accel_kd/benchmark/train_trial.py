"""What is asked of one contestant in a process of its own: its peak of memory, or whether its losses are the peer's.

`python -m accel_kd.benchmark.train_trial JSON` prints one line of JSON; `accel_kd.benchmark.train` starts it.
"""

from __future__ import annotations

import itertools
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from accel_kd.benchmark.contestants import Ours, Peer
from accel_kd.benchmark.peak_memory import TIDY_ALLOCATOR, PeakMemory
from accel_kd.benchmark.program import run_to_end
from accel_kd.benchmark.rounds import PEER
from accel_kd.benchmark.sameness import SETTINGS, STEPS, compare_losses
from accel_kd.benchmark.workbench import Workbench, opened
from accel_kd.config import load_recipe
from accel_kd.data.preprocessing import TokenisedSplit
from accel_kd.signals import GlobalCounts, StepBatches
from accel_kd.training.step_modes import StepMode

_MEMORY_STEPS = 3
"""The optimizer's moments are there from the second step on."""


@dataclass(frozen=True)
class Request:
    """What is measured (`memory` or `sameness`), of whom, and on what."""

    measure: str
    recipe: str
    overrides: list[str]
    folder: str
    """Where the trial may write."""
    contestant: str
    """`PEER`, or ours by this name."""
    mode: StepMode = "eager"
    source: str = ""


def main(request: Request) -> dict[str, Any]:
    """Measures what `request` asks for, in this process.

    Raises:
        UserError: the recipe cannot be compared.
    """
    if request.measure == "memory":
        return _memory(opened(request.recipe, request.overrides), request)
    config = load_recipe(request.recipe, request.overrides)
    few = min(config.data.max_train_examples or sys.maxsize, (STEPS + 1) * config.training.batch_size)
    settings = [*SETTINGS, f"data.max_train_examples={few}"]
    bench = opened(request.recipe, [*request.overrides, *settings])
    found = compare_losses(bench, request.mode, request.source, Path(request.folder))
    return {"losses": list(found.losses), "peers_losses": list(found.peers_losses)}


def in_process_of_its_own(request: Request) -> dict[str, Any]:
    """As `main`, in a fresh process on the same devices.

    Raises:
        UserError, RunFailure: it failed.
    """
    log = Path(request.folder) / "log"
    allocator = () if torch.cuda.is_available() else TIDY_ALLOCATOR
    program = [sys.executable, "-m", "accel_kd.benchmark.train_trial", json.dumps(vars(request))]
    run_to_end(["env", "TRANSFORMERS_VERBOSITY=error", *allocator, *program], log)
    lines = log.read_text(encoding="utf-8").splitlines()
    answer: dict[str, Any] = json.loads([line for line in lines if line.startswith("{")][-1])
    return answer


def _memory(bench: Workbench, request: Request) -> dict[str, Any]:
    """The peak over steps that have the longest texts there are, models, optimizer and all."""
    memory = PeakMemory(bench.device)
    contestant: Ours | Peer
    if request.contestant == PEER:
        step = _longest_step(bench.train, bench.config.training.batch_size)
        contestant = Peer(bench, Path(request.folder), step.micro_batches * _MEMORY_STEPS)
    else:
        teacher, split, _ = bench.teacher_source(request.source)
        step = _longest_step(split, bench.config.training.batch_size)
        batches = itertools.repeat(step, _MEMORY_STEPS)
        contestant = Ours(bench, request.contestant, request.mode, teacher, batches, _MEMORY_STEPS)
    memory.start_over()
    contestant.run(0, _MEMORY_STEPS)
    return {"peak_bytes": memory.peak_bytes, "baseline_bytes": memory.baseline_bytes}


def _longest_step(split: TokenisedSplit, batch_size: int) -> StepBatches:
    rows = np.argsort(-split.lengths, kind="stable")[:batch_size]
    return StepBatches(0, [split.batch(rows)], GlobalCounts(len(rows), len(rows), int(split.lengths[rows].sum())))


if __name__ == "__main__":
    print(json.dumps(main(Request(**json.loads(sys.argv[1])))), flush=True)
