"""The `teacher` and `student` sections: which checkpoints, and how a fresh student is made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from accel_kd.assembly.session import Session
from accel_kd.config.schema import ModelConfig
from accel_kd.models.loading import Checkpoint, check_length, load_classifier, load_config
from accel_kd.models.student import from_checkpoint, from_config, from_teacher_layers
from accel_kd.teachers.streaming import StreamingTeacher

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


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


def student_checkpoint(session: Session, teacher: FoundTeacher | None) -> Checkpoint:
    """Where the student's tokenizer and configuration come from.

    Raises:
        UserError: nothing is there, or it reads fewer tokens than `data.max_length`.
    """
    if session.config.student.init == "teacher_layers":
        assert teacher is not None
        found = teacher.checkpoint
    else:
        found = checkpoint(session.config.student, "student.model")
    check_length(load_config(found), session.config.data.max_length, found.setting)
    return found


def student_maker(session: Session, teacher: FoundTeacher | None) -> Callable[[], PreTrainedModel]:
    """A function that makes a fresh student each time it is called, new weights drawn from torch's generator."""
    section, names = session.config.student, session.data.label_names
    source = student_checkpoint(session, teacher)
    if section.init == "random":
        return lambda: from_config(source, names, section.dropout)
    if section.init == "checkpoint":
        return lambda: from_checkpoint(source, names, section.dropout)
    columns = None if teacher is None else teacher.columns
    return lambda: from_teacher_layers(
        load_classifier(source), names, layers=section.layers, columns=columns, dropout=section.dropout
    )


def streaming_teacher(session: Session, teacher: FoundTeacher) -> StreamingTeacher:
    """The teacher, loaded beside the student on this rank; `auto` is bfloat16 on a GPU that computes in it."""
    device, name = session.accelerator.device, session.config.teacher.dtype
    if name == "auto":
        name = "bfloat16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "float32"
    model = load_classifier(teacher.checkpoint, dtype=_DTYPES[name])
    return StreamingTeacher(model, session.task, device, teacher.columns)
