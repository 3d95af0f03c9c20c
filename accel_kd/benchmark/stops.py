"""How long a stop takes: from SIGTERM to the checkpoint, and to the end of the process."""

from __future__ import annotations

import json
import math
import random
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from accel_kd.benchmark.program import explained, orphans, started
from accel_kd.errors import EXIT_STOPPED, RunFailure
from accel_kd.run_directory import RunDirectory

_POLL_SECONDS = 0.002
_STEPS_POLL_SECONDS = 0.05
_GRACE_SECONDS = 0.5
"""Helpers of a process may end as long after it before they count as left behind."""
_LONGEST_STOP_SECONDS = 600.0
_TAIL_BYTES = 1 << 16


@dataclass(frozen=True)
class Stop:
    """One SIGTERM and what came of it."""

    step: int
    """Of the checkpoint that it brought."""
    published_seconds: float
    """From the signal until the checkpoint had its name."""
    exited_seconds: float
    """From the signal until the process was gone."""
    num_orphans: int
    """Processes of its session that outlived it."""


def measure_stops(
    program: Sequence[str],
    recipe: str,
    settings: Mapping[str, str],
    num_stops: int,
    spread_seconds: float,
    folder: Path,
    report: Callable[[str], None],
) -> list[Stop]:
    """Starts the same run `num_stops` times, and stops it each time once it has taken steps.

    Args:
        program: the command line up to `distill`.
        recipe: what is run.
        settings: that replace the recipe's; the run must be long enough, and write no checkpoint of itself.
        num_stops: how many.
        spread_seconds: the signal comes at a random moment of as long a time after the first steps are logged, since
            these are always seen at the same place within a step.
        folder: takes the run.
        report: takes a line a stop, for whoever waits.

    Raises:
        UserError, RunFailure: the run ended otherwise than by the signal, or left no checkpoint.
    """
    folder.mkdir()
    directory = RunDirectory(folder / "run")
    overrides = [f"{key}={value}" for key, value in settings.items()]
    command = [*program, "distill", recipe, *overrides, f"run.directory={directory.path}"]
    generator = random.Random(0)
    found = []
    for number in range(num_stops):
        found.append(stop_once(command, directory, folder / "log", generator.uniform(0, spread_seconds)))
        report(f"stop {number + 1} of {num_stops}: {1000 * found[-1].published_seconds:.0f} ms to the checkpoint")
    return found


def stop_once(command: Sequence[str], directory: RunDirectory, log: Path, delay_seconds: float) -> Stop:
    """Starts `command`, sends it SIGTERM `delay_seconds` after its first new steps are logged, and looks on.

    Raises:
        UserError, RunFailure: as `measure_stops`.
    """
    step_before = _newest_step(directory)
    with started(command, log) as process:
        while _last_logged_step(directory.metrics) <= step_before:
            _go_on(process, log)
            time.sleep(_STEPS_POLL_SECONDS)
        time.sleep(delay_seconds)
        _go_on(process, log)
        signalled, published = time.perf_counter(), None
        process.send_signal(signal.SIGTERM)
        while process.poll() is None:
            if published is None and _newest_step(directory) > step_before:
                published = time.perf_counter()
            if time.perf_counter() - signalled > _LONGEST_STOP_SECONDS:
                raise RunFailure(f"a run that was sent SIGTERM is still there after {_LONGEST_STOP_SECONDS:g} seconds")
            time.sleep(_POLL_SECONDS)
        exited = time.perf_counter()
        left = orphans(process.pid, _GRACE_SECONDS)
    if process.returncode != EXIT_STOPPED:
        raise explained(process.returncode, log)
    step = _newest_step(directory)
    if step <= step_before:
        raise RunFailure(f"a run that was sent SIGTERM left no checkpoint after step {step_before}")
    return Stop(step, (published or exited) - signalled, exited - signalled, len(left))


def nearest_rank(values: Sequence[float], share: float) -> float:
    """The smallest of `values` that at least `share` of them do not exceed (the nearest-rank percentile)."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def _go_on(process: subprocess.Popen[bytes], log: Path) -> None:
    if process.poll() is not None:
        raise explained(process.returncode, log)


def _newest_step(directory: RunDirectory) -> int:
    """The step of the newest checkpoint; 0 where there is none."""
    names = directory.checkpoints.glob("step-*")
    return max((int(path.name.removeprefix("step-")) for path in names), default=0)


def _last_logged_step(metrics: Path) -> int:
    """The last step that the file has a whole row of; 0 where there is none."""
    try:
        with metrics.open("rb") as file:
            file.seek(max(0, metrics.stat().st_size - _TAIL_BYTES))
            lines = file.read().split(b"\n")
    except FileNotFoundError:
        return 0
    rows = [line for line in lines[:-1] if line.startswith(b'{"step":')]
    return int(json.loads(rows[-1])["step"]) if rows else 0
