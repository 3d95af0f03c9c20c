"""The `training`, `evaluation` and `tracking` sections: one model's training, ready to run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from accel_kd.assembly.data import HeldOut
from accel_kd.assembly.models import teacher_dtype
from accel_kd.assembly.session import Session
from accel_kd.config.schema import RunConfig, TrainingConfig
from accel_kd.data.examples import digest_of_ids
from accel_kd.data.loaders import TrainingLoader
from accel_kd.model_training import ModelRun, OptimizerSettings
from accel_kd.models.projected_student import ProjectedStudent
from accel_kd.objectives import WeightedSum
from accel_kd.run_directory import RunDirectory
from accel_kd.teachers.base import TeacherSource
from accel_kd.tracking import (
    ArtifactRecord,
    CompositeTracker,
    JobType,
    JsonlTracker,
    NullTracker,
    RunRecord,
    Tracker,
    WandbTracker,
)
from accel_kd.training.loop import LoopSettings, ask_nobody
from accel_kd.training.phases import MeasuredPhases, Phases
from accel_kd.training.resuming import CheckpointSettings

TEACHER_WEIGHTS, DATA_DIGEST = "teacher/weights_sha256", "data/digest"
"""Entries of a summary."""


@dataclass(frozen=True)
class Budget:
    """How many optimizer steps, and after how many a model is scored."""

    steps: int
    steps_per_evaluation: int


def budget(config: RunConfig, training: TrainingConfig, loader: TrainingLoader) -> Budget:
    """The budget of `training` over the examples of `loader`."""
    steps = training.epochs * loader.steps_per_epoch
    if training.max_steps is not None:
        steps = min(steps, training.max_steps)
    return Budget(steps, config.evaluation.every_steps or loader.steps_per_epoch)


def model_run(
    session: Session,
    *,
    job_type: JobType,
    directory: RunDirectory,
    make_model: Callable[[], PreTrainedModel | ProjectedStudent],
    tokenizer: PreTrainedTokenizerBase,
    objective: WeightedSum,
    teacher: TeacherSource | None,
    training: TrainingConfig,
    loader: TrainingLoader,
    held_out: HeldOut,
    budget: Budget,
    facts: Mapping[str, Any],
    inputs: Sequence[ArtifactRecord] = (),
) -> ModelRun:
    """One model's training; `facts` are further entries of its summary, `inputs` what it is made from."""
    config = session.config
    metric = config.evaluation.metric
    made_from = {"data.path": f"the examples {session.data.digest[:16]}"}
    if teacher is not None:
        made_from["teacher.model"] = f"the weights {facts[TEACHER_WEIGHTS][:16]}"
        made_from["teacher.dtype"] = teacher_dtype(session)
    part = "student" if job_type == "distill" else job_type
    return ModelRun(
        title=job_type,
        directory=directory,
        make_model=make_model,
        tokenizer=tokenizer,
        task=session.task,
        objective=objective,
        teacher=teacher,
        loader=loader,
        validation=held_out.validation,
        test=held_out.test,
        loop=LoopSettings(
            total_steps=budget.steps,
            evaluate_every=budget.steps_per_evaluation,
            save_every=config.checkpoint.every_steps,
            # Early stopping compares with the best, whether or not its weights are kept.
            keep_best=max(1, config.checkpoint.keep_best),
            log_every=config.tracking.log_every_steps,
            # A teacher that is being made cannot be compared with itself.
            metric="accuracy" if job_type == "teacher" and metric.startswith("teacher_") else metric,
            patience=training.early_stopping_patience,
        ),
        optimizer=_optimizer(training),
        checkpoints=_checkpoints(session, directory, training, loader, budget, made_from),
        # Students may be given more epochs; what a teacher learnt longer would be another run's.
        keep_when_finished=config.checkpoint.when_finished == "keep" and job_type != "teacher",
        max_nonfinite_steps=training.max_nonfinite_steps,
        keep=config.evaluation.keep,
        step_mode=training.step_mode,
        first_token_only=training.first_token_only and not objective.needs.hidden_states,
        seed=training.seed,
        record=run_record(session, job_type, inputs),
        tracker=tracker_of(session, directory),
        bar=config.run.progress,
        facts={**facts, DATA_DIGEST: session.data.digest},
        check_stop=session.attempt.stop.check,
        phases=_phases(session, directory),
        texts=session.data.texts_by_id() if config.tracking.texts else None,
        prediction_rows=config.tracking.prediction_rows,
        reached=lambda step: session.attempt.status.reached(part, step, budget.steps),
        report=session.trial.report if session.trial and job_type == "distill" else ask_nobody,
    )


def _phases(session: Session, directory: RunDirectory) -> Phases:
    """Rank 0 is measured for all."""
    if session.config.perf.profile and session.accelerator.is_main_process:
        return MeasuredPhases(directory.profile, session.accelerator.device)
    return Phases()


def _optimizer(training: TrainingConfig) -> OptimizerSettings:
    return OptimizerSettings(
        name=training.optimizer,
        learning_rate=training.learning_rate,
        weight_decay=training.weight_decay,
        schedule=training.schedule,
        warmup_fraction=training.warmup_fraction,
        max_grad_norm=training.max_grad_norm,
    )


def _checkpoints(
    session: Session,
    directory: RunDirectory,
    training: TrainingConfig,
    loader: TrainingLoader,
    budget: Budget,
    made_from: Mapping[str, str],
) -> CheckpointSettings:
    config = session.config
    return CheckpointSettings(
        root=directory.checkpoints,
        keep_last=config.checkpoint.keep_last,
        keep_best=config.checkpoint.keep_best,
        exports_best=config.evaluation.keep == "best",
        background=config.checkpoint.background,
        seed=training.seed,
        train_examples=digest_of_ids(loader.split.ids),
        made_from=made_from,
        must_resume=config.run.resume == "must",
        tracker_run_id=directory.wandb_run_id,
        facts={
            "config": config.model_dump(mode="json"),
            "environment": session.environment,
            "total_steps": budget.steps,
            "steps_per_epoch": loader.steps_per_epoch,
        },
    )


def tracker_of(session: Session, directory: RunDirectory) -> Tracker:
    """To a file always, to Weights & Biases unless disabled; nowhere but on rank 0."""
    if not session.accelerator.is_main_process:
        return NullTracker()
    jsonl = JsonlTracker(directory.metrics)
    section = session.config.tracking
    if section.mode == "disabled":
        return jsonl
    wandb = WandbTracker(
        section.mode,
        section.project,
        section.entity,
        directory.path,
        directory.wandb_run_id,
        directory.metrics,
        artifacts=section.artifacts,
    )
    return CompositeTracker([jsonl, wandb])


def run_record(session: Session, job_type: JobType, inputs: Sequence[ArtifactRecord] = ()) -> RunRecord:
    """What is known of one model's run before it starts; `inputs` is what it is made from."""
    section = session.config.tracking
    run_name = session.directory.path.name
    name = section.name or run_name
    return RunRecord(
        name=name if job_type == "distill" else f"{name}-{job_type}",
        job_type="search" if session.trial and job_type == "distill" else job_type,
        group=section.group or run_name,
        tags=tuple(section.tags),
        notes=section.notes,
        config=session.config.model_dump(mode="json"),
        environment=session.environment,
        inputs=tuple(inputs),
    )
