"""One study that many processes work at, by a journal in a file that they all append to.

A trial belongs to the process that holds the claim of its number. A trial that is going on and whose claim nobody holds
has lost its process, and is taken up again by the next one that looks for work.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from accel_kd.config.identity import without_what_makes_no_run
from accel_kd.config.schema import RunConfig
from accel_kd.config.search_checks import grid_size
from accel_kd.errors import RunFailure, UserError
from accel_kd.metrics.direction import is_minimised
from accel_kd.run_directory import differing
from accel_kd.run_status import read_status
from accel_kd.search.directory import Claim, SearchDirectory
from accel_kd.search.journal import failures_told, open_journal
from accel_kd.search.records import FRUITLESS, REASON, SECONDS, STATES, Ending, TrialRecord, record_of
from accel_kd.search.samplers import pruner, sampler
from accel_kd.search.space import choose_settings, settings_of

_NAME = "search"
_IDENTITY = "identity"
_MOST_FRUITLESS_ATTEMPTS = 3
"""A trial whose processes came to an end as often in a row without a step more fails for good, whatever it was."""


@dataclass(frozen=True)
class Assignment:
    """A trial that this process is to run."""

    number: int
    settings: dict[str, Any]
    """What it tries, by dotted names."""
    is_taken_up: bool
    """Whether another process began it and is gone."""


class SharedStudy:
    """The study in a search's directory; for one process, rank 0 of its ranks."""

    def __init__(self, config: RunConfig, directory: SearchDirectory, identity: Mapping[str, Any]) -> None:
        """Opens the study, or begins it.

        Args:
            config: the recipe of the search.
            directory: see there.
            identity: what must agree with a study that is there.

        Raises:
            UserError: a search with other settings is there, or its journal cannot be read.
        """
        self._config, self._directory = config, directory
        self._metric = config.search.metric or config.evaluation.metric
        self._claim: Claim | None = None
        self._trial: optuna.Trial | None = None
        self._started = 0.0
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        with self._alone():
            self._study = self._open()
            there = self._study.user_attrs.get(_IDENTITY)
            if there is None:
                self._study.set_user_attr(_IDENTITY, dict(identity))
                return
        # What was a part of it for the version that began the search may be none any more.
        differences = differing(without_what_makes_no_run(there), identity)
        if differences:
            raise UserError(
                f"search.directory: {directory.path} holds a search with other settings ({'; '.join(differences)}); "
                "choose another search.directory"
            )

    @property
    def is_minimised(self) -> bool:
        """Whether less of the metric is better."""
        return is_minimised(self._metric)

    @property
    def study(self) -> optuna.Study:
        """As Optuna has it."""
        return self._study

    def next_trial(self) -> Assignment | None:
        """A trial for this process: one whose process is gone, else a new one; None where there are no more.

        Raises:
            RunFailure: more trials failed than may, or the journal cannot be read or written.
        """
        with failures_told(self._directory.journal), self._alone():
            while (assignment := self._taken_up_or_begun()) is not None:
                reason = self._given_up(assignment.number) if assignment.is_taken_up else None
                if reason is None:
                    return assignment
                self.end_trial("failed", reason=reason)
            return None

    def _taken_up_or_begun(self) -> Assignment | None:
        trials = self._study.get_trials(deepcopy=False)
        self._refuse_failures(trials)
        for trial in trials:
            if trial.state == TrialState.RUNNING and (taken := self._taken_up(trial)) is not None:
                return taken
        return None if len(trials) >= self.num_trials else self._begun()

    def _given_up(self, number: int) -> str | None:
        """Why the trial at hand, taken up, is not to be tried once more; None where it is.

        Counted with the trial itself: a process that is killed (for its memory, say) leaves no word of how it went.
        """
        assert self._trial is not None, "there is no trial at hand"
        status = read_status(self._directory.trial(number).path)
        reached = ["", 0] if status is None else [status.part, status.step]
        before, count = self._trial.user_attrs.get(FRUITLESS, (["", 0], 0))
        if reached != before:
            count = 0
        elif status is None or status.state != "stopped":  # who was asked to stop might have got further
            count += 1
        self._trial.set_user_attr(FRUITLESS, (reached, count))
        if count < _MOST_FRUITLESS_ATTEMPTS:
            return None
        if status is not None and status.state == "failed" and status.reason is not None:
            return status.reason
        return (
            f"its process was gone {count} times in a row at step {reached[1]}, without a word (killed for its memory?)"
        )

    @property
    def num_trials(self) -> int:
        """How many there are to be, all processes together."""
        wanted = self._config.search.num_trials
        return min(wanted, grid_size(self._config)) if self._config.search.sampler == "grid" else wanted

    def report(self, number: int, value: float, steps_follow: bool) -> bool:
        """Notes the metric of the trial at hand after its evaluation `number`.

        Returns:
            Whether its further steps are not worth taking; never where there are none.

        Raises:
            RunFailure: the journal cannot be read or written.
        """
        assert self._trial is not None, "there is no trial at hand"
        with failures_told(self._directory.journal):
            if number not in self._study.get_trials(deepcopy=False)[self._trial.number].intermediate_values:
                self._trial.report(value, number)
            return steps_follow and bool(self._trial.should_prune())

    def end_trial(self, outcome: Ending, value: float | None = None, reason: str | None = None) -> None:
        """Notes how the trial at hand ended.

        Raises:
            RunFailure: the journal cannot be read or written.
        """
        assert self._trial is not None, "there is no trial at hand"
        with failures_told(self._directory.journal):
            if reason is not None:
                self._trial.set_user_attr(REASON, reason)
            self._note_seconds()
            self._study.tell(self._trial, value if outcome == "complete" else None, state=STATES[outcome])
        self._let_go()

    def leave_trial(self) -> None:
        """Leaves the trial at hand to whoever comes next.

        Raises:
            RunFailure: the journal cannot be read or written; the trial is left all the same.
        """
        try:
            with failures_told(self._directory.journal):
                self._note_seconds()
        finally:
            self._let_go()

    def _note_seconds(self) -> None:
        assert self._trial is not None, "there is no trial at hand"
        before = self._trial.user_attrs.get(SECONDS, 0.0)
        self._trial.set_user_attr(SECONDS, before + time.monotonic() - self._started)

    def _let_go(self) -> None:
        assert self._claim is not None, "there is no trial at hand"
        self._claim.release()
        self._trial = self._claim = None

    def records(self) -> list[TrialRecord]:
        """All trials in the order of their numbers."""
        return [
            record_of(trial, settings_of(self._config, trial.params))
            for trial in self._study.get_trials(deepcopy=False)
        ]

    def _refuse_failures(self, trials: Sequence[FrozenTrial]) -> None:
        failed = [trial for trial in trials if trial.state == TrialState.FAIL]
        allowed = self._config.search.max_failed_trials
        if len(failed) > allowed:
            last = failed[-1]
            raise RunFailure(
                f"{len(failed)} trials failed (search.max_failed_trials is {allowed}), the last of them, "
                f"trial {last.number}: {last.user_attrs.get(REASON)}"
            )

    def _taken_up(self, trial: FrozenTrial) -> Assignment | None:
        """The trial, if its process is gone."""
        claim = self._directory.claim(f"trial-{trial.number:04}")
        if claim is None:
            return None
        trial = self._study.get_trials(deepcopy=False)[trial.number]
        if trial.state != TrialState.RUNNING:  # it ended while the claim was asked for
            claim.release()
            return None
        return self._at_hand(self._put_together(trial.number, trial._trial_id), claim, is_taken_up=True)

    def _begun(self) -> Assignment:
        number = len(self._study.get_trials(deepcopy=False))
        claim = self._directory.claim(f"trial-{number:04}")
        assert claim is not None, "the claim of a trial that there is not was held"
        return self._at_hand(self._put_together(number, None), claim, is_taken_up=False)

    def _put_together(self, number: int, trial_id: int | None) -> optuna.Trial:
        """The trial with all its settings, those chosen that it lacks: the process before may have been killed over it;
        without an id it is a new one."""
        self._study.sampler = sampler(self._config, number)
        trial = self._study.ask() if trial_id is None else optuna.Trial(self._study, trial_id)
        assert trial.number == number, "a process began a trial without keeping the others out"
        choose_settings(self._config, trial)
        self._study.sampler = optuna.samplers.RandomSampler()  # that of the grid would end a loop that is not Optuna's
        return trial

    def _at_hand(self, trial: optuna.Trial, claim: Claim, *, is_taken_up: bool) -> Assignment:
        self._trial, self._claim, self._started = trial, claim, time.monotonic()
        return Assignment(trial.number, settings_of(self._config, trial.params), is_taken_up)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """No other process begins or takes up a trial meanwhile, so that none is counted or begun twice."""
        claim = self._directory.claim("study", wait=True)
        assert claim is not None, "it was waited for"
        try:
            yield
        finally:
            claim.release()

    def _open(self) -> optuna.Study:
        file = self._directory.journal
        try:
            storage = open_journal(file)
            return optuna.create_study(
                storage=storage, study_name=_NAME, load_if_exists=True, pruner=pruner(self._config),
                direction="minimize" if self.is_minimised else "maximize",
            )  # fmt: skip
        except (ValueError, KeyError, OSError) as error:
            raise UserError(f"search.directory: {file} cannot be read: {error}; choose another") from error
