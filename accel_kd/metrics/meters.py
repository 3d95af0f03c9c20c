"""The loss of every step, kept on the device and read all at once when the log is due."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor


@dataclass(frozen=True)
class StepRecord:
    """What a step leaves behind: its losses by name, still this rank's share of the global mean, the gradient norm
    before clipping (equal on all ranks), and what is known on the host anyway; tokens and positions as in
    `StepBatches`."""

    step: int
    epoch: float
    learning_rate: float
    num_examples: int
    losses: dict[str, Tensor]
    gradient_norm: Tensor
    num_tokens: int = 0
    token_positions: int = 0


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
        self.num_tokens = 0
        """The student's tokens of these examples."""
        self.token_positions = 0
        """Positions that it computed for them, padding and filling rows among them, over all ranks."""

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
        # Added up here in the order of the ranks: from three on, the bits of a reduced sum depend on how many steps are
        # sent at once, which a run that goes on in the middle does otherwise.
        shares = self._accelerator.gather(losses.unsqueeze(0))
        losses = sum(shares[1:], start=shares[0]).tolist()
        norms = torch.stack([record.gradient_norm.float() for record in self._records]).tolist()
        self.seconds += time.perf_counter() - self._started
        for record in self._records:
            self.num_examples += record.num_examples
            self.num_tokens += record.num_tokens
            self.token_positions += record.token_positions
        rows = []
        for record, values, norm in zip(self._records, losses, norms, strict=True):
            row: dict[str, float] = {
                "step": record.step,
                "epoch": record.epoch,
                "train/learning_rate": record.learning_rate,
            }
            row |= {f"train/{name}": value for name, value in zip(names, values, strict=True)}
            row["train/gradient_norm"] = norm
            rows.append(row)
        self._records.clear()
        self.resume_clock()
        return rows

    @property
    def samples_per_second(self) -> float:
        """Training rate over all ranks so far."""
        return self.num_examples / self.seconds if self.seconds else 0.0

    @property
    def padding_fraction(self) -> float:
        """Share of the student's positions so far, over all ranks, that held no token of a counted example."""
        return 1.0 - self.num_tokens / self.token_positions if self.token_positions else 0.0
