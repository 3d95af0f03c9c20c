"""Opens a store, finds rows by their keys, and gives the teacher's signal for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from accel_kd.errors import UserError
from accel_kd.logit_store.encoding import Encoding, encoding_of
from accel_kd.logit_store.keys import Keys, digest_of, short_keys
from accel_kd.logit_store.manifest import Manifest, differences, read_manifest
from accel_kd.logit_store.shard import Shard, refuse_damage
from accel_kd.signals import TeacherSignal


class StoreReader:
    """The rows of a store, numbered over all its shards; each is found in constant time by its number."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        """Maps the shards; `open_store` checks them first."""
        self.folder = folder
        self.manifest = manifest
        self.encoding: Encoding = encoding_of(manifest.identity["encoding"], manifest.num_classes)
        self._shards = [Shard(folder, entry) for entry in manifest.shards]
        sizes = [shard.entry.num_rows for shard in self._shards]
        self._starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]).astype(np.int64)
        found = [shard.short_keys for shard in self._shards]
        every_key = np.concatenate(found) if found else np.empty(0, dtype=np.uint64)
        self._order = np.argsort(every_key, kind="stable")
        self._sorted = every_key[self._order]

    def __len__(self) -> int:
        return int(self._starts[-1])

    def lookup(self, keys: Keys) -> NDArray[np.int64]:
        """The row of each whole key `[n, 32]` -> `[n]`, -1 where the store has none.

        Raises:
            UserError: all rows of a shard were found, and they are not the rows that it was written for.
        """
        rows = np.full(len(keys), -1, dtype=np.int64)
        if not len(self):
            return rows
        short = short_keys(keys, self.manifest.low_bytes)
        place = np.minimum(np.searchsorted(self._sorted, short), len(self._sorted) - 1)
        found = self._sorted[place] == short
        rows[found] = self._order[place[found]]
        self._refuse_false_rows(keys, rows)
        return rows

    def signal(self, rows: NDArray[np.int64]) -> TeacherSignal:
        """What the teacher said of `rows`, positions one after the other, on the CPU."""
        return self.encoding.decode(self.tensors(rows))

    def tensors(self, rows: NDArray[np.int64]) -> dict[str, Tensor]:
        """The encoded tensors at the positions of `rows`, in their order."""
        assert len(rows) and (rows >= 0).all() and (rows < len(self)).all(), "rows that the store does not have"
        owner = np.searchsorted(self._starts, rows, side="right") - 1
        if (owner == owner[0]).all():
            only = int(owner[0])
            return self._shards[only].take(rows - self._starts[only])
        order = np.argsort(owner, kind="stable")
        parts, counts = [], []
        for number in np.unique(owner):
            shard, local = self._shards[number], rows[order][owner[order] == number] - self._starts[number]
            parts.append(shard.take(local))
            counts.append(np.ones(len(local), np.int64) if shard.offsets is None else np.diff(shard.offsets)[local])
        num_positions = np.concatenate(counts)
        starts = np.cumsum(num_positions) - num_positions
        back = np.argsort(order)
        index = np.concatenate([np.arange(starts[row], starts[row] + num_positions[row]) for row in back])
        joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        return {name: tensor.index_select(0, torch.from_numpy(index)) for name, tensor in joined.items()}

    def num_positions(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """How many positions each of `rows` has `[n]`."""
        owner = np.searchsorted(self._starts, rows, side="right") - 1
        counts = np.ones(len(rows), dtype=np.int64)
        for number in np.unique(owner):
            offsets = self._shards[number].offsets
            if offsets is not None:
                counts[owner == number] = np.diff(offsets)[rows[owner == number] - self._starts[number]]
        return counts

    def verdicts(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Of `rows` `[n]`: which had a label at capture, and where the teacher's argmax was that label."""
        labelled = np.concatenate([shard.labelled for shard in self._shards])
        correct = np.concatenate([shard.correct for shard in self._shards])
        return labelled[rows], correct[rows]

    def _refuse_false_rows(self, keys: Keys, rows: NDArray[np.int64]) -> None:
        """Short keys all but never agree by chance; where all of a shard is asked for, the whole keys prove it."""
        order = np.argsort(rows, kind="stable")
        bounds = np.searchsorted(rows[order], self._starts)
        for shard, start, stop in zip(self._shards, bounds[:-1], bounds[1:], strict=True):
            mine = order[start:stop]
            first = np.unique(rows[mine], return_index=True)[1]
            if len(first) == shard.entry.num_rows and digest_of(keys[mine[first]]) != shard.entry.keys_sha256:
                raise UserError(
                    f"teacher.store.path: the shard {shard.entry.file} of {self.folder} was written for other "
                    "examples than those of these data that have its row ids; let another store be built"
                )


def open_store(
    folder: Path,
    identity: dict[str, Any] | None = None,
    manifest: Manifest | None = None,
    *,
    rank: int = 0,
    world_size: int = 1,
) -> StoreReader:
    """Opens the store in `folder` after a look at its manifest, its identity and its shards' checksums.

    Args:
        folder: where the manifest lies.
        identity: what this run needs the store to be; None takes it as it is.
        manifest: its manifest, where it was read already.
        rank: of the shards this process checks every `world_size`-th, from this one on.
        world_size: how many processes open it together.

    Raises:
        UserError: it is damaged, a newer version wrote it, or it is another teacher's, with what differs.
    """
    manifest = read_manifest(folder) if manifest is None else manifest
    if identity is not None:
        unlike = differences(manifest.identity, identity)
        if unlike:
            raise UserError(f"teacher.store.path: {folder} is not the store of this run: {'; '.join(unlike)}")
    for entry in manifest.shards[rank::world_size]:
        refuse_damage(folder, entry, full=False)
    return StoreReader(folder, manifest)
