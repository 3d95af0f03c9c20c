"""Small stores of made-up logits, written through the same doors as real ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from accel_kd.logit_store.encoding import encoding_of
from accel_kd.logit_store.manifest import Manifest, fingerprint_of
from accel_kd.logit_store.receipt import receipt_of
from accel_kd.logit_store.shard_builder import ShardBuilder
from accel_kd.logit_store.writer import StoreDescription, add_shard, finished_shards, plan_shards, seal

NUM_CLASSES = 7
FULL = {"type": "full", "dtype": "float32"}


def identity(**changes: Any) -> dict[str, Any]:
    """An identity as runs make them, with some of the teacher's parts changed."""
    teacher = {"weights": "a" * 64, "labels": [f"label {number}" for number in range(NUM_CLASSES)], "dtype": "float32"}
    return {"teacher": teacher | changes, "task": "sequence_classification", "encoding": FULL}


def describe(folder: Path, whole: dict[str, Any] | None = None) -> StoreDescription:
    """The store in `folder`."""
    whole = whole or identity()
    return StoreDescription(folder, fingerprint_of(whole), whole, NUM_CLASSES, 5)


def keys(count: int, seed: int = 0) -> NDArray[np.uint8]:
    """Whole keys `[count, 32]`."""
    return np.random.default_rng(seed).integers(0, 256, (count, 32), dtype=np.uint8)


def logits(count: int, seed: int = 0) -> torch.Tensor:
    """Logits `[count, NUM_CLASSES]`."""
    return 5 * torch.randn(count, NUM_CLASSES, generator=torch.Generator().manual_seed(seed))


def write_rows(
    description: StoreDescription, row_keys: NDArray[np.uint8], row_logits: torch.Tensor, shard_rows: int = 40
) -> None:
    """Shards with their records, and no manifest yet; every row's label is class 0."""
    encoding = encoding_of(description.identity["encoding"], NUM_CLASSES)
    for rows in plan_shards(row_keys, np.ones(len(row_keys), dtype=np.int64), shard_rows):
        builder = ShardBuilder(encoding)
        builder.add(row_keys[rows], row_logits[torch.from_numpy(rows)], np.zeros(len(rows), dtype=np.int64))
        add_shard(description, *builder.build())


def write_store(folder: Path, count: int = 100, seed: int = 0) -> Manifest:
    """A whole store of `count` rows."""
    description = describe(folder)
    (folder / "shards").mkdir(parents=True, exist_ok=True)
    write_rows(description, keys(count, seed), logits(count, seed))
    entries, _ = finished_shards(description)
    return seal(description, entries, receipt_of(entries), {"teacher": "made up"})
