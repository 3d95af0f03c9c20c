"""Ranks whose CPUs can do different things do one thing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.exactness import recipe
from tests.support.forks import ForkedRun, Forks

_DECIDE = "tests.support.unlike_ranks:decide"


def decided(forks: Forks, output: Path, *settings: str) -> tuple[list[dict[str, Any]], ForkedRun]:
    """What each of two ranks, of which the first alone has bf16 and oneDNN."""
    run = forks.run(_DECIDE, output, json.dumps(settings), ranks=2).succeeded()
    return [json.loads((output / f"{rank}.json").read_text()) for rank in range(2)], run


def test_what_one_rank_lacks_none_uses(forks: Forks, tmp_path: Path) -> None:
    found, run = decided(forks, tmp_path, "training.precision=bf16")
    assert found == [{"is_onednn": False, "teacher_dtype": "float32"}] * 2
    assert run.text.count("training.precision: bf16, which not all ranks") == 1
    assert run.text.count("run.cpu_matmul: blas, since not all ranks") == 1


def test_a_library_that_was_asked_for_and_one_rank_refuses_ends_all(forks: Forks, tmp_path: Path) -> None:
    found, _ = decided(forks, tmp_path, "run.cpu_matmul=onednn")
    for rank in found:
        assert rank["error"].startswith("run.cpu_matmul: onednn would round fp32 products to bf16 on this CPU")
        assert rank["error"].endswith("(rank 1)") or rank is found[1]


@pytest.mark.parametrize("command", ["distill", "cache-teacher"])
def test_other_data_on_one_rank_end_all_and_be_it_their_order(
    forks: Forks, tiny_data: Path, tiny_teacher: Path, tmp_path: Path, command: str
) -> None:
    arguments = [command, *recipe(tiny_data, tiny_teacher, tmp_path / "run")[1:]]
    ended = forks.run("tests.support.unlike_ranks:command", json.dumps(arguments), ranks=2).succeeded()
    assert "accel-kd: data.path: rank 1 reads other examples or labels than rank 0, or in another order" in ended.text


def test_all_ranks_have_one_manifest_of_a_store_that_another_job_may_replace(
    forks: Forks, tiny_data: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    more = [f"teacher.store.path={tmp_path / 'stores'}", "teacher.store.shard_rows=50"]
    forks.run("cache-teacher", *recipe(tiny_data, tiny_teacher, tmp_path / "run", *more)[1:]).succeeded()
    (store,) = (tmp_path / "stores").iterdir()
    forks.run("tests.support.unlike_ranks:open_store", store, tmp_path, ranks=2).succeeded()
    one, two = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert one == two > 2
