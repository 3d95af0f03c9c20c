"""The loss of every step, kept on the device and read all at once when the log is due."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor

from accel_kd.errors import RunFailure


@dataclass(frozen=True)
class StepRecord:
    """What a step leaves behind: its losses by name, still this rank's share of the global mean, the gradient norm
    before clipping (equal on all ranks) if it was taken, and what is known on the host anyway."""

    step: int
    epoch: float
    learning_rate: float
    num_examples: int
    losses: dict[str, Tensor]
    gradient_norm: Tensor | None


class StepMeter:
    """Collects steps; `flush` is the only place where the host waits for the device."""

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._records: list[StepRecord] = []
        self._started = time.perf_counter()
        self.seconds = 0.0
        """Time spent training, evaluation and logging left out."""
        self.num_examples = 0
        """Examples trained on in that time."""

    def add(self, record: StepRecord) -> None:
        """Keeps a step for the next flush."""
        self._records.append(record)

    def resume_clock(self) -> None:
        """Training goes on from here, after an evaluation or a write."""
        self._started = time.perf_counter()

    def flush(self) -> list[dict[str, float]]:
        """One row a step since the last flush, losses summed over all ranks."""
        if not self._records:
            return []
        names = list(self._records[0].losses)
        losses = torch.stack([torch.stack([record.losses[name] for name in names]) for record in self._records])
        losses = self._accelerator.reduce(losses, reduction="sum").tolist()
        norms = [None if r.gradient_norm is None else float(r.gradient_norm) for r in self._records]
        self.seconds += time.perf_counter() - self._started
        self.num_examples += sum(record.num_examples for record in self._records)
        rows = []
        for record, values, norm in zip(self._records, losses, norms, strict=True):
            row: dict[str, float] = {
                "step": record.step,
                "epoch": record.epoch,
                "train/learning_rate": record.learning_rate,
            }
            row |= {f"train/{name}": value for name, value in zip(names, values, strict=True)}
            if norm is not None:
                row["train/gradient_norm"] = norm
            rows.append(row)
        self._records.clear()
        self.resume_clock()
        return rows

    @property
    def samples_per_second(self) -> float:
        """Training rate over all ranks so far."""
        return self.num_examples / self.seconds if self.seconds else 0.0


def refuse_non_finite(rows: Sequence[Mapping[str, float]]) -> None:
    """Ends the run at a loss that is not a number; the rows are reduced, so that all ranks end it alike.

    Raises:
        RunFailure: the first such loss, with its step.
    """
    for row in rows:
        if not math.isfinite(row["train/loss"]):
            raise RunFailure(
                f"train/loss is {row['train/loss']} at step {row['step']}; lower training.learning_rate, or look "
                "at the data and the teacher of this run"
            )
