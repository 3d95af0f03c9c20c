"""What can be searched is known from the schema, before anything is trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from accel_kd.config import load_recipe, to_yaml
from accel_kd.config.search_checks import number_type, values_on_grid, with_settings
from accel_kd.config.search_section import RangeConfig
from accel_kd.errors import UserError


def refused(*overrides: str) -> str:
    with pytest.raises(UserError) as error:
        load_recipe("demo", overrides)
    return str(error.value)


def test_without_a_section_the_seeds_space_is_searched() -> None:
    searched = load_recipe("demo").search.searched
    assert set(searched) == {"training.epochs", "objective.alpha", "objective.temperature"}
    bounds = {name: (tried.low, tried.high) for name, tried in searched.items() if isinstance(tried, RangeConfig)}
    assert bounds == {
        "training.epochs": (5, 10), "objective.alpha": (0, 1), "objective.temperature": (2, 20),
    }  # fmt: skip
    assert len(values_on_grid("objective.temperature", searched["objective.temperature"])) == 19


def test_a_space_is_written_by_dotted_names_or_as_overrides_write_it() -> None:
    dotted = load_recipe("demo", ["search.space={training.epochs: [1, 2], objective.alpha: {low: 0, high: 0.5}}"])
    nested = load_recipe(
        "demo", ["search.space.training.epochs=[1, 2]", "search.space.objective={alpha: {low: 0, high: 0.5}}"]
    )
    assert dotted.search.searched == nested.search.searched
    assert dotted.search.searched["training.epochs"] == [1, 2]


def test_a_resolved_recipe_with_a_space_loads_again(tmp_path: Path) -> None:
    config = load_recipe(
        "demo",
        [
            "search.space.training.epochs={low: 1, high: 4}",
            "search.space.training.learning_rate={low: 1e-5, high: 1e-3, log: true}",
        ],
    )
    file = tmp_path / "again.yaml"
    file.write_text(to_yaml(config))
    assert load_recipe(str(file)).search == config.search


@pytest.mark.parametrize(
    ("setting", "tried", "message"),
    [
        ("training.epoch", "[1]", "training.epoch: unknown; did you mean epochs?"),
        ("train.epochs", "[1]", "train.epochs: unknown; did you mean"),
        ("training", "[1]", "training: names no setting; write section.setting"),
        ("training.epochs", "[]", "training.epochs: list should have at least 1 item"),
        ("training.epochs", "{low: 3}", "training.epochs.high: missing"),
        ("training.epochs", "{low: 3, high: 4, stp: 1}", "training.epochs.stp: unknown; did you mean step?"),
        ("training.epochs", "{low: 0, high: 3}", "training.epochs.low: input should be greater than or equal to 1; f"),
        ("training.epochs", "{low: 1.5, high: 3}", "training.epochs: takes whole numbers"),
        ("training.epochs", "{low: 3, high: 3}", "training.epochs: low 3 is not below high 3"),
        ("objective.alpha", "{low: 0.5, high: 2}", "objective.alpha.high: input should be less than or equal to 1; f"),
        ("objective.alpha", "{low: a, high: 1}", "objective.alpha.low: must be a number; found 'a'"),
        ("objective.alpha", "{low: 0, high: 1, step: 0.3}", "objective.alpha: from 0 to 1 is no number of steps of"),
        ("objective.alpha", "{low: 0, high: 1, log: true}", "objective.alpha: log needs a low above 0"),
        ("objective.alpha", "{low: 0.1, high: 1, log: true, step: 0.9}", "objective.alpha: log and step exclude"),
        ("objective.divergence", "{low: 1, high: 2}", "objective.divergence: takes no numbers, hence no range"),
        ("objective.divergence", "[forward_kl, fkl]", "objective.divergence[1]: input should be 'forward_kl'"),
        ("objective.divergence", "[forward_kl, forward_kl]", "objective.divergence: a choice stands twice"),
        ("teacher.store.encoding.k", "[1]", "teacher.store.encoding.k[0]: unknown for full"),
        (
            "objective.terms.1.weight",
            "{low: 0, high: 1}",
            "objective.terms.1.weight: leads into a list; search objective",
        ),
        ("student.layers.0", "[1]", "student.layers.0: leads into a list; search student.layers as a whole"),
        ("run.threads", "[1]", "run.threads: cannot be searched"),
        ("training.precision", "[bf16]", "training.precision: cannot be searched; it is one and the same"),
    ],
)
def test_a_setting_that_cannot_be_searched_so_is_refused_in_one_line(setting: str, tried: str, message: str) -> None:
    found = refused(f"search.space.{setting}={tried}")
    assert found.startswith(f"search.space.{message}") and "\n" not in found


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["search.space.training.epochs=3"], "search.space: training.epochs takes a range {low, high} or a list"),
        (["search.metric=accurcy"], "search.metric: 'accurcy' is unknown; it may be loss, accuracy"),
        (["search.sampler=grid"], "search.space.objective.alpha: a grid needs values that can be counted"),
        (
            ["search.sampler=grid", "search.space={training.seed: {low: 1, high: 200000}}"],
            "search.space: a grid of 200,000 combinations",
        ),
        (["search.nmu_trials=3"], "search.nmu_trials: unknown; did you mean num_trials?"),
    ],
)
def test_a_search_that_cannot_be_made_is_refused_in_one_line(overrides: list[str], message: str) -> None:
    found = refused(*overrides)
    assert found.startswith(message) and "\n" not in found


def test_a_metric_that_compares_with_a_teacher_needs_one() -> None:
    alone = ["objective.alpha=1", "run.control=false", "teacher.finetune=null", "data.labelled_fraction=1"]
    assert refused("search.metric=teacher_kl", *alone).startswith("search.metric: teacher_kl compares with a teacher")


def test_any_setting_of_the_recipe_can_be_varied() -> None:
    config = load_recipe(
        "demo",
        [
            "search.space={student.layers: [[0, 1], [2]], training.schedule: [linear, cosine], data.text_pair: [null],"
            " objective.terms: [[{type: hard_label}], [{type: logit_mse}]], student.dropout: {low: 0, high: 0.5}}"
        ],
    )
    assert len(config.search.searched) == 5
    assert number_type("student.dropout") is float and number_type("training.max_steps") is int
    assert number_type("training.schedule") is None and number_type("data.allow_unlabelled") is None


def test_settings_are_put_in_by_their_dotted_names_and_the_recipe_stays_as_it_is() -> None:
    recipe = load_recipe("demo", ["teacher.finetune=null"]).model_dump(mode="json")
    before = yaml.safe_dump(recipe)
    changed = with_settings(recipe, {"teacher.finetune.epochs": 3, "training.seed": 1})
    assert changed["teacher"]["finetune"] == {"epochs": 3} and changed["training"]["seed"] == 1
    assert yaml.safe_dump(recipe) == before
