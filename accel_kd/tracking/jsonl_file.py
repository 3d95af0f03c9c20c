"""The lines of a metrics file: whole ones only, and no more rows of an earlier attempt than still hold."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from accel_kd.errors import UserError
from accel_kd.run_directory import write_atomically

# As `JsonlTracker` writes them: told apart without parsing, for a file may hold a million.
_ROW = b'{"step":'
_OF_ATTEMPTS = (b'{"run":', b'{"status":')


def lines_of(path: Path) -> Iterator[dict[str, Any]]:
    """Each line as an object; a torn last line is passed over.

    Raises `FileNotFoundError`, and `UserError` for a line inside the file that is not JSON.
    """
    *lines, torn = path.read_bytes().split(b"\n")
    if _is_complete(torn):
        lines.append(torn)
    for number, line in enumerate(lines, start=1):
        try:
            value = json.loads(line)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise UserError(f"{path}: line {number} is not a JSON object: the file is damaged; delete that line.")
        yield value


def first_rows(path: Path, num_rows: int) -> Iterator[dict[str, Any]]:
    """The first `num_rows` rows, or as many as there are, each as it was logged: two of one step are two.

    Raises `FileNotFoundError`, and `ValueError` for a row that is not JSON.
    """
    with path.open("rb") as file:
        rows = (json.loads(line) for line in file if line.startswith(_ROW))
        yield from itertools.islice(rows, num_rows)


def starts_of(path: Path) -> list[dict[str, Any]]:
    """What each attempt at the run said when it began, in their order; empty where there is no file."""
    starts = []
    with contextlib.suppress(OSError), path.open("rb") as file:
        for line in file:
            if line.startswith(_OF_ATTEMPTS[0]) and _is_complete(line):
                starts.append(json.loads(line)["run"])
    return starts


def keep_rows(path: Path, num_rows: int) -> int:
    """Cut the file after its row number `num_rows`; returns how many rows it holds then, fewer if it had fewer.

    Of what follows that row only the lines that tell of earlier attempts stay: summaries and tables come again, as
    the rows do. A process that is killed in between leaves the file cut or uncut, and whole. Raises `OSError`.
    """
    if not path.exists():
        return 0
    _mend_torn_end(path)
    num_kept = size_kept = size = 0
    of_attempts: list[bytes] = []
    is_cut = False
    with path.open("rb") as file:
        for line in file:
            size += len(line)
            if num_kept < num_rows and line.startswith(_ROW):
                num_kept, size_kept, of_attempts, is_cut = num_kept + 1, size, [], False
            elif line.startswith(_OF_ATTEMPTS):
                of_attempts.append(line)
            else:
                is_cut = True
        if is_cut:
            file.seek(0)
            kept = file.read(size_kept) + b"".join(of_attempts)
            write_atomically(path, kept.decode(errors="replace"))
    return num_kept


def _mend_torn_end(path: Path) -> None:
    """Make the file end with a whole line: appended to a torn one, the next line would be lost as well."""
    content = path.read_bytes()
    torn = content[content.rfind(b"\n") + 1 :]
    if not torn:
        return
    with path.open("r+b") as file:
        if _is_complete(torn):
            file.seek(0, os.SEEK_END)
            file.write(b"\n")
        else:
            file.truncate(len(content) - len(torn))


def _is_complete(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False
