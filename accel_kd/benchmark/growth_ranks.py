"""One rank of several on a CPU: ours and the peer take turns, each batch shared out over the ranks."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from accel_kd.benchmark.contestants import Ours, Peer
from accel_kd.benchmark.given import given_logits
from accel_kd.benchmark.rounds import take_turns
from accel_kd.benchmark.step_batches import endless
from accel_kd.benchmark.workbench import opened
from accel_kd.training.step_modes import StepMode

_WARM_UP = 2
_ON_CPU = {"CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true", "DS_ACCELERATOR": "cpu"}


def rank_trial(
    recipe: str, overrides: Sequence[str], modes: Sequence[StepMode], num_steps: int, num_rounds: int, answer: str
) -> None:
    """Rank 0 writes to the file `answer` the examples a second of each contestant, over all ranks, round by round."""
    os.environ.update(_ON_CPU)
    bench = opened(recipe, overrides)
    accelerator = bench.accelerator
    num_classes = len(bench.session.data.label_names)
    teacher = given_logits(len(bench.train), num_classes, bench.device)
    total_steps = _WARM_UP + num_rounds * (num_steps + 1)
    contestants: list[Ours | Peer] = [
        Ours(bench, mode, mode, teacher, endless(bench.loader(bench.train)), total_steps) for mode in modes
    ]
    contestants.append(Peer(bench, Path(answer).parent))
    trials = take_turns(contestants, num_rounds, num_steps, _WARM_UP)
    if accelerator.is_main_process:
        speeds = {
            name: [trial.examples_per_second * accelerator.num_processes for trial in own]
            for name, own in trials.items()
        }
        Path(answer).write_text(json.dumps(speeds))
    accelerator.wait_for_everyone()
    accelerator.end_training()
