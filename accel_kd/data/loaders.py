"""Which examples stand in which optimizer step, on which rank: a function of (seed, epoch) and nothing else.

order of the epoch -> global batches -> one even share a (rank, accumulation step) -> padded micro-batches, cut out of
the split where it lives on the device, else made in host memory
"""

from __future__ import annotations

import ctypes
import itertools
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from accel_kd.data.buckets import PadTo
from accel_kd.data.preprocessing import TokenisedSplit
from accel_kd.data.resident import ResidentSplit
from accel_kd.data.shares import Share
from accel_kd.signals import IGNORED_LABEL, Batch, GlobalCounts, StepBatches

_FEWEST_BATCHES_A_GROUP, MOST_BATCHES_A_GROUP = 50, 200
"""Lengths are sorted within as many batches' worth of shuffled examples: enough to pad little (of CLINC150's positions
0.9 % within 159 batches, 3.1 % within 50), few enough that the make-up of a batch changes from epoch to epoch: an epoch
of more than the fewest has two groups at least."""

_SIGNAL_AT_DEATH_OF_PARENT = 1
"""`PR_SET_PDEATHSIG` of Linux."""


@dataclass(frozen=True)
class Shard:
    """Which part of every batch this process takes."""

    rank: int = 0
    world_size: int = 1


class _Shares(Dataset[Batch]):
    """Lets a `DataLoader` turn whole shares into batches, so that it can do so in workers and pin the result."""

    def __init__(self, split: TokenisedSplit, pad_to: PadTo | None) -> None:
        self.split = split
        self.pad_to = pad_to

    def __getitems__(self, share: Share) -> Batch:
        return self.split.batch(share.rows, counted=share.counted, pad_to=self.pad_to)

    def __getitem__(self, row: int) -> Batch:
        return self.split.batch(np.array([row]), pad_to=self.pad_to)


class TrainingLoader:
    """The optimizer steps of each epoch as this rank's micro-batches."""

    def __init__(
        self,
        split: TokenisedSplit,
        *,
        batch_size: int,
        accumulation: int = 1,
        shard: Shard = Shard(),
        seed: int = 0,
        group_by_length: bool = True,
        num_workers: int = 0,
        pin_memory: bool = False,
        resident_on: torch.device | None = None,
        pad_to: PadTo | None = None,
    ) -> None:
        """Args:
        split: the examples.
        batch_size: examples an optimizer step, over all ranks and accumulation.
        accumulation: micro-batches a rank and step.
        shard: which of the ranks this is.
        seed: of the order.
        group_by_length: whether texts of like length come together.
        num_workers: processes that make batches ahead, in host memory; 0: this one.
        pin_memory: whether batches in host memory are page-locked.
        resident_on: the device that the whole split lives on from the first epoch on, so that batches are made there
            and nothing is copied in between; None: in host memory. Not with `num_workers`.
        pad_to: see there; None: a micro-batch is as long as its longest text.
        """
        assert resident_on is None or not num_workers, "workers make batches in host memory"
        self.split = split
        self.batch_size = batch_size
        self.accumulation = accumulation
        self.shard = shard
        self.seed = seed
        self.group_by_length = group_by_length
        self.num_workers = num_workers
        self.pin_memory = pin_memory
        self.pad_to = pad_to
        self._resident_on = resident_on
        self._lengths = split.lengths
        # The file's order must not reach the result, so rows are numbered by id before they are shuffled.
        self._canonical = np.array(sorted(range(len(split)), key=split.ids.__getitem__), dtype=np.int64)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in an epoch; the last batch may be smaller, and none is dropped."""
        return -(-len(self.split) // self.batch_size)

    def global_batches(self, epoch: int) -> list[NDArray[np.int64]]:
        """The rows of every optimizer step of `epoch`, over all ranks."""
        generator = np.random.default_rng([self.seed, epoch])
        order = self._canonical[generator.permutation(len(self._canonical))]
        if not self.group_by_length:
            return _cut(order, self.batch_size)
        batches = []
        half = -(-self.steps_per_epoch // 2)
        of_group = max(_FEWEST_BATCHES_A_GROUP, min(half, MOST_BATCHES_A_GROUP))
        for group in _cut(order, self.batch_size * of_group):
            by_length = group[np.argsort(self._lengths[group], kind="stable")]
            batches.extend(_cut(by_length, self.batch_size))
        return [batches[number] for number in generator.permutation(len(batches))]

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[StepBatches]:
        """The steps of `epoch` from its `first_step` on, each with all its micro-batches on this rank."""
        batches = self.global_batches(epoch)[first_step:]
        shares = [self._shares(rows) for rows in batches]
        own = [share for of_all in shares for share in of_all[self.shard.rank :: self.shard.world_size]]
        micro_batches = self._micro_batches(own)
        for rows, of_all in zip(batches, shares, strict=True):
            yield StepBatches(
                epoch,
                [next(micro_batches) for _ in range(self.accumulation)],
                self._counts(rows),
                sum(len(share.rows) * self.split.student.padded_length(share.rows, self.pad_to) for share in of_all),
            )

    def ids_of_step(self, step: int) -> list[str]:
        """The examples of the `step`-th optimizer step of a run, from 1, over all ranks."""
        epoch, number = divmod(step - 1, self.steps_per_epoch)
        return [self.split.ids[row] for row in self.global_batches(epoch)[number]]

    @cached_property
    def _resident(self) -> ResidentSplit | None:
        """The split on its device, made when the first batch is asked for."""
        return None if self._resident_on is None else ResidentSplit(self.split, self._resident_on, self.pad_to)

    def _micro_batches(self, shares: Sequence[Share]) -> Iterator[Batch]:
        if self._resident is not None:
            return self._resident.batches(shares)
        return iter(
            DataLoader(
                _Shares(self.split, self.pad_to),
                batch_sampler=shares,  # type: ignore[arg-type]
                collate_fn=_as_is,
                num_workers=self.num_workers,
                pin_memory=self.pin_memory,
                worker_init_fn=_leave_signals_to_the_trainer,
                # A loader draws a seed when it starts; from a generator of its own, so that dropout does not notice.
                generator=torch.Generator().manual_seed(self.seed),
            )
        )

    def _shares(self, rows: NDArray[np.int64]) -> list[Share]:
        """One global batch in even pieces, of which each rank takes every `world_size`-th."""
        pieces = np.array_split(rows, self.accumulation * self.shard.world_size)
        return [Share(piece) if len(piece) else Share(rows[:1], counted=False) for piece in pieces]

    def _counts(self, rows: NDArray[np.int64]) -> GlobalCounts:
        labelled = int(np.count_nonzero(self.split.labels[rows] != IGNORED_LABEL))
        return GlobalCounts(targets=labelled, positions=len(rows), tokens=int(self._lengths[rows].sum()))


class EvaluationLoader:
    """This rank's part of a split, each example once over all ranks, longest texts first.

    Every rank has equally many batches, since a sharded model is called by all ranks together; one that has run out
    repeats an example that is not counted.
    """

    def __init__(
        self,
        split: TokenisedSplit,
        *,
        batch_size: int,
        shard: Shard = Shard(),
        pin_memory: bool = False,
        resident_on: torch.device | None = None,
        spare_padding: int | None = None,
    ) -> None:
        """`pin_memory` and `resident_on` as in `TrainingLoader`. A batch ends before `batch_size` where a text more
        would make its padding more than `spare_padding` tokens on the rank with the longest texts; None: never."""
        self.split = split
        self._pin_memory = pin_memory
        self._resident_on = resident_on
        order = np.argsort(-split.lengths, kind="stable")
        # Where batches end is decided by each rank's longest texts together, so that all have as many.
        longest = split.lengths[order[:: shard.world_size]]
        own = order[shard.rank :: shard.world_size]
        pieces = [own[start:end] for start, end in itertools.pairwise(_bounds(longest, batch_size, spare_padding))]
        self._shares = [Share(rows) if len(rows) else Share(order[:1], counted=False) for rows in pieces]

    def __len__(self) -> int:
        return len(self._shares)

    def __iter__(self) -> Iterator[Batch]:
        if self._resident is not None:
            return self._resident.batches(self._shares)
        batches = (self.split.batch(share.rows, counted=share.counted) for share in self._shares)
        return (batch.pin_memory() for batch in batches) if self._pin_memory else batches

    @cached_property
    def _resident(self) -> ResidentSplit | None:
        return None if self._resident_on is None else ResidentSplit(self.split, self._resident_on)


def _bounds(lengths: NDArray[np.int64], batch_size: int, spare_padding: int | None) -> list[int]:
    """Where batches of texts start and end whose `lengths` fall, as counts of texts."""
    bounds = [0]
    while bounds[-1] < len(lengths):
        batch = lengths[bounds[-1] : bounds[-1] + batch_size]
        padding = np.cumsum(batch[0] - batch)
        within = len(batch) if spare_padding is None else np.searchsorted(padding, spare_padding, side="right")
        bounds.append(bounds[-1] + int(within))
    return bounds


def _cut(rows: NDArray[np.int64], size: int) -> list[NDArray[np.int64]]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _leave_signals_to_the_trainer(worker: int) -> None:
    """A signal to a whole job reaches workers too, and the trainer, which stops at the end of its step, needs them.

    They go when it goes, however it does.
    """
    ctypes.CDLL(None).prctl(_SIGNAL_AT_DEATH_OF_PARENT, signal.SIGKILL)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)


def _as_is(batch: Sequence[Batch]) -> Sequence[Batch]:
    return batch
