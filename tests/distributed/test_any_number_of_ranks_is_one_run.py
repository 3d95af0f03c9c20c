"""The same recipe on 1, 2 and 4 gloo ranks, with and without accumulation: the same losses, gradients and metrics."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.support.forks import Forks
from tests.support.processes import accelerate_launch, step_rows, summary

# 203 train examples in batches of 16: the last batch of an epoch holds 11, which 4 ranks with accumulation 4 cut into
# 16 pieces, five of them empty. 53 validation and 61 test examples divide by no number of ranks.
_SHAPES = [(1, 1), (1, 2), (1, 4), (2, 1), (2, 4), (4, 1), (4, 4)]
_PLAIN = _SHAPES[0]


def _recipe(data: Path, teacher: Path, directory: Path, accumulation: int, world_size: int) -> list[str]:
    return [
        "distill", "clinc150_minilm",
        f"data.path={data}", "data.max_length=32", "data.labelled_fraction=0.6",
        f"teacher.model={teacher}", "teacher.finetune=null", "teacher.accept_chance_accuracy=true",
        "student.layers=2", "student.dropout=0",
        "objective.alpha=0.3", "objective.temperature=2",
        "training.epochs=2", "training.batch_size=16", "training.optimizer=sgd", "training.learning_rate=0.05",
        f"training.micro_batch_size={16 // accumulation // world_size}",
        "evaluation.micro_batch_size=7",
        "tracking.mode=disabled", f"run.directory={directory}",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def runs(
    forks: Forks, tiny_data: Path, tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[int, int], Path]:
    folder = tmp_path_factory.mktemp("runs")
    directories = {}
    for world_size, accumulation in _SHAPES:
        directory = folder / f"{world_size}_ranks_{accumulation}_accumulated"
        recipe = _recipe(tiny_data, tiny_teacher, directory, accumulation, world_size)
        recipe += ["perf.profile=true"] * (world_size == 4)  # it changes nothing either
        forks.run(*recipe, ranks=world_size).succeeded()
        directories[world_size, accumulation] = directory
    return directories


@pytest.mark.parametrize("shape", _SHAPES[1:])
def test_every_step_has_the_loss_and_the_gradient_of_one_process(
    runs: dict[tuple[int, int], Path], shape: tuple[int, int]
) -> None:
    plain, other = step_rows(runs[_PLAIN]), step_rows(runs[shape])
    assert [row["step"] for row in plain] == list(range(1, 27))
    assert [row["step"] for row in other] == list(range(1, 27))
    for expected, row in zip(plain, other, strict=True):
        # Plain descent shows a loss that is scaled wrongly, to which Adam is all but blind; but clipping may hide it.
        for name in ("train/loss", "train/loss_hard_label", "train/loss_forward_kl", "train/gradient_norm"):
            assert row[name] == pytest.approx(expected[name], rel=1e-5, abs=1e-5), (name, row["step"])
        assert row["train/learning_rate"] == expected["train/learning_rate"]


@pytest.mark.parametrize("shape", _SHAPES[1:])
def test_accuracy_is_equal_to_the_last_digit(runs: dict[tuple[int, int], Path], shape: tuple[int, int]) -> None:
    plain, other = summary(runs[_PLAIN]), summary(runs[shape])
    assert other["world_size"] == shape[0]
    exact = [name for name in plain if name.endswith(("accuracy", "macro_f1", "recall", "teacher_agreement"))]
    assert {"eval/accuracy", "test/accuracy", "teacher/test_accuracy", "test/out_of_scope_recall"} <= set(exact)
    assert {name: other[name] for name in exact} == {name: plain[name] for name in exact}
    assert other["num_examples"] == plain["num_examples"] == {"train": 203, "validation": 53, "test": 61}


@pytest.mark.parametrize("shape", _SHAPES[1:])
def test_predictions_are_the_same_rows_in_the_same_order(
    runs: dict[tuple[int, int], Path], shape: tuple[int, int]
) -> None:
    for split, count in (("validation", 53), ("test", 61)):
        plain, other = (pq.read_table(runs[key] / "predictions" / f"{split}.parquet") for key in (_PLAIN, shape))
        assert other.num_rows == len(set(other["id"].to_pylist())) == count
        for column in ("id", "label", "argmax", "teacher_argmax", "label_name", "argmax_name"):
            assert other[column].equals(plain[column]), column


def test_a_profile_tells_what_ranks_tell_each_other(runs: dict[tuple[int, int], Path]) -> None:
    profile = json.loads((runs[4, 1] / "profile" / "shares.json").read_text())
    assert 0 < profile["communication_share_of_traced_steps"] < 1
    assert profile["seconds"]["stop requests"] > 0 and profile["steps"] == 26


def test_the_loss_moves_and_its_parts_add_up(runs: dict[tuple[int, int], Path]) -> None:
    rows = step_rows(runs[_PLAIN])
    for row in rows:
        parts = 0.3 * row["train/loss_hard_label"] + 0.7 * row["train/loss_forward_kl"]
        assert row["train/loss"] == pytest.approx(parts, rel=1e-5)
    assert rows[-1]["train/loss"] < 0.8 * rows[0]["train/loss"]


def test_a_launcher_that_loses_a_process_is_refused(tiny_data: Path, tiny_teacher: Path, tmp_path: Path) -> None:
    recipe = _recipe(tiny_data, tiny_teacher, tmp_path / "run", 1, 1)
    process = accelerate_launch(["--cpu", "--num_processes", "2"], *recipe)
    assert process.returncode != 0
    assert "launch: several processes were asked for, but the launcher started one" in process.stderr
    assert not (tmp_path / "run").exists()
