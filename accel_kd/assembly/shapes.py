"""The recipe's models without their weights, and the lengths of its texts: all that is known before a run starts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PretrainedConfig, PreTrainedModel

from accel_kd.assembly.data import read_data
from accel_kd.assembly.models import checkpoint, student_checkpoint
from accel_kd.assembly.objectives import objective
from accel_kd.config.checks import accumulation_steps, needs_teacher_signal
from accel_kd.config.objective_section import hidden_states_term
from accel_kd.config.schema import RunConfig, TrainingConfig
from accel_kd.data.examples import content_order
from accel_kd.data.loaders import TrainingLoader
from accel_kd.data.preprocessing import TokenisedSplit, tokenise_split
from accel_kd.errors import UserError
from accel_kd.models.first_token import read_first_token_only
from accel_kd.models.loading import check_length, input_names, load_config, load_tokenizer
from accel_kd.models.student import chosen_layers, with_dropout, with_labels
from accel_kd.objectives import total
from accel_kd.planning.loss_costs import loss_bytes
from accel_kd.planning.model_costs import on_meta
from accel_kd.signals import GlobalCounts, Signal, Targets

_MOST_ROWS = 20_000
"""Rows of a split that are tokenised; the lengths of more are taken to be like theirs."""


@dataclass(frozen=True)
class Shapes:
    """The student, and the teacher where the run has one, on the meta device."""

    student: PreTrainedModel
    teacher: PreTrainedModel | None


@dataclass(frozen=True)
class Lengths:
    """What the texts are padded to. `rows` counts those of each split that a run takes, `split` holds as many as were
    tokenised; both are None where the data could not be read, and `missing` says why."""

    max_length: int
    rows: dict[str, int] | None = None
    splits: dict[str, TokenisedSplit] | None = None
    num_classes: int | None = None
    missing: str | None = None

    def longest(self, *, held_out: bool = False) -> tuple[int, int]:
        """Tokens of the longest text of train, or of all other splits, as the student reads it and as the teacher."""
        if self.splits is None:
            return self.max_length, self.max_length
        there = [split for name, split in self.splits.items() if (name != "train") == held_out]
        student = max(int(split.student.lengths.max()) for split in there)
        return student, max(int(split.for_teacher.lengths.max()) for split in there)


@dataclass(frozen=True)
class MicroBatches:
    """An epoch's micro-batches over all ranks: how many rows `[n]` each has, and what these are padded to `[n]`."""

    rows: NDArray[np.int64]
    student_lengths: NDArray[np.int64]
    teacher_lengths: NDArray[np.int64]


def read_lengths(config: RunConfig) -> Lengths:
    """The texts as the models' tokenizers read them; `data.max_length` alone where the data are not at hand.

    Raises:
        UserError: a model's tokenizer or configuration is missing.
    """
    source = student_checkpoint(config)
    student_config, student = load_config(source), load_tokenizer(source)
    check_length(student_config, config.data.max_length, source.setting)
    try:
        data = read_data(config)
    except UserError as error:
        return Lengths(config.data.max_length, missing=str(error).splitlines()[0])
    for_teacher = None
    if config.teacher.model is not None:
        teacher = checkpoint(config.teacher, "teacher.model")
        for_teacher = (load_tokenizer(teacher), input_names(on_meta(load_config(teacher))))
    for_student = (student, input_names(on_meta(student_config)))
    splits, rows = {}, {}
    for name, examples in data.splits.items():
        rows[name] = len(examples)
        if len(examples) > _MOST_ROWS:
            examples = examples.take(content_order(examples.ids, "plan")[:_MOST_ROWS])
        splits[name] = tokenise_split(examples, for_student, for_teacher, config.data.max_length)
    if not needs_teacher_signal(config.objective):
        splits["train"] = splits["train"].labelled()
        rows["train"] = round(rows["train"] * len(splits["train"]) / len(data.splits["train"]))
    return Lengths(config.data.max_length, rows, splits, len(data.label_names))


def shapes(config: RunConfig, lengths: Lengths) -> Shapes:
    """The models, with as many labels as the data have, or else the teacher.

    Raises:
        UserError: a model's configuration is missing, or has no layers as the recipe wants them.
    """
    teacher = None
    names = [f"LABEL_{number}" for number in range(lengths.num_classes or _own_classes(config))]
    if config.teacher.model is not None:
        source = checkpoint(config.teacher, "teacher.model")
        own = load_config(source)
        check_length(own, config.data.max_length, "teacher.model")
        teacher_config = own if config.teacher.finetune is None else with_labels(own, names)
        teacher = on_meta(teacher_config, config.teacher.attention, trust_remote_code=config.teacher.trust_remote_code)
        if not (needs_teacher_signal(config.objective) or config.teacher.finetune is not None):
            teacher = None
    source = student_checkpoint(config)
    student_config = with_dropout(with_labels(load_config(source), names), config.student.dropout)
    if config.student.init == "teacher_layers":
        student_config.num_hidden_layers = len(chosen_layers(config.student.layers, student_config.num_hidden_layers))
    section = config.teacher if config.student.init == "teacher_layers" else config.student
    student = on_meta(student_config, trust_remote_code=section.trust_remote_code)
    if config.training.first_token_only and hidden_states_term(config.objective) is None:
        for model in [student] if teacher is None else [student, teacher]:
            read_first_token_only(model)
    return Shapes(student, teacher)


def micro_batches(lengths: Lengths, training: TrainingConfig, world_size: int) -> MicroBatches:
    """The first epoch's micro-batches, cut as the loader cuts them; one of the longest texts where there are no data.

    Raises:
        UserError: the batch does not divide by the ranks and micro-batches.
    """
    pieces = accumulation_steps(training, world_size) * world_size
    if lengths.splits is None:
        one = np.array([lengths.max_length])
        return MicroBatches(np.array([training.batch_size // pieces]), one, one)
    split = lengths.splits["train"]
    loader = TrainingLoader(
        split, batch_size=training.batch_size, seed=training.seed, group_by_length=training.group_by_length
    )
    cut = [part for rows in loader.global_batches(0) for part in np.array_split(rows, pieces) if len(part)]
    student, teacher = split.student.lengths, split.for_teacher.lengths
    return MicroBatches(
        np.array([len(part) for part in cut]),
        np.array([student[part].max() for part in cut]),
        np.array([teacher[part].max() for part in cut]),
    )


def bytes_of_loss(config: RunConfig, num_rows: int, num_classes: int, dtype: torch.dtype) -> int:
    """What the recipe's loss holds of `num_rows` rows beside the student; `dtype` is that of its logits."""
    loss = objective(config.objective)

    def of(student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        targets = Targets(labels, torch.ones(num_rows, dtype=torch.bool))
        return total(loss(Signal(student), Signal(teacher), targets), GlobalCounts(num_rows, num_rows))

    return loss_bytes(of, num_rows, num_classes, dtype)


def _own_classes(config: RunConfig) -> int:
    """As many labels as the recipe names, or the teacher has, or the student."""
    if config.data.label_names is not None:
        return len(config.data.label_names)
    if config.teacher.model is not None:
        return int(load_config(checkpoint(config.teacher, "teacher.model")).num_labels)
    found: PretrainedConfig = load_config(student_checkpoint(config))
    return int(found.num_labels)
