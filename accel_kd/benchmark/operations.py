"""What the models compute in a step, and the most that this device computes: utilisation is the one over the other."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PretrainedConfig

from accel_kd.benchmark.rounds import Trial, wait_for
from accel_kd.models.first_token import read_first_token_only
from accel_kd.planning.arithmetic import FlopsOfLength
from accel_kd.planning.model_costs import DeviceType, model_costs, on_meta

_CPU_SIZE, _GPU_SIZE = 2048, 8192
_REPEATS = 7


@dataclass(frozen=True)
class Operations:
    """Floating-point operations of a row: of the student's forward and backward, and of the teacher's forward."""

    student: FlopsOfLength
    teacher: FlopsOfLength

    @classmethod
    def of(
        cls,
        student: PretrainedConfig,
        teacher: PretrainedConfig,
        longest: int,
        device: torch.device,
        *,
        first_token_only: bool,
    ) -> Operations:
        """Traced without weights, at lengths up to `longest`; `first_token_only` as `training` has it."""
        students, teachers = on_meta(student), on_meta(teacher)
        if first_token_only:
            read_first_token_only(students)
            read_first_token_only(teachers)
        kind: DeviceType = "cuda" if device.type == "cuda" else "cpu"
        return cls(
            FlopsOfLength.through(lambda length: model_costs(students, 1, length, device=kind).step_flops, longest),
            FlopsOfLength.through(
                lambda length: model_costs(teachers, 1, length, trains=False, device=kind).forward_flops, longest
            ),
        )

    def of_step(self, trials: Sequence[Trial], *, with_teacher: bool, with_padding: bool) -> float:
        """The mean over the steps of all trials; padding is computed as tokens are."""
        rows, lengths = _shapes(trials, with_padding)
        models = [self.student, self.teacher] if with_teacher else [self.student]
        num_steps = sum(len(trial.lengths) for trial in trials)
        return sum(model.of(rows, lengths) for model in models) / num_steps


def _shapes(trials: Sequence[Trial], with_padding: bool) -> tuple[np.ndarray, np.ndarray]:
    if not with_padding:
        lengths = np.concatenate([lengths for trial in trials for lengths in trial.lengths])
        return np.ones(len(lengths), dtype=np.int64), lengths.astype(np.int64)
    steps = [(len(n), width) for trial in trials for n, width in zip(trial.lengths, trial.widths, strict=True)]
    return np.array([rows for rows, _ in steps]), np.array([width for _, width in steps])


def ceiling(device: torch.device, precision: str, size: int | None = None) -> float:
    """Operations a second of the best of several products of two large square matrices, in the precision of the
    training: what utilisation is measured against."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    size = size or (_GPU_SIZE if device.type == "cuda" else _CPU_SIZE)
    one, other = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    fastest = float("inf")
    for _ in range(_REPEATS):
        wait_for(device)
        started = time.perf_counter()
        torch.matmul(one, other)
        wait_for(device)
        fastest = min(fastest, time.perf_counter() - started)
    return 2 * size**3 / fastest
