"""Each strategy on two gloo ranks is the run of one process: it trains, scores, saves, goes on and exports alike."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from tests.support.exactness import differences
from tests.support.forks import ForkedRun, Forks
from tests.support.processes import step_rows, summary
from tests.support.strategies import LAUNCHED, SHARDED
from tests.support.tiny import write_model

# All of them that cut the student into slices; DDP has its tests in `test_any_number_of_ranks_is_one_run`.
every_sharded_strategy = pytest.mark.parametrize("strategy", SHARDED)
_SGD = ["training.optimizer=sgd", "training.learning_rate=0.05", "student.dropout=0"]
_CLIPPED = [*_SGD, "training.max_grad_norm=0.5", "evaluation.keep=last"]
_ADAMW = ["training.learning_rate=2e-3"]


_EVERY_TERM = [
    f"{{type: {name}, weight: 0.3}}"
    for name in ("hard_label", "forward_kl", "reverse_kl", "jensen_shannon", "logit_mse")
]


class Runs:
    """Starts runs of one recipe, each setting and strategy once."""

    def __init__(self, forks: Forks, folder: Path, data: Path, teacher: Path) -> None:
        self.forks, self.folder, self.data, self.teacher = forks, folder, data, teacher
        self._done: dict[tuple[str, ...], tuple[Path, ForkedRun]] = {}

    def start(self, directory: Path, *settings: str, strategy: str, ranks: int = 2, **options: Any) -> ForkedRun:
        return self.forks.run(
            "distill", "clinc150_minilm",
            f"data.path={self.data}", "data.max_length=32", "data.labelled_fraction=0.6",
            f"teacher.model={self.teacher}", "teacher.finetune=null", "teacher.accept_chance_accuracy=true",
            "student.layers=2", f"objective={{terms: [{', '.join(_EVERY_TERM)}]}}",
            "training.epochs=1", "training.batch_size=16", "evaluation.micro_batch_size=7",
            "tracking.mode=disabled", f"run.directory={directory}", *settings,
            ranks=ranks, **LAUNCHED[strategy], **options,
        )  # fmt: skip

    def once(self, *settings: str, strategy: str, ranks: int = 2) -> tuple[Path, ForkedRun]:
        """The directory and the outcome of a run that several tests look at."""
        key = (*settings, strategy, str(ranks))
        if key not in self._done:
            directory = self.folder / f"run_{len(self._done)}"
            self._done[key] = directory, self.start(directory, *settings, strategy=strategy, ranks=ranks).succeeded()
        return self._done[key]

    def plain(self, *settings: str) -> Path:
        """The run of one process."""
        return self.once(*settings, strategy="ddp", ranks=1)[0]


@pytest.fixture(scope="module")
def narrow_student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("narrow"), layers=2, width=16, seed=1)


@pytest.fixture(scope="module")
def runs(forks: Forks, tiny_data: Path, tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(forks, tmp_path_factory.mktemp("strategies"), tiny_data, tiny_teacher)


def last_checkpoint(directory: Path) -> dict[str, Tensor]:
    """Weights and momentum after the last step."""
    newest = sorted((directory / "checkpoints").glob("step-*"))[-1]
    return load_file(newest / "student.safetensors") | load_file(newest / "optimizer.safetensors")


def assert_one_run(plain: Path, other: Path, tolerance: float) -> None:
    """Losses, gradient norms and what a checkpoint holds within `tolerance`; metrics and predictions to the digit."""
    expected, found = step_rows(plain), step_rows(other)
    assert len(expected) == len(found) == summary(plain)["train/steps"]
    for row, there in zip(found, expected, strict=True):
        names = [name for name in there if name.startswith("train/loss")]
        assert len(names) == 1 + len(_EVERY_TERM)
        for name in (*names, "train/gradient_norm"):
            assert row[name] == pytest.approx(there[name], rel=tolerance), (name, row["step"])
        assert row["train/learning_rate"] == there["train/learning_rate"]
    one, two = last_checkpoint(plain), last_checkpoint(other)
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        scale = max(float(tensor.norm()), 1e-3)  # the gradient of a key's bias is 0 but for rounding
        assert float((two[name] - tensor).norm()) <= 10 * tolerance * scale, name
    exact = [name for name in summary(plain) if name.endswith(("accuracy", "macro_f1", "recall", "agreement"))]
    assert {name: summary(other)[name] for name in exact} == {name: summary(plain)[name] for name in exact}
    for split in ("validation", "test"):
        a, b = (pq.read_table(run / "predictions" / f"{split}.parquet") for run in (plain, other))
        assert all(a[column].equals(b[column]) for column in ("id", "label", "argmax", "teacher_argmax"))


@every_sharded_strategy
def test_two_ranks_clip_and_train_as_one_process_does(runs: Runs, strategy: str) -> None:
    plain = runs.plain(*_CLIPPED)
    assert min(row["train/gradient_norm"] for row in step_rows(plain)) > 0.5, "every step is clipped"
    directory, ran = runs.once(*_CLIPPED, strategy=strategy)
    named = "FSDP2 over gloo" if strategy == "fsdp2" else f"DeepSpeed ZeRO-{strategy[-1]} over gloo"
    assert f"start: 2 ranks on cpu (1 threads), {named}, precision no" in ran.text
    assert_one_run(plain, directory, 1e-5)


@every_sharded_strategy
def test_accumulated_micro_batches_are_the_same_step(runs: Runs, strategy: str, tmp_path: Path) -> None:
    settings = [*_SGD, "training.max_grad_norm=null"]
    runs.start(tmp_path / "run", *settings, "training.micro_batch_size=2", strategy=strategy).succeeded()
    assert_one_run(runs.plain(*settings), tmp_path / "run", 1e-5)


@every_sharded_strategy
def test_the_export_is_whole_and_the_very_weights_that_were_trained(runs: Runs, strategy: str) -> None:
    directory, _ = runs.once(*_CLIPPED, strategy=strategy)
    exported = AutoModelForSequenceClassification.from_pretrained(directory / "student")
    assert json.loads((directory / "student" / "config.json").read_text())["architectures"] == [
        "BertForSequenceClassification"
    ]
    trained = last_checkpoint(directory)
    assert all(torch.equal(tensor, trained[name]) for name, tensor in exported.state_dict().items())
    assert {file.name for file in (directory / "student").glob("*.safetensors")} == {"model.safetensors"}


@every_sharded_strategy
def test_killed_and_started_again_a_run_ends_bit_for_bit_as_if_it_never_was(
    runs: Runs, strategy: str, tmp_path: Path
) -> None:
    settings = [*_ADAMW, "checkpoint.every_steps=4", "training.micro_batch_size=4", "checkpoint.background=true"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    runs.start(whole, *settings, strategy=strategy).succeeded()
    # The checkpoint of step 8 waits for that of step 4, and is itself written beside the next steps.
    fault = {"at": "step", "count": 9, "do": "kill", "rank": 1}
    assert runs.start(killed, *settings, strategy=strategy, faults=[fault]).codes[1] == -9
    again = runs.start(killed, *settings, strategy=strategy).succeeded()
    assert re.search("goes on after step [48] of 13", again.text)
    assert differences(whole, killed) == []


def test_a_strategy_that_forgot_the_optimizer_would_be_found_out(runs: Runs, tmp_path: Path) -> None:
    settings = [*_ADAMW, "checkpoint.every_steps=4"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    runs.start(whole, *settings, strategy="zero2").succeeded()
    runs.start(killed, *settings, strategy="zero2", faults=[{"at": "step", "count": 7, "do": "kill"}])
    runs.start(killed, *settings, strategy="zero2", faults=[{"without": "optimizer"}]).succeeded()
    assert "student/model.safetensors" in differences(whole, killed)


@every_sharded_strategy
def test_a_checkpoint_of_one_strategy_serves_another(runs: Runs, strategy: str, tmp_path: Path) -> None:
    """Written in slices it goes on whole, and the other way round: a checkpoint knows no strategy."""
    settings = [*_SGD, "checkpoint.every_steps=4"]
    kill = [{"at": "step", "count": 7, "do": "kill"}]
    for first, then in ((strategy, "ddp"), ("ddp", strategy)):
        directory = tmp_path / first
        runs.start(directory, *settings, strategy=first, faults=kill, ranks=1 if first == "ddp" else 2)
        runs.start(directory, *settings, strategy=then, ranks=1 if then == "ddp" else 2).succeeded()
        assert_one_run(runs.plain(*settings), directory, 1e-5)


@pytest.mark.parametrize("strategy", LAUNCHED)
def test_bf16_stays_near_fp32(runs: Runs, strategy: str, tmp_path: Path) -> None:
    """Eight bits of a number are left: the losses agree within some percent, and the step differs from fp32's."""
    runs.start(tmp_path / "run", *_SGD, "training.precision=bf16", strategy=strategy).succeeded()
    expected, found = step_rows(runs.plain(*_SGD)), step_rows(tmp_path / "run")
    assert [row["train/loss"] for row in found] == pytest.approx([row["train/loss"] for row in expected], rel=0.06)
    assert [row["train/loss"] for row in found] != pytest.approx([row["train/loss"] for row in expected], rel=1e-6)
    assert all(tensor.dtype is torch.float32 for tensor in last_checkpoint(tmp_path / "run").values())


@every_sharded_strategy
def test_teacher_control_and_student_are_trained_one_after_the_other(runs: Runs, strategy: str, tmp_path: Path) -> None:
    settings = [
        *_SGD, "teacher.finetune={epochs: 1, learning_rate: 0.05}", "teacher.source=cached", "run.control=true",
        f"teacher.store.path={tmp_path / 'store'}",
    ]  # fmt: skip
    ran = runs.start(tmp_path / "run", *settings, strategy=strategy).succeeded()
    for model in ("teacher", "student without teacher", "student with teacher"):
        assert f"| {model}" in ran.text
    assert summary(tmp_path / "run")["train/steps"] == summary(tmp_path / "run" / "control")["train/steps"] == 13


@every_sharded_strategy
def test_a_gradient_that_is_not_finite_changes_no_weight(runs: Runs, strategy: str, tmp_path: Path) -> None:
    """The weights after two steps of which the second is spoilt are those after one."""
    settings = [*_SGD, "training.max_nonfinite_steps=1", "training.max_steps=2"]
    settings += ["evaluation.every_steps=1", "checkpoint.keep_best=2"]
    fault = {"at": "micro_batch", "count": 2, "do": "spoil", "rank": 1}
    ran = runs.start(tmp_path / "run", *settings, strategy=strategy, faults=[fault]).succeeded()
    assert "the step changed no weight (1 of 1" in ran.text
    first, second = (
        load_file(tmp_path / "run" / "checkpoints" / f"best-0000000{step}" / "student.safetensors") for step in (1, 2)
    )
    assert all(torch.equal(second[name], tensor) for name, tensor in first.items())


@every_sharded_strategy
def test_projections_are_trained_as_in_one_process_and_not_exported(
    runs: Runs, strategy: str, narrow_student: Path
) -> None:
    """A student of 16 units beside a teacher of 32, its hidden states projected."""
    terms = "{type: forward_kl, weight: 0.5}, {type: hidden_states, layers: {1: 2, -1: -1}}"
    settings = [
        *_SGD, f"student={{init: checkpoint, model: {narrow_student}, dropout: 0.0}}",
        f"objective={{terms: [{terms}]}}", "data.labelled_fraction=1.0",
    ]  # fmt: skip
    plain, (directory, _) = runs.plain(*settings), runs.once(*settings, strategy=strategy)
    for row, expected in zip(step_rows(directory), step_rows(plain), strict=True):
        for name in ("train/loss", "train/loss_hidden_states", "train/gradient_norm"):
            assert row[name] == pytest.approx(expected[name], rel=1e-5), (name, row["step"])
    one, two = last_checkpoint(plain), last_checkpoint(directory)
    assert one.keys() == two.keys() and {"projections.0.weight", "projections.1.weight"} <= one.keys()
    for name in ("projections.0.weight", "projections.1.weight", "projections.0.weight//momentum_buffer"):
        torch.testing.assert_close(two[name], one[name], rtol=1e-4, atol=1e-6)
    assert not [name for name in load_file(directory / "student" / "model.safetensors") if "projection" in name]


def test_what_is_logged_does_not_depend_on_how_often(runs: Runs, tmp_path: Path) -> None:
    """From three ranks on, a sum that the ranks reduce together has other bits where more of them are sent at once."""
    settings = [*_SGD, "training.batch_size=15"]
    for every in (1, 7):
        directory, often = tmp_path / str(every), f"tracking.log_every_steps={every}"
        runs.start(directory, *settings, often, strategy="ddp", ranks=3).succeeded()
    assert step_rows(tmp_path / "1") == step_rows(tmp_path / "7")
