"""The W&B id of a run, in a file before W&B hears of it, so that what an aborted run left can be found there."""

from __future__ import annotations

import re
import secrets
from pathlib import Path

from accel_kd.errors import UserError
from accel_kd.run_directory import write_atomically


def load_or_create_run_id(path: Path) -> str:
    """The id in the file; where there is no file, a new id, which is in the file before this returns.

    Raises `UserError` if the file holds no id, `OSError` if it cannot be read or written.
    """
    try:
        run_id = path.read_text(errors="replace").strip()
    except FileNotFoundError:
        return _create(path)
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", run_id):
        raise UserError(f"{path} holds no W&B run id. Delete it to go on in a new W&B run.")
    return run_id


def _create(path: Path) -> str:
    # Not from `random`: seeded, it would give every run the same id, and drawing from it would change the training.
    run_id = secrets.token_hex(8)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, run_id + "\n")
    return run_id
