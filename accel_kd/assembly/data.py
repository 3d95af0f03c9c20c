"""The `data` section: examples with labels, as tokens, in batches."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from accel_kd.assembly.models import checkpoint
from accel_kd.assembly.session import Session
from accel_kd.config.checks import accumulation_steps
from accel_kd.config.schema import DataConfig, RunConfig, TrainingConfig
from accel_kd.data.buckets import PadTo, bucket_length
from accel_kd.data.examples import Columns, RawSplit, content_order, cut_validation, read_examples
from accel_kd.data.labels import LabelledSplits, encode_labels
from accel_kd.data.loaders import Shard, TrainingLoader
from accel_kd.data.preprocessing import TokenisedSplit, tokenise_split
from accel_kd.data.resident import resident_bytes
from accel_kd.data.sources import SplitNames, class_label_names, read_splits
from accel_kd.distributed.collectives import refuse_other_data_on_other_ranks
from accel_kd.errors import UserError
from accel_kd.evaluation import Evaluator
from accel_kd.models.labels import are_unnamed, names_in_order
from accel_kd.models.loading import input_names, load_config
from accel_kd.signals import IGNORED_LABEL

logger = logging.getLogger(__name__)

MEGABYTE = 10**6


@dataclass(frozen=True)
class HeldOut:
    """The splits that a model is scored on."""

    validation: Evaluator
    test: Evaluator | None


def read_data_alike(config: RunConfig, accelerator: Accelerator) -> LabelledSplits:
    """As `read_data`, on all ranks together.

    Raises:
        UserError: as there, or one rank has read something else than rank 0.
    """
    data = read_data(config)
    if accelerator.num_processes > 1:
        refuse_other_data_on_other_ranks(data.order_digest)
    return data


def read_data(config: RunConfig) -> LabelledSplits:
    """All splits with their labels; train cut to size, and without the labels that the recipe hides.

    Raises:
        UserError: the data cannot be read or are not what the recipe says.
    """
    data = config.data
    names = SplitNames(data.splits.train, data.splits.validation, data.splits.test)
    datasets = read_splits(data.path, names, name=data.name, revision=data.revision)
    columns = Columns(text=data.text, label=data.label, text_pair=data.text_pair)
    raw: dict[str, RawSplit] = {split: read_examples(rows, columns, split) for split, rows in datasets.items()}
    if "validation" not in raw:
        raw["train"], raw["validation"] = cut_validation(raw["train"], data.validation_fraction)
    labelled = encode_labels(
        raw,
        label_names=data.label_names or class_label_names(datasets["train"], data.label),
        other_names=_teacher_names(config),
        allow_unlabelled=data.allow_unlabelled,
    )
    if data.out_of_scope is not None and data.out_of_scope not in labelled.label_names:
        raise UserError(f"data.out_of_scope: {data.out_of_scope!r} is not among the {len(labelled.label_names)} labels")
    _check_metric_is_defined(config, labelled)
    train = labelled.splits["train"]
    if data.max_train_examples is not None:
        train = train.take(content_order(train.ids, "subset")[: data.max_train_examples])
    if data.labelled_fraction < 1.0:
        rows = [row for row in content_order(train.ids, "labelled") if train.labels[row] != IGNORED_LABEL]
        train = train.without_labels(rows[max(1, round(data.labelled_fraction * len(rows))) :])
    return replace(labelled, splits={**labelled.splits, "train": train})


def what_makes_data(config: RunConfig) -> str:
    """All settings that `read_data` looks at: where they are the same it gives the same."""
    teacher = config.teacher
    names = [teacher.model, teacher.revision, teacher.trust_remote_code, teacher.finetune is None]
    return json.dumps([config.data.model_dump(mode="json"), config.evaluation.metric, names])


def tokenise(
    session: Session,
    student: tuple[PreTrainedTokenizerBase, PreTrainedModel],
    teacher: tuple[PreTrainedTokenizerBase, PreTrainedModel] | None = None,
) -> dict[str, TokenisedSplit]:
    """Every split as the student's tokens, and the teacher's where they differ."""
    for_student = (student[0], input_names(student[1]))
    for_teacher = None if teacher is None else (teacher[0], input_names(teacher[1]))
    length = session.config.data.max_length

    def make() -> dict[str, TokenisedSplit]:
        return {n: tokenise_split(s, for_student, for_teacher, length) for n, s in session.data.splits.items()}

    if session.trial is None:
        return make()
    readers = [None if one is None else (one[0].name_or_path, tuple(one[1])) for one in (for_student, for_teacher)]
    return session.trial.kept.once("tokens", (what_makes_data(session.config), readers), make)


def cut_texts(splits: Mapping[str, TokenisedSplit]) -> dict[str, Any]:
    """An entry of a summary: how many texts of each split were longer than the student reads, where that is known."""
    known = {name: split.student.num_cut for name, split in splits.items() if split.student.num_cut is not None}
    return {"num_cut_texts": known} if known else {}


def resident_device(data: DataConfig, name: str, num_bytes: int, device: torch.device) -> torch.device | None:
    """`device` where what is called `name` lives there, since it takes no more than `data.resident_megabytes`; else
    None, and a line in the log."""
    if not data.resident_megabytes:
        return None
    if num_bytes <= data.resident_megabytes * MEGABYTE:
        return device
    logger.info(
        "data.resident_megabytes: %s take %s MB, more than %s, and stay in host memory",
        name, f"{num_bytes / MEGABYTE:,.1f}", f"{data.resident_megabytes:,}",
    )  # fmt: skip
    return None


def pad_to(data: DataConfig, device: torch.device) -> PadTo | None:
    """To what lengths micro-batches are padded on `device`: to few on a GPU, so that shapes come again; None: each as
    far as it needs, since a CPU gains nothing by that, and last bits change with the padding."""
    return partial(bucket_length, most=data.max_length) if device.type == "cuda" else None


def evaluator(session: Session, name: str, split: TokenisedSplit) -> Evaluator:
    """The split called `name`, ready to be scored."""
    size, device = session.config.evaluation.micro_batch_size, session.accelerator.device
    home = resident_device(session.config.data, f"the tokens of {name}", resident_bytes(split), device)
    return Evaluator(session.accelerator, session.task, split, size, session.attempt.stop.check, home)


def held_out(session: Session, splits: Mapping[str, TokenisedSplit]) -> HeldOut:
    """The splits that are scored, ready for it."""
    test = evaluator(session, "test", splits["test"]) if "test" in splits else None
    return HeldOut(evaluator(session, "validation", splits["validation"]), test)


def training_loader(
    data: DataConfig, training: TrainingConfig, split: TokenisedSplit, accelerator: Accelerator
) -> TrainingLoader:
    """The optimizer steps of `training` over `split`, this rank's part of each; `data` says where the split lives, and
    workers, where there are any, make batches in host memory."""
    home, padded = None, pad_to(data, accelerator.device)
    if not training.num_workers:
        home = resident_device(data, "the tokens of train", resident_bytes(split, padded), accelerator.device)
    return TrainingLoader(
        split,
        batch_size=training.batch_size,
        accumulation=accumulation_steps(training, accelerator.num_processes),
        shard=Shard(accelerator.process_index, accelerator.num_processes),
        seed=training.seed,
        group_by_length=training.group_by_length,
        num_workers=training.num_workers,
        pin_memory=accelerator.device.type == "cuda",
        resident_on=home,
        pad_to=padded,
    )


def _check_metric_is_defined(config: RunConfig, labelled: LabelledSplits) -> None:
    """The metrics of an out-of-scope label exist only where validation has examples on the side that they look at."""
    metric, name = config.evaluation.metric, config.data.out_of_scope
    if name is None or metric not in {"in_scope_accuracy", "out_of_scope_recall"}:
        return
    outside = labelled.splits["validation"].labels == labelled.label_names.index(name)
    if not (outside if metric == "out_of_scope_recall" else ~outside).any():
        raise UserError(f"evaluation.metric: {metric} has no example among the {len(outside)} of the validation split")


def _teacher_names(config: RunConfig) -> Callable[[], Sequence[str] | None]:
    """Reads the teacher's label names when they are asked for; a teacher that is yet to be fine-tuned has none."""

    def read() -> Sequence[str] | None:
        if config.teacher.model is None or config.teacher.finetune is not None:
            return None
        names = names_in_order(load_config(checkpoint(config.teacher, "teacher.model")))
        return None if are_unnamed(names) else names

    return read
