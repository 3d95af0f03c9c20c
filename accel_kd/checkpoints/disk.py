"""What a disk does with files: it has room or not, flushes them, refuses them, hides them before they are deleted."""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import xxhash
from safetensors import SafetensorError

from accel_kd.errors import RunFailure

logger = logging.getLogger(__name__)

REMOVED = ".removed-"
"""What the names of things begin with that are being deleted."""

_BLOCK = 1 << 22
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_SYSTEM_ERROR = re.compile(r"\(os error (\d+)\)|code: (\d+)\b")


def checksum(path: Path) -> str:
    """The xxh3-128 of a file's bytes, in hex; a link is not followed."""
    digest = xxhash.xxh3_128()
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def regular_size(path: Path) -> int | None:
    """The bytes of a plain file; None for anything else: a link, a folder, a pipe."""
    status = os.lstat(path)
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def refuse_lack_of_space(path: Path, num_bytes: int) -> None:
    """Raises `RunFailure`, with the numbers, where the disk of `path` has no room for `num_bytes` more."""
    status = os.statvfs(path)
    free = status.f_bavail * status.f_frsize
    if free < num_bytes:
        raise _full(path, num_bytes, free)


@contextmanager
def disk_failures(path: Path, num_bytes: int = 0) -> Iterator[None]:
    """Turns what the system says against writing `num_bytes` to `path` into a `RunFailure` of one line."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        number = _error_number(error)
        if number is None:
            raise
        if number in _FULL:
            raise _full(path, num_bytes, _free(path)) from error
        raise RunFailure(
            f"{path} cannot be written: {os.strerror(number)}; the checkpoints before it are as they were"
        ) from error


def discard(path: Path) -> None:
    """Hides what is at `path`, at once and whole, then deletes it; links in it are not followed.

    What cannot be deleted once it is hidden is named in a warning: no reader takes it for a checkpoint.

    Raises:
        OSError: it cannot be hidden.
    """
    if not os.path.lexists(path):
        return
    hidden = path.with_name(f"{REMOVED}{path.name.lstrip('.')}-{uuid.uuid4().hex[:8]}")
    path.rename(hidden)
    delete(hidden)


def delete(path: Path) -> None:
    """Deletes a file, a link or a folder; a failure is a warning."""
    try:
        if stat.S_ISDIR(os.lstat(path).st_mode):
            shutil.rmtree(path)
        else:
            path.unlink()
    except OSError as error:
        logger.warning("%s is of no use any more and cannot be deleted: %s", path, error.strerror)


def _free(path: Path) -> int:
    """Bytes left where `path` is, or where it would be."""
    while not path.exists():
        path = path.parent
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize


def _full(path: Path, num_bytes: int, free: int) -> RunFailure:
    room = f" needs {num_bytes:,} bytes, and there are {free:,} left" if num_bytes else f" has {free:,} bytes left"
    return RunFailure(
        f"the disk is full: {path}{room} for it (a quota may leave "
        "less); the checkpoints before it are as they were: free some space and give the same command again"
    )


def _error_number(error: Exception) -> int | None:
    """What the system said; safetensors wraps it in an error of its own, which only its text has."""
    if isinstance(error, OSError):
        return error.errno
    found = _SYSTEM_ERROR.search(str(error))
    return int(found[1] or found[2]) if found else None
