"""Which places of the teacher go with which source of its logits."""

from __future__ import annotations

from accel_kd.config.model_sections import TeacherConfig
from accel_kd.errors import UserError


def check_placement(teacher: TeacherConfig) -> None:
    """Raises `UserError` for a placement that does not go with where the logits come from."""
    placement, source = teacher.placement, teacher.source
    if placement == "cached" and source != "cached":
        raise UserError(
            f"teacher.placement: cached leaves the logits to a store, but teacher.source is {source}; "
            "set teacher.source=cached, or another placement"
        )
    if placement == "sharded" and source == "write_through":
        raise UserError(
            "teacher.placement: sharded needs all ranks for each call of the teacher, but with teacher.source "
            "write_through a rank asks it only where the store lacks a row; set teacher.source=cached, or another "
            "placement"
        )
