"""One model trained, kept, tested and recorded: a student, the same student without its teacher, or a teacher.

fresh model -> prepare -> loop (evaluate, keep) -> the kept weights read back -> test -> predictions, summary
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import get_grad_scaler
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from accel_kd.data.loaders import TrainingLoader
from accel_kd.distributed.collectives import on_main_rank
from accel_kd.distributed.seeding import seed_everywhere, seed_rank
from accel_kd.evaluation import Evaluator, Scores
from accel_kd.export.model_folder import read_weights, write_model
from accel_kd.export.predictions import write_predictions
from accel_kd.metrics.meters import StepMeter
from accel_kd.objectives import WeightedSum
from accel_kd.run_directory import RunDirectory
from accel_kd.signals import IGNORED_LABEL
from accel_kd.tasks.base import Task
from accel_kd.teachers.base import TeacherSource
from accel_kd.tracking import RunRecord, RunStatus, Tracker
from accel_kd.training.loop import LoopResult, LoopSettings, train
from accel_kd.training.optimizer import adamw, learning_rate_schedule
from accel_kd.training.progress import progress_for
from accel_kd.training.step import EagerStep


@dataclass(frozen=True)
class OptimizerSettings:
    """AdamW, its learning rate over the run, and clipping."""

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
    make_model: Callable[[], PreTrainedModel]
    tokenizer: PreTrainedTokenizerBase
    task: Task
    objective: WeightedSum
    teacher: TeacherSource | None
    loader: TrainingLoader
    validation: Evaluator
    test: Evaluator | None
    loop: LoopSettings
    optimizer: OptimizerSettings
    keep: str
    seed: int
    record: RunRecord
    tracker: Tracker
    bar: bool | None
    facts: Mapping[str, Any]
    """Further entries of the summary: the teacher's scores, say."""


def run_model(accelerator: Accelerator, run: ModelRun) -> dict[str, Any]:
    """Trains the model of `run`; its exported weights, predictions and summary are in the run's directory afterwards.

    Returns:
        The summary, the same on every rank.

    Raises:
        UserError: a tracker that was asked for cannot start.
        RunFailure: a loss is not finite.
    """
    on_main_rank(accelerator, run.directory.set_aside)
    on_main_rank(accelerator, lambda: run.tracker.start(run.record))
    status = RunStatus.FAILED
    try:
        summary = _train_and_test(accelerator, run)
        status = RunStatus.FINISHED
    finally:
        # On an error the other ranks may be gone: nothing collective here.
        if accelerator.is_main_process:
            run.tracker.finish(status)
    on_main_rank(accelerator, lambda: run.directory.write_summary(summary))
    return summary


def _train_and_test(accelerator: Accelerator, run: ModelRun) -> dict[str, Any]:
    if run.teacher is not None:
        missing = run.objective.needs.missing_from(run.teacher.provides)
        assert not missing, f"the objective needs {missing}, which the teacher does not provide"
    started = time.perf_counter()
    seed_everywhere(run.seed)
    model = run.make_model()
    num_parameters = model.num_parameters()
    if accelerator.scaler is not None:
        # The loss scale of the model before must not reach this one.
        accelerator.scaler = get_grad_scaler(accelerator.distributed_type)
    raw_optimizer = adamw(
        model,
        run.optimizer.learning_rate,
        run.optimizer.weight_decay,
        scaled_loss=accelerator.scaler is not None,
    )
    schedule = learning_rate_schedule(
        raw_optimizer, run.optimizer.schedule, run.loop.total_steps, run.optimizer.warmup_fraction
    )
    prepared, optimizer = accelerator.prepare(model, raw_optimizer)
    seed_rank(run.seed, accelerator.process_index)
    step = EagerStep(
        accelerator, prepared, optimizer, schedule, run.task, run.objective, run.teacher, run.optimizer.max_grad_norm
    )
    result, meter, scores = _fit(accelerator, run, step, model)
    read_weights(accelerator.unwrap_model(prepared), run.directory.model)
    test = None if run.test is None else run.test.score(prepared)
    accelerator.free_memory(prepared, optimizer)
    summary = _summary(accelerator, run, result, meter, scores, test)
    summary |= {"num_parameters": num_parameters, "perf/seconds": time.perf_counter() - started}
    on_main_rank(accelerator, lambda: _record(run, summary, scores, test))
    by_label = {"validation": run.task.accuracy_by_label(scores.rows)}
    if test is not None:
        by_label["test"] = run.task.accuracy_by_label(test.rows)
    return summary | {"accuracy_by_label": by_label}


def _fit(
    accelerator: Accelerator, run: ModelRun, step: EagerStep, model: PreTrainedModel
) -> tuple[LoopResult, StepMeter, Scores]:
    """The loop, and the validation scores of the student that was kept."""
    meter = StepMeter(accelerator)
    progress = progress_for(run.title, run.loop.total_steps, is_main=accelerator.is_main_process, bar=run.bar)
    latest: list[Scores] = []
    kept: list[Scores] = []

    def evaluate() -> dict[str, float]:
        latest[:] = [run.validation.score(step.model)]
        return latest[0].metrics

    def keep(improved: bool) -> None:
        if improved or run.keep == "last":
            kept[:] = latest
        if improved and run.keep == "best":
            on_main_rank(accelerator, lambda: write_model(model, run.tokenizer, run.directory.model))

    def log(rows: Sequence[Mapping[str, float]]) -> None:
        for row in rows:
            run.tracker.log({name: value for name, value in row.items() if name != "step"}, int(row["step"]))

    try:
        result = train(
            step,
            run.loader,
            run.loop,
            meter=meter,
            evaluate=evaluate,
            log=log,
            keep=keep,
            progress=progress,
            start_epoch=run.teacher.start_epoch if run.teacher is not None else lambda epoch: None,
        )
    finally:
        progress.close()
    if run.keep == "last":
        on_main_rank(accelerator, lambda: write_model(model, run.tokenizer, run.directory.model))
    return result, meter, kept[0]


def _summary(
    accelerator: Accelerator, run: ModelRun, result: LoopResult, meter: StepMeter, scores: Scores, test: Scores | None
) -> dict[str, Any]:
    kept_step = result.best_step if run.keep == "best" else result.steps
    how = f"the best evaluation by {run.loop.metric}" if run.keep == "best" else "the last"
    device = accelerator.device
    return {
        **{f"eval/{name}": value for name, value in scores.metrics.items()},
        **({} if test is None else {f"test/{name}": value for name, value in test.metrics.items()}),
        **run.facts,
        "train/steps": result.steps,
        "train/stopped_early": result.stopped_early,
        "kept_step": kept_step,
        "kept": f"The weights of step {kept_step} were kept ({how}).",
        "perf/samples_per_second": meter.samples_per_second,
        "perf/training_seconds": meter.seconds,
        "num_labels": len(run.task.label_names),
        "num_labelled": int((run.loader.split.labels != IGNORED_LABEL).sum()),
        "num_examples": {
            "train": len(run.loader.split),
            "validation": run.validation.num_examples,
            **({} if run.test is None else {"test": run.test.num_examples}),
        },
        "world_size": accelerator.num_processes,
        "precision": accelerator.mixed_precision,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
    }


def _record(run: ModelRun, summary: Mapping[str, Any], scores: Scores, test: Scores | None) -> None:
    names = run.task.label_names
    write_predictions(run.directory.predictions / "validation.parquet", run.validation.ids, scores.rows, names)
    if run.test is not None and test is not None:
        write_predictions(run.directory.predictions / "test.parquet", run.test.ids, test.rows, names)
    run.tracker.summarise(summary)
