"""One file of a store: rows sorted by key, as safetensors, written whole or not at all, checked and mapped."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import socket
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from accel_kd.errors import RunFailure, UserError
from accel_kd.logit_store.keys import CodedKeys, Keys, digest_of, short_keys
from accel_kd.logit_store.manifest import SHARDS, ShardEntry
from accel_kd.whole_folder import flush

_BLOCK = 1 << 22
_OWN = {"keys_upper", "keys_lower", "labelled", "correct", "offsets"}
"""Names of a shard's tensors that are not the encoding's."""


@dataclass(frozen=True)
class ShardRows:
    """Rows to be written: whole keys `[n, 32]`, encoded tensors `[positions, width]` in the order of the rows, how many
    positions each row has `[n]`, and whether each row has a label and whether that is the teacher's argmax `[n]`."""

    keys: Keys
    tensors: Mapping[str, Tensor]
    num_positions: NDArray[np.int64]
    labelled: NDArray[np.bool_]
    correct: NDArray[np.bool_]


class Shard:
    """A shard as it lies on the disk, mapped into memory: pages that several ranks read are there once."""

    def __init__(self, folder: Path, entry: ShardEntry) -> None:
        """Raises `UserError` where the file cannot be read as what `entry` says."""
        self.entry = entry
        path = folder / SHARDS / entry.file
        try:
            with safe_open(path, framework="pt") as file:
                names = file.keys()
                tensors = {name: file.get_tensor(name) for name in names}
        except Exception as error:  # safetensors' own, and the system's
            raise _damaged(folder, entry, f"it cannot be read ({type(error).__name__})") from error
        self.tensors = {name: tensor for name, tensor in tensors.items() if name not in _OWN}
        self.short_keys = CodedKeys(tensors["keys_upper"].numpy(), tensors["keys_lower"].numpy()).decoded()
        # All rows have a label unless it says otherwise.
        everywhere = np.ones(entry.num_rows, dtype=np.bool_)
        self.labelled = _unpack(tensors["labelled"], entry.num_rows) if "labelled" in tensors else everywhere
        self.correct = _unpack(tensors["correct"], entry.num_rows)
        offsets = tensors.get("offsets")
        self.offsets: NDArray[np.int64] | None = None if offsets is None else offsets.numpy()

    def positions(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The positions of `rows` `[n]`, one row after the other."""
        if self.offsets is None:
            return rows
        return np.concatenate([np.arange(self.offsets[row], self.offsets[row + 1]) for row in rows])

    def take(self, rows: NDArray[np.int64]) -> dict[str, Tensor]:
        """The encoded tensors at the positions of `rows`, copied out of the map."""
        index = torch.from_numpy(self.positions(rows))
        return {name: tensor.index_select(0, index) for name, tensor in self.tensors.items()}


def write_shard(folder: Path, rows: ShardRows, low_bytes: int) -> ShardEntry:
    """Writes `rows` as one file of the store in `folder`, under a name that says what rows it has.

    The file appears under its name when it is whole and on the disk.

    Raises:
        RunFailure: the disk is full, or refuses the file; nothing of it is left then.
    """
    keys_sha256 = digest_of(rows.keys)
    name = f"{keys_sha256[:16]}.safetensors"
    target = folder / SHARDS / name
    temporary = target.with_name(f".{name}.{socket.gethostname()}.{os.getpid()}.{uuid.uuid4().hex[:8]}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        save_file(_tensors(rows, low_bytes), temporary)
        temporary.chmod(0o666 & ~_umask())  # safetensors leaves a file that only its owner can read
        flush(temporary)
        sha256, xxh3, num_bytes = checksums(temporary)
        temporary.replace(target)
        flush(target.parent)
    except Exception as error:  # safetensors wraps the system's errors in its own
        temporary.unlink(missing_ok=True)
        raise disk_failure(error, target) from error
    return ShardEntry(
        file=name,
        num_rows=len(rows.keys),
        num_positions=int(rows.num_positions.sum()),
        num_bytes=num_bytes,
        sha256=sha256,
        xxh3=xxh3,
        keys_sha256=keys_sha256,
        num_labelled=int(rows.labelled.sum()),
        num_correct=int(rows.correct.sum()),
    )


def checksums(path: Path) -> tuple[str, str, int]:
    """SHA-256 and xxh3-128 of a file, in hex, and its size."""
    sha256, xxh3, size = hashlib.sha256(), xxhash.xxh3_128(), 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            sha256.update(block)
            xxh3.update(block)
            size += len(block)
    return sha256.hexdigest(), xxh3.hexdigest(), size


def refuse_damage(folder: Path, entry: ShardEntry, *, full: bool) -> None:
    """Compares a shard with its entry: its size and xxh3, with `full` SHA-256 too.

    Raises:
        UserError: it is missing, of another size, or has other bytes; the message has the command that mends it.
    """
    path = folder / SHARDS / entry.file
    if not path.is_file():
        raise _damaged(folder, entry, "it is missing")
    size = path.stat().st_size
    if size != entry.num_bytes:
        raise _damaged(folder, entry, f"it has {size:,} bytes instead of {entry.num_bytes:,}")
    if full:
        sha256, xxh3, _ = checksums(path)
        if (sha256, xxh3) != (entry.sha256, entry.xxh3):
            raise _damaged(folder, entry, "its bytes have changed since it was written")
        return
    xxh3_alone = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            xxh3_alone.update(block)
    if xxh3_alone.hexdigest() != entry.xxh3:
        raise _damaged(folder, entry, "its bytes have changed since it was written")


def disk_failure(error: Exception, path: Path) -> RunFailure | UserError:
    """What to tell a user whom the disk refused a file."""
    number = error.errno if isinstance(error, OSError) else None
    full = (
        number in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
        or re.search(r"os error (28|122|27)\b|code: (28|122|27)\b", str(error)) is not None
    )
    if full:
        return RunFailure(
            f"the disk is full: {path} could not be written; every shard that was finished is kept, free some space "
            "and give the same command again"
        )
    why = os.strerror(number) if number is not None else str(error)
    return UserError(f"teacher.store.path: {path} cannot be written: {why}")


def _tensors(rows: ShardRows, low_bytes: int) -> dict[str, Tensor]:
    """The tensors of a shard, its rows in the order of their short keys."""
    short = short_keys(rows.keys, low_bytes)
    order = np.argsort(short)
    coded = CodedKeys.of(short[order], low_bytes)
    tensors = {
        "keys_upper": torch.from_numpy(coded.upper),
        "keys_lower": torch.from_numpy(coded.lower),
        "correct": torch.from_numpy(np.packbits(rows.correct[order])),
    }
    if not rows.labelled.all():
        tensors["labelled"] = torch.from_numpy(np.packbits(rows.labelled[order]))
    if (rows.num_positions == 1).all():
        positions = order
    else:
        starts = np.cumsum(rows.num_positions) - rows.num_positions
        positions = np.concatenate([np.arange(starts[row], starts[row] + rows.num_positions[row]) for row in order])
        offsets = np.concatenate([[0], np.cumsum(rows.num_positions[order])])
        tensors["offsets"] = torch.from_numpy(offsets.astype(np.int64))
    index = torch.from_numpy(positions.astype(np.int64))
    return tensors | {name: tensor.index_select(0, index).contiguous() for name, tensor in rows.tensors.items()}


def _umask() -> int:
    mask = os.umask(0)  # there is no other way to ask for it
    os.umask(mask)
    return mask


def _unpack(bits: Tensor, count: int) -> NDArray[np.bool_]:
    return np.unpackbits(bits.numpy(), count=count).astype(np.bool_)


def _damaged(folder: Path, entry: ShardEntry, how: str) -> UserError:
    return UserError(
        f"teacher.store.path: the shard {folder / SHARDS / entry.file} is damaged: {how}; `accel-kd store verify "
        f"{folder} --repair` sets it aside, and the next build computes its {entry.num_rows:,} rows again"
    )
