"""The `teacher` and `student` sections: which checkpoints, and how a fresh student is made."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from accel_kd.assembly.session import Session
from accel_kd.config.model_sections import ModelConfig
from accel_kd.config.schema import RunConfig, TrainingConfig
from accel_kd.distributed.bf16 import all_ranks_have_bf16
from accel_kd.distributed.cpu_features import multiplies_bf16
from accel_kd.models.first_token import read_first_token_only
from accel_kd.models.loading import Checkpoint, check_length, load_classifier, load_config, load_tokenizer
from accel_kd.models.student import (
    chosen_layers,
    from_checkpoint,
    from_config,
    from_teacher_layers,
    with_dropout,
)
from accel_kd.teachers.placement import Placement, describe
from accel_kd.teachers.streaming import STEADY_ROWS, StreamingTeacher

logger = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class FoundTeacher:
    """A teacher's checkpoint, its logit column for each of the data's labels where the order differs, and whether
    this run made it."""

    checkpoint: Checkpoint
    columns: Sequence[int] | None
    is_finetuned_here: bool


def checkpoint(section: ModelConfig, setting: str) -> Checkpoint:
    """The checkpoint that a section names; `setting` is what errors call it."""
    assert section.model is not None, f"the checks refuse a missing {setting}"
    return Checkpoint(
        name=section.model,
        setting=setting,
        revision=section.revision,
        trust_remote_code=section.trust_remote_code,
        allow_pickle=section.allow_pickle,
    )


def student_checkpoint(config: RunConfig, teacher: FoundTeacher | None = None) -> Checkpoint:
    """Where the student's tokenizer and configuration come from; `teacher` None: as the recipe says."""
    if config.student.init != "teacher_layers":
        return checkpoint(config.student, "student.model")
    return checkpoint(config.teacher, "teacher.model") if teacher is None else teacher.checkpoint


def check_student(config: RunConfig) -> None:
    """Refuses a student that cannot be made, before a teacher is trained for it.

    Raises:
        UserError: what is missing of it, or does not fit.
    """
    source, section = student_checkpoint(config), config.student
    shape = with_dropout(load_config(source), section.dropout)
    check_length(shape, config.data.max_length, source.setting)
    load_tokenizer(source)
    if section.init == "teacher_layers":
        chosen_layers(section.layers, shape.num_hidden_layers)


def student_maker(session: Session, teacher: FoundTeacher | None) -> Callable[[], PreTrainedModel]:
    """A function that makes a fresh student each time it is called, new weights drawn from torch's generator."""
    section, names = session.config.student, session.data.label_names
    source = student_checkpoint(session.config, teacher)
    if section.init == "random":
        return lambda: from_config(source, names, section.dropout)
    if section.init == "checkpoint":
        return lambda: from_checkpoint(source, names, section.dropout)
    return lambda: from_teacher_layers(
        from_checkpoint(source, names), names, layers=section.layers, dropout=section.dropout
    )


def teacher_dtype(session: Session) -> str:
    """The precision of the teacher's weights, one for all ranks; `auto` is bfloat16 on GPUs that compute in it, and
    beside a student that trains in it on CPUs that do."""
    name = session.config.teacher.dtype
    if name != "auto":
        return name
    device = session.accelerator.device
    wanted = device.type == "cuda" or session.config.training.precision == "bf16"
    return "bfloat16" if wanted and all_ranks_have_bf16(device) else "float32"


def automatic_cpu_dtype(training: TrainingConfig) -> str:
    """What `teacher.dtype=auto` is on this CPU; without a launcher's word a recipe that names no precision is fp32."""
    return "bfloat16" if training.precision == "bf16" and multiplies_bf16() else "float32"


def streaming_teacher(
    session: Session,
    teacher: FoundTeacher,
    columns: Sequence[int] | None,
    min_rows: int = STEADY_ROWS,
    hidden_states: frozenset[int] = frozenset(),
    *,
    placement: Placement,
) -> StreamingTeacher:
    """The teacher, loaded and put in its place; the other arguments as in `StreamingTeacher`."""
    device, world_size = session.accelerator.device, session.accelerator.num_processes
    dtype = DTYPES[teacher_dtype(session)]
    model = load_classifier(teacher.checkpoint, dtype=dtype, attention=session.config.teacher.attention)
    if session.config.training.first_token_only and not hidden_states:
        read_first_token_only(model)
    source = StreamingTeacher(model, session.task, device, columns, min_rows, hidden_states, placement, world_size)
    logger.info("teacher: %s, in %s", describe(source.model, placement, device, world_size), teacher_dtype(session))
    return source
