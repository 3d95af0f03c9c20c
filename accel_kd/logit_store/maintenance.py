"""Looks after stores: what is there, whether it is whole, setting aside what is not, deleting leftovers."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from accel_kd.errors import UserError
from accel_kd.logit_store.catalogue import stores_in
from accel_kd.logit_store.manifest import (
    MANIFEST,
    QUARANTINE,
    SHARDS,
    Manifest,
    NewerFormat,
    ShardEntry,
    read_manifest,
)
from accel_kd.logit_store.receipt import receipt_of
from accel_kd.logit_store.shard import refuse_damage
from accel_kd.logit_store.writer import StoreDescription, WriterLock, seal, set_aside

_DAY = 86_400.0


@dataclass(frozen=True)
class Verdict:
    """What a full look at a store found: the shards that are whole, and what is wrong with the others."""

    manifest: Manifest | None
    whole: tuple[ShardEntry, ...]
    faults: tuple[str, ...]


def verify(folder: Path) -> Verdict:
    """Reads every byte of the store in `folder` and compares SHA-256 and xxh3 with its manifest.

    Raises:
        UserError: there is no store, or a newer version wrote it.
    """
    try:
        manifest = read_manifest(folder)
    except NewerFormat:
        raise
    except UserError as error:
        if not (folder / MANIFEST).is_file():
            raise
        return Verdict(None, (), (str(error),))
    whole, faults = [], []
    for entry in manifest.shards:
        try:
            refuse_damage(folder, entry, full=True)
            whole.append(entry)
        except UserError as error:
            faults.append(str(error))
    return Verdict(manifest, tuple(whole), tuple(faults))


def repair(folder: Path, verdict: Verdict) -> str:
    """Sets aside what `verify` found damaged, so that the next build computes those rows, and those alone, again.

    A damaged manifest is set aside with all shards: nothing else says what they are.

    Returns:
        What was done.

    Raises:
        UserError: a job writes to the store just now, or the folder cannot be written.
    """
    lock = WriterLock(folder)
    if not lock.acquire():
        raise UserError(f"teacher.store.path: a job writes to {folder}; repair it when that is done")
    try:
        if verdict.manifest is None:
            return _set_all_aside(folder)
        good = {entry.file for entry in verdict.whole}
        damaged = [entry for entry in verdict.manifest.shards if entry.file not in good]
        manifest = verdict.manifest
        for entry in damaged:
            set_aside(folder, entry.file)
        description = StoreDescription(
            folder, manifest.fingerprint, manifest.identity, manifest.num_classes, manifest.low_bytes
        )
        seal(description, verdict.whole, receipt_of(verdict.whole), manifest.made_with)
        num_rows = sum(entry.num_rows for entry in damaged)
        return (
            f"{len(damaged)} damaged shards set aside in {folder / QUARANTINE}; the next build computes their "
            f"{num_rows:,} rows again"
        )
    finally:
        lock.release()


def listing(root: Path) -> list[tuple[Path, Manifest | str]]:
    """The stores of `root`, each with its manifest or with what is wrong with that."""
    found: list[tuple[Path, Manifest | str]] = []
    for folder in stores_in(root):
        try:
            found.append((folder, read_manifest(folder)))
        except UserError as error:
            found.append((folder, str(error)))
    return found


def prune(root: Path, older_than_days: float | None, *, delete: bool) -> list[tuple[Path, int]]:
    """Leftovers of the stores in `root`: quarantined shards, those of writers that were killed, and, where
    `older_than_days` is given, whole stores that nothing was read from or written to for as long.

    A store that a job writes to is left alone.

    Returns:
        What is superfluous, with its bytes; deleted already where `delete` says so.
    """
    superfluous: list[tuple[Path, int]] = []
    for folder in stores_in(root):
        lock = WriterLock(folder)
        if not lock.acquire():
            continue
        try:
            if older_than_days is not None and _last_use(folder) < time.time() - older_than_days * _DAY:
                leftovers: Sequence[Path] = [folder]
            else:
                leftovers = _leftovers(folder)
            superfluous += [(path, _size(path)) for path in leftovers]
            for path in leftovers if delete else ():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        finally:
            lock.release()
    return superfluous


def _leftovers(folder: Path) -> list[Path]:
    quarantine = [folder / QUARANTINE] if (folder / QUARANTINE).is_dir() else []
    if not (folder / MANIFEST).is_file():
        return quarantine  # the beginning of a store: the next build goes on with it
    try:
        named = {entry.file for entry in read_manifest(folder).shards}
    except UserError:
        return quarantine
    records = {path.name.removesuffix(".json") for path in (folder / SHARDS).glob("*.json")}
    strays = [path for path in (folder / SHARDS).glob("*.safetensors") if path.name not in named | records]
    return quarantine + sorted(strays) + sorted((folder / SHARDS).glob(".*"))


def _last_use(folder: Path) -> float:
    files = [path.stat() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return max((max(stat.st_mtime, stat.st_atime) for stat in files), default=0.0)


def _size(path: Path) -> int:
    return (
        sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) if path.is_dir() else path.stat().st_size
    )


def _set_all_aside(folder: Path) -> str:
    (folder / QUARANTINE).mkdir(exist_ok=True)
    (folder / MANIFEST).replace(folder / QUARANTINE / MANIFEST)
    shards = sorted((folder / SHARDS).glob("*.safetensors"))
    for shard in shards:
        set_aside(folder, shard.name)
    return (
        f"the manifest is damaged, and nothing else says what the {len(shards)} shards are: all set aside in "
        f"{folder / QUARANTINE}; the next build computes them again"
    )
