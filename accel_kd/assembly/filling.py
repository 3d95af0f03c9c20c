"""What filling the store of its teacher's logits cost a run, over all its attempts."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from accel_kd.assembly.session import Session
from accel_kd.run_directory import RunDirectory

logger = logging.getLogger(__name__)


class Filling:
    """One attempt at it."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.began_to_compute: float | None = None
        self.num_rows = 0
        """Rows that all ranks have written."""

    def teacher_is_ready(self) -> None:
        """From here on rows are computed and written, and nothing else."""
        self.began_to_compute = time.perf_counter()


@contextlib.contextmanager
def measured_filling(session: Session) -> Iterator[Filling]:
    """Appends what the attempt cost to the run's own file, also where it is stopped or fails; on rank 0."""
    filling = Filling()
    try:
        yield filling
    finally:
        now = time.perf_counter()
        computing = None if filling.began_to_compute is None else now - filling.began_to_compute
        line = {
            "num_rows": filling.num_rows,
            "seconds": now - filling.began,
            "computing_seconds": computing,
            "world_size": session.accelerator.num_processes,
        }
        if session.accelerator.is_main_process:
            _append(session.directory.fillings, line)


def _append(path: Path, line: dict[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
    except OSError as error:  # a full disk must not hide what the run itself has to say
        logger.warning("%s cannot be written: %s", path, error.strerror)


def cost_of_filling(directory: RunDirectory) -> dict[str, Any]:
    """`perf/rows_filled`, `perf/seconds`, `perf/device_hours` and `perf/rows_per_second` (once the teacher was loaded)
    of all attempts at filling a store in the run at `directory`; empty where it filled none."""
    lines = directory.read_fillings()
    if not lines:
        return {}
    num_rows, computing = (sum(line[name] or 0 for line in lines) for name in ("num_rows", "computing_seconds"))
    cost = {
        "perf/rows_filled": num_rows,
        "perf/seconds": sum(line["seconds"] for line in lines),
        "perf/device_hours": sum(line["seconds"] * line["world_size"] for line in lines) / 3600,
    }
    return cost | ({"perf/rows_per_second": num_rows / computing} if computing else {})
