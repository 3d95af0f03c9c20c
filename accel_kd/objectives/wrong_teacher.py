"""What to do where the teacher is wrong: keep its answer, skip the comparison with it, or correct it.

A teacher is *wrong* at a counted position whose label is known and to which it prefers another class. A position
without a label is never wrong, nor is one where no class scores above the label.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from accel_kd.signals import IGNORED_LABEL, Signal, SignalNeeds, Targets, TeacherSignal

OnWrongTeacher = Literal["keep", "skip", "correct"]
"""`keep`: nothing is done; `skip`: see `without_wrong_positions`; `correct`: see `with_corrected_answers`."""

NEEDS: dict[OnWrongTeacher, SignalNeeds] = {
    "keep": SignalNeeds(),
    # What a sample draws most often need not be what the teacher answers.
    "skip": SignalNeeds(logits=True, exact=True),
    "correct": SignalNeeds(logits=True, every_logit=True),
}
"""What each choice asks of a teacher."""


def without_wrong_positions(teacher: TeacherSignal, targets: Targets) -> Targets:
    """`targets` with the positions where `teacher` is wrong not counted, for the terms that compare with it.

    The counts that a step divides by stay, so that every other position weighs what it weighed.
    """
    return replace(targets, counted=targets.counted & ~is_wrong(teacher, targets))


def with_corrected_answers(teacher: TeacherSignal, targets: Targets) -> Signal:
    """`teacher`, logits `[N, V]`, with those of the label and of the answer exchanged where it is wrong.

    The probability shift of Wen et al. 2019, arXiv 1911.07471, and of TextBrewer (Yang et al. 2020, arXiv 2002.12620):
    the distribution keeps its shape, hence its entropy, at every temperature.
    """
    assert isinstance(teacher, Signal), "to correct a teacher takes each of its logits"
    answers = teacher.logits.argmax(dim=-1, keepdim=True)
    # Where nothing is to be corrected the answer changes places with itself.
    labels = torch.where(is_wrong(teacher, targets).unsqueeze(-1), targets.labels.unsqueeze(-1), answers)
    of_answers, of_labels = teacher.logits.gather(-1, answers), teacher.logits.gather(-1, labels)
    return replace(teacher, logits=teacher.logits.scatter(-1, labels, of_answers).scatter(-1, answers, of_labels))


def is_wrong(teacher: TeacherSignal, targets: Targets) -> Tensor:
    """Where `teacher` prefers another class to a label that is known and counts: `[N]` bool.

    A sparse teacher must keep its most probable class; a class that it does not keep is below that.
    """
    has_label = targets.counted & (targets.labels != IGNORED_LABEL)
    # A row that does not count may hold any label, even one that is no class.
    labels = torch.where(has_label, targets.labels, 0).unsqueeze(-1)
    if isinstance(teacher, Signal):
        scores = teacher.logits
        of_label = scores.gather(-1, labels).squeeze(-1)
    else:
        scores = teacher.log_probs
        of_label = torch.where(teacher.ids == labels, scores, -torch.inf).amax(dim=-1)
    # Not so where the logits are NaN: such a position must not be skipped, but be seen in the loss.
    return has_label & (of_label < scores.amax(dim=-1))
