"""Fills a store: the teacher over the rows that it lacks, each rank its own shards, longest texts first."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from accel_kd.data.pooled_rows import PooledRows
from accel_kd.errors import RunFailure
from accel_kd.logit_store.encoding import Encoding
from accel_kd.logit_store.manifest import SHARDS
from accel_kd.logit_store.shard_builder import UNLABELLED, ShardBuilder
from accel_kd.logit_store.writer import StoreDescription, add_shard
from accel_kd.signals import IGNORED_LABEL
from accel_kd.teachers.streaming import STEADY_ROWS, StreamingTeacher

logger = logging.getLogger(__name__)


class Stop(Protocol):
    """Requests to stop, as ranks hear of them."""

    def is_wanted(self) -> bool:
        """Whether this rank knows of one."""
        ...

    def tell_ranks(self) -> None:
        """Lets the other ranks know at once."""
        ...

    def check_now(self) -> None:
        """Raises `StopRequested` on all ranks where one of them knows of one."""
        ...


@dataclass(frozen=True)
class CaptureSettings:
    """How the teacher is run: padded tokens at once, and which of the ranks this is."""

    tokens_per_batch: int
    rank: int
    world_size: int
    bar: bool | None


def capture(
    teacher: StreamingTeacher,
    rows: PooledRows,
    shards: Sequence[NDArray[np.int64]],
    description: StoreDescription,
    encoding: Encoding,
    columns: Sequence[int] | None,
    settings: CaptureSettings,
    stop: Stop,
    progress: Callable[[int], None] = lambda num_rows: None,
    together: Callable[[Callable[[], None]], None] = lambda work: work(),
) -> None:
    """Writes this rank's share of `shards`, every `world_size`-th. All ranks take one shard, then the next.

    Args:
        teacher: gives logits in its own column order, and fills small batches up to `STEADY_ROWS`.
        rows: what the teacher reads.
        shards: the rows of each shard, in the order in which they are computed.
        description: the store.
        encoding: how it keeps logits.
        columns: the teacher's column of each of the data's labels; None: the same order.
        settings: see there.
        stop: a rank that hears of a request leaves its shard; those that are written stay.
        progress: called with the rows that all ranks have written.
        together: runs a rank's part of a round, and lets all ranks hear of the error of one.

    Raises:
        StopRequested: on all ranks together.
        RunFailure: logits that are not finite, a teacher that gives different logits each time, a full disk.
        UserError: a folder that cannot be written.
    """
    label_columns = columns_of_labels(rows.labels, columns)
    total = sum(map(len, shards))
    shown = settings.rank == 0 and (settings.bar if settings.bar is not None else sys.stderr.isatty())
    with tqdm(total=total, desc="teacher", unit="row", file=sys.stderr, disable=not shown) as bar:

        def write_shard(number: int) -> None:
            builder = ShardBuilder(encoding)
            for batch_rows in _batches(shards[number], rows.texts.lengths, settings.tokens_per_batch):
                if stop.is_wanted():
                    stop.tell_ranks()
                    return
                batch = rows.batch(batch_rows)
                logits = teacher.signal(batch).logits.cpu()
                if number == settings.rank and not len(builder):
                    _refuse_randomness(logits, teacher.signal(batch).logits.cpu())
                builder.add(rows.keys[batch_rows], logits, label_columns[batch_rows])
                bar.update(min(len(batch_rows) * settings.world_size, total - bar.n))
            add_shard(description, *builder.build())

        for first in range(0, len(shards), settings.world_size):
            number = first + settings.rank
            together(partial(write_shard, number) if number < len(shards) else lambda: None)
            stop.check_now()
            progress(sum(map(len, shards[: first + settings.world_size])))
    logger.debug("rank %d wrote its shards to %s", settings.rank, description.folder / SHARDS)


def columns_of_labels(labels: NDArray[np.int64], columns: Sequence[int] | None) -> NDArray[np.int64]:
    """The teacher's column of each label `[n]`; -1 where there is none."""
    if columns is None:
        return np.where(labels == IGNORED_LABEL, UNLABELLED, labels)
    return np.where(labels == IGNORED_LABEL, UNLABELLED, np.asarray(columns, dtype=np.int64)[labels])


def _batches(rows: NDArray[np.int64], lengths: NDArray[np.int64], tokens: int) -> list[NDArray[np.int64]]:
    """`rows`, which come longest first, in batches of at most `tokens` padded tokens, and of `STEADY_ROWS` at least."""
    batches, start = [], 0
    while start < len(rows):
        size = max(STEADY_ROWS, tokens // int(lengths[rows[start]]))
        batches.append(rows[start : start + size])
        start += size
    return batches


def _refuse_randomness(once: torch.Tensor, again: torch.Tensor) -> None:
    """A teacher with dropout on, or in training mode, never says the same twice."""
    tolerance = 1e-3 * float(once.abs().max())
    if torch.isfinite(once).all() and float((once - again).abs().max()) > tolerance:
        raise RunFailure(
            "teacher.model: it gave different logits for the same texts: something in it is random (dropout that stays "
            "on in evaluation, noise in its code), and such logits are not stored"
        )
