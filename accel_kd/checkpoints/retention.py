"""Which checkpoints a training keeps, and which one it goes on from.

`step-<n>` holds all that the step after `n` depends on; `best-<n>` the weights of one of the best evaluations, which
the checkpoints that speak of it need. A checkpoint's state has the steps of those under `kept_best`, best first.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from accel_kd.checkpoints.files import (
    Checkpoint,
    InvalidCheckpoint,
    clean_up,
    names,
    newest_valid,
    read_checkpoint,
    remove_all_but,
)

_STEP, _BEST = "step-", "best-"


def step_name(step: int) -> str:
    """The checkpoint after `step` steps."""
    return f"{_STEP}{step:08d}"


def best_name(step: int) -> str:
    """The weights that were among the best after `step` steps."""
    return f"{_BEST}{step:08d}"


def name_to_go_on_from(root: Path) -> str | None:
    """The newest checkpoint below `root` that is whole, the best weights that it speaks of too; each one that is not
    gives a warning. Looks at every byte, and removes what a killed process left half done."""
    clean_up(root)
    found = newest_valid(root, _STEP, _refuse_lost_best)
    return None if found is None else found.name


def has_checkpoints(root: Path) -> bool:
    """Whether there is anything that looks like a checkpoint, whole or not."""
    return bool(names(root, _STEP))


def remove_old(root: Path, keep_last: int, newest: int, best_now: Collection[int] = ()) -> None:
    """Of the checkpoints up to step `newest` the last ones stay; those behind it were passed over, being damaged.

    Of the best weights those stay that a kept checkpoint speaks of, and those of the steps `best_now`.

    Raises:
        RunFailure: the disk refuses.
    """
    kept = [name for name in names(root, _STEP) if name <= step_name(newest)][:keep_last]
    best = {best_name(step) for step in best_now}
    for name in kept:
        try:
            best |= {best_name(step) for step in read_checkpoint(root, name, verify=False).state["kept_best"]}
        except InvalidCheckpoint:  # what it needs is not known, so that no best weights go this time
            best |= set(names(root, _BEST))
    remove_all_but(root, {*kept, *best})


def _refuse_lost_best(checkpoint: Checkpoint) -> None:
    """A checkpoint whose best weights are gone would end with another model than it says."""
    if checkpoint.state["exports_best"]:
        for step in checkpoint.state["kept_best"][:1]:
            read_checkpoint(checkpoint.path.parent, best_name(step))
