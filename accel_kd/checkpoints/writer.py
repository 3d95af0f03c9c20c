"""Writes checkpoints so that each is there whole or not at all, and removes them the same way.

start_draft (rank 0) -> write_part (each rank: files, then a record of their checksums) -> publish (rank 0: the
manifest over all parts, then the name). Everything is flushed before the name by which it counts.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from safetensors.torch import save_file
from torch import Tensor

from accel_kd.checkpoints.disk import REMOVED, checksum, delete, discard, disk_failures, refuse_lack_of_space
from accel_kd.checkpoints.manifest import (
    JSON,
    MANIFEST,
    TENSORS,
    FileEntry,
    InvalidCheckpoint,
    Manifest,
    is_checkpoint_name,
    is_content_name,
    json_text,
    manifest_text,
    parse_part,
    part_text,
    record_name,
)
from accel_kd.checkpoints.reader import published, read_folder
from accel_kd.errors import RunFailure
from accel_kd.run_directory import write_atomically
from accel_kd.whole_folder import flush

Content: TypeAlias = Mapping[str, Mapping[str, Tensor] | dict[str, Any]]
"""File name -> tensors on the CPU (`*.safetensors`) or a JSON value of finite numbers, lists and dicts (`*.json`)."""

_DRAFT = ".draft-"
_REPLACED = ".replaced-"
_BYTES_PER_TENSOR = 256
"""What safetensors says about one in the header, at most, beside its name."""
_BYTES_BESIDE = 1 << 16
"""Room for the records and the folder itself."""


def draft_of(root: Path, name: str) -> Path:
    """Where the checkpoint `name` is while it is being written."""
    assert is_checkpoint_name(name), name
    return root / f"{_DRAFT}{name}"


def start_draft(root: Path, name: str) -> None:
    """Makes `root` and an empty draft of `name`; rank 0 alone, before any rank writes. An older draft is removed.

    Raises:
        RunFailure: the disk refuses.
    """
    draft = draft_of(root, name)
    with disk_failures(draft, _BYTES_BESIDE):
        root.mkdir(parents=True, exist_ok=True)
        flush(root.parent)
        discard(draft)
        draft.mkdir()


def write_part(root: Path, name: str, part: str, content: Content) -> None:
    """Writes the files of one part into the draft of `name`, and the record that says so last; any rank.

    A failure removes the whole draft: without this part there will be no checkpoint, and the others need not wait.

    Args:
        root: the folder of the checkpoints.
        name: of the checkpoint.
        part: who writes, as in `rank-00001`; each part has files of its own.
        content: what is written. Tensors that share memory (tied weights) are each written in full.

    Raises:
        RunFailure: the disk is full or refuses; the message has the bytes that are needed and free.
        ValueError, TypeError: a value that JSON does not have.
    """
    draft = draft_of(root, name)
    assert all(is_content_name(file) for file in content), sorted(content)
    num_bytes = _BYTES_BESIDE + sum(_num_bytes(file, value) for file, value in content.items())
    with _draft_or_nothing(draft, num_bytes):
        if not draft.is_dir():
            raise RunFailure(f"{draft} is gone: the writing of another part of it failed, and that message says why")
        refuse_lack_of_space(draft, num_bytes)
        files = {file: _write(draft / file, value) for file, value in content.items()}
        write_atomically(draft / record_name(part), part_text(part, files))
        flush(draft)


def missing_parts(root: Path, name: str, parts: Sequence[str]) -> list[str]:
    """Which of `parts` are not written yet.

    Raises:
        RunFailure: there is no draft (any more).
    """
    draft = draft_of(root, name)
    try:
        # A listing: a network file system may go on saying of a single name that it is not there.
        there = set(os.listdir(draft))
    except OSError as error:
        raise RunFailure(f"{draft} is gone: the writing of a part of it failed, and that message says why") from error
    return [part for part in parts if record_name(part) not in there]


def publish(root: Path, name: str, parts: Sequence[str], state: dict[str, Any]) -> Path:
    """Makes the draft of `name` the checkpoint of that name, in place of an older one; rank 0 alone.

    Args:
        root: the folder of the checkpoints.
        name: of the checkpoint.
        parts: all of them, written.
        state: JSON, kept in the manifest.

    Returns:
        The folder of the checkpoint.

    Raises:
        RunFailure: the disk is full or refuses, a part is missing, or the draft does not hold what its parts say; the
            draft is removed then, and an older checkpoint of that name stays.
    """
    draft, final = draft_of(root, name), root / name
    missing = missing_parts(root, name, parts)
    if missing:
        raise RunFailure(f"{draft} cannot be published: it lacks the part {missing[0]}")
    with _draft_or_nothing(draft, _BYTES_BESIDE):
        try:
            files = _files_of(draft, parts)
            write_atomically(draft / MANIFEST, manifest_text(Manifest(name, state, files)))
            for part in parts:
                (draft / record_name(part)).unlink()
            flush(draft)
            read_folder(draft, name, verify=False)  # what no reader takes must not get a name
        except InvalidCheckpoint as error:
            raise RunFailure(f"{draft} cannot be published: {error}") from error
        _give_name(draft, final)
    return final


def remove_all_but(root: Path, keep: Collection[str]) -> None:
    """Removes the checkpoints in `root` that are not in `keep`; what has not the name of a checkpoint is left alone.

    Raises:
        RunFailure: the disk refuses.
    """
    for name in sorted(set(published(root)) - set(keep)):
        with disk_failures(root / name):
            discard(root / name)


def clean_up(root: Path) -> None:
    """Deletes what a killed process left: drafts, and what it was deleting; call it where nobody writes.

    A checkpoint that was moved away for a new one of its name, which did not come, is moved back.

    Raises:
        RunFailure: the disk refuses.
    """
    if not root.is_dir():
        return
    with disk_failures(root):
        for entry in sorted(root.iterdir()):
            if entry.name.startswith(_REPLACED):
                final = root / entry.name.removeprefix(_REPLACED)
                if os.path.lexists(final):
                    discard(entry)
                elif is_checkpoint_name(final.name):
                    entry.rename(final)
            elif entry.name.startswith(_DRAFT):
                discard(entry)
            elif entry.name.startswith(REMOVED):
                delete(entry)


@contextlib.contextmanager
def _draft_or_nothing(draft: Path, num_bytes: int) -> Iterator[None]:
    """Removes the draft where writing to it fails, in whatever way."""
    try:
        with disk_failures(draft, num_bytes):
            yield
    except BaseException:
        with contextlib.suppress(OSError):  # a disk that takes nothing; the next start cleans up
            discard(draft)
        raise


def _num_bytes(file: str, value: Mapping[str, Any]) -> int:
    """What a file takes on the disk, at most."""
    if file.endswith(JSON):
        return len(json_text(value))
    assert file.endswith(TENSORS), file
    return sum(tensor.nbytes + len(name) + _BYTES_PER_TENSOR for name, tensor in value.items())


def _write(path: Path, value: Mapping[str, Any]) -> FileEntry:
    """Writes one file, and reads back what it weighs: its bytes are on the disk when this returns."""
    if path.name.endswith(JSON):
        write_atomically(path, json_text(value))
    else:
        with path.open("xb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        save_file(_apart(value), path, metadata={"format": "pt"})
        path.chmod(mode)  # safetensors leaves a file that only its owner can read
        flush(path)
    return FileEntry(path.stat().st_size, checksum(path))


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, contiguous, no two of them in the same memory: safetensors refuses those."""
    apart, taken = {}, set()
    for name, tensor in tensors.items():
        assert tensor.device.type == "cpu", f"{name} is on {tensor.device}"
        whole = tensor.detach().contiguous()
        memory = whole.untyped_storage().data_ptr()
        apart[name] = whole.clone() if memory in taken else whole
        taken.add(memory)
    return apart


def _files_of(draft: Path, parts: Sequence[str]) -> dict[str, FileEntry]:
    """What the records of all parts say together."""
    files: dict[str, FileEntry] = {}
    for part in parts:
        written = parse_part((draft / record_name(part)).read_bytes(), part)
        twice = sorted(files.keys() & written.keys())
        assert not twice, f"two parts wrote {twice}"
        files |= written
    return files


def _give_name(draft: Path, final: Path) -> None:
    """Renames the draft; an older checkpoint of its name is back where it was if that fails."""
    replaced = final.with_name(f"{_REPLACED}{final.name}")
    if os.path.lexists(final):
        discard(replaced)
        final.rename(replaced)
    try:
        draft.rename(final)
    except OSError:
        if os.path.lexists(replaced):
            replaced.rename(final)
        raise
    flush(final.parent)
    discard(replaced)
