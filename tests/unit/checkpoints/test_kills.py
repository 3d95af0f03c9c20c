"""A process that is killed while it writes leaves the old checkpoint or the new one, whole."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import ROOT, run, succeeded


def results_of(scenario: str, folder: Path) -> list[dict[str, Any]]:
    process = succeeded(
        run([sys.executable, "-m", "tests.support.checkpoints", scenario, folder], PYTHONPATH=str(ROOT))
    )
    results: list[dict[str, Any]] = json.loads(process.stdout)
    return results


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return results_of("second", tmp_path_factory.mktemp("second"))


@pytest.fixture(scope="module")
def replacement(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return results_of("replacement", tmp_path_factory.mktemp("replacement"))


def test_every_kind_of_change_to_the_disk_was_a_point_to_be_killed_at(second: list[dict[str, Any]]) -> None:
    points = [result["kill"] for result in second]
    assert {"fsync", "replace", "rename", "unlink", "rmdir", "mkdir"} <= set(points)
    assert points.index(None) > 20  # so many points, and then the process that came to its end
    assert points.count("sleep") >= 5


def test_a_kill_at_any_point_leaves_the_old_or_the_new_checkpoint_where_one_is_kept(
    second: list[dict[str, Any]],
) -> None:
    exact = second[: [result["kill"] for result in second].index(None) + 1]
    newest = [result["before"] for result in exact]
    assert newest == sorted(newest) and set(newest) == {1, 2}  # the old one up to some point, then the new one
    assert {result["before"] for result in second} == {1, 2}
    assert all(result["after"] == result["before"] for result in second)


def test_cleaning_up_after_a_kill_leaves_valid_checkpoints_and_nothing_else(second: list[dict[str, Any]]) -> None:
    for result in second:
        assert result["values"] in [
            {"step-00000001": 1},
            {"step-00000001": 1, "step-00000002": 2},
            {"step-00000002": 2},
        ]


def test_a_kill_while_a_checkpoint_takes_anothers_place_leaves_one_of_them_under_the_name(
    replacement: list[dict[str, Any]],
) -> None:
    exact = replacement[: [result["kill"] for result in replacement].index(None) + 1]
    values = [result["values"]["step-00000001"] for result in exact]
    assert values == sorted(values) and set(values) == {1, 2}
    assert all(list(result["values"]) == ["step-00000001"] for result in replacement)
