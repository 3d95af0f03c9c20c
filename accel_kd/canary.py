"""Looks whether a store still says what the teacher says, before a training believes it."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from accel_kd.data.pooled_rows import PooledRows
from accel_kd.errors import UserError
from accel_kd.logit_store.reader import StoreReader
from accel_kd.logit_store.shard_builder import argmax_of, noise_keys
from accel_kd.signals import Signal, SparseSignal
from accel_kd.teachers.streaming import StreamingTeacher

logger = logging.getLogger(__name__)

_ROUNDING = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""How far two computations of a logit may be apart, as a share of the row's largest, by the precision of the teacher's
weights: other kernels, other batches, TF32."""
_SAMPLES_IN_COMMON = 0.8
"""The share of two samples of one distribution, drawn with the same random numbers, that agrees at least."""
_CHUNK = 16_384


def refuse_other_answers(
    reader: StoreReader,
    places: NDArray[np.int64],
    rows: PooledRows,
    teacher: StreamingTeacher,
    num_rows: int,
    seed: int,
    compare: Callable[[Callable[[], None]], None] = lambda work: work(),
) -> None:
    """Recomputes some rows, drawn at random, and compares them with what is stored of them.

    Args:
        reader: the store.
        places: row of the store for each of `rows` `[n]`, -1 where it has none; such rows are not looked at.
        rows: what the teacher reads.
        teacher: gives logits in its own column order.
        num_rows: how many rows are looked at.
        seed: of the draw.
        compare: runs the comparison, which asks the teacher nothing: on one rank for all, where all have recomputed.

    Raises:
        UserError: a row that differs by more than rounding.
    """
    there = np.flatnonzero(places >= 0)
    chosen = there[np.random.default_rng(seed).permutation(len(there))[:num_rows]]
    dtype = next(teacher.model.parameters()).dtype
    again = teacher.signal(rows.batch(chosen)).logits.cpu()
    compare(lambda: _compare(reader, places, rows, chosen, again, _ROUNDING[dtype]))


def _compare(
    reader: StoreReader,
    places: NDArray[np.int64],
    rows: PooledRows,
    chosen: NDArray[np.int64],
    again: Tensor,
    rounding: float,
) -> None:
    stored = reader.signal(places[chosen])
    if isinstance(stored, Signal):
        encoded = reader.encoding.encode(again, noise_keys(rows.keys[chosen], np.ones(len(chosen), dtype=np.int64)))
        decoded = reader.encoding.decode(encoded)
        assert isinstance(decoded, Signal)
        _refuse_distance(reader, rows, chosen, stored.logits, decoded.logits, rounding)
    elif reader.encoding.provides.exact:
        now = torch.log_softmax(again, dim=-1).gather(-1, stored.ids)
        # A value is coded in steps of at least 1/255 of its row's range.
        _refuse_distance(reader, rows, chosen, stored.log_probs, now, rounding + 1 / 255)
    else:
        _refuse_other_samples(reader, rows, chosen, stored, again)
    logger.info("store: %d rows recomputed, and equal to the stored ones", len(chosen))


def refuse_other_labels(
    reader: StoreReader, places: NDArray[np.int64], label_columns: NDArray[np.int64]
) -> float | None:
    """Compares the teacher's accuracy on the rows with a label, row by row, with what it was when they were stored.

    Args:
        reader: the store.
        places: rows of the store `[n]`.
        label_columns: the teacher's column of each row's label `[n]`, -1 where it has none.

    Returns:
        The accuracy over the rows that have a label, and had one then; None without any.

    Raises:
        UserError: a row counts as right now and as wrong then, or the other way round.
    """
    labelled, correct = reader.verdicts(places)
    compared = np.flatnonzero(labelled & (label_columns >= 0))
    if not len(compared) or not reader.encoding.provides.exact:
        return None
    now = np.concatenate([argmax_of(reader.signal(places[part])) == label_columns[part] for part in _chunks(compared)])
    then = correct[compared]
    if not np.array_equal(now, then):
        raise UserError(
            f"teacher.store.path: {reader.folder} was right on {int(then.sum()):,} of {len(compared):,} labelled rows "
            f"when it was written, and is on {int(now.sum()):,} with the labels of these data "
            f"({int((now != then).sum()):,} rows differ): the labels or their order have changed; let another be built"
        )
    return float(now.mean())


def _chunks(rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    return [rows[start : start + _CHUNK] for start in range(0, len(rows), _CHUNK)]


def _refuse_distance(
    reader: StoreReader, rows: PooledRows, chosen: NDArray[np.int64], stored: Tensor, now: Tensor, share: float
) -> None:
    scale = now.abs().amax(dim=-1).clamp(min=1.0)
    distance = (stored - now).abs().amax(dim=-1)
    wrong = torch.nonzero(~(distance <= share * scale))[:, 0]
    if len(wrong):
        worst = int(wrong[0])
        raise UserError(
            f"teacher.store.path: {reader.folder} does not say what the teacher says: {len(wrong)} of {len(chosen)} "
            f"rows that were recomputed differ, the example {rows.ids[chosen[worst]]} by {float(distance[worst]):.3g} "
            "in a logit; move it away, and let it be built again"
        )


def _refuse_other_samples(
    reader: StoreReader, rows: PooledRows, chosen: NDArray[np.int64], stored: SparseSignal, again: Tensor
) -> None:
    keys = noise_keys(rows.keys[chosen], np.ones(len(chosen), dtype=np.int64))
    redrawn = reader.encoding.decode(reader.encoding.encode(again, keys))
    assert isinstance(redrawn, SparseSignal) and reader.encoding.provides.temperatures is not None
    (temperature,) = reader.encoding.provides.temperatures
    common = torch.minimum(_dense(stored, temperature), _dense(redrawn, temperature)).sum(dim=-1)
    if float(common.mean()) < _SAMPLES_IN_COMMON:
        raise UserError(
            f"teacher.store.path: {reader.folder} does not say what the teacher says: of {len(chosen)} rows that were "
            f"drawn again only {float(common.mean()):.0%} agrees; move it away, and let it be built again"
        )


def _dense(signal: SparseSignal, temperature: float) -> Tensor:
    probs = signal.log_probs_at(temperature).exp()
    return torch.zeros(len(probs), signal.num_classes).scatter_add(-1, signal.ids, probs)
