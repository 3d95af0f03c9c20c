"""The teacher that all trials share, fine-tuned by the process that comes first; the others wait for it."""

from __future__ import annotations

import logging
import time
from contextlib import ExitStack

from accelerate import Accelerator

from accel_kd.assembly.attempt import attempt
from accel_kd.assembly.data import read_data_alike
from accel_kd.assembly.session import Session, open_run_directory, task
from accel_kd.config.schema import RunConfig
from accel_kd.distill import prepare_teacher
from accel_kd.distributed.collectives import on_main_rank
from accel_kd.distributed.seeding import use_deterministic_algorithms
from accel_kd.distributed.stop_requests import StopRequests
from accel_kd.search.directory import Claim, SearchDirectory
from accel_kd.search.recipes import shares_a_teacher, teacher_recipe
from accel_kd.tracking import describe_environment

logger = logging.getLogger(__name__)

_POLL_SECONDS = 1.0


def share_teacher(
    config: RunConfig, accelerator: Accelerator, directory: SearchDirectory, requests: StopRequests
) -> None:
    """Leaves the fine-tuned teacher in `directory.shared`, where the recipes of trials look for it; nothing where no
    teacher is to be fine-tuned.

    Raises:
        UserError, RunFailure: as the fine-tuning in a run.
        StopRequested: it was asked to stop, and goes on with the next start.
    """
    finished = directory.shared.part("teacher")
    if not shares_a_teacher(config) or on_main_rank(accelerator, lambda: finished.is_finished):
        return
    with ExitStack() as until:
        _wait_for_turn(accelerator, directory, requests, until)
        if on_main_rank(accelerator, lambda: finished.is_finished):  # by whoever had it before
            return
        recipe = teacher_recipe(config, directory)
        on_main_rank(accelerator, lambda: open_run_directory(recipe, until, may_reopen=False))
        if recipe.run.deterministic:
            use_deterministic_algorithms()
        with attempt(recipe, accelerator, directory.shared, "search", requests) as this_attempt:
            data = read_data_alike(recipe, accelerator)
            labels_task, environment = task(recipe, data.label_names), describe_environment()
            prepare_teacher(
                Session(recipe, accelerator, directory.shared, data, labels_task, environment, this_attempt)
            )


def _wait_for_turn(
    accelerator: Accelerator, directory: SearchDirectory, requests: StopRequests, until: ExitStack
) -> None:
    """Keeps the teacher for this process; all ranks look together, so that none waits in a collective for long."""

    def take() -> bool:
        claim: Claim | None = directory.claim("teacher")
        if claim is not None:
            until.callback(claim.release)
        return claim is not None

    said = False
    while not on_main_rank(accelerator, take):
        requests.check_now()
        if not said:
            logger.info("search: another process fine-tunes the teacher in %s; waiting for it", directory.shared.path)
            said = True
        time.sleep(_POLL_SECONDS)
