"""The teacher streamed and remembered: its logits go into a store in the first epoch, and come from it afterwards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from accel_kd.logit_store.keys import Keys
from accel_kd.logit_store.reader import StoreReader
from accel_kd.logit_store.shard_builder import ShardBuilder
from accel_kd.signals import Batch, Signal, SignalNeeds, TeacherSignal
from accel_kd.teachers.base import TeacherSource, WithoutMemory
from accel_kd.teachers.cached import in_label_order
from accel_kd.teachers.streaming import EVERY_LOGIT, StreamingTeacher


class WriteThroughTeacher:
    """Streams the rows that the store lacks and keeps them; a row that it has is read from it.

    The first time a row is seen its logits are the teacher's own, later the stored ones, as they were encoded.
    """

    is_recordable = False

    def __init__(
        self,
        streaming: StreamingTeacher,
        reader: StoreReader | None,
        keys: Keys,
        label_columns: NDArray[np.int64],
        *,
        columns: Sequence[int] | None,
        builder: ShardBuilder | None,
        shard_rows: int,
        write: Callable[[ShardBuilder], None],
        seal: Callable[[Callable[[], None]], StoreReader | None],
        provides: SignalNeeds,
        read: Callable[[StoreReader, NDArray[np.int64]], TeacherSource],
    ) -> None:
        """Args:
        streaming: the teacher, with its logits in its own column order.
        reader: the store as far as there is one.
        keys: whole keys `[n, 32]` of the rows that the teacher reads.
        label_columns: the teacher's column of each row's label `[n]`, -1 where it has none.
        columns: the teacher's column of each of the data's labels; None: the same order.
        builder: collects rows; None where another job fills the store and this one only reads it.
        shard_rows: rows after which `write` is called.
        write: writes a shard of what the builder holds.
        seal: lets every rank write by the function that it is given, then makes all that part of the store and opens
            that; called by all ranks together.
        provides: what streamed and stored signals both give.
        read: the source that reads the rows which the store has, given the store and the place in it of each of `keys`
            (-1: none).
        """
        self._read = read
        self.provides = provides
        self._streaming = streaming
        self._keys = keys
        self._label_columns = label_columns
        self._columns = None if columns is None else torch.tensor(list(columns))
        self._builder = builder
        self._shard_rows = shard_rows
        self._write = write
        self._seal = seal
        self._use(reader)

    def start_epoch(self, epoch: int) -> None:
        """From the second epoch on, what was seen in the first is read from the store."""
        if epoch > 0 and (self._places < 0).any():
            self._settle()

    def finish(self) -> None:
        """Puts what is collected into the store; called by all ranks together when the training is over."""
        if self._builder is not None and (self._places < 0).any():
            self._settle()

    def state(self) -> dict[str, Any]:
        """Which rows are read from the store: those that were in it when this epoch began."""
        return {"stored": np.packbits(self._places >= 0).tobytes().hex()}

    def restore(self, state: dict[str, Any]) -> None:
        """Reads from the store no more than before: what came later was streamed, and is so again."""
        stored = np.unpackbits(np.frombuffer(bytes.fromhex(state["stored"]), dtype=np.uint8), count=len(self._places))
        later = (self._places >= 0) & (stored == 0)
        self._places[later] = -1
        self._kept |= later

    def _settle(self) -> None:
        self._use(self._seal(self.flush))

    def flush(self) -> None:
        """Writes a shard of what is collected on this rank, if there is any."""
        if self._builder is not None and len(self._builder):
            self._write(self._builder)

    @torch.no_grad()
    def signal(self, batch: Batch) -> TeacherSignal:
        """The teacher's signal for the batch, on the device of its inputs."""
        assert batch.teacher_rows is not None, "the data were not matched with the store"
        rows = batch.teacher_rows.numpy()
        if self._cached is not None and (self._places[rows] >= 0).all():
            return self._cached.signal(batch)
        return self.streamed(batch)

    @torch.no_grad()
    def streamed(self, batch: Batch) -> Signal:
        """The teacher's own logits for the batch, whatever the store has; rows that it lacks are kept."""
        assert batch.teacher_rows is not None, "the data were not matched with the store"
        rows = batch.teacher_rows.numpy()
        signal = self._streaming.signal(batch)
        if self._builder is not None:
            self._keep(self._builder, rows, batch.targets.counted.cpu().numpy(), signal)
        columns = None if self._columns is None else self._columns.to(signal.logits.device)
        in_order = in_label_order(signal, columns)
        assert isinstance(in_order, Signal)
        return in_order

    def _keep(self, builder: ShardBuilder, rows: NDArray[np.int64], counted: NDArray[np.bool_], signal: Signal) -> None:
        new = counted & (self._places[rows] < 0) & ~self._kept[rows]
        new[np.setdiff1d(np.arange(len(rows)), np.unique(rows, return_index=True)[1])] = False
        logits = signal.logits.cpu()[torch.from_numpy(new)]
        if len(logits):
            builder.add(self._keys[rows[new]], logits, self._label_columns[rows[new]])
            self._kept[rows[new]] = True
        if len(builder) >= self._shard_rows:
            self._write(builder)

    def _use(self, reader: StoreReader | None) -> None:
        self._kept = np.zeros(len(self._keys), dtype=np.bool_)
        self._places = np.full(len(self._keys), -1, dtype=np.int64)
        self._cached: TeacherSource | None = None
        if reader is not None:
            self._places = reader.lookup(self._keys)
            self._cached = self._read(reader, self._places)


class ScoringTeacher(WithoutMemory):
    """Scores held-out splits beside a `WriteThroughTeacher`: always by the teacher's own logits.

    The scores of a run must not depend on how much of the store was there when it began.
    """

    provides = EVERY_LOGIT

    def __init__(self, source: WriteThroughTeacher) -> None:
        self._source = source

    def signal(self, batch: Batch) -> Signal:
        """As `WriteThroughTeacher.streamed`."""
        return self._source.streamed(batch)
