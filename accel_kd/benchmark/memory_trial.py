"""One configuration's training steps in this process, and the memory that they took at most.

`python -m accel_kd.benchmark.memory_trial JSON` prints one line of JSON; `accel_kd.benchmark.memory` starts it. The
student, its teacher, the loss, the optimizer and the step are those of a run; weights and texts are random, since their
values take no memory.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import torch
from accelerate import Accelerator
from transformers import PreTrainedModel

from accel_kd.assembly.objectives import objective
from accel_kd.assembly.session import start
from accel_kd.assembly.shapes import Lengths
from accel_kd.benchmark.peak_memory import PeakMemory
from accel_kd.config import RunConfig, load_recipe
from accel_kd.config.checks import accumulation_steps
from accel_kd.config.objective_section import hidden_states_term
from accel_kd.distributed.freed_memory import memory_as_by_default
from accel_kd.engines import start_engine
from accel_kd.models.first_token import read_first_token_only
from accel_kd.models.labels import names_in_order
from accel_kd.models.loading import input_names, new_classifier
from accel_kd.run_plan.stages import Machine, Planner
from accel_kd.signals import Batch, GlobalCounts, StepBatches, Targets
from accel_kd.tasks.sequence_classification import SequenceClassification
from accel_kd.teachers.streaming import StreamingTeacher
from accel_kd.training.optimizer import learning_rate_schedule, make_optimizer
from accel_kd.training.step import EagerStep

_STEPS = 3
"""The optimizer's moments are there from the second step on."""


def main(request: str) -> dict[str, Any]:
    """Measures what `request` asks for: `recipe`, `overrides`, and `num_classes` or null."""
    asked = json.loads(request)
    accelerator, config = start(load_recipe(asked["recipe"], asked["overrides"]))
    lengths = Lengths(config.data.max_length, num_classes=asked["num_classes"])
    planner = Planner(config, Machine(accelerator.num_processes, 0, accelerator.device.type), lengths)
    meter = PeakMemory(accelerator.device)
    with memory_as_by_default():
        step, batches = _training(accelerator, config, planner)
        meter.start_over()
        for _ in range(_STEPS):
            losses, _ = step(batches)
            assert torch.isfinite(losses["loss"]), "a step that was measured diverged"
    figures = {"device": meter.device_name, "peak_bytes": meter.peak_bytes, "baseline_bytes": meter.baseline_bytes}
    accelerator.end_training()
    return figures


def _training(accelerator: Accelerator, config: RunConfig, planner: Planner) -> tuple[EagerStep, StepBatches]:
    task = SequenceClassification(names_in_order(planner.shapes.student.config))
    teacher = None
    if planner.streams and planner.shapes.teacher is not None:
        weights = new_classifier(planner.shapes.teacher.config, "teacher.model").to(planner.teacher_dtype(config))
        teacher = StreamingTeacher(_as_run(weights, config), task, accelerator.device)
    student = _as_run(new_classifier(planner.shapes.student.config, "student.model"), config)
    scaled_loss = accelerator.mixed_precision == "fp16"
    optimizer = make_optimizer(config.training.optimizer, student, 1e-5, 0.01, scaled_loss=scaled_loss)
    schedule = learning_rate_schedule(optimizer, "constant", _STEPS, 0.0)
    engine = start_engine(accelerator, student, optimizer, config.training.max_grad_norm)
    step = EagerStep(accelerator, engine, schedule, task, objective(config.objective), teacher)
    return step, _batches(config, student, accelerator.num_processes)


def _as_run(model: PreTrainedModel, config: RunConfig) -> PreTrainedModel:
    """The model with its last layer as a run computes it."""
    if config.training.first_token_only and hidden_states_term(config.objective) is None:
        read_first_token_only(model)
    return model


def _batches(config: RunConfig, student: PreTrainedModel, world_size: int) -> StepBatches:
    """Random texts, all of `data.max_length` but one, since a batch without padding goes without a mask."""
    steps = accumulation_steps(config.training, world_size)
    rows, length = config.training.batch_size // (steps * world_size), config.data.max_length
    mask = torch.ones(rows, length, dtype=torch.long)
    mask[0, -1] = 0
    inputs = {"input_ids": torch.randint(1, student.config.vocab_size, (rows, length)), "attention_mask": mask}
    if "token_type_ids" in input_names(student):
        inputs["token_type_ids"] = torch.zeros_like(mask)
    targets = Targets(torch.randint(student.config.num_labels, (rows,)), torch.ones(rows, dtype=torch.bool))
    batch = Batch(torch.arange(rows), inputs, targets)
    count = config.training.batch_size
    return StepBatches(0, [batch] * steps, GlobalCounts(count, count))


if __name__ == "__main__":
    figures = main(sys.argv[1])
    if os.environ.get("RANK", "0") == "0":
        print(json.dumps(figures), flush=True)
