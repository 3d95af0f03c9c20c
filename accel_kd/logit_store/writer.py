"""Adds rows to a store: one writer at a time, what was finished is kept, the manifest is written last.

lock -> what there is, sealed or finished by a writer that was killed -> new shards, each with a record -> manifest
"""

from __future__ import annotations

import dataclasses
import fcntl
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from accel_kd.errors import RunFailure, UserError
from accel_kd.logit_store.keys import Keys
from accel_kd.logit_store.manifest import (
    MANIFEST,
    QUARANTINE,
    SHARDS,
    Manifest,
    ShardEntry,
    differences,
    manifest_bytes,
    read_manifest,
    sealed,
    unsealed,
)
from accel_kd.logit_store.shard import ShardRows, disk_failure, refuse_damage, write_shard

logger = logging.getLogger(__name__)

_SPARE = 1.02
"""Share of the predicted bytes that a disk must have free; headers and records are not predicted."""
_LOCK = ".lock"


@dataclass(frozen=True)
class StoreDescription:
    """What a store is, whatever rows it has."""

    folder: Path
    fingerprint: str
    identity: dict[str, Any]
    num_classes: int
    low_bytes: int


class WriterLock:
    """The right to write to a store; it goes with the process, however that ends."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: Any = None

    def acquire(self) -> bool:
        """Takes the right if nobody has it; whether this process has it now.

        Raises:
            UserError: the folder cannot be written.
        """
        if self._file is None:
            try:
                (self._folder / SHARDS).mkdir(parents=True, exist_ok=True)
                self._file = (self._folder / _LOCK).open("a")
            except OSError as error:
                raise disk_failure(error, self._folder) from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:  # some network file systems have no locks; names of content keep shards apart there
            logger.warning("%s cannot be locked (%s): let one job at a time write to it", self._folder, error.strerror)
        return True

    def release(self) -> None:
        """Gives the right up."""
        if self._file is not None:
            self._file.close()
            self._file = None


def plan_shards(keys: Keys, lengths: NDArray[np.int64], shard_rows: int) -> list[NDArray[np.int64]]:
    """Which rows go into which shard: the longest first, ties by key, cut every `shard_rows`.

    It depends on the rows alone, neither on their order nor on the number of ranks, and rows that remain when whole
    shards are there already are cut as they were before: a capture that was killed goes on to the same shards.
    """
    order = np.lexsort((*keys.T[::-1], -lengths))
    return [order[start : start + shard_rows] for start in range(0, len(order), shard_rows)]


def finished_shards(description: StoreDescription) -> tuple[list[ShardEntry], Manifest | None]:
    """The shards that are there and whole, with or without a manifest that names them; the caller has the lock.

    What a killed writer left half-way is removed; a finished shard whose bytes have changed is set aside.

    Raises:
        UserError: the manifest, or a shard that it names, is damaged.
    """
    folder = description.folder
    manifest = read_manifest(folder) if (folder / MANIFEST).is_file() else None
    if manifest is not None and manifest.fingerprint != description.fingerprint:
        unlike = differences(manifest.identity, description.identity)
        raise UserError(f"teacher.store.path: {folder} is not the store of this run: {'; '.join(unlike)}")
    entries = [] if manifest is None else list(manifest.shards)
    sealed_files = {entry.file for entry in entries}
    for record in sorted((folder / SHARDS).glob("*.json")):
        shard_file = record.name.removesuffix(".json")
        if shard_file in sealed_files:
            continue
        try:
            content = unsealed(record.read_bytes(), record)
            entry = ShardEntry(**content["shard"])
            refuse_damage(folder, entry, full=True)
            entries += [entry] if content["fingerprint"] == description.fingerprint else []
        except UserError:
            logger.warning("the unfinished store %s had a damaged shard, %s: it is set aside", folder, shard_file)
            set_aside(folder, shard_file)
            record.unlink()
    for leftover in (folder / SHARDS).glob(".*"):
        leftover.unlink()  # of a writer that was killed: who writes now has the lock
    return entries, manifest


def set_aside(folder: Path, file: str) -> None:
    """Moves a shard to the quarantine; nothing there is ever read, and `store prune` deletes it."""
    source = folder / SHARDS / file
    if source.exists():
        (folder / QUARANTINE).mkdir(exist_ok=True)
        source.replace(folder / QUARANTINE / file)


def add_shard(description: StoreDescription, rows: ShardRows, fidelity: Mapping[str, Any]) -> ShardEntry:
    """Writes a shard and then the record that says that it is whole, which counts until a manifest names it.

    Raises:
        RunFailure, UserError: as `write_shard`.
    """
    entry = write_shard(description.folder, rows, description.low_bytes)
    entry = dataclasses.replace(entry, fidelity=dict(fidelity))
    content = {"fingerprint": description.fingerprint, "shard": dataclasses.asdict(entry)}
    _write(_record(description.folder, entry), sealed(content))
    return entry


def seal(
    description: StoreDescription, entries: Sequence[ShardEntry], receipt: Mapping[str, Any], made_with: dict[str, Any]
) -> Manifest:
    """Writes the manifest over `entries`, by which alone they exist for a reader; the caller has the lock."""
    ordered = tuple(sorted(entries, key=lambda entry: entry.file))
    manifest = Manifest(
        fingerprint=description.fingerprint,
        identity=description.identity,
        num_classes=description.num_classes,
        low_bytes=description.low_bytes,
        shards=ordered,
        receipt=dict(receipt),
        made_with=made_with,
    )
    _write(description.folder / MANIFEST, manifest_bytes(manifest))
    for entry in ordered:
        _record(description.folder, entry).unlink(missing_ok=True)
    return manifest


def refuse_lack_of_space(folder: Path, num_bytes: int) -> None:
    """Raises `RunFailure`, with the numbers, where the disk of `folder` has no room for `num_bytes` more."""
    free = shutil.disk_usage(folder).free
    if free < num_bytes * _SPARE:
        raise RunFailure(
            f"teacher.store.path: {folder} needs {num_bytes:,} bytes more, and its disk has {free:,} left; free some, "
            "name a folder on another disk, or choose a smaller teacher.store.encoding"
        )


def refuse_collisions(keys: Keys, short: NDArray[np.uint64]) -> None:
    """Raises `RunFailure` where two of the whole keys `[n, 32]` have one short key `[n]`: a store cannot hold both."""
    order = np.argsort(short, kind="stable")
    same = np.flatnonzero(np.diff(short[order].astype(np.int64)) == 0)
    for place in same:
        one, other = keys[order[place]], keys[order[place + 1]]
        if not np.array_equal(one, other):
            raise RunFailure(
                f"two examples of these data have one row id in a store: {one[:16].tobytes().hex()} and "
                f"{other[:16].tobytes().hex()}; train with teacher.source=streaming, or leave one of them out"
            )


def _record(folder: Path, entry: ShardEntry) -> Path:
    return folder / SHARDS / f"{entry.file}.json"


def _write(path: Path, data: bytes) -> None:
    """All of it or nothing, and on the disk when this returns."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise disk_failure(error, path) from error
