"""A study in a file: trials are counted once, drawn once, and taken up again when their process is gone."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from accel_kd.config import load_recipe
from accel_kd.config.identity import identity
from accel_kd.config.schema import RunConfig
from accel_kd.errors import RunFailure, UserError
from accel_kd.run_status import State, StatusWriter
from accel_kd.search.directory import SearchDirectory
from accel_kd.search.records import best_of
from accel_kd.search.study import Assignment, SharedStudy

SPACE = (
    "search.space={training.epochs: {low: 1, high: 9}, student.layers: [[0], [1, 2]],"
    " training.learning_rate: {low: 1e-5, high: 1e-3, log: true}}"
)


def recipe(*overrides: str) -> RunConfig:
    return load_recipe("demo", [SPACE, "search.num_trials=6", *overrides])


def opened(folder: Path, *overrides: str) -> SharedStudy:
    return SharedStudy(recipe(*overrides), SearchDirectory(folder), {"training": {"seed": 42}})


def taken(study: SharedStudy) -> Assignment:
    assignment = study.next_trial()
    assert assignment is not None
    return assignment


def in_another_process(work: Callable[[], bool], *, killed: bool = False) -> bool:
    """What `work` says in a fork; with `killed` that ends without cleaning up, as by SIGKILL."""
    child = os.fork()
    if child == 0:
        code = 70
        try:
            code = 0 if work() else 1
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 1)
    return code == 0


def test_trials_are_as_many_as_asked_for_and_their_values_are_kept(tmp_path: Path) -> None:
    study = opened(tmp_path)
    for number in range(6):
        assignment = taken(study)
        assert assignment.number == number and not assignment.is_taken_up
        assert 1 <= assignment.settings["training.epochs"] <= 9
        assert assignment.settings["student.layers"] in ([0], [1, 2])
        assert not study.report(1, 0.1 * number, True)
        study.end_trial("complete", 0.1 * number)
    assert study.next_trial() is None
    records = opened(tmp_path).records()
    assert [record.value for record in records] == [0.1 * number for number in range(6)]
    assert records[2].evaluations == {1: 0.2} and records[2].outcome == "complete"
    best, worst = best_of(records, is_minimised=False), best_of(records, is_minimised=True)
    assert best is not None and worst is not None and (best.number, worst.number) == (5, 0)
    more = opened(tmp_path, "search.num_trials=7")
    assert taken(more).number == 6


def test_what_a_trial_tries_depends_on_its_number_and_not_on_who_asks(tmp_path: Path) -> None:
    for sampler in ("random", "tpe", "grid"):
        space = "search.space={training.epochs: [1, 2, 3], training.seed: [1, 2]}" if sampler == "grid" else SPACE

        def drawn(folder: Path, anew: bool, sampler: str = sampler, space: str = space) -> list[dict[str, object]]:
            found = []
            study = opened(folder, f"search.sampler={sampler}", space)
            for number in range(6):
                study = opened(folder, f"search.sampler={sampler}", space) if anew else study
                found.append(taken(study).settings)
                study.end_trial("complete", float(number))
            return found

        alike, anew = drawn(tmp_path / f"{sampler}-1", False), drawn(tmp_path / f"{sampler}-2", True)
        assert alike == anew
        assert len({str(settings) for settings in alike}) == 6, "every trial tries something else"


def test_a_trial_belongs_to_one_process_while_that_lives_and_to_the_next_one_when_it_is_gone(tmp_path: Path) -> None:
    study = opened(tmp_path)
    first = taken(study)
    assert study.report(1, 0.25, True) is False

    def another_gets_a_new_one() -> bool:
        return taken(opened(tmp_path)).number == 1

    assert in_another_process(another_gets_a_new_one), "the first is going on here"
    # That process is gone, and its trial with it; this one's is still going on.
    other = opened(tmp_path)

    def another_takes_it_up() -> bool:
        assignment = taken(opened(tmp_path))
        return assignment.number == 1 and assignment.is_taken_up

    assert in_another_process(another_takes_it_up)
    study.leave_trial()
    again = taken(other)
    assert again == Assignment(first.number, first.settings, is_taken_up=True)
    assert other.report(1, 0.75, True) is False
    other.end_trial("complete", 0.5)
    assert other.records()[0].evaluations == {1: 0.25}, "what was reported before stands"


def test_a_trial_that_ended_is_not_taken_up_and_one_that_was_half_put_together_is_as_it_would_have_been(
    tmp_path: Path,
) -> None:
    whole = opened(tmp_path / "whole")
    taken(whole)
    whole.end_trial("pruned", reason="worse")
    wanted = taken(whole).settings
    study = opened(tmp_path / "half", "search.num_trials=2")
    taken(study)
    study.end_trial("pruned", reason="worse")
    study.study.ask()  # without settings, as a process leaves it that is killed meanwhile
    assert taken(study) == Assignment(1, wanted, is_taken_up=True)
    study.end_trial("failed", reason="nothing")
    assert study.next_trial() is None
    assert [(record.number, record.outcome, record.reason) for record in study.records()] == [
        (0, "pruned", "worse"),
        (1, "failed", "nothing"),
    ]


def test_the_pruner_is_asked_where_steps_follow_and_only_there(tmp_path: Path) -> None:
    study = opened(tmp_path, "search.pruner=median", "search.num_trials=9")
    for _ in range(5):
        taken(study)
        assert not study.report(1, 0.9, True)
        study.end_trial("complete", 0.9)
    taken(study)
    assert study.report(1, 0.1, False) is False
    assert study.report(1, 0.1, True) is True
    study.end_trial("pruned", reason="worse")
    minimised = opened(tmp_path / "other", "search.pruner=median", "search.metric=loss")
    for _ in range(5):
        taken(minimised)
        minimised.report(1, 0.1, True)
        minimised.end_trial("complete", 0.1)
    taken(minimised)
    assert minimised.report(1, 0.9, True) is True


def test_failures_end_the_search_when_they_are_too_many(tmp_path: Path) -> None:
    study = opened(tmp_path, "search.max_failed_trials=1")
    for reason in ("one", "another"):
        taken(study)
        study.end_trial("failed", reason=reason)
    with pytest.raises(
        RunFailure, match="2 trials failed .search.max_failed_trials is 1., the last of them, trial 1: another"
    ):
        study.next_trial()
    assert taken(opened(tmp_path, "search.max_failed_trials=2")).number == 2


def test_a_grid_has_every_combination_once_and_no_more(tmp_path: Path) -> None:
    settings = [
        "search.sampler=grid",
        "search.num_trials=20",
        "search.space={training.epochs: {low: 1, high: 3}, objective.alpha: {low: 0, high: 1, step: 0.5}}",
    ]
    study = opened(tmp_path, *settings)
    found = []
    while (assignment := study.next_trial()) is not None:
        found.append(tuple(assignment.settings.values()))
        study.end_trial("complete", 0.0)
    assert sorted(found) == [(epochs, alpha) for epochs in (1, 2, 3) for alpha in (0.0, 0.5, 1.0)]
    assert found != sorted(found), "in an order by the seed"


def test_a_search_with_other_settings_is_refused(tmp_path: Path) -> None:
    opened(tmp_path)
    with pytest.raises(UserError, match="training.seed: 42 there, 43 here"):
        SharedStudy(recipe(), SearchDirectory(tmp_path), {"training": {"seed": 43}})


def test_a_search_of_a_version_that_counted_more_settings_goes_on(tmp_path: Path) -> None:
    """Its journal holds what made a run then, and that is compared with what makes one now."""
    now = identity(recipe().model_dump(mode="json")) | {"search": {"seed": 0}}
    then = {**now, "evaluation": {**now["evaluation"], "micro_batch_size": 128}}
    then["training"] = {**now["training"], "micro_batch_size": 8}
    then["teacher"] = {**now["teacher"], "accept_chance_accuracy": True}
    SharedStudy(recipe(), SearchDirectory(tmp_path), then)
    SharedStudy(recipe(), SearchDirectory(tmp_path), now)
    with pytest.raises(UserError, match="search.seed: 0 there, 1 here"):
        SharedStudy(recipe(), SearchDirectory(tmp_path), {**now, "search": {"seed": 1}})


def test_a_line_that_a_process_was_killed_over_costs_nothing(tmp_path: Path) -> None:
    study = opened(tmp_path)
    taken(study)
    study.end_trial("complete", 0.5)
    with (tmp_path / "study.journal").open("a") as journal:
        journal.write('{"op_code": 4, "worker')
    again = opened(tmp_path)
    taken(again)
    again.end_trial("complete", 0.75)
    assert [record.value for record in opened(tmp_path).records()] == [0.5, 0.75]


def test_a_process_that_has_the_study_open_writes_behind_whole_lines_only(tmp_path: Path) -> None:
    study = opened(tmp_path)
    taken(study)
    with (tmp_path / "study.journal").open("a") as journal:
        journal.write('{"op_code": 4, "worker')
    study.end_trial("complete", 0.5)
    taken(study)
    assert [record.value for record in opened(tmp_path).records()] == [0.5, None]


def test_a_journal_that_is_spoilt_while_it_is_open_is_told_of_in_one_line(tmp_path: Path) -> None:
    study = opened(tmp_path)
    taken(study)
    with (tmp_path / "study.journal").open("a") as journal:
        journal.write("something\nelse\n")
    for asked in (lambda: study.report(1, 0.5, True), lambda: study.end_trial("complete", 0.5), study.next_trial):
        with pytest.raises(RunFailure, match="search: .*study.journal cannot be read or written: "):
            asked()


def test_a_trial_that_ends_its_process_again_and_again_fails_and_one_that_gets_further_goes_on(tmp_path: Path) -> None:
    def attempt(state: State, step: int) -> int:
        """The number of the trial that a process gets, which it then leaves so."""
        study = opened(tmp_path)
        number = taken(study).number
        folder = SearchDirectory(tmp_path).trial(number).path
        folder.mkdir(exist_ok=True)
        status = StatusWriter(folder, "distill")
        status.begun()
        status.reached("student", step, 39)
        if state != "running":
            status.ended(state, "planted")
        study.leave_trial()
        return number

    further = [attempt("running", step) for step in (0, 0, 4, 4, 4, 8)]
    stopped = [attempt("stopped", 8) for _ in range(4)]
    assert {*further, *stopped} == {0}
    assert [attempt("running", 8) for _ in range(4)] == [0, 0, 0, 1]
    first = opened(tmp_path).records()[0]
    assert first.outcome == "failed" and first.reason is not None
    assert first.reason.startswith("its process was gone 3 times in a row at step 8")


def test_a_file_that_is_no_journal_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "study.journal").write_text("something\nelse\n")
    with pytest.raises(UserError, match="search.directory: .*study.journal cannot be read"):
        opened(tmp_path)
