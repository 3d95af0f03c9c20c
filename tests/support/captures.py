"""A capture on one rank, of a teacher that can be listened to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from accel_kd.capture import CaptureSettings, Stop, capture
from accel_kd.data.examples import Examples, content_ids
from accel_kd.data.pooled_rows import PooledRows, pool
from accel_kd.data.preprocessing import tokenise_split
from accel_kd.logit_store.encoding import encoding_of
from accel_kd.logit_store.manifest import fingerprint_of
from accel_kd.logit_store.writer import StoreDescription, plan_shards
from accel_kd.signals import Batch, Signal
from accel_kd.teachers.recorded import RecordedTeacher
from accel_kd.teachers.streaming import StreamingTeacher
from tests.support import tiny

ENCODING = {"type": "full", "dtype": "float16"}
NUM_ROWS, SHARD_ROWS, TOKENS = 260, 130, 500
"""Two shards, each of them of two batches or more."""


class StopAfter:
    """A request to stop is heard when it was asked for `count` times."""

    def __init__(self, count: int | None = None) -> None:
        self.count, self.asked, self.told = count, 0, False

    def is_wanted(self) -> bool:
        self.asked += 1
        return self.count is not None and self.asked > self.count

    def tell_ranks(self) -> None:
        self.told = True

    def check_now(self) -> None:
        pass


class Listening:
    """A teacher that writes down what it is asked, and answers by the number of the row."""

    def __init__(
        self, heard: list[str], needs_all_ranks: bool = False, device: torch.device = torch.device("cpu")
    ) -> None:
        self.heard, self.needs_all_ranks, self.device = heard, needs_all_ranks, device
        self.shapes: list[tuple[int, ...]] = []

    def signal(self, batch: Batch) -> Signal:
        self.heard.append("asked")
        self.shapes.append(tuple(batch.inputs["input_ids"].shape))
        return Signal(batch.rows[:, None] + torch.arange(len(tiny.LABELS), device=batch.rows.device) / 8)


def pooled_rows() -> PooledRows:
    """`NUM_ROWS` different texts."""
    found = tiny.rows(NUM_ROWS)
    labels = np.array([tiny.LABELS.index(row["label"]) for row in found])
    ids = content_ids([[row["text"], None, row["label"]] for row in found])
    names = ["input_ids", "token_type_ids", "attention_mask"]
    examples = Examples(ids, [row["text"] for row in found], None, labels)
    return pool([tokenise_split(examples, (tiny.tokenizer(), names), None, 32)])[0]


def description(folder: Path) -> StoreDescription:
    """The store in `folder`."""
    identity = {"encoding": ENCODING}
    return StoreDescription(folder, fingerprint_of(identity), identity, len(tiny.LABELS), 5)


def plan(rows: PooledRows) -> list[NDArray[np.int64]]:
    """The rows of each shard."""
    return plan_shards(rows.keys, rows.texts.lengths, SHARD_ROWS)


def captured(
    folder: Path,
    rows: PooledRows,
    teacher: StreamingTeacher | RecordedTeacher | Listening,
    *,
    stop: Stop | None = None,
    rank: int = 0,
    world_size: int = 1,
    pad_to: Callable[[int], int] | None = None,
    shards: Sequence[NDArray[np.int64]] | None = None,
) -> dict[str, bytes]:
    """The shards that one rank writes, by name."""
    settings = CaptureSettings(TOKENS, rank, world_size, bar=False, pad_to=pad_to)
    encoding = encoding_of(ENCODING, len(tiny.LABELS))
    shards = plan(rows) if shards is None else shards
    capture(teacher, rows, shards, description(folder), encoding, None, settings, stop or StopAfter())  # type: ignore[arg-type]
    return written(folder)


def written(folder: Path) -> dict[str, bytes]:
    """The shards that are there, by name."""
    return {path.name: path.read_bytes() for path in folder.rglob("*.safetensors")}
