"""From which checkpoint a training goes on, whether it may, and what that changes."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch.optim.lr_scheduler import LambdaLR

from accel_kd.checkpoints.files import Checkpoint, read_checkpoint
from accel_kd.checkpoints.retention import has_checkpoints, name_to_go_on_from
from accel_kd.distributed.collectives import on_main_rank
from accel_kd.errors import UserError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CheckpointSettings:
    """Where checkpoints lie and which are kept."""

    root: Path
    keep_last: int
    keep_best: int
    exports_best: bool
    """Whether the best weights are what the training ends with."""
    background: bool
    seed: int
    facts: Mapping[str, Any]
    """Further entries of a checkpoint's manifest, for people: the recipe, versions."""
    train_examples: str
    """A digest of what is trained on."""
    made_from: Mapping[str, str]
    """By the setting that says it, what the training depends on beside the recipe, in words or as a digest."""
    must_resume: bool
    """Whether to refuse where checkpoints are there and none can be used."""
    tracker_run_id: Path
    """The file that holds it, once there is one."""


def newest_checkpoint(accelerator: Accelerator, settings: CheckpointSettings) -> Checkpoint | None:
    """What a training goes on from; None where it begins. Called by all ranks together: rank 0 looks at every byte, the
    others believe it.

    Raises:
        UserError: the checkpoint is of other examples or of another teacher, or none can be used and one must.
    """

    def find() -> str | None:
        name = name_to_go_on_from(settings.root)
        if name is None and has_checkpoints(settings.root):
            if settings.must_resume:
                raise UserError(f"run.resume: must, but no checkpoint in {settings.root} can be used")
            logger.warning("no checkpoint in %s can be used: this training begins anew", settings.root)
        return name

    name = on_main_rank(accelerator, find)
    if name is None:
        return None
    checkpoint = read_checkpoint(settings.root, name, verify=False)
    if checkpoint.state["train_examples"] != settings.train_examples:
        raise UserError(
            f"data.path: {settings.root.parent} was begun with other train examples than these; choose another "
            "run.directory, or put the data back"
        )
    before = checkpoint.state.get("made_from", {})  # older ones do not say
    for setting, now in settings.made_from.items():
        if before.get(setting, now) != now:
            raise UserError(
                f"{setting}: {settings.root.parent} was begun with {before[setting]}, and here it is {now}; go on "
                "where it is as it was, or choose another run.directory"
            )
    return checkpoint


def warn_of_other_versions(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Says which packages, and what of them multiplies on a CPU, are not those of the environment `before`."""
    changed = [
        f"{name} {before['packages'].get(name)} then, {now['packages'].get(name)} now"
        for name in ("torch", "transformers", "accelerate", "accel_kd")
        if before["packages"].get(name) != now["packages"].get(name)
    ]
    libraries = [environment.get("cpu", {}).get("matmul") for environment in (before, now)]
    if None not in libraries and libraries[0] != libraries[1]:
        changed.append(f"fp32 products by {libraries[0]} then, by {libraries[1]} now")
    if changed:
        logger.warning(
            "other versions or libraries than the checkpoint's: %s; results may differ in the last bits",
            "; ".join(changed),
        )


def advance(schedule: LambdaLR, steps: int) -> None:
    """The learning rate after `steps` steps, by the schedule as it is now: a longer run has another than before."""
    schedule.last_epoch = steps
    rates = [base * rate(steps) for base, rate in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)]
    for group, learning_rate in zip(schedule.optimizer.param_groups, rates, strict=True):
        group["lr"] = learning_rate
    schedule._last_lr = rates
