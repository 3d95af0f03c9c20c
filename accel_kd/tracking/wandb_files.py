"""Reads the files that wandb leaves on disk: which rows they hold, and what `wandb sync` would stumble over.

wandb writes each attempt at a run into a folder of its own, `wandb/[offline-]run-<start>-<id>/run-<id>.wandb`: seven
bytes of header, then blocks of 32 KiB in the framing of LevelDB's log
(https://github.com/google/leveldb/blob/main/doc/log_format.md), with CRC-32 where LevelDB has CRC-32C. A chunk is
checksum, length, kind, data; a record is one whole chunk or a first, some middle and a last one, and is a `Record` of
wandb's protocol buffers. wandb keeps no module of its own to read them.
"""

from __future__ import annotations

import struct
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

_MAGIC = b":W&B"
_HEADER_BYTES = 7
_BLOCK_BYTES = 32 * 1024
_CHUNK_HEADER = struct.Struct("<IHB")


class _Kind(IntEnum):
    FULL = 1
    FIRST = 2
    MIDDLE = 3
    LAST = 4


_ONE_BYTE = {kind.value: zlib.crc32(bytes([kind])) for kind in _Kind}
"""Where the checksum of a chunk of each kind begins: it covers the kind, then the data."""


@dataclass(frozen=True)
class Part:
    """What one attempt at a run left."""

    file: Path

    @property
    def is_offline(self) -> bool:
        """Whether it waits for `wandb sync`; what the others hold was sent while they ran."""
        return self.file.parent.name.startswith("offline-")

    @property
    def is_synced(self) -> bool:
        """Whether `wandb sync` passes over it."""
        return self._marker.exists()

    def mark_as_synced(self) -> None:
        """Have `wandb sync` pass over it, as it does over what it has sent."""
        self._marker.touch()

    @property
    def _marker(self) -> Path:
        return self.file.with_name(self.file.name + ".synced")


def prove_writable(directory: Path) -> None:
    """Raise `OSError` unless wandb can write here: left to itself, it goes on in the system's temporary folder."""
    own_folder = directory / "wandb"
    own_folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=own_folder):
        pass


def parts_of(directory: Path, run_id: str) -> list[Part]:
    """The parts of one run below `directory`, which is the `dir` that wandb was given, in the order of their starts."""
    files = (directory / "wandb").glob(f"*run-*-{run_id}/run-{run_id}.wandb")
    return [Part(file) for file in sorted(files, key=lambda file: file.parent.name.removeprefix("offline-"))]


def read_records(file: Path) -> Iterator[tuple[Any, int]]:
    """The records of a file (`wandb.proto.wandb_internal_pb2.Record`), each with the offset in bytes at which it ends.

    The first that is not whole ends the reading, without an error, as a killed process leaves one.
    """
    import wandb.proto.wandb_internal_pb2

    protocol: Any = wandb.proto.wandb_internal_pb2  # its classes are made when it is imported
    for encoded, end in _encoded_records(file):
        record = protocol.Record()
        record.ParseFromString(encoded)
        yield record, end


def take_stock(parts: Sequence[Part]) -> list[int]:
    """The index (W&B's `_step`) of each row that the parts hold; offline ones that a killed process left are mended.

    `wandb sync` gives up a whole run over one part that ends within a record, or that holds no run: the end is cut
    off, the empty part marked as synced. Call it when no process writes to them any more. Raises `OSError`.
    """
    indices: list[int] = []
    for part in parts:
        end, holds_run = _HEADER_BYTES, False
        for record, end in read_records(part.file):  # noqa: B007
            if record.HasField("history"):
                indices.append(record.history.step.num)
            holds_run = holds_run or record.HasField("run")
        if not part.is_offline or part.is_synced:
            continue
        if not holds_run:
            part.mark_as_synced()
        elif part.file.stat().st_size > end:
            with part.file.open("r+b") as file:
                file.truncate(end)
    return indices


def _encoded_records(file: Path) -> Iterator[tuple[bytes, int]]:
    pieces: list[bytes] = []
    for kind, data, end in _chunks(file):
        if (kind in (_Kind.FULL, _Kind.FIRST)) == bool(pieces):  # begins within a record, or goes on without one
            return
        pieces.append(data)
        if kind in (_Kind.FULL, _Kind.LAST):
            yield b"".join(pieces), end
            pieces = []


def _chunks(file: Path) -> Iterator[tuple[int, bytes, int]]:
    """Kind, data and end of each chunk, up to the first that is cut off, zeros or damaged."""
    with file.open("rb") as opened:
        block = opened.read(_BLOCK_BYTES)
        if not block.startswith(_MAGIC):
            return
        start_of_block, position = 0, _HEADER_BYTES
        while block:
            while len(block) - position >= _CHUNK_HEADER.size:
                checksum, length, kind = _CHUNK_HEADER.unpack_from(block, position)
                end = position + _CHUNK_HEADER.size + length
                data = block[position + _CHUNK_HEADER.size : end]
                if len(data) < length or kind not in _ONE_BYTE or zlib.crc32(data, _ONE_BYTE[kind]) != checksum:
                    return
                yield kind, data, start_of_block + end
                position = end
            start_of_block, position = start_of_block + len(block), 0
            block = opened.read(_BLOCK_BYTES)
