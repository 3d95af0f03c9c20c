"""Random numbers: the same on all ranks where weights are made, different where dropout is drawn."""

from __future__ import annotations

import os

import torch
from accelerate.utils import set_seed


def seed_everywhere(seed: int) -> None:
    """Python's, NumPy's and torch's generators alike on every rank: call it before weights are drawn."""
    set_seed(seed)


def seed_rank(seed: int, rank: int) -> None:
    """Generators that differ by rank, so that two ranks do not drop the same units: call it before training."""
    set_seed((seed + 1_000_003 * rank) % 2**32)


def use_deterministic_algorithms() -> None:
    """Makes torch refuse every operation that may differ between two equal runs."""
    # cuBLAS reads this when it is first used.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
