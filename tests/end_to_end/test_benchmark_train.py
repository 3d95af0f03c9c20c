"""Ours beside a Trainer, on tiny models: every figure is there, both train the same, and what does not is found out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from torch import nn

from accel_kd.benchmark import contestants
from accel_kd.benchmark.contestants import EAGER
from accel_kd.benchmark.growth import Growth
from accel_kd.benchmark.growth_ranks import rank_trial
from accel_kd.benchmark.rounds import PEER
from accel_kd.benchmark.sameness import SETTINGS, Sameness, compare_losses
from accel_kd.benchmark.seed_trainer import SeedTrainer
from accel_kd.benchmark.step_batches import endless, endless_rows
from accel_kd.benchmark.train import Settings, benchmark_train
from accel_kd.benchmark.train_trial import Request, in_process_of_its_own, main
from accel_kd.benchmark.workbench import STORE, STREAMING, opened, own_settings
from accel_kd.distributed import cpu_matmul
from accel_kd.objectives import ForwardKL, mixture


@pytest.fixture
def overrides(tiny_data: Path, tiny_teacher: Path) -> list[str]:
    return [
        f"data.path={tiny_data}", "data.max_length=32", f"teacher.model={tiny_teacher}", "teacher.finetune=null",
        "student.layers=2", "objective.alpha=0.3", "objective.temperature=2", "training.batch_size=16",
        "evaluation.micro_batch_size=32",
    ]  # fmt: skip


def test_a_comparison_has_every_figure_of_every_contestant(overrides: list[str], tmp_path: Path) -> None:
    growth = Growth(batch_sizes=[4], lengths=[8], num_steps=1, num_rounds=1)
    settings = Settings(
        models="recipe", sources=[STORE, STREAMING], modes=[EAGER], num_steps=3, num_rounds=2, warm_up=2, growth=growth,
        output=str(tmp_path / "rows.jsonl"), plot=str(tmp_path / "speeds.png"),
    )  # fmt: skip
    pytest.importorskip("matplotlib")
    report = benchmark_train("clinc150_minilm", overrides, settings, ask=main)
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    compared, grown = [r for r in rows if r["measured"] == "train"], [r for r in rows if r["measured"] == "growth"]
    assert [row["contestant"] for row in compared] == [PEER, "store, eager", "streaming, eager"]
    for row in compared:
        assert len(row["examples_per_second"]) == len(row["ratio"]) == 2 and min(row["examples_per_second"]) > 0
        assert 0 < row["useful_utilisation"] <= row["utilisation"] < 1 and 0 <= row["padding"] < 0.5
        # A tiny model may find room in what this process has had before; in one of its own it does not, see below.
        assert row["peak_bytes"] >= 0 and row["evaluation_over_training"] > 0 and row["device"] == "cpu"
        assert row["date"] and row["packages"]["transformers"] and row["config"]["training"]["batch_size"] == 16
        assert row["teacher_share"] + row["student_share"] == 1.0 and row["threads"] == torch.get_num_threads()
    peer, store, streaming = compared
    assert peer["ratio"] == [1.0, 1.0] and peer["padding"] > store["padding"]
    assert store["teacher_share"] == 0.0 < min(peer["teacher_share"], streaming["teacher_share"])
    assert store["flops_per_step"] < streaming["flops_per_step"]
    for row in (store, streaming):
        assert row["same_loss"]["holds"], row["same_loss"]
        assert f"| {row['contestant']} |" in report
    assert "NOT the same" not in report and (tmp_path / "speeds.png").stat().st_size > 0
    assert [(row["contestant"], row["length"]) for row in grown] == [("given logits, eager", 8), (PEER, 8)]
    assert all(row["examples_per_second_median"] > 0 and row["num_ranks"] == 1 for row in grown)


def _losses(overrides: list[str], folder: Path, source: str) -> Sameness:
    return compare_losses(
        opened("clinc150_minilm", [*overrides, *own_settings(folder, 96), *SETTINGS]), EAGER, source, folder
    )


def _square_of_the_temperature_left_out(patch: pytest.MonkeyPatch) -> None:
    original = SeedTrainer.compute_loss

    def compute_loss(self: Any, *arguments: Any, **options: Any) -> Any:
        self.args.temperature, temperature = self.args.temperature, self.args.temperature
        with patch.context() as inner:
            kept = nn.KLDivLoss.forward
            inner.setattr(nn.KLDivLoss, "forward", lambda *given: kept(*given) / temperature**2)
            return original(self, *arguments, **options)

    patch.setattr(SeedTrainer, "compute_loss", compute_loss)


def _ours_weighted_otherwise(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(contestants, "objective", lambda section: mixture(0.31, ForwardKL(2.0), 0.0, "keep"))


def _ours_learning_faster(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(contestants, "LEARNING_RATE", 1.1 * contestants.LEARNING_RATE)


def _ours_keeping_its_rate(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(contestants, "SCHEDULE", "constant")


def _store_of_other_rows(patch: pytest.MonkeyPatch) -> None:
    from accel_kd.teachers.resident import ResidentTeacher

    original = ResidentTeacher.__init__

    def start(self: Any, reader: Any, places: Any, *others: Any) -> None:
        original(self, reader, places[::-1].copy(), *others)

    patch.setattr(ResidentTeacher, "__init__", start)


@pytest.mark.parametrize(
    "defect",
    [
        _square_of_the_temperature_left_out, _ours_weighted_otherwise, _ours_learning_faster, _ours_keeping_its_rate,
        _store_of_other_rows,
    ],
)  # fmt: skip
def test_what_trains_otherwise_is_found_out(
    defect: Callable[[pytest.MonkeyPatch], None], overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    defect(monkeypatch)
    found = _losses(overrides, tmp_path, STORE)
    assert not found.holds, (found.largest, found.last)


def test_a_rank_says_how_fast_all_are_together(
    overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CUDA_VISIBLE_DEVICES", "ACCELERATE_USE_CPU", "DS_ACCELERATOR"):  # it sets them, and they must go
        monkeypatch.setenv(name, "")
    answer = tmp_path / "speeds.json"
    rank_trial("clinc150_minilm", [*overrides, *own_settings(tmp_path, 96)], [EAGER], 1, 2, str(answer))
    speeds = json.loads(answer.read_text())
    assert list(speeds) == [EAGER, PEER] and all(len(own) == 2 and min(own) > 0 for own in speeds.values())


def test_a_trial_in_a_process_of_its_own_answers(overrides: list[str], tmp_path: Path) -> None:
    request = Request("memory", "clinc150_minilm", [*overrides, *own_settings(tmp_path, 48)], str(tmp_path), PEER)
    answer = in_process_of_its_own(request)
    assert answer["peak_bytes"] > 1e6 and answer["baseline_bytes"] > 0


def test_in_each_round_the_peer_has_the_texts_of_ours_in_another_order(overrides: list[str], tmp_path: Path) -> None:
    bench = opened("clinc150_minilm", [*overrides, *own_settings(tmp_path, 96)])
    teacher, split, _ = bench.teacher_source("store")
    ours = contestants.Ours(bench, "ours", "eager", teacher, endless(bench.loader(split)), 12)
    peer = contestants.Peer(bench, tmp_path, texts=endless_rows(bench.loader(bench.train)))
    rounds = []
    for _ in range(2):
        trials = [contestant.run(1, 4) for contestant in (ours, peer)]
        for trial in trials:
            assert [len(lengths) for lengths in trial.lengths] == [bench.config.training.batch_size] * 4
        own, others = (np.concatenate(trial.lengths) for trial in trials)
        assert sorted(own) == sorted(others) and own.tolist() != others.tolist()
        rounds.append(sorted(own))
    assert rounds[0] != rounds[1], "each round has texts of its own"


@pytest.fixture
def another_precision() -> Iterator[None]:
    """Accelerate keeps a process to its first one."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def test_the_peer_multiplies_as_torch_does_by_default_and_ours_as_the_recipe_says(
    overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_matmul, "_rounds", lambda: False)
    bench = opened("clinc150_minilm", [*overrides, *own_settings(tmp_path, 48), "run.cpu_matmul=onednn"])
    teacher, split, _ = bench.teacher_source("streaming")
    peer = contestants.Peer(bench, tmp_path)
    ours = contestants.Ours(bench, "ours", "eager", teacher, endless(bench.loader(split)), 1)
    seen: list[bool] = []
    for model in (peer.student, ours.engine.model):
        model.bert.encoder.layer[0].intermediate.dense.register_full_backward_hook(
            lambda *_: seen.append(cpu_matmul._PRODUCTS.fp32_precision == "bf16")
        )
    peer.run(0, 1)
    ours.run(0, 1)
    assert seen == [False, True]


@pytest.mark.usefixtures("another_precision")
def test_the_peer_computes_in_the_precision_of_the_recipe_in_every_trial(overrides: list[str], tmp_path: Path) -> None:
    bench = opened("clinc150_minilm", [*overrides, *own_settings(tmp_path, 48), "training.precision=bf16"])
    peer = contestants.Peer(bench, tmp_path)
    seen: list[torch.dtype] = []
    dense = peer.student.bert.encoder.layer[0].intermediate.dense
    dense.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    for _ in range(3):
        seen.clear()
        peer.run(0, 2)
        assert set(seen) == {torch.bfloat16}
