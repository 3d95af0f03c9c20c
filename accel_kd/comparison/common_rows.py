"""The predictions of several runs on the very same rows, in one order and with one list of label names."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from accel_kd.comparison.compared import Predictions
from accel_kd.errors import UserError


@dataclasses.dataclass(frozen=True)
class CommonRows:
    """Predictions, one entry a run (None: no row in common with the baseline, or none at all), and how many rows of
    the baseline's are left out because another run lacks them."""

    predictions: tuple[Predictions | None, ...]
    num_left_out: int


def on_common_rows(names: Sequence[str], predictions: Sequence[Predictions | None], baseline: int) -> CommonRows:
    """Brings all runs to the rows that they have in common, in the baseline's order.

    A run that has no row in common with the baseline is left without predictions rather than all others with it.

    Args:
        names: of the runs, for what is said of them.
        predictions: of each, in any order of rows.
        baseline: which of them is the baseline.

    Raises:
        UserError: a row has other labels in two runs, or each has rows in common with the baseline and all together
            have none.
    """
    base = predictions[baseline]
    if base is None:
        return CommonRows(tuple(None for _ in predictions), 0)
    kept = [one if one is not None and set(base.ids) & set(one.ids) else None for one in predictions]
    common = set(base.ids).intersection(*(one.ids for one in kept if one is not None))
    if not common:
        raise UserError(
            f"compare: no row of the {base.split} split is common to all runs, though each has some in common with "
            f"{names[baseline]}; compare fewer runs at once"
        )
    ids = [id for id in base.ids if id in common]
    label_names = _union([base, *(one for one in kept if one is not None)])
    aligned = [None if one is None else _aligned(one, ids, label_names) for one in kept]
    reference = aligned[baseline]
    assert reference is not None
    for name, one in zip(names, aligned, strict=True):
        if one is not None:
            _refuse_other_labels(names[baseline], reference, name, one)
    return CommonRows(tuple(aligned), len(base.ids) - len(ids))


def _union(several: Sequence[Predictions]) -> tuple[str, ...]:
    """All label names, in the order of the first runs that have them."""
    return tuple(dict.fromkeys(name for one in several for name in one.label_names))


def _aligned(one: Predictions, ids: Sequence[str], label_names: tuple[str, ...]) -> Predictions:
    place_of = {id: place for place, id in enumerate(one.ids)}
    rows = np.array([place_of[id] for id in ids], dtype=np.int64)
    number_of = {name: number for number, name in enumerate(label_names)}
    numbers = np.array([number_of[name] for name in one.label_names], dtype=np.int64)

    def floats(values: NDArray[np.float64] | None) -> NDArray[np.float64] | None:
        return None if values is None else values[rows]

    return dataclasses.replace(
        one,
        ids=tuple(ids),
        label_names=label_names,
        labels=numbers[one.labels[rows]],
        argmax=numbers[one.argmax[rows]],
        confidence=one.confidence[rows],
        loss=floats(one.loss),
        teacher_argmax=None if one.teacher_argmax is None else numbers[one.teacher_argmax[rows]],
        teacher_kl=floats(one.teacher_kl),
    )


def _refuse_other_labels(baseline: str, reference: Predictions, name: str, one: Predictions) -> None:
    differing = np.flatnonzero(reference.labels != one.labels)
    if len(differing):
        row = differing[0]
        here, there = one.label_names[one.labels[row]], reference.label_names[reference.labels[row]]
        raise UserError(
            f"compare: {len(differing):,} of {len(one.ids):,} rows have other labels in {name} than in {baseline} "
            f"(row {one.ids[row]}: {here!r}, not {there!r}); compare runs of the same labels"
        )
