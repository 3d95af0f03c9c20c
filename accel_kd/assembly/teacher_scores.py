"""The teacher scored on the held-out splits, before a student is trained, and refused where its labels are mixed up."""

from __future__ import annotations

import logging
from typing import Any

from transformers import PreTrainedModel

from accel_kd.assembly.data import HeldOut
from accel_kd.assembly.models import FoundTeacher
from accel_kd.assembly.session import Session
from accel_kd.errors import UserError
from accel_kd.models.labels import are_unnamed, balanced_accuracy, guessing_threshold, names_in_order
from accel_kd.teachers.base import TeacherSource

logger = logging.getLogger(__name__)


def score_teacher(
    session: Session, teacher: FoundTeacher, shape: PreTrainedModel, source: TeacherSource, scored: HeldOut
) -> dict[str, Any]:
    """The teacher's own scores, kept to compare students with; `shape` is the teacher without its weights.

    Raises:
        UserError: it scores no better than by guessing, and its labels or the data's have no names, so that nothing but
            their order says which are which.
    """
    scores = scored.validation.score_teacher(source)
    logger.info("teacher: validation accuracy %.4f", scores.metrics["accuracy"])
    balanced = balanced_accuracy(scores.rows.labels, scores.rows.argmax)
    threshold = guessing_threshold(scores.rows.labels, scores.rows.argmax)
    if balanced <= threshold:
        found = (
            f"balanced accuracy {balanced:.4f} on {scored.validation.num_examples} validation examples, where guessing "
            f"gives up to {min(threshold, 1.0):.4f}"
        )
        unnamed, numbers = are_unnamed(names_in_order(shape.config)), session.data.are_numbers_of_others
        if teacher.is_finetuned_here:
            found = f"teacher.finetune: the teacher learnt next to nothing: {found}"
        elif session.config.teacher.accept_chance_accuracy or not (unnamed or numbers):
            found = f"teacher.model: {found}"
        else:
            mixed_up = (
                "its labels, which have no names in its config.json, stand in another order than the data's; name them "
                "there"
                if unnamed
                else "the data's labels, integers that were taken for the numbers of its labels, have another order; "
                "give their names (data.label_names)"
            )
            raise UserError(
                f"teacher.model: {found}: probably {mixed_up}, or go on with teacher.accept_chance_accuracy=true"
            )
        if session.accelerator.is_main_process:
            logger.warning(found)
    facts = {f"teacher/eval_{name}": value for name, value in scores.metrics.items()}
    if scored.test is not None:
        test = scored.test.score_teacher(source)
        facts |= {f"teacher/test_{name}": value for name, value in test.metrics.items()}
    return facts | {"teacher/num_parameters": shape.num_parameters()}
