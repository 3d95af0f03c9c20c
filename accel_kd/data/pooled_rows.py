"""The distinct rows of several splits as a teacher reads them: what a store of its logits is filled from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from accel_kd.data.preprocessing import Ragged, TokenisedSplit, TokenisedTexts
from accel_kd.signals import IGNORED_LABEL, Batch, Targets


@dataclass(frozen=True)
class PooledRows:
    """`n` rows: `keys` `[n, 32]` (see `TokenisedSplit.row_keys`), ids, labels `[n]` and the teacher's texts."""

    keys: NDArray[np.uint8]
    ids: list[str]
    labels: NDArray[np.int64]
    texts: TokenisedTexts

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, rows: NDArray[np.int64], length: int | None = None) -> Batch:
        """The rows at `rows` as the teacher's micro-batch, padded to `length`, by default to the longest of them."""
        targets = Targets(torch.from_numpy(self.labels[rows]), torch.ones(len(rows), dtype=torch.bool))
        return Batch(torch.from_numpy(rows), self.texts.inputs(rows, length), targets)


def pool(splits: Sequence[TokenisedSplit]) -> tuple[PooledRows, list[NDArray[np.int64]]]:
    """The rows of `splits`, each once however often it occurs, and the number of each split's rows among them."""
    keys = np.concatenate([split.row_keys() for split in splits])
    whole = np.ascontiguousarray(keys).view(f"V{keys.shape[1]}").reshape(-1)
    _, first, numbers = np.unique(whole, return_index=True, return_inverse=True)
    numbers = numbers.reshape(-1).astype(np.int64)
    # The label may be hidden in one of two equal rows.
    labels = np.full(len(first), IGNORED_LABEL, dtype=np.int64)
    np.maximum.at(labels, numbers, np.concatenate([split.labels for split in splits]))
    ids = [id for split in splits for id in split.ids]
    texts = _joined([split.for_teacher for split in splits]).take(first)
    rows = PooledRows(keys[first], [ids[row] for row in first], labels, texts)
    return rows, np.split(numbers, np.cumsum([len(split) for split in splits])[:-1])


def _joined(parts: Sequence[TokenisedTexts]) -> TokenisedTexts:
    features = {}
    for name in parts[0].features:
        raggeds = [part.features[name] for part in parts]
        ends = np.cumsum([len(ragged.values) for ragged in raggeds])
        starts = ends - [len(ragged.values) for ragged in raggeds]
        offsets = [ragged.offsets[1:] + start for ragged, start in zip(raggeds, starts, strict=True)]
        first = np.zeros(1, dtype=np.int64)
        features[name] = Ragged(
            np.concatenate([ragged.values for ragged in raggeds]), np.concatenate([first, *offsets])
        )
    return TokenisedTexts(features, parts[0].padding)
