"""One model trained, kept, tested and recorded: a student, the same student without its teacher, or a teacher.

newest checkpoint, or a fresh model -> prepare -> loop (evaluate, keep, save) -> the kept weights exported and read back
-> test -> predictions, summary
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator

from accel_kd.checkpoints.disk import disk_failures
from accel_kd.distributed.collectives import on_main_rank
from accel_kd.errors import StopRequested, TrialPruned, UserError
from accel_kd.evaluation import Scores
from accel_kd.export.model_folder import model_artifact, read_weights, weights_sha256, write_model
from accel_kd.export.prediction_tables import by_label, confused_pairs, differences, predictions
from accel_kd.export.predictions import write_predictions
from accel_kd.metrics.scored_rows import ScoredRows
from accel_kd.model_training import ModelRun, Training
from accel_kd.models.projected_student import exported_weights, trained_weights, without_projections
from accel_kd.run_directory import RunDirectory
from accel_kd.signals import IGNORED_LABEL
from accel_kd.tracking import RunStatus
from accel_kd.training.health import explained_lack_of_memory
from accel_kd.training.loop import Loop, Surroundings
from accel_kd.training.progress import progress_for
from accel_kd.training.resuming import newest_checkpoint

logger = logging.getLogger(__name__)


def is_done(directory: RunDirectory, total_steps: int) -> bool:
    """Whether the model in `directory` was trained for as many steps, or ended early of itself."""
    if not directory.is_finished:
        return False
    summary = directory.read_summary()
    return bool(summary["train/stopped_early"]) or summary["train/steps"] >= total_steps


def run_model(accelerator: Accelerator, run: ModelRun) -> dict[str, Any]:
    """Trains the model of `run`, from its newest checkpoint if there is one; its exported weights, predictions and
    summary are in the run's directory afterwards.

    Returns:
        The summary, the same on every rank.

    Raises:
        UserError: a tracker that was asked for cannot start, or a finished run is to go on and has no checkpoint.
        RunFailure: too many losses or gradients are not finite, or a disk or a device is full.
        StopRequested: the run was asked to stop.
        TrialPruned: it is not worth going on with.
    """
    checkpoint = newest_checkpoint(accelerator, run.checkpoints)
    if checkpoint is None and on_main_rank(accelerator, run.directory.shorter_summary.is_file):
        raise UserError(
            f"training.epochs: {run.directory.path} was finished and is to be longer, and no checkpoint in it can be "
            "used; choose another run.directory"
        )
    num_rows = 0 if checkpoint is None else checkpoint.state["loop"]["num_rows"]
    on_main_rank(accelerator, lambda: run.tracker.start(run.record, num_rows))
    status = RunStatus.FAILED
    try:
        own = run.loader.batch_size // run.loader.accumulation // accelerator.num_processes
        section = "teacher.finetune" if run.title == "teacher" else "training"
        with explained_lack_of_memory(own, run.validation.batch_size, section):
            training = Training(accelerator, run, checkpoint)
            summary = _train_and_test(accelerator, run, training)
        # Before the tracker ends, which may wait for minutes: a batch job that is killed meanwhile has its results.
        on_main_rank(accelerator, lambda: _write_summary(run, summary))
        training.checkpoints.finish(run.keep_when_finished)
        status = RunStatus.FINISHED
    except StopRequested:
        status = RunStatus.STOPPED
        raise
    except TrialPruned:
        status = RunStatus.PRUNED
        raise
    finally:
        # On an error the other ranks may be gone: nothing collective here.
        if accelerator.is_main_process:
            run.tracker.finish(status)
    return summary


def _train_and_test(accelerator: Accelerator, run: ModelRun, training: Training) -> dict[str, Any]:
    if run.teacher is not None:
        missing = run.objective.needs.missing_from(run.teacher.provides)
        assert not missing, f"the objective needs {missing}, which the teacher does not provide"
    scores = _fit(accelerator, run, training)
    if run.keep == "best":
        training.checkpoints.load_best(training.state.best[0].step)
    sha256 = _export(accelerator, run, training)
    if scores is None:  # an earlier attempt scored these weights
        scores = run.validation.score(training.engine.model)
    test = None if run.test is None else run.test.score(training.engine.model)
    training.engine.close()
    summary = _summary(accelerator, run, training, scores, test) | {"weights_sha256": sha256}
    on_main_rank(accelerator, lambda: _record(run, summary, scores, test))
    by_label = {"validation": run.task.accuracy_by_label(scores.rows)}
    if test is not None:
        by_label["test"] = run.task.accuracy_by_label(test.rows)
    return summary | {"accuracy_by_label": by_label}


def _export(accelerator: Accelerator, run: ModelRun, training: Training) -> str:
    """The model as it is goes into the run's directory, and is read back from there; the digest of its weights."""
    exported = without_projections(training.model)
    gathered = [exported_weights(training.model, training.engine.weights())]
    # Taken out of the list, so that rank 0 does not hold them beside what it reads back.

    def write() -> None:
        with disk_failures(run.directory.model):
            write_model(exported, gathered.pop(), run.tokenizer, run.directory.model)

    on_main_rank(accelerator, write)
    read = read_weights(exported, run.directory.model)
    training.engine.load_weights(trained_weights(training.model, read), others_stay=True)
    return on_main_rank(accelerator, lambda: weights_sha256(run.directory.model))


def _fit(accelerator: Accelerator, run: ModelRun, training: Training) -> Scores | None:
    """The loop, and the validation scores of the student that is kept; None where this attempt did not score it."""
    progress = progress_for(
        run.title,
        run.loop.total_steps,
        is_main=accelerator.is_main_process,
        bar=run.bar,
        done=training.state.steps,
    )
    latest: list[Scores] = []
    kept: dict[int, Scores] = {}

    def evaluate() -> dict[str, float]:
        latest[:] = [run.validation.score(training.engine.model)]
        return latest[0].metrics

    def keep(is_among_best: bool) -> None:
        state = training.state
        if run.keep == "last" or state.best[0].step == state.steps:
            kept.clear()
            kept[state.steps] = latest[0]
        if is_among_best and run.checkpoints.keep_best:
            with training.checkpoints.waiting():
                training.checkpoints.keep_best(state)

    def log(rows: Sequence[Mapping[str, float]]) -> None:
        for row in rows:
            run.tracker.log({name: value for name, value in row.items() if name != "step"}, int(row["step"]))

    def save() -> None:
        with training.checkpoints.waiting():
            run.tracker.flush()
            training.checkpoints.save(training.state)

    start_epoch = run.teacher.start_epoch if run.teacher is not None else lambda epoch: None
    around = Surroundings(evaluate, log, keep, save, run.check_stop, start_epoch, progress, run.phases, run.report)
    loop = Loop(training.step, run.loader, run.loop, training.state, training.meter, training.non_finite, around)
    try:
        loop.run()
    except (StopRequested, TrialPruned):
        training.checkpoints.wait()
        raise
    finally:
        progress.close()
        run.phases.finish()
    with training.checkpoints.waiting():
        training.checkpoints.wait()
    return kept.get(training.state.best[0].step if run.keep == "best" else training.state.steps)


def _summary(
    accelerator: Accelerator, run: ModelRun, training: Training, scores: Scores, test: Scores | None
) -> dict[str, Any]:
    state, meter = training.state, training.meter
    kept_step = state.best[0].step if run.keep == "best" else state.steps
    how = f"the best evaluation by {run.loop.metric}" if run.keep == "best" else "the last"
    device = accelerator.device
    return {
        **{f"eval/{name}": value for name, value in scores.metrics.items()},
        **({} if test is None else {f"test/{name}": value for name, value in test.metrics.items()}),
        **run.facts,
        "train/steps": state.steps,
        "train/stopped_early": state.stopped_early,
        "kept_step": kept_step,
        "kept": f"The weights of step {kept_step} were kept ({how}).",
        "train/nonfinite_steps": training.non_finite.num_steps,
        "num_parameters": training.num_parameters,
        "perf/seconds": training.checkpoints.seconds,
        "perf/device_seconds": training.checkpoints.device_seconds,
        "perf/samples_per_second": meter.samples_per_second,
        "perf/padding_fraction": meter.padding_fraction,
        "perf/training_seconds": meter.seconds,
        "perf/checkpoint_seconds": training.checkpoints.seconds_waited,
        "num_labels": len(run.task.label_names),
        "num_labelled": int((run.loader.split.labels != IGNORED_LABEL).sum()),
        "num_examples": {
            "train": len(run.loader.split),
            "validation": run.validation.num_examples,
            **({} if run.test is None else {"test": run.test.num_examples}),
        },
        "world_size": accelerator.num_processes,
        "step_mode": training.step_mode,
        "precision": accelerator.mixed_precision,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
    }


def _write_summary(run: ModelRun, summary: Mapping[str, Any]) -> None:
    with disk_failures(run.directory.summary):
        run.directory.write_summary(summary)


def _record(run: ModelRun, summary: Mapping[str, Any], scores: Scores, test: Scores | None) -> None:
    names = run.task.label_names
    with disk_failures(run.directory.predictions):
        write_predictions(run.directory.predictions / "validation.parquet", run.validation.ids, scores.rows, names)
        if run.test is not None and test is not None:
            write_predictions(run.directory.predictions / "test.parquet", run.test.ids, test.rows, names)
    if run.test is not None and test is not None:
        _show(run, run.test.ids, test.rows)
    run.tracker.summarise(summary)
    figures = {name: value for name, value in summary.items() if name.startswith(("eval/", "test/"))}
    metadata = {**figures, "num_parameters": summary["num_parameters"]}
    run.tracker.produced(model_artifact(run.record.name, run.directory.model, summary["weights_sha256"], metadata))


def _show(run: ModelRun, ids: Sequence[str], rows: ScoredRows) -> None:
    """The test split's predictions, as people look at them."""
    names = run.task.label_names
    tables = {"test/by_label": by_label(rows, names), "test/confused_pairs": confused_pairs(rows, names)}
    if rows.teacher_argmax is not None:
        tables["test/student_differs_from_teacher"] = differences(ids, rows, names, run.texts)
    if len(ids) <= run.prediction_rows:
        tables["predictions/test"] = predictions(ids, rows, names)
    for name, table in tables.items():
        if table.rows:
            run.tracker.show(name, table.columns, table.rows)
    run.tracker.show_confusions("test/confusions", rows.labels.tolist(), rows.argmax.tolist(), names)
