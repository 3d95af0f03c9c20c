"""What the teacher's logits tell of the data: how sure it is, where it is wrong, which labels may be.

The list of label suspects follows confident disagreement (Northcutt et al. 2021, "Confident Learning", arXiv
1911.00068): the teacher gives a class other than the label more than its usual confidence in that class.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from accel_kd.logit_store.reader import StoreReader
from accel_kd.signals import Signal

_CHUNK = 16_384


def dark_knowledge(
    reader: StoreReader,
    rows: NDArray[np.int64],
    label_columns: NDArray[np.int64],
    ids: Sequence[str],
    num_listed: int = 10,
) -> dict[str, Any]:
    """Figures over `rows` and the rows that stand out, for an encoding that keeps every logit of one position a row;
    an empty dict for another.

    Args:
        reader: the store.
        rows: rows of the store `[n]`.
        label_columns: the teacher's column of each row's label `[n]`, -1 where it has none.
        ids: what each row is called.
        num_listed: how many rows each list has at most.

    Returns:
        `accuracy` (of the rows with a label), `entropy_mean` (nats), `margin_mean` (between the two largest
        probabilities), `num_wrong`, and the lists `suspects` and `least_certain` of `[id, label column, teacher's
        column, its probability]`; the first has wrong rows only, the surest of them first.
    """
    if (reader.num_positions(rows) != 1).any() or not isinstance(reader.signal(rows[:1]), Signal):
        return {}
    argmax, probability, of_label, entropy, margin = _statistics(reader, rows, label_columns)
    labelled = label_columns >= 0
    wrong = labelled & (argmax != label_columns)
    found: dict[str, Any] = {
        "num_rows": len(rows),
        "num_labelled": int(labelled.sum()),
        "num_wrong": int(wrong.sum()),
        "entropy_mean": _rounded(entropy.mean()),
        "margin_mean": _rounded(margin.mean()),
    }
    if labelled.any():
        found["accuracy"] = float((argmax == label_columns)[labelled].mean())

    def listed(chosen: NDArray[np.int64]) -> list[list[Any]]:
        return [
            [ids[row], int(label_columns[row]), int(argmax[row]), _rounded(probability[row])]
            for row in chosen[:num_listed]
        ]

    usual = _usual_confidence(label_columns, of_label, reader.manifest.num_classes)
    suspects = np.flatnonzero(wrong & (probability >= usual[argmax]))
    found["suspects"] = listed(suspects[np.argsort(-probability[suspects], kind="stable")])
    found["num_suspects"] = len(suspects)
    found["least_certain"] = listed(np.argsort(-entropy, kind="stable"))
    return found


def _statistics(
    reader: StoreReader, rows: NDArray[np.int64], label_columns: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Of each row `[n]`: the argmax, its probability, that of the label (0 without one), entropy and margin."""
    parts = []
    for start in range(0, len(rows), _CHUNK):
        signal = reader.signal(rows[start : start + _CHUNK])
        assert isinstance(signal, Signal)
        log_probs = torch.log_softmax(signal.logits.double(), dim=-1).numpy()
        probs = np.exp(log_probs)
        columns = label_columns[start : start + _CHUNK]
        argmax = np.argmax(signal.logits.numpy(), axis=-1)
        two = np.partition(probs, -2, axis=-1)[:, -2:]
        of_label = np.where(columns >= 0, np.take_along_axis(probs, np.maximum(columns, 0)[:, None], axis=-1)[:, 0], 0)
        entropy = -(probs * np.where(probs > 0, log_probs, 0)).sum(axis=-1)
        parts.append((argmax, two[:, 1], of_label, entropy, two[:, 1] - two[:, 0]))
    argmax, probability, of_label, entropy, margin = (np.concatenate(values) for values in zip(*parts, strict=True))
    return argmax, probability, of_label, entropy, margin


def _usual_confidence(
    label_columns: NDArray[np.int64], of_label: NDArray[np.float64], num_classes: int
) -> NDArray[np.float64]:
    """The mean probability `[V]` that the teacher gives to a class on the examples that have it as their label."""
    labelled = label_columns >= 0
    counts = np.bincount(label_columns[labelled], minlength=num_classes)
    sums = np.bincount(label_columns[labelled], weights=of_label[labelled], minlength=num_classes)
    return np.where(counts > 0, sums / np.maximum(counts, 1), 0.5)


def _rounded(value: Any) -> float:
    return float(f"{float(value):.6g}")
