"""What every part of a run shares, made once at its start."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, TypeVar

import yaml
from accelerate import Accelerator
from pydantic import ValidationError

from accel_kd.assembly.attempt import Attempt
from accel_kd.config.checks import needs_teacher_signal
from accel_kd.config.identity import identity
from accel_kd.config.load import to_yaml
from accel_kd.config.schema import RunConfig
from accel_kd.data.labels import LabelledSplits
from accel_kd.distributed import startup
from accel_kd.distributed.stop_requests import StopRequests
from accel_kd.errors import RunFailure, UserError
from accel_kd.locations import expanded
from accel_kd.run_directory import RunDirectory, RunState, in_use, open_run
from accel_kd.tasks.sequence_classification import SequenceClassification
from accel_kd.training.loop import Report

logger = logging.getLogger(__name__)

Kind = TypeVar("Kind")


class Kept:
    """What a run leaves for the next one of the same process, since it is the same for both: the data, their tokens."""

    def __init__(self) -> None:
        self._made: dict[str, tuple[Any, Any]] = {}

    def once(self, kind: str, key: Any, make: Callable[[], Kind]) -> Kind:
        """What is there of this `kind` if it was made for the same `key`, else what `make` makes, kept in its place."""
        if kind not in self._made or self._made[kind][0] != key:
            self._made.pop(kind, None)  # the two need not be there together
            self._made[kind] = (key, make())
        found: Kind = self._made[kind][1]
        return found


@dataclass(frozen=True)
class Trial:
    """What makes a run a trial of a search."""

    requests: StopRequests
    """Those of the search, which ends with its trial."""
    report: Report
    """See there."""
    kept: Kept = field(default_factory=Kept)
    """What the trial before left."""


@dataclass(frozen=True)
class Session:
    """One recipe on these ranks with these data."""

    config: RunConfig
    accelerator: Accelerator
    directory: RunDirectory
    data: LabelledSplits
    task: SequenceClassification
    environment: dict[str, Any]
    attempt: Attempt
    trial: Trial | None = None


def start(config: RunConfig) -> tuple[Accelerator, RunConfig]:
    """The accelerator, and the recipe with what the launcher decided, which belongs to it from here on.

    Raises:
        UserError: the launch is not what it claims to be; see `startup.start`.
    """
    run = config.run
    accelerator = startup.start(config.training.precision, run.rank_timeout, run.threads, run.cpu_matmul)
    teacher = f", teacher {config.teacher.placement}" if needs_teacher_signal(config.objective) else ""
    logger.info("start: %s%s", startup.describe(accelerator), teacher)
    in_force = config.training.model_copy(update={"precision": accelerator.mixed_precision})
    return accelerator, config.model_copy(update={"training": in_force})


def run_directory(config: RunConfig) -> RunDirectory:
    """Where the run's files go."""
    assert config.run.directory is not None, "load_recipe sets it"
    return RunDirectory(expanded(config.run.directory, "run.directory"))


def open_run_directory(config: RunConfig, until: ExitStack, *, may_reopen: bool = True) -> RunState:
    """Opens the run's directory and keeps it for this process until `until` closes; to be called on one rank.

    A finished run of fewer steps is reopened if it `may_reopen`.

    Raises:
        UserError: it is in use, or holds something else, or a run with other settings.
    """
    if config.run.resume == "must" and not run_directory(config).config.is_file():
        raise UserError(f"run.resume: must, but {run_directory(config).path} holds no run")
    until.enter_context(in_use(run_directory(config)))
    try:
        return _opened(config, may_reopen)
    except OSError as error:
        raise RunFailure(
            f"run.directory: {run_directory(config).path} cannot be read or written: {error.strerror}; mend that (free "
            "some space where its disk is full), and give the same command again"
        ) from error


def _opened(config: RunConfig, may_reopen: bool) -> RunState:
    return open_run(
        run_directory(config),
        config_text=to_yaml(config),
        settings=identity(config.model_dump(mode="json")),
        old_settings=_identity_of_text,
        of_teacher=_what_makes_the_teacher,
        lengthened=_lengthened,
        may_reopen=may_reopen,
        resume=config.run.resume,
    )


def task(config: RunConfig, label_names: list[str]) -> SequenceClassification:
    """The task of the recipe."""
    return SequenceClassification(label_names, config.data.out_of_scope)


def _identity_of_text(text: str) -> dict[str, Any]:
    try:
        return identity(_settings_of(text))
    except (yaml.YAMLError, AttributeError, KeyError, TypeError) as error:
        raise UserError(
            "run.directory: it holds a config.yaml that no run wrote; choose another run.directory"
        ) from error


def _settings_of(text: str) -> dict[str, Any]:
    settings: dict[str, Any] = yaml.safe_load(text)
    with contextlib.suppress(ValidationError):  # an older recipe lacks settings that have come since: the defaults
        settings = RunConfig.model_validate(settings).model_dump(mode="json")
    return settings


def _lengthened(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """`old` with the epochs and steps of `new`, where these are more and the teacher stays the same."""
    before, now = old["training"], new["training"]
    has_more_epochs = now["epochs"] >= before["epochs"]
    has_more_steps = _or_endless(now["max_steps"]) >= _or_endless(before["max_steps"])
    longer = {**old, "training": {**before, "epochs": now["epochs"], "max_steps": now["max_steps"]}}
    teacher_stays = _what_makes_the_teacher(longer) == _what_makes_the_teacher(old)
    return longer if has_more_epochs and has_more_steps and teacher_stays else old


def _or_endless(steps: int | None) -> float:
    return math.inf if steps is None else steps


def _what_makes_the_teacher(settings: dict[str, Any]) -> dict[str, Any]:
    """Of the settings that make a run, those that a teacher which is fine-tuned here depends on."""
    teacher = settings["teacher"]
    if teacher["finetune"] is None:
        return {"teacher": {"finetune": None}}
    given = {name: value for name, value in teacher["finetune"].items() if value is not None}
    if "epochs" in given and "max_steps" not in given:
        given["max_steps"] = None  # as `finetune_training` has it
    made_of = {"model", "revision", "trust_remote_code", "allow_pickle"}
    return {
        "task": settings["task"],
        "data": settings["data"],
        "teacher": {name: value for name, value in teacher.items() if name in made_of},
        "training": settings["training"] | given,
        "evaluation": settings["evaluation"],
        "run": {"deterministic": settings["run"]["deterministic"]},
    }
