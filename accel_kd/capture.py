"""Fills a store: the teacher over the rows that it lacks, each rank its own shards, longest texts first.

A teacher that is whole on each rank is asked by each at its own pace; one that is sharded by all of them together. It
is asked about the next batch before its last answer is read, so that a device computes while the host encodes.
"""

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

from accel_kd.data.buckets import PadTo
from accel_kd.data.pooled_rows import PooledRows
from accel_kd.errors import RunFailure
from accel_kd.logit_store.encoding import Encoding
from accel_kd.logit_store.manifest import SHARDS
from accel_kd.logit_store.shard_builder import UNLABELLED, ShardBuilder
from accel_kd.logit_store.writer import StoreDescription, add_shard
from accel_kd.signals import IGNORED_LABEL
from accel_kd.teachers.recorded import RecordedTeacher
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
    """How the teacher is run: padded tokens at once, which of the ranks this is, and what a batch's longest text is
    padded to, so that few shapes come again and again (last bits of logits change with it); None: no further."""

    tokens_per_batch: int
    rank: int
    world_size: int
    bar: bool | None
    pad_to: PadTo | None = None


def capture(
    teacher: StreamingTeacher | RecordedTeacher,
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
        stop: a rank that hears of a request leaves its shard, and all do together where the teacher is sharded; shards
            that are written stay.
        progress: called with the rows that all ranks have written.
        together: runs a rank's part of a round, and lets all ranks hear of the error of one.

    Raises:
        StopRequested: on all ranks together.
        RunFailure: logits that are not finite, a teacher that gives different logits each time, a full disk.
        UserError: a folder that cannot be written.
    """
    total = sum(map(len, shards))
    shown = settings.rank == 0 and (settings.bar if settings.bar is not None else sys.stderr.isatty())
    with tqdm(total=total, desc="teacher", unit="row", file=sys.stderr, disable=not shown) as bar:

        def advance(num_rows: int) -> None:
            bar.update(min(num_rows * settings.world_size, total - bar.n))

        label_columns = columns_of_labels(rows.labels, columns)
        part = _Part(teacher, rows, description, encoding, label_columns, settings, stop, together, advance)
        write_round = part.write_in_lockstep if teacher.needs_all_ranks else part.write_own
        for first in range(0, len(shards), settings.world_size):
            write_round(shards[first : first + settings.world_size], first == 0)
            stop.check_now()
            progress(sum(map(len, shards[: first + settings.world_size])))
    logger.debug("rank %d wrote its shards to %s", settings.rank, description.folder / SHARDS)


@dataclass(frozen=True)
class _Part:
    """What this rank does in a round, in which each rank has one shard, and the last ones none in the end."""

    teacher: StreamingTeacher | RecordedTeacher
    rows: PooledRows
    description: StoreDescription
    encoding: Encoding
    label_columns: NDArray[np.int64]
    settings: CaptureSettings
    stop: Stop
    together: Callable[[Callable[[], None]], None]
    advance: Callable[[int], None]

    def write_own(self, shards: Sequence[NDArray[np.int64]], is_first: bool) -> None:
        """Writes its shard at its own pace; an error or a request to stop is heard by the others afterwards."""

        def write() -> None:
            builder = ShardBuilder(self.encoding)
            last: _Asked | None = None
            for number, batch in enumerate(self._batches(shards[self.settings.rank])):
                if self.stop.is_wanted():
                    self.stop.tell_ranks()
                    return
                asked = self._ask(batch, twice=is_first and number == 0)
                self._add(builder, last)
                last = asked
            self._add(builder, last)
            add_shard(self.description, *builder.build())

        self.together(write if self.settings.rank < len(shards) else _nothing)

    def write_in_lockstep(self, shards: Sequence[NDArray[np.int64]], is_first: bool) -> None:
        """As `write_own`, with as many calls of the teacher on every rank as the longest shard needs: a rank that has
        no batch left asks about one row again, and keeps nothing of the answer.

        An error of the teacher itself ends its rank at once: the others wait within the same call, where they do not
        hear of anything but its end. All else that can fail is done between two calls, and told to all.
        """
        batches = [self._batches(shard) for shard in shards]
        own = batches[self.settings.rank] if self.settings.rank < len(shards) else []
        builder = ShardBuilder(self.encoding)
        last: _Asked | None = None
        for number in range(max(map(len, batches))):
            self.stop.check_now()
            has_own = number < len(own)
            asked = self._ask(own[number] if has_own else shards[0][-1:], twice=is_first and number == 0)
            self.together(partial(self._add, builder, last))
            last = asked if has_own else None

        def write() -> None:
            self._add(builder, last)
            add_shard(self.description, *builder.build())

        self.together(write if own else _nothing)

    def _batches(self, shard: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        return _batches(shard, self.rows.texts.lengths, self.settings.tokens_per_batch, self.settings.pad_to)

    def _ask(self, rows: NDArray[np.int64], twice: bool) -> _Asked:
        """Asks the teacher about a batch of rows, once or twice, and does not wait for its answer."""
        batch = self.rows.batch(rows, self.rows.texts.padded_length(rows, self.settings.pad_to))
        if self.teacher.device.type == "cuda":
            batch = batch.pin_memory().to(self.teacher.device)
        if not twice:
            return _Asked(rows, [_Answer(self.teacher.signal(batch).logits)])
        # Both times in the very same way: a recording may round otherwise than what was recorded.
        teacher = self.teacher.teacher if isinstance(self.teacher, RecordedTeacher) else self.teacher
        return _Asked(rows, [_Answer(teacher.signal(batch).logits) for _ in range(2)])

    def _add(self, builder: ShardBuilder, asked: _Asked | None) -> None:
        """Waits for the teacher's answer, where it was asked anything, and keeps it."""
        if asked is None:
            return
        logits, *again = [answer.read() for answer in asked.answers]
        if again:
            _refuse_randomness(logits, again[0])
        builder.add(self.rows.keys[asked.rows], logits, self.label_columns[asked.rows])
        self.advance(len(asked.rows))


@dataclass(frozen=True)
class _Asked:
    """A batch of rows `[n]`, and what the teacher said of it, once or twice."""

    rows: NDArray[np.int64]
    answers: list[_Answer]


class _Answer:
    """Logits `[n, V]` on their way to host memory."""

    def __init__(self, logits: torch.Tensor) -> None:
        self._arrived: torch.cuda.Event | None = None
        self._logits = logits
        if logits.device.type == "cuda":
            self._logits = torch.empty_like(logits, device="cpu", pin_memory=True).copy_(logits, non_blocking=True)
            self._arrived = torch.cuda.current_stream(logits.device).record_event()

    def read(self) -> torch.Tensor:
        """The logits on the CPU, once they are there."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._logits


def _nothing() -> None:
    """What a rank without a shard does."""


def columns_of_labels(labels: NDArray[np.int64], columns: Sequence[int] | None) -> NDArray[np.int64]:
    """The teacher's column of each label `[n]`; -1 where there is none."""
    if columns is None:
        return np.where(labels == IGNORED_LABEL, UNLABELLED, labels)
    return np.where(labels == IGNORED_LABEL, UNLABELLED, np.asarray(columns, dtype=np.int64)[labels])


def _batches(
    rows: NDArray[np.int64], lengths: NDArray[np.int64], tokens: int, pad_to: PadTo | None = None
) -> list[NDArray[np.int64]]:
    """`rows`, which come longest first, in batches of at most `tokens` padded tokens, and of `STEADY_ROWS` at least."""
    batches, start = [], 0
    while start < len(rows):
        longest = int(lengths[rows[start]])
        size = max(STEADY_ROWS, tokens // (longest if pad_to is None else pad_to(longest)))
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
