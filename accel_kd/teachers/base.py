"""The seam between a teacher and the loop, which cannot tell whence a signal comes."""

from __future__ import annotations

from typing import Protocol

from accel_kd.signals import Batch, Signal, SignalNeeds


class TeacherSource(Protocol):
    """Anything that can say what the teacher thinks of a batch."""

    @property
    def provides(self) -> SignalNeeds:
        """What it can give."""
        ...

    def signal(self, batch: Batch) -> Signal:
        """The teacher's signal for `batch`, logits `[N, V]` in the data's label order, in fp32, without gradient."""
        ...
