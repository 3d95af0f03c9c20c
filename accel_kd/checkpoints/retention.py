"""Which checkpoints a training keeps, and which one it goes on from.

`step-<n>` holds all that the step after `n` depends on; `best-<n>` the weights of one of the best evaluations, which
the checkpoints that speak of it need. A checkpoint's state has the loop's under `loop`, with its `best` evaluations.
"""

from __future__ import annotations

import contextlib
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


def remove_old(root: Path, keep_last: int) -> None:
    """The newest stay, and of the best weights those that one of them speaks of.

    Raises:
        RunFailure: the disk refuses.
    """
    kept = names(root, _STEP)[:keep_last]
    best = set()
    for name in kept:
        with contextlib.suppress(InvalidCheckpoint):  # said when it is to be used; until then it is in nobody's way
            loop = read_checkpoint(root, name, verify=False).state["loop"]
            best |= {best_name(entry["step"]) for entry in loop["best"]}
    remove_all_but(root, {*kept, *best})


def _refuse_lost_best(checkpoint: Checkpoint) -> None:
    """A checkpoint whose best weights are gone would end with another model than it says."""
    for entry in checkpoint.state["loop"]["best"][: checkpoint.state["keep_best"]]:
        read_checkpoint(checkpoint.path.parent, best_name(entry["step"]))
