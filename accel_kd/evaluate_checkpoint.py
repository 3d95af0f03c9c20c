"""The story of `accel-kd evaluate`: one checkpoint, one split, the metrics that training reports."""

from __future__ import annotations

import json
from pathlib import Path

from accel_kd.assembly.data import read_data
from accel_kd.assembly.session import task
from accel_kd.config.schema import RunConfig
from accel_kd.data.preprocessing import tokenise_split
from accel_kd.distributed import startup
from accel_kd.errors import UserError
from accel_kd.evaluation import Evaluator
from accel_kd.models.labels import columns_by_name, names_in_order
from accel_kd.models.loading import Checkpoint, check_length, input_names, load_classifier, load_tokenizer
from accel_kd.run_directory import write_atomically
from accel_kd.teachers.streaming import StreamingTeacher


def evaluate_checkpoint(config: RunConfig, model_name: str, split: str, output: str | None = None) -> str:
    """The scores of a checkpoint on a split of the recipe's data, as JSON text, and in the file `output` if given.

    Raises:
        UserError: the checkpoint cannot be loaded, its labels are not the data's, or there is no such split.
    """
    if output is not None and (Path(output).is_dir() or not Path(output).parent.is_dir()):
        raise UserError(f"--output: {output!r} is a folder, or lies in one that does not exist; name a file")
    accelerator = startup.start(config.training.precision, threads=config.run.threads)
    # Scored is the whole split, whatever the recipe leaves out or hides for training.
    whole = config.data.model_copy(update={"labelled_fraction": 1.0, "max_train_examples": None})
    data = read_data(config.model_copy(update={"data": whole}))
    if split not in data.splits:
        raise UserError(f"--split: the data have no {split} split, only {', '.join(data.splits)}")
    checkpoint = Checkpoint(model_name, "model")
    model = load_classifier(checkpoint)
    check_length(model.config, config.data.max_length, "the model")
    columns = columns_by_name(names_in_order(model.config), data.label_names, "model")
    labels_task = task(config, data.label_names)
    tokens = tokenise_split(
        data.splits[split], (load_tokenizer(checkpoint), input_names(model)), None, config.data.max_length
    ).labelled()
    # A frozen model whose columns are put in order is just what a teacher is.
    frozen = StreamingTeacher(model, labels_task, accelerator.device, columns)
    evaluator = Evaluator(accelerator, labels_task, tokens, config.evaluation.micro_batch_size)
    with accelerator.autocast():  # as a student of this recipe is scored
        scores = evaluator.score_teacher(frozen)
    report = {
        "model": model_name,
        "data": config.data.path,
        "split": split,
        "num_examples": evaluator.num_examples,
        "num_parameters": model.num_parameters(),
        **scores.metrics,
        "accuracy_by_label": labels_task.accuracy_by_label(scores.rows),
    }
    text = json.dumps(report, indent=2, ensure_ascii=False)
    if output is not None and accelerator.is_main_process:
        write_atomically(Path(output), text + "\n")
    accelerator.end_training()
    return text
