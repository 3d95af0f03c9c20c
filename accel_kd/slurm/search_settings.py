"""The settings file of a search: one task a line, read here as the batch script reads it."""

from __future__ import annotations

import shlex
from pathlib import Path

from accel_kd.errors import UserError


def read_search_settings(path: Path) -> list[tuple[str, list[str]]]:
    """What `path` holds for each task: how the line is called in messages, and its settings as `dotted.key=value`.

    Lines that are empty or begin with `#` are not counted. Words with blanks in them stand in quotes, either kind.

    Raises:
        UserError: the file cannot be read, holds no task, or a line that the batch script would take apart otherwise.
    """
    try:
        text = path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--array: {str(path)!r} cannot be read as text: {error}") from error
    tasks = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip(" \t") or line.lstrip(" \t").startswith("#"):
            continue
        tasks.append((f"{path} line {number}", _settings_of(line, f"{path} line {number}")))
    if not tasks:
        raise UserError(f"--array: {str(path)!r} holds no line with settings")
    return tasks


def _settings_of(line: str, place: str) -> list[str]:
    # In the batch script xargs does this, for which a backslash means something else within quotes than for a shell.
    for character, name in (
        ("\\", "a backslash"),
        ("\r", "a carriage return (a line ending of Windows)"),
        ("\0", "NUL"),
    ):
        if character in line:
            raise UserError(f"--array: {place} holds {name}, which the batch script cannot read; write it without")
    try:
        settings = shlex.split(line)
    except ValueError as error:
        raise UserError(f"--array: {place} has a quote that is not closed: {line.strip()}") from error
    for setting in settings:
        if setting.startswith("run.directory="):
            raise UserError(f"--array: {place} sets run.directory, which each task has as its own; leave it out")
    return settings
