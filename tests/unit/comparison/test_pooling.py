"""Which runs make a setting, and what settings are called."""

from __future__ import annotations

from typing import Any

from accel_kd.comparison.pooling import pooled, without_trials_that_were_repeated
from accel_kd.comparison.read_run import Part, ReadRun
from accel_kd.config import load_recipe
from tests.support.compared_runs import read_run


def run(label: str, *overrides: str, part: Part = "student") -> ReadRun:
    config: dict[str, Any] = load_recipe("demo", overrides).model_dump(mode="json")
    return read_run(label, part=part, config=config)


def test_runs_that_differ_in_seed_place_and_looks_are_of_one_setting() -> None:
    found = pooled([
        run("a", "training.seed=1", "run.directory=a", "tracking.project=x", "perf.profile=true"),
        run("b", "training.seed=2", "run.directory=b", "training.step_mode=eager", "run.control=false"),
        run("c", "training.seed=1", "objective.alpha=0.5"),
    ])  # fmt: skip
    assert [(pool.name, pool.runs) for pool in found.pools] == [("alpha 0.1", (0, 1)), ("alpha 0.5", (2,))]
    assert [dict(pool.differs) for pool in found.pools] == [{"objective.alpha": 0.1}, {"objective.alpha": 0.5}]
    assert found.notes == ()


def test_the_runs_of_a_setting_are_in_the_order_of_their_seeds() -> None:
    seeds = [run(f"seed-{seed}", f"training.seed={seed}") for seed in (10, 9, 2)]
    found = pooled([seeds[0], run("other", "objective.alpha=0.5"), *seeds[1:]])
    assert [pool.runs for pool in found.pools] == [(3, 2, 0), (1,)]


def test_parts_of_one_run_are_settings_of_their_own() -> None:
    found = pooled([run("a"), run("a", part="control"), run("a", part="teacher")])
    assert [pool.name for pool in found.pools] == ["student", "control", "teacher"]


def test_one_setting_alone_is_compared_run_by_run() -> None:
    found = pooled([run("a", "training.seed=0"), run("b", "training.seed=1")])
    assert [pool.name for pool in found.pools] == ["seed 0", "seed 1"]
    assert "compared singly" in found.notes[0]


def test_a_seed_that_comes_twice_is_not_pooled_with_itself() -> None:
    found = pooled([run("a"), run("b"), run("c", "objective.alpha=0.5")])
    assert [pool.runs for pool in found.pools] == [(0,), (1,), (2,)]
    assert [pool.name for pool in found.pools] == ["alpha 0.1 (a)", "alpha 0.1 (b)", "alpha 0.5"]
    assert "a and b are of one setting, and the seed 42 comes more than once" in found.notes[0]


def test_a_recipe_of_before_a_setting_was_there_has_its_default() -> None:
    older = run("old", "training.seed=7")
    config = {**older.config, "training": {k: v for k, v in older.config["training"].items() if k != "step_mode"}}
    config["objective"] = {"alpha": 0.1, "temperature": 2.0}
    found = pooled([read_run("old", config=config), run("new"), run("other", "objective.alpha=0.5")])
    assert [pool.runs for pool in found.pools] == [(0, 1), (2,)]


def test_names_say_what_differs_in_short_and_are_the_runs_own_where_that_is_long() -> None:
    found = pooled([
        run("a", "student.layers=[0,2]", "teacher.finetune=null", "teacher.model=some/where/big"),
        run("b", "student.layers=[0,5]", "teacher.finetune=null", "teacher.model=some/where/small"),
    ])  # fmt: skip
    assert [pool.name for pool in found.pools] == ["model big, layers 0+2", "model small, layers 0+5"]
    many = ["objective.alpha=0.3", "objective.temperature=7", "training.epochs=9", "training.learning_rate=1e-5"]
    assert [pool.name for pool in pooled([run("a"), run("b", *many, "training.batch_size=8")]).pools] == ["a", "b"]


def test_configs_of_other_programs_are_compared_as_they_are() -> None:
    found = pooled([read_run("x", config={"lr": 0.1}), read_run("y", config={"lr": 0.2, "deep": {"er": None}})])
    assert [pool.name for pool in found.pools] == ["lr 0.1", "lr 0.2, er none"]


def test_the_trial_that_was_chosen_is_not_among_its_further_seeds() -> None:
    trial, final = "tracking.tags=[x,search,trial]", "tracking.tags=[search,best]"
    best = [run("trial-0001", trial), run("best-seed-43", final, "training.seed=43", "run.control=true")]
    other = run("trial-0000", trial, "objective.alpha=0.5")
    kept, [note] = without_trials_that_were_repeated([other, *best])
    assert [one.label for one in kept] == ["trial-0000", "best-seed-43"]
    assert note.startswith("trial-0001 is left out: a search chose it")
    for all_stay in (best, [other, best[0]], [run("plain"), best[1], other]):
        assert without_trials_that_were_repeated(all_stay) == (all_stay, [])
