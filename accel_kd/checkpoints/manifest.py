"""What a checkpoint says about itself: its name, its state, its files with their checksums.

A record is one line of JSON with an xxh3-128 of itself, and its bytes must be exactly what this module writes: any
changed byte is noticed, white space too. The checksum finds damage; it proves nothing about who wrote the checkpoint.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import xxhash

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
TENSORS = ".safetensors"
JSON = ".json"

_MANIFEST_FORMAT = "accel_kd checkpoint"
_PART_FORMAT = "accel_kd part of a checkpoint"
_CHECKSUM = re.compile("[0-9a-f]{32}")
_CHECKPOINT_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*-[0-9]{1,18}")
# No leading dot: what editors and network file systems leave beside the files is hidden, and no content may be.
_FILE_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")
_PART_RECORD = re.compile(r"part-[A-Za-z0-9_-]+\.json")


class InvalidCheckpoint(ValueError):
    """A checkpoint that is damaged, incomplete, of another format, or not what its reader can use; says which."""


@dataclass(frozen=True)
class FileEntry:
    """One file: its size and the xxh3-128 of its bytes, in hex."""

    num_bytes: int
    xxh3_128: str


@dataclass(frozen=True)
class Manifest:
    """A whole checkpoint."""

    name: str
    state: dict[str, Any]
    files: dict[str, FileEntry]


def is_checkpoint_name(name: str) -> bool:
    """Whether `name` is a prefix, a dash and a number, as in `step-00000120`."""
    return _CHECKPOINT_NAME.fullmatch(name) is not None


def is_content_name(name: str) -> bool:
    """Whether a checkpoint may hold a file of that name: a plain one, of tensors or JSON, and none of the records."""
    plain = _FILE_NAME.fullmatch(name) is not None and name.endswith((TENSORS, JSON))
    return plain and name != MANIFEST and not _PART_RECORD.fullmatch(name)


def record_name(part: str) -> str:
    """The file that says that a part is written."""
    name = f"part-{part}.json"
    assert _PART_RECORD.fullmatch(name), part
    return name


def manifest_text(manifest: Manifest) -> str:
    """The manifest as it lies on the disk."""
    content = {"name": manifest.name, "state": manifest.state, "files": _plain(manifest.files)}
    return _sealed({"format": _MANIFEST_FORMAT, "version": FORMAT_VERSION, **content})


def parse_manifest(data: bytes) -> Manifest:
    """What `manifest_text` was given.

    Raises:
        InvalidCheckpoint: a byte has changed since, another version wrote it, or it names what no checkpoint may hold.
    """
    content = _unsealed(data, MANIFEST, _MANIFEST_FORMAT)
    name, state = content.get("name"), content.get("state")
    if not isinstance(name, str) or not isinstance(state, dict):
        raise InvalidCheckpoint(f"its {MANIFEST} has no name or no state")
    return Manifest(name, state, _entries(content.get("files"), MANIFEST))


def part_text(part: str, files: Mapping[str, FileEntry]) -> str:
    """The record of a part as it lies on the disk."""
    return _sealed({"format": _PART_FORMAT, "version": FORMAT_VERSION, "part": part, "files": _plain(files)})


def parse_part(data: bytes, part: str) -> dict[str, FileEntry]:
    """The files of a part.

    Raises:
        InvalidCheckpoint: as `parse_manifest`, or it is the record of another part.
    """
    content = _unsealed(data, record_name(part), _PART_FORMAT)
    if content.get("part") != part:
        raise InvalidCheckpoint(f"its {record_name(part)} is of the part {content.get('part')!r}")
    return _entries(content.get("files"), record_name(part))


def json_text(value: Any) -> str:
    """`value` as one line of strict JSON that reads back as an equal value, but for tuples, which become lists.

    Raises:
        ValueError: a number that is not finite.
        TypeError: something that JSON does not have.
    """
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    assert json.loads(text) == _with_lists(value), "a key that is no string would come back as one"
    return text


def _with_lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_lists(member) for key, member in value.items()}
    return [_with_lists(member) for member in value] if isinstance(value, list | tuple) else value


def _plain(files: Mapping[str, FileEntry]) -> dict[str, dict[str, Any]]:
    return {name: {"bytes": files[name].num_bytes, "xxh3_128": files[name].xxh3_128} for name in sorted(files)}


def _entries(files: Any, record: str) -> dict[str, FileEntry]:
    if not isinstance(files, dict):
        raise InvalidCheckpoint(f"its {record} lists no files")
    for name, entry in files.items():
        if not is_content_name(name):
            raise InvalidCheckpoint(f"its {record} names {name!r}, which no checkpoint may hold")
        size, checksum = (entry.get("bytes"), entry.get("xxh3_128")) if isinstance(entry, dict) else (None, None)
        is_size = isinstance(size, int) and not isinstance(size, bool) and size >= 0
        if not is_size or not isinstance(checksum, str) or not _CHECKSUM.fullmatch(checksum):
            raise InvalidCheckpoint(f"its {record} has no size or no checksum of {name}")
    return {name: FileEntry(entry["bytes"], entry["xxh3_128"]) for name, entry in files.items()}


def _sealed(content: dict[str, Any]) -> str:
    return json_text({**content, "checksum": _checksum(content)}) + "\n"


def _unsealed(data: bytes, record: str, format_name: str) -> dict[str, Any]:
    """What `_sealed` was given, of this format and version."""
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidCheckpoint(f"its {record} is damaged") from error
    if not isinstance(content, dict) or content.get("format") != format_name:
        raise InvalidCheckpoint(f"its {record} is damaged, or something else")
    version = content.get("version")
    if isinstance(version, int) and version > FORMAT_VERSION:  # which may seal in another way
        raise InvalidCheckpoint(
            f"it was written in format {version} by a newer accel_kd, and this one reads format {FORMAT_VERSION}"
        )
    checksum = content.pop("checksum", None)
    try:
        whole = version == FORMAT_VERSION and checksum == _checksum(content) and data == _sealed(content).encode()
    except (ValueError, RecursionError) as error:  # a number that is not finite: nothing of ours writes one
        raise InvalidCheckpoint(f"its {record} is damaged") from error
    if not whole:
        raise InvalidCheckpoint(f"its {record} has changed since it was written")
    return content


def _checksum(content: dict[str, Any]) -> str:
    return xxhash.xxh3_128(json_text(content).encode()).hexdigest()
