"""A folder that appears whole or not at all, and replaces an earlier one only once it is complete."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """An empty folder to write into, which becomes `folder` where the block ends without an exception; else it goes,
    and what was at `folder` before stays."""
    temporary = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    former = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(former, ignore_errors=True)
    if folder.exists():
        folder.rename(former)
    # On the disk before its name says that it is whole, and before anybody deletes what it was made from.
    for path in sorted(temporary.rglob("*"), reverse=True):
        flush(path)
    flush(temporary)
    temporary.rename(folder)
    flush(folder.parent)
    shutil.rmtree(former, ignore_errors=True)


def flush(path: Path) -> None:
    """Returns when a file's bytes, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
