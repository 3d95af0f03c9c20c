"""What W&B holds of a whole search, offline, is carried off alone and compared without a network, as the search is."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path
from typing import Any, NoReturn

import pytest

from accel_kd.cli import main
from accel_kd.errors import EXIT_SUCCESS
from tests.support.forks import Forks
from tests.support.searches import command, results

pytest.importorskip("wandb")


@pytest.fixture(scope="module")
def searched(forks: Forks, tiny_data: Path, tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("searched_offline") / "search"
    more = ["tracking.mode=offline", "search.num_trials=6", "search.pruner=median", "search.final_seeds=2"]
    forks.run(*command(tiny_data, tiny_teacher, directory, *more)).succeeded()
    return directory


@pytest.fixture
def carried(searched: Path, tmp_path: Path) -> Path:
    """W&B's own folders of all its runs and nothing else, in one folder, as one copies them off a cluster."""
    folder = tmp_path / "wandb"
    for part in sorted(searched.glob("*/wandb/offline-run-*")):
        shutil.copytree(part, folder / part.name)
    return folder


def compared(folder: Path, file: Path, *more: str) -> dict[str, Any]:
    assert main(["compare", str(folder), "--json", str(file), *more]) == EXIT_SUCCESS
    content: dict[str, Any] = json.loads(file.read_text())
    return content


def in_order(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """By what they are of."""
    return sorted(entries, key=lambda entry: (entry.get("name", ""), entry.get("other", ""), entry.get("scope", "")))


def test_the_copy_and_the_search_itself_are_compared_alike(
    searched: Path, carried: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_rows = compared(searched, tmp_path / "rows.json")

    def refused(*arguments: Any) -> NoReturn:
        raise AssertionError("a connection was asked for")

    monkeypatch.setattr(socket.socket, "connect", refused)
    # W&B's folders are named for their times, and the first one is another.
    from_wandb = compared(carried, tmp_path / "wandb.json", "--baseline", by_rows["baseline"])
    found = results(searched)
    complete = [trial for trial in found["trials"] if trial["outcome"] == "complete"]
    assert len(found["finals"]) == 2
    # Each trial but the best one, for whose settings its two seeds stand.
    assert len([run for setting in from_wandb["settings"] for run in setting["runs"]]) == len(complete) - 1 + 2
    assert by_rows["baseline"] == from_wandb["baseline"]
    assert in_order(by_rows["differences"]) == in_order(from_wandb["differences"])
    for here, there in zip(in_order(by_rows["settings"]), in_order(from_wandb["settings"]), strict=True):
        assert (here["name"], here["differs"]) == (there["name"], there["differs"])
        assert here["figures"] == there["figures"]
        for own, copied in zip(here["runs"], there["runs"], strict=True):
            for name in ("name", "seed", "num_rows", "num_right"):
                assert own[name] == copied[name]
