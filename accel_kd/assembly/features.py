"""The `hidden_states` term: which layers there are, which are projected, and whether the tokens are the same."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from transformers import PreTrainedModel

from accel_kd.assembly.models import checkpoint, student_checkpoint
from accel_kd.assembly.session import Session
from accel_kd.config.objective_section import HiddenStatesTerm, hidden_states_term
from accel_kd.config.schema import RunConfig
from accel_kd.data.preprocessing import tokenise
from accel_kd.errors import UserError
from accel_kd.models.hidden_states import Stack, stack_of
from accel_kd.models.loading import load_config, load_tokenizer
from accel_kd.models.projected_student import ProjectedStudent, Projection
from accel_kd.models.student import chosen_layers
from accel_kd.models.tokenizer_identity import tokenizer_identity


def check_features(config: RunConfig) -> None:
    """Refuses hidden states that a model does not have, or that cannot be compared, before anything is trained.

    Raises:
        UserError: a layer that is not there, or widths that differ and must not be projected.
    """
    term = hidden_states_term(config.objective)
    if term is None:
        return
    student, teacher = _stacks(config)
    for model, stack, layers in (("student", student, term.layers), ("teacher", teacher, term.layers.values())):
        beyond = [layer for layer in layers if not stack.has(layer)]
        if beyond:
            raise UserError(
                f"objective.terms: hidden_states.layers names layer {beyond[0]} of the {model}, which has 0 (its "
                f"embeddings) to {stack.depth}, or from the end -1 to {-stack.depth - 1}; choose one of them"
            )
    if term.projection == "never" and student.width != teacher.width:
        raise UserError(
            f"objective.terms: hidden_states.projection is never, and the student is {student.width} wide but the "
            f"teacher {teacher.width}; use projection=auto"
        )


def check_same_tokens(session: Session) -> None:
    """Refuses to compare hidden states of models that do not read the same tokens of the train split.

    Raises:
        UserError: one text that becomes other tokens.
    """
    config = session.config
    if hidden_states_term(config.objective) is None:
        return
    tokenizers = [
        load_tokenizer(student_checkpoint(config)),
        load_tokenizer(checkpoint(config.teacher, "teacher.model")),
    ]
    one, other = (tokenizer_identity(tokenizer) for tokenizer in tokenizers)
    if one == other:
        return
    # What differs may be nothing that these texts meet.
    train, length = session.data.splits["train"], config.data.max_length
    student, teacher = (tokenise(train, each, ["input_ids"], length).features["input_ids"] for each in tokenizers)
    if not (np.array_equal(student.values, teacher.values) and np.array_equal(student.offsets, teacher.offsets)):
        raise UserError(
            "objective.terms: hidden_states compares the models token by token, and the tokenizers of student.model "
            "and teacher.model cut these texts differently; choose models with one tokenizer, or leave the term out"
        )


def with_projections(
    session: Session, make_student: Callable[[], PreTrainedModel]
) -> Callable[[], PreTrainedModel | ProjectedStudent]:
    """`make_student`, or a function that adds what the loss asks of its hidden states, drawn after its own weights."""
    term = hidden_states_term(session.config.objective)
    if term is None:
        return make_student
    projections = _projections(term, *_stacks(session.config))
    return lambda: ProjectedStudent(make_student(), projections)


def _projections(term: HiddenStatesTerm, student: Stack, teacher: Stack) -> list[Projection]:
    is_projected = term.projection == "always" or student.width != teacher.width
    to_width = teacher.width if is_projected else None
    return [Projection(layer, student.width, to_width) for layer, _ in term.pairs]


def _stacks(config: RunConfig) -> tuple[Stack, Stack]:
    """The student's layers and the teacher's."""
    source = student_checkpoint(config)
    student = stack_of(load_config(source), source.setting)
    teacher = stack_of(load_config(checkpoint(config.teacher, "teacher.model")), "teacher.model")
    if config.student.init == "teacher_layers":
        student = Stack(len(chosen_layers(config.student.layers, teacher.depth)), teacher.width)
    return student, teacher
