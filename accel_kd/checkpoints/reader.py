"""Finds checkpoints and reads them: whole, or not at all. Nothing is unpickled, no link is followed."""

from __future__ import annotations

import json
import logging
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from accel_kd.checkpoints.disk import checksum, regular_size
from accel_kd.checkpoints.manifest import (
    MANIFEST,
    FileEntry,
    InvalidCheckpoint,
    is_checkpoint_name,
    parse_manifest,
)
from accel_kd.errors import RunFailure

logger = logging.getLogger(__name__)

_MOST_SEARCHES = 1000
"""How often `newest_valid` begins anew while another process publishes and removes."""


@dataclass(frozen=True)
class Checkpoint:
    """A published checkpoint; `state` is what `publish` was given."""

    path: Path
    name: str
    state: dict[str, Any]
    files: frozenset[str]

    def has(self, file: str) -> bool:
        """Whether it holds a file of that name."""
        return file in self.files

    def tensors(self, file: str) -> dict[str, Tensor]:
        """The tensors of a `.safetensors` file on the CPU, in memory of their own, in no particular order.

        Raises:
            InvalidCheckpoint: it holds no such file, or that cannot be read.
        """
        path = self._path(file)
        try:
            with safe_open(path, framework="pt") as opened:
                # Out of the map: the file may be removed while its tensors are trained on.
                return {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118
        except Exception as error:  # safetensors' own, the system's, and torch's where a shape is absurd
            raise InvalidCheckpoint(f"{path} cannot be read ({type(error).__name__})") from error

    def json(self, file: str) -> Any:
        """The value of a `.json` file.

        Raises:
            InvalidCheckpoint: as `tensors`.
        """
        path = self._path(file)
        try:
            return json.loads(_read(path))
        except (OSError, ValueError, RecursionError) as error:
            raise InvalidCheckpoint(f"{path} cannot be read ({type(error).__name__})") from error

    def _path(self, file: str) -> Path:
        if file not in self.files:
            raise InvalidCheckpoint(f"{self.path} has no {file}")
        return self.path / file


class _ChangedMeanwhile(Exception):
    """Another process has removed or replaced what was being read."""


def _any(checkpoint: Checkpoint) -> None:
    """Every valid checkpoint will do."""


def names(root: Path, prefix: str) -> list[str]:
    """The published checkpoints in `root`, the highest number first; `prefix` is all that stands before the number, as
    in `step-`. A root that is not there has none."""
    found = [name for name in published(root) if name.startswith(prefix) and name[len(prefix) :].isdecimal()]
    return sorted(found, key=lambda name: (int(name[len(prefix) :]), name), reverse=True)


def published(root: Path) -> list[str]:
    """What in `root` has the name of a checkpoint, valid or not."""
    return [name for name in os.listdir(root) if is_checkpoint_name(name)] if root.is_dir() else []


def newest_valid(root: Path, prefix: str, is_usable: Callable[[Checkpoint], None] = _any) -> Checkpoint | None:
    """The checkpoint `<prefix><number>` of the highest number that is valid, every byte of it compared.

    Each one that is passed over gives a warning that names it and why. One that another process removes or replaces
    meanwhile is no fault: the search begins anew then.

    Args:
        root: the folder of the checkpoints.
        prefix: all that stands before the number, as in `step-`.
        is_usable: raises `InvalidCheckpoint` where a valid checkpoint will not do.

    Returns:
        The checkpoint; None where none is valid.
    """
    for _ in range(_MOST_SEARCHES):
        listed = names(root, prefix)
        try:
            found = _first_valid(root, listed, is_usable)
        except _ChangedMeanwhile:
            continue
        # A listing that is taken while names change may lack the old one and the new one.
        if found is not None or names(root, prefix) == listed:
            return found
    raise RunFailure(f"the checkpoints in {root} are replaced faster than they can be read")


def _first_valid(root: Path, listed: list[str], is_usable: Callable[[Checkpoint], None]) -> Checkpoint | None:
    """The first of `listed` that will do, with a warning for each before it."""
    found, reasons = None, []
    for name in listed:
        there = _identity(root / name)
        try:
            found = read_checkpoint(root, name)
            is_usable(found)
            break
        except InvalidCheckpoint as error:
            found = None
            if _identity(root / name) != there or name not in published(root):
                raise _ChangedMeanwhile from error
            reasons.append((name, error))
    for name, reason in reasons:
        logger.warning("checkpoint %s is passed over, and the one before it tried: %s", name, reason)
    return found


def read_checkpoint(root: Path, name: str, *, verify: bool = True) -> Checkpoint:
    """The checkpoint `name` in `root`.

    Args:
        root: the folder of the checkpoints; it may be reached through links, what is in it may not.
        name: as in `step-00000120`.
        verify: compares all bytes with their checksums; without it, sizes and the manifest alone.

    Raises:
        InvalidCheckpoint: it is missing, damaged, incomplete, holds what it should not, or a newer version wrote it.
    """
    path = root / name
    if not is_checkpoint_name(name):
        raise InvalidCheckpoint(f"{path} has not the name of a checkpoint")
    return read_folder(path, name, verify=verify)


def read_folder(path: Path, name: str, *, verify: bool) -> Checkpoint:
    """The checkpoint `name`, which lies in `path`. Raises as `read_checkpoint`."""
    try:
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            raise InvalidCheckpoint("it is no folder")
        if MANIFEST not in os.listdir(path):
            raise InvalidCheckpoint(f"it has no {MANIFEST}")
        if regular_size(path / MANIFEST) is None:
            raise InvalidCheckpoint(f"its {MANIFEST} is no plain file")
        manifest = parse_manifest(_read(path / MANIFEST))
        if manifest.name != name:
            raise InvalidCheckpoint(f"its {MANIFEST} is that of {manifest.name}")
        # Hidden files are what editors and network file systems leave: nothing reads them.
        there = {entry for entry in os.listdir(path) if not entry.startswith(".")}
        unknown = sorted(there - {MANIFEST, *manifest.files})
        if unknown:
            raise InvalidCheckpoint(f"it holds {', '.join(unknown)}, which its {MANIFEST} does not name")
        for file, entry in manifest.files.items():
            _refuse_damage(path / file, entry, missing=file not in there, verify=verify)
    except InvalidCheckpoint as error:
        raise InvalidCheckpoint(f"{path} is not valid: {error}") from error.__cause__
    except OSError as error:
        raise InvalidCheckpoint(f"{path} is not valid: it cannot be read: {error.strerror}") from error
    return Checkpoint(path, name, manifest.state, frozenset(manifest.files))


def _refuse_damage(path: Path, entry: FileEntry, *, missing: bool, verify: bool) -> None:
    if missing:
        raise InvalidCheckpoint(f"its {path.name} is missing")
    size = regular_size(path)
    if size is None:
        raise InvalidCheckpoint(f"its {path.name} is no plain file")
    if size != entry.num_bytes:
        raise InvalidCheckpoint(f"its {path.name} has {size:,} bytes instead of {entry.num_bytes:,}")
    if verify and checksum(path) != entry.xxh3_128:
        raise InvalidCheckpoint(f"the bytes of its {path.name} have changed since it was written")


def _read(path: Path) -> bytes:
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
        return file.read()


def _identity(path: Path) -> tuple[int, int] | None:
    """Which folder it is that has this name now; a number alone is soon given to another one."""
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns
