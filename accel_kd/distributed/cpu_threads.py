"""How many CPU threads a rank computes with: those that were asked for, and not the one that launchers leave it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

_LAUNCHERS = ("ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID")
"""What `accelerate launch`, with one process as with many, and torchrun set in every process that they start."""


def threads_of_rank(
    setting: int | None, usable_cpus: int | None, environment: Mapping[str, str] = os.environ
) -> int | None:
    """The threads that this rank is to compute with; None: as many as torch has.

    Launchers set `OMP_NUM_THREADS=1` unless they find it set, which a machine's other cores have no part in. A 1 behind
    a launcher is taken for theirs: whoever means it has the setting. Any other number is somebody's wish.

    Args:
        setting: the recipe's, which goes before everything else.
        usable_cpus: what `usable_cpus` gives.
        environment: of this process.
    """
    if setting is not None:
        return setting
    is_launched = any(name in environment for name in _LAUNCHERS)
    if not is_launched or environment.get("OMP_NUM_THREADS") != "1" or usable_cpus is None:
        return None
    # A launcher's ranks are its children, and have its CPUs together.
    return max(1, usable_cpus // int(environment.get("LOCAL_WORLD_SIZE", "1")))


def usable_cpus(quota: Path = Path("/sys/fs/cgroup/cpu.max")) -> int | None:
    """CPUs that this process may use, of which a scheduler or a container grants a part; None where they cannot be
    counted. `quota` holds what a container may use, in microseconds and of how many, or `max`."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with contextlib.suppress(OSError, ValueError):
        granted, period = quota.read_text(encoding="ascii").split()
        if granted != "max" and cpus is not None:
            return max(1, min(cpus, int(granted) // int(period)))
    return cpus
