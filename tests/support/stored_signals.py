"""Stores of one teacher in every encoding, and what is read of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from accel_kd.logit_store.encoding import encoding_of
from accel_kd.logit_store.reader import StoreReader, open_store
from accel_kd.logit_store.shard_builder import ShardBuilder
from accel_kd.logit_store.writer import add_shard, finished_shards, seal
from accel_kd.signals import Batch, Signal, Targets, TeacherSignal
from tests.support import stores

NUM_ROWS = 150
ENCODINGS = {
    "full": {"type": "full", "dtype": "float16"},
    "top_k": {"type": "top_k", "k": 3, "value_bits": 8, "temperatures": [2.0, 3.5]},
    "top_k in 16 bits": {"type": "top_k", "k": 3, "value_bits": 16, "temperatures": [2.0]},
    "every class by top_k": {"type": "top_k", "k": 7, "value_bits": 16, "temperatures": [1.0]},
    "sampled": {"type": "sampled", "num_samples": 5, "temperature": 2.0, "seed": 3},
}


def encoded_store(folder: Path, encoding: dict[str, object], num_positions: int = 1) -> StoreReader:
    """`NUM_ROWS` rows with the keys of `stores.keys`, in four shards."""
    description = stores.describe(folder, stores.identity() | {"encoding": encoding})
    keys = stores.keys(NUM_ROWS)
    for part in np.array_split(np.arange(NUM_ROWS), 4):
        builder = ShardBuilder(encoding_of(encoding, stores.NUM_CLASSES))
        counts = None if num_positions == 1 else np.full(len(part), num_positions)
        logits = stores.logits(num_positions * len(part), seed=int(part[0]))
        builder.add(keys[part], logits, np.zeros(len(part), dtype=np.int64), counts)
        add_shard(description, *builder.build())
    seal(description, finished_shards(description)[0], {}, {})
    return open_store(folder)


def batch(rows: NDArray[np.int64], teacher_rows: NDArray[np.int64]) -> Batch:
    """A batch that has nothing but row numbers, in its split and among the rows that the teacher reads."""
    targets = Targets(torch.zeros(len(rows), dtype=torch.int64), torch.ones(len(rows), dtype=torch.bool))
    return Batch(torch.from_numpy(rows), {}, targets, teacher_rows=torch.from_numpy(teacher_rows[rows]))


def tensors(signal: TeacherSignal) -> dict[str, torch.Tensor]:
    """All that a signal is made of, by name."""
    if isinstance(signal, Signal):
        return {"logits": signal.logits}
    tails = {f"tail at {temperature}": tail for temperature, tail in (signal.log_tails or {}).items()}
    return {"ids": signal.ids, "log_probs": signal.log_probs, **tails}
