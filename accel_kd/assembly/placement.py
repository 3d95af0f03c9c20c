"""The `teacher.placement` setting: where the teacher lives while it is asked."""

from __future__ import annotations

from accel_kd.assembly.models import FoundTeacher
from accel_kd.assembly.session import Session
from accel_kd.teachers.placement import Placement


def teacher_placement(session: Session, teacher: FoundTeacher) -> Placement:
    """Where the teacher is to be put now, the same on every rank; to be called by all of them together."""
    setting = session.config.teacher.placement
    return "replicated" if setting in ("auto", "cached") else setting  # type: ignore[return-value]
