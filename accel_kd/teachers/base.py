"""The seam between a teacher and the loop, which cannot tell whence a signal comes."""

from __future__ import annotations

from typing import Any, Protocol

from accel_kd.signals import Batch, SignalNeeds, TeacherSignal


class TeacherSource(Protocol):
    """Anything that can say what the teacher thinks of a batch."""

    @property
    def provides(self) -> SignalNeeds:
        """What it can give."""
        ...

    @property
    def is_recordable(self) -> bool:
        """Whether `signal` is a matter of the device alone, so that a recording of it can be replayed."""
        ...

    def start_epoch(self, epoch: int) -> None:
        """Told of every epoch, from 0, before its first batch and on all ranks together."""
        ...

    def signal(self, batch: Batch) -> TeacherSignal:
        """The teacher's signal for `batch`, in the data's label order, in fp32, without gradient, on the batch's
        device: logits `[N, V]`, or what is known of them."""
        ...

    def flush(self) -> None:
        """Puts what it has collected where it outlives this process; before each checkpoint, on all ranks together."""
        ...

    def state(self) -> dict[str, Any]:
        """What this rank's next signals depend on beside the batches, as JSON."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from what `state` gave on this rank."""
        ...


class WithoutMemory:
    """For sources whose signal depends on its batch alone: epochs and checkpoints are nothing to them."""

    is_recordable = False

    def start_epoch(self, epoch: int) -> None:
        """Nothing to do."""

    def flush(self) -> None:
        """Nothing to do."""

    def state(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Nothing to do."""
