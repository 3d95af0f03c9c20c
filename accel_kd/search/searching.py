"""The story of a search: trials, each a run of the program in this process, until there are as many as there are to be.

start -> directory, study -> teacher for all (fine-tuned once, if asked) -> a trial, and the next one -> when the trials
of all processes have ended: the best settings with further seeds -> results
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator

from accel_kd.assembly.attempt import Attempt, attempt
from accel_kd.assembly.session import Kept, Trial, run_directory, start
from accel_kd.config.identity import identity
from accel_kd.config.schema import RunConfig
from accel_kd.distill import run_recipe
from accel_kd.distributed.collectives import on_main_rank
from accel_kd.errors import SettingsFailure, TrialPruned, UserError
from accel_kd.metrics.direction import is_minimised
from accel_kd.run_directory import InUse, RunDirectory, in_use
from accel_kd.run_status import read_status
from accel_kd.search.directory import SearchDirectory, open_directory, search_directory
from accel_kd.search.recipes import final_recipes, trial_recipe
from accel_kd.search.records import Ending, TrialRecord, best_of
from accel_kd.search.results import write_results
from accel_kd.search.shared_teacher import share_teacher
from accel_kd.search.study import Assignment, SharedStudy
from accel_kd.teachers.placement import release_memory
from accel_kd.training.loop import ask_nobody

logger = logging.getLogger(__name__)

_MOST_WORKERS = 10_000


def search(config: RunConfig, worker: str | None = None) -> str:
    """Works at the search of a recipe, on all ranks of this process, until there is nothing left to do.

    Args:
        config: the recipe.
        worker: what this process is called among those of the search; None: a number that no other one has.

    Returns:
        The results as text; where other processes still run trials, how many.

    Raises:
        UserError: a mistake in the recipe, the data or the models.
        RunFailure: too many trials failed, or something that other settings do not help.
        StopRequested: it was asked to stop, and the same command goes on with it.
    """
    accelerator, config = start(config)
    directory = search_directory(config)
    with ExitStack() as until:
        own = on_main_rank(accelerator, lambda: _open(directory, worker, until))
        with attempt(config, accelerator, own, "search") as this_attempt:
            text = _Search(config, accelerator, directory, this_attempt).run()
    accelerator.end_training()
    return text


def _open(directory: SearchDirectory, worker: str | None, until: ExitStack) -> RunDirectory:
    """The search's directory, made, and the place of this process in it, which it keeps."""
    open_directory(directory)
    if worker is not None:
        own = directory.worker(worker)
        try:
            until.enter_context(in_use(own))
        except InUse as error:
            raise UserError(f"--worker: {worker} is at work already; choose another name") from error
        return own
    for number in range(1, _MOST_WORKERS):
        own = directory.worker(str(number))
        try:
            until.enter_context(in_use(own))  # the same lock as of a name, which may be a number too
        except InUse:
            continue
        return own
    raise UserError(f"search.directory: {directory.path} has {_MOST_WORKERS} processes at work")


@dataclass(frozen=True)
class _Ended:
    """How a trial ended."""

    outcome: Ending
    value: float | None = None
    reason: str | None = None


class _Search:
    def __init__(
        self, config: RunConfig, accelerator: Accelerator, directory: SearchDirectory, this_attempt: Attempt
    ) -> None:
        self._config, self._accelerator, self._directory = config, accelerator, directory
        self._attempt = this_attempt
        self._metric = config.search.metric or config.evaluation.metric
        self._study: SharedStudy | None = None
        """On rank 0 alone."""
        self._has_looked_at_store = False
        self._kept = Kept()

    def run(self) -> str:
        """See `search`."""
        on_main_rank(self._accelerator, self._open_study)
        try:
            share_teacher(self._config, self._accelerator, self._directory, self._attempt.stop)
        finally:
            self._note_progress(self._directory.shared)
        while True:
            self._attempt.stop.check_now()
            assignment = on_main_rank(self._accelerator, lambda: self._shared_study.next_trial())
            if assignment is None:
                break
            self._run_trial(assignment)
        records = on_main_rank(self._accelerator, lambda: self._shared_study.records())
        going_on = sum(record.outcome == "running" for record in records)
        if going_on:
            return (
                f"Nothing left to begin; {going_on} trials are still run by other processes, the last of which ends "
                f"the search in {self._directory.path}"
            )
        return self._finish(records)

    @property
    def _shared_study(self) -> SharedStudy:
        assert self._study is not None, "rank 0 alone talks to the study"
        return self._study

    def _open_study(self) -> None:
        section = self._config.search
        what = identity(self._config.model_dump(mode="json")) | {
            "search": {
                "space": {
                    name: tried if isinstance(tried, list) else tried.model_dump(mode="json")
                    for name, tried in section.searched.items()
                },
                "metric": self._metric, "sampler": section.sampler, "pruner": section.pruner, "seed": section.seed,
            }
        }  # fmt: skip
        self._study = SharedStudy(self._config, self._directory, what)

    def _run_trial(self, assignment: Assignment) -> None:
        """One trial to its end, which is noted; what is not the fault of its settings is raised."""
        number, own = assignment.number, self._directory.trial(assignment.number)
        shown = ", ".join(f"{name}={value}" for name, value in assignment.settings.items())
        how = "is taken up again" if assignment.is_taken_up else "begins"
        logger.info("search: trial %d %s: %s", number, how, shown)
        try:
            ended = self._ended(assignment)
        except BaseException:
            if self._accelerator.is_main_process:  # the other ranks may be gone: nothing collective here
                self._note_progress(own)
                self._shared_study.leave_trial()
            raise
        self._accelerator.free_memory()
        release_memory()

        def note() -> None:
            self._shared_study.end_trial(ended.outcome, ended.value, ended.reason)
            self._note_progress(own)

        on_main_rank(self._accelerator, note)
        end = f"{ended.outcome}: {ended.reason}" if ended.value is None else f"{self._metric} {ended.value:.4f}"
        logger.info("search: trial %d: %s", number, end)

    def _ended(self, assignment: Assignment) -> _Ended:
        try:
            recipe = trial_recipe(
                self._config, self._directory, assignment.number, assignment.settings,
                look_at_store=not self._has_looked_at_store,
            )  # fmt: skip
        except UserError as error:  # the recipe without these settings was found good
            return _Ended("failed", reason=str(error))
        try:
            value = self._value_of(recipe)
        except TrialPruned as verdict:
            return _Ended("pruned", reason=str(verdict))
        except SettingsFailure as failure:
            self._refuse_to_go_on_alone(failure)
            return _Ended("failed", reason=str(failure))
        except UserError as error:
            if not _is_about(error, assignment):
                raise
            return _Ended("failed", reason=str(error))
        if math.isnan(value):
            return _Ended("failed", reason=f"search.metric: {self._metric} is not a number")
        return _Ended("complete", value)

    def _value_of(self, recipe: RunConfig) -> float:
        run_recipe(recipe, self._accelerator, Trial(self._attempt.stop, self._report, self._kept))
        self._has_looked_at_store |= recipe.teacher.source == "cached"
        own = run_directory(recipe)
        return float(on_main_rank(self._accelerator, lambda: _judged(own.read_summary(), f"eval/{self._metric}")))

    def _report(self, number: int, metrics: Mapping[str, float], steps_follow: bool) -> None:
        value = _judged(metrics, self._metric)
        if on_main_rank(self._accelerator, lambda: self._shared_study.report(number, value, steps_follow)):
            raise TrialPruned(f"{self._metric} {value:.4f} at evaluation {number}")

    def _note_progress(self, directory: RunDirectory) -> None:
        """How far a run is, as how far this process is: a batch system starts it again while it gets further."""
        status = read_status(directory.path)
        if status is not None:
            self._attempt.status.reached(directory.path.name, status.step, status.total_steps)

    def _finish(self, records: list[TrialRecord]) -> str:
        """The best settings with further seeds, then the results."""
        best = best_of(records, is_minimised=is_minimised(self._metric))
        finals: list[RunConfig] = []
        failures: list[str] = []
        if best is not None:
            finals = final_recipes(self._config, self._directory, best.number, best.settings)
            failed: dict[int, str] = {}
            left = finals
            for _ in range(2):  # again, for one that failed for a process which has gone on since
                failed |= {r.training.seed: reason for r in left if (reason := self._run_final(r))}
                left = on_main_rank(self._accelerator, lambda: [r for r in finals if not run_directory(r).is_finished])
                left = [recipe for recipe in left if recipe.training.seed not in failed]
            if left:
                return (
                    f"The best settings are still trained by {len(left)} other processes, the last of which ends the "
                    f"search in {self._directory.path}"
                )
            finals = [recipe for recipe in finals if recipe.training.seed not in failed]
            failures = [f"Seed {seed} of the best settings failed: {reason}" for seed, reason in failed.items()]
        return on_main_rank(
            self._accelerator,
            lambda: write_results(self._config, self._directory, self._shared_study, best, finals, failures),
        )

    def _run_final(self, recipe: RunConfig) -> str | None:
        """One training of the best settings, unless another process is at it; returns why its settings failed."""
        own, reason = run_directory(recipe), None
        with ExitStack() as until:

            def take() -> bool:
                claim = self._directory.claim(own.path.name)
                if claim is not None:
                    until.callback(claim.release)
                return claim is not None

            if not on_main_rank(self._accelerator, take):
                return None
            logger.info("search: %s", own.path.name)
            try:
                run_recipe(recipe, self._accelerator, Trial(self._attempt.stop, ask_nobody, self._kept))
            except SettingsFailure as failure:
                self._refuse_to_go_on_alone(failure)
                reason = str(failure)
                logger.warning("search: %s failed: %s", own.path.name, reason)
            finally:
                self._note_progress(own)
        self._accelerator.free_memory()
        release_memory()
        return reason

    def _refuse_to_go_on_alone(self, failure: SettingsFailure) -> None:
        """Where one rank has no memory left the others do not know of it: all must end."""
        if self._accelerator.num_processes > 1 and not failure.on_all_ranks:
            raise failure


def _judged(metrics: Mapping[str, Any], name: str) -> Any:
    """What a trial is judged by, `name` among its `metrics`.

    Raises:
        UserError: it is not there.
    """
    if name not in metrics:
        raise UserError(f"search.metric: {name} is not among what a trial measures ({', '.join(sorted(metrics))})")
    return metrics[name]


def _is_about(error: UserError, assignment: Assignment) -> bool:
    """Whether the mistake is named by a setting that was tried: it is the trial's own then, and not the recipe's."""
    return any(str(error).startswith((f"{name}:", f"{name}.")) for name in assignment.settings)
