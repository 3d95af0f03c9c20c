"""The story of `accel-kd evaluate`: one checkpoint, one split, the metrics that training reports."""

from __future__ import annotations

import json
from pathlib import Path

from accel_kd.assembly.scored_models import read_scored_model, read_whole_split
from accel_kd.assembly.session import task
from accel_kd.config.schema import RunConfig
from accel_kd.distributed import startup
from accel_kd.distributed.collectives import on_main_rank
from accel_kd.errors import UserError
from accel_kd.evaluation import Evaluator
from accel_kd.models.loading import Checkpoint
from accel_kd.run_directory import write_atomically
from accel_kd.teachers.streaming import StreamingTeacher


def evaluate_checkpoint(config: RunConfig, model_name: str, split: str, output: str | None = None) -> str:
    """The scores of a checkpoint on a split of the recipe's data, as JSON text, and in the file `output` if given.

    Raises:
        UserError: the checkpoint cannot be loaded, its labels are not the data's, or there is no such split; the file
            cannot be written, in which case the scores are printed before.
    """
    if output is not None and (Path(output).is_dir() or not Path(output).parent.is_dir()):
        raise UserError(f"--output: {output!r} is a folder, or lies in one that does not exist; name a file")
    run = config.run
    accelerator = startup.start(config.training.precision, threads=run.threads, cpu_matmul=run.cpu_matmul)
    data = read_whole_split(config, split)
    scored = read_scored_model(config, Checkpoint(model_name, "model"), data)
    labels_task = task(config, data.label_names)
    # A frozen model whose columns are put in order is just what a teacher is.
    frozen = StreamingTeacher(scored.model, labels_task, accelerator.device, scored.columns)
    evaluator = Evaluator(accelerator, labels_task, scored.tokens, config.evaluation.micro_batch_size)
    with accelerator.autocast():  # as a student of this recipe is scored
        scores = evaluator.score_teacher(frozen)
    report = {
        "model": model_name,
        "data": config.data.path,
        "split": split,
        "num_examples": evaluator.num_examples,
        "num_parameters": scored.model.num_parameters(),
        **scores.metrics,
        "accuracy_by_label": labels_task.accuracy_by_label(scores.rows),
    }
    text = json.dumps(report, indent=2, ensure_ascii=False)
    if output is not None:
        on_main_rank(accelerator, lambda: _write(Path(output), text))
    accelerator.end_training()
    return text


def _write(output: Path, text: str) -> None:
    try:
        write_atomically(output, text + "\n")
    except OSError as error:
        print(text)  # what was computed is not lost with the file
        raise UserError(f"--output: {output} cannot be written: {error.strerror}") from error
