"""Whether ours and the peer train the same: equal weights, no dropout, the same batches in the same order, fp32."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from accel_kd.benchmark.contestants import Ours, Peer
from accel_kd.benchmark.step_batches import endless, of_one_shape
from accel_kd.benchmark.workbench import Workbench
from accel_kd.training.step_modes import StepMode

STEPS = 5
TOLERANCE = 1e-4
SETTINGS = ("student.dropout=0", "training.precision=no", "teacher.dtype=float32")
"""What a recipe is compared with; rounding and masks are not the question."""


@dataclass(frozen=True)
class Sameness:
    """Losses of `STEPS` steps, and of one more, which only reads what they have learnt."""

    losses: Sequence[float]
    peers_losses: Sequence[float]

    @property
    def differences(self) -> list[float]:
        """Relative to the peer's loss, step by step."""
        return [abs(own - peer) / abs(peer) for own, peer in zip(self.losses, self.peers_losses, strict=True)]

    @property
    def largest(self) -> float:
        """Of the steps."""
        return max(self.differences[:-1])

    @property
    def last(self) -> float:
        """After the last step."""
        return self.differences[-1]

    @property
    def holds(self) -> bool:
        """Whether all differences are within the tolerance; those that are no numbers are not."""
        return all(difference <= TOLERANCE for difference in self.differences)


def compare_losses(bench: Workbench, mode: StepMode, source: str, folder: Path) -> Sameness:
    """Trains one student of each for a few steps on the same batches.

    Args:
        bench: opened with `SETTINGS`.
        mode: of our step.
        source: of our teacher's signal.
        folder: where the peer may write.
    """
    teacher, split, _ = bench.teacher_source(source)
    batches = of_one_shape(endless(bench.loader(split)), STEPS + 1)
    ours = Ours(bench, source, mode, teacher, batches, total_steps=STEPS + 1)
    ours.run(0, STEPS + 1)
    peer = Peer(bench, folder, [batch for step in batches for batch in step.micro_batches])
    peer.run(0, STEPS + 1)
    return Sameness([float(loss) for loss in ours.losses], [float(loss) for loss in peer.losses])
