"""What a run is, and what it leaves for the next one of its process."""

from __future__ import annotations

from accel_kd.assembly.data import what_makes_data
from accel_kd.assembly.session import Kept, identity
from accel_kd.config import load_recipe


def test_what_a_search_of_a_recipe_would_vary_is_not_a_part_of_what_a_run_is() -> None:
    plain, searched = (
        identity(load_recipe("demo", settings).model_dump(mode="json"))
        for settings in ([], ["search.num_trials=3", "search.space.training.epochs=[1]", "search.pruner=median"])
    )
    assert plain == searched and "search" not in plain


def test_what_is_kept_is_made_again_for_another_key_alone() -> None:
    kept, made = Kept(), []

    def get(kind: str, key: str) -> str:
        return kept.once(kind, key, lambda: made.append((kind, key)) or f"{kind} of {key}")

    assert [get("data", "a"), get("data", "a"), get("tokens", "a"), get("data", "b"), get("data", "a")] == [
        "data of a", "data of a", "tokens of a", "data of b", "data of a",
    ]  # fmt: skip
    assert made == [("data", "a"), ("tokens", "a"), ("data", "b"), ("data", "a")]


def test_data_are_read_again_where_a_setting_differs_that_they_are_made_of() -> None:
    plain = what_makes_data(load_recipe("demo"))
    for same in ("training.epochs=9", "objective.temperature=7", "teacher.source=cached"):
        assert what_makes_data(load_recipe("demo", [same])) == plain
    others = ["data.max_length=32", "data.labelled_fraction=0.5", "evaluation.metric=macro_f1", "teacher.model=other"]
    assert len({what_makes_data(load_recipe("demo", [other])) for other in others} | {plain}) == 5


def test_in_how_many_pieces_a_batch_is_taken_is_not_a_part_of_what_a_run_is() -> None:
    plain, in_pieces, other = (
        identity(load_recipe("demo", settings).model_dump(mode="json"))
        for settings in (
            [],
            ["training.micro_batch_size=8", "evaluation.micro_batch_size=8"],
            ["training.batch_size=24"],
        )
    )
    assert plain == in_pieces != other
