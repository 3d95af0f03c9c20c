"""What a store says about itself: its identity, its shards with their checksums, its receipt. Written last.

A record is one line of JSON in canonical form with a SHA-256 of itself: any changed byte is noticed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accel_kd.errors import UserError

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
SHARDS = "shards"
QUARANTINE = "quarantine"


@dataclass(frozen=True)
class ShardEntry:
    """One shard: `sha256` and `xxh3` of the file, `keys_sha256` of its rows' whole keys in rising order."""

    file: str
    num_rows: int
    num_positions: int
    num_bytes: int
    sha256: str
    xxh3: str
    keys_sha256: str
    num_labelled: int
    num_correct: int
    """Of the labelled rows those whose label is the argmax of the stored logits."""
    fidelity: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Manifest:
    """A whole store."""

    fingerprint: str
    identity: dict[str, Any]
    num_classes: int
    low_bytes: int
    shards: tuple[ShardEntry, ...]
    receipt: dict[str, Any] = field(default_factory=dict)
    made_with: dict[str, Any] = field(default_factory=dict)

    @property
    def num_rows(self) -> int:
        """Rows of all shards."""
        return sum(shard.num_rows for shard in self.shards)

    @property
    def num_bytes(self) -> int:
        """Bytes of all shards."""
        return sum(shard.num_bytes for shard in self.shards)


def fingerprint_of(identity: dict[str, Any]) -> str:
    """SHA-256, in hex, of an identity in canonical form."""
    return hashlib.sha256(_canonical(identity)).hexdigest()


def differences(there: Any, here: Any, prefix: str = "") -> list[str]:
    """What differs between two identities, as `part.of.it: old value there, new value here`."""
    if isinstance(there, dict) and isinstance(here, dict):
        found = []
        for key in sorted({*there, *here}):
            found += differences(there.get(key), here.get(key), f"{prefix}.{key}" if prefix else key)
        return found
    if isinstance(there, list) and isinstance(here, list) and len(there) == len(here):
        unlike = [number for number, (old, new) in enumerate(zip(there, here, strict=True)) if old != new]
        if not unlike:
            return []
        first, more = unlike[0], f" ({len(unlike)} entries differ)" if len(unlike) > 1 else ""
        return [f"{prefix}[{first}]: {_short(there[first])} there, {_short(here[first])} here{more}"]
    return [] if there == here else [f"{prefix}: {_short(there)} there, {_short(here)} here"]


def manifest_bytes(manifest: Manifest) -> bytes:
    """The manifest as it lies on the disk."""
    content = {"format": "accel_kd logit store", "version": FORMAT_VERSION, **dataclasses.asdict(manifest)}
    return sealed(content)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of the store in `folder`.

    Raises:
        NewerFormat: a newer version wrote it.
        UserError: there is none, or it is damaged.
    """
    path = folder / MANIFEST
    if not path.is_file():
        unfinished = " (its writing was not finished)" if (folder / SHARDS).is_dir() else ""
        raise UserError(f"teacher.store.path: {folder} holds no store{unfinished}: it has no {MANIFEST}")
    content = unsealed(path.read_bytes(), path)
    version = content.get("version")
    if content.get("format") != "accel_kd logit store" or not isinstance(version, int):
        raise UserError(f"teacher.store.path: {path} is not the manifest of a logit store")
    if version > FORMAT_VERSION:
        raise NewerFormat(
            f"teacher.store.path: {folder} was written in format {version} by a newer accel_kd; this one reads format "
            f"{FORMAT_VERSION}: upgrade it, or let it write a store of its own in another folder"
        )
    fields = {name: value for name, value in content.items() if name not in {"format", "version", "shards"}}
    shards = tuple(ShardEntry(**shard) for shard in content["shards"])
    for shard in shards:
        if Path(shard.file).name != shard.file:
            raise UserError(f"teacher.store.path: {path} names the shard {shard.file!r}, which is no plain file name")
    manifest = Manifest(shards=shards, **fields)
    if manifest.fingerprint != fingerprint_of(manifest.identity):
        raise UserError(f"teacher.store.path: the identity in {path} is not the one of its fingerprint")
    return manifest


class NewerFormat(UserError):
    """A newer version of the program wrote it."""


def sealed(content: dict[str, Any]) -> bytes:
    """`content` as one line of JSON with its checksum."""
    return _canonical({**content, "checksum": hashlib.sha256(_canonical(content)).hexdigest()}) + b"\n"


def unsealed(data: bytes, path: Path) -> dict[str, Any]:
    """What `sealed` was given.

    Raises:
        UserError: a byte has changed since.
    """
    damaged = (
        f"teacher.store.path: {path} is damaged, and nothing else says what the shards are; `accel-kd store verify "
        f"{path.parent} --repair` sets all of it aside, and the next build computes it again"
    )
    try:
        content = json.loads(data)
    except ValueError as error:
        raise UserError(damaged) from error
    if not isinstance(content, dict):
        raise UserError(damaged)
    version = content.get("version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        return content  # a newer version may seal in another way; the caller refuses it
    checksum = content.pop("checksum", None)
    if data != _canonical({**content, "checksum": checksum}) + b"\n":
        raise UserError(damaged)
    if checksum != hashlib.sha256(_canonical(content)).hexdigest():
        raise UserError(damaged)
    return content


def _canonical(content: dict[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:16]}…"
