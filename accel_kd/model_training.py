"""A model with all that trains it: put together fresh, or as its newest checkpoint has it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from accel_kd.checkpoints.reader import Checkpoint
from accel_kd.data.loaders import TrainingLoader
from accel_kd.distributed.seeding import seed_everywhere, seed_rank
from accel_kd.engines import start_engine
from accel_kd.evaluation import Evaluator
from accel_kd.metrics.meters import StepMeter
from accel_kd.models.first_token import read_first_token_only
from accel_kd.models.projected_student import ProjectedStudent
from accel_kd.objectives import WeightedSum
from accel_kd.run_directory import RunDirectory
from accel_kd.tasks.base import Task
from accel_kd.teachers.base import TeacherSource
from accel_kd.tracking import RunRecord, Tracker
from accel_kd.training.checkpointing import Trained, TrainingCheckpoints
from accel_kd.training.health import NonFiniteSteps
from accel_kd.training.loop import LoopSettings, LoopState, Report
from accel_kd.training.optimizer import OptimizerName, learning_rate_schedule, make_optimizer
from accel_kd.training.phases import Phases
from accel_kd.training.resuming import CheckpointSettings
from accel_kd.training.step_modes import Launch, StepMode, StepModeSetting, choose_step_mode, make_step, training_flops

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class OptimizerSettings:
    """The optimizer, its learning rate over the run, and clipping."""

    name: OptimizerName
    learning_rate: float
    weight_decay: float
    schedule: str
    warmup_fraction: float
    max_grad_norm: float | None


@dataclass(frozen=True)
class ModelRun:
    """All that one training needs, as plain values and objects."""

    title: str
    directory: RunDirectory
    make_model: Callable[[], PreTrainedModel | ProjectedStudent]
    tokenizer: PreTrainedTokenizerBase
    task: Task
    objective: WeightedSum
    teacher: TeacherSource | None
    loader: TrainingLoader
    validation: Evaluator
    test: Evaluator | None
    loop: LoopSettings
    optimizer: OptimizerSettings
    checkpoints: CheckpointSettings
    keep_when_finished: bool
    max_nonfinite_steps: int
    keep: str
    step_mode: StepModeSetting
    first_token_only: bool
    """Leave out of the last layer what nothing reads, where the model is one that is known."""
    seed: int
    record: RunRecord
    tracker: Tracker
    bar: bool | None
    facts: Mapping[str, Any]
    """Further entries of the summary: the teacher's scores, say."""
    check_stop: Callable[[], None]
    """Called by all ranks between two steps; raises where the run is to stop."""
    phases: Phases
    """Told which part of the training is going on."""
    texts: Mapping[str, str] | None
    """The examples' texts by id, where tables for people may show them."""
    prediction_rows: int
    """Trackers get the predictions of a test split that has no more examples than this."""
    reached: Callable[[int], None]
    """Called on rank 0 with the step of each checkpoint that is safe."""
    report: Report
    """Called by all ranks after each evaluation."""


class Training:
    """A model with all that trains it, fresh or as a checkpoint has it."""

    def __init__(self, accelerator: Accelerator, run: ModelRun, checkpoint: Checkpoint | None) -> None:
        seed_everywhere(run.seed)
        self.model = run.make_model()
        self.num_parameters = self.model.num_parameters()
        # Projections read hidden states, those of the last layer perhaps.
        may_leave_out = run.first_token_only and isinstance(self.model, PreTrainedModel)
        if may_leave_out and read_first_token_only(self.model):
            logger.info(
                "%s: the last layer is computed for the first token, the only one that its head reads", run.title
            )
        rates = run.optimizer
        optimizer = make_optimizer(
            rates.name,
            self.model,
            rates.learning_rate,
            rates.weight_decay,
            scaled_loss=accelerator.mixed_precision == "fp16",
        )
        schedule = learning_rate_schedule(optimizer, rates.schedule, run.loop.total_steps, rates.warmup_fraction)
        self.engine = start_engine(accelerator, self.model, optimizer, rates.max_grad_norm)
        seed_rank(run.seed, accelerator.process_index)
        self.step_mode, reason = _step_mode(accelerator, run, self.model)
        logger.info("%s: step mode %s: %s", run.title, self.step_mode, reason)
        self.step = make_step(
            self.step_mode, accelerator, self.engine, schedule, run.task, run.objective, run.teacher, run.phases,
            optimizer=optimizer, is_asked_for=run.step_mode != "auto",
        )  # fmt: skip
        self.meter = StepMeter(accelerator)
        loss_scale = None if self.engine.loss_scale is None else lambda: float(self.engine.loss_scale or 1.0)
        self.non_finite = NonFiniteSteps(run.max_nonfinite_steps, run.loader.ids_of_step, loss_scale)
        trained = Trained(self.engine, schedule, run.teacher, self.meter, self.non_finite)
        self.checkpoints = TrainingCheckpoints(accelerator, run.checkpoints, trained, run.reached)
        self.state = LoopState()
        if checkpoint is not None:
            if accelerator.num_processes > 2:
                self.step.rehearse(next(run.loader.epoch(0)))
            self.state = self.checkpoints.restore(checkpoint)
            is_longer = checkpoint.state["total_steps"] < run.loop.total_steps
            if is_longer and (rates.schedule != "constant" or rates.warmup_fraction) and accelerator.is_main_process:
                logger.warning(
                    "training.epochs: the learning rate follows the longer run from here on; what comes is neither the "
                    "shorter run nor the longer one from its start (those differ in training.schedule and warm-up)"
                )
            logger.info(
                "%s: goes on after step %d of %d, from %s",
                run.title, self.state.steps, run.loop.total_steps, checkpoint.path,
            )  # fmt: skip


def _step_mode(accelerator: Accelerator, run: ModelRun, model: nn.Module) -> tuple[StepMode, str]:
    rows = run.loader.batch_size / accelerator.num_processes
    flops = training_flops(model, rows * float(run.loader.split.lengths.mean()))
    return choose_step_mode(run.step_mode, Launch.of(accelerator, run.optimizer.name), flops)
