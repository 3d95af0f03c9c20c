"""The peer is what its definition says."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, DataCollatorWithPadding

from accel_kd.benchmark.seed_trainer import SeedTrainer, seed_arguments, seed_dataset
from accel_kd.data.examples import Examples
from accel_kd.distributed.startup import start
from tests.support.tiny import tokenizer, write_model

ALPHA, TEMPERATURE = 0.3, 2.0


@pytest.fixture
def trainer(tmp_path: Path, tiny_teacher: Path) -> SeedTrainer:
    start("no")
    student = write_model(tmp_path / "student", "bert", layers=1, seed=1, dropout=0.0)
    examples = Examples(
        ["a", "b", "c"], ["please play the song", "rain", "wake me now"], None, np.array([2, 4, 0], dtype=np.int64)
    )
    load = AutoModelForSequenceClassification.from_pretrained
    arguments = seed_arguments(
        tmp_path,
        alpha=ALPHA,
        temperature=TEMPERATURE,
        batch_size=3,
        precision="no",
        max_steps=1,
        seed=0,
        use_cpu=True,
    )
    return SeedTrainer(
        load(student), arguments, teacher=load(tiny_teacher), train_dataset=seed_dataset(examples, tokenizer(), 5),
        data_collator=DataCollatorWithPadding(tokenizer()),
    )  # fmt: skip


def test_its_loss_is_the_formula_in_plain_float64(trainer: SeedTrainer) -> None:
    [batch] = trainer.get_train_dataloader()
    loss = trainer.compute_loss(trainer.model, batch).item()
    labels, inputs = batch["labels"].tolist(), {name: batch[name] for name in batch if name != "labels"}
    student = trainer.model(**inputs).logits.double().tolist()
    teacher = trainer.teacher(**inputs).logits.double().tolist()

    def log_probs(logits: list[float], temperature: float) -> list[float]:
        scaled = [logit / temperature for logit in logits]
        total = math.log(sum(map(math.exp, scaled)))
        return [logit - total for logit in scaled]

    hard = -sum(log_probs(row, 1.0)[label] for row, label in zip(student, labels, strict=True)) / 3
    soft = 0.0
    for own, theirs in zip(student, teacher, strict=True):
        pairs = zip(log_probs(own, TEMPERATURE), log_probs(theirs, TEMPERATURE), strict=True)
        soft += sum(math.exp(t) * (t - s) for s, t in pairs) / 3
    assert loss == pytest.approx(ALPHA * hard + (1 - ALPHA) * TEMPERATURE**2 * soft, rel=1e-5)


def test_its_teacher_learns_nothing_and_its_texts_are_cut_and_padded_to_the_longest(trainer: SeedTrainer) -> None:
    [batch] = trainer.get_train_dataloader()
    assert set(batch) == {"input_ids", "token_type_ids", "attention_mask", "labels"}
    assert sorted(batch["attention_mask"].sum(dim=1).tolist()) == [3, 5, 5]
    before = {name: tensor.clone() for name, tensor in trainer.teacher.state_dict().items()}
    student = trainer.model.classifier.weight.detach().clone()
    trainer.train()
    assert not trainer.teacher.training
    assert all(torch.equal(before[name], tensor) for name, tensor in trainer.teacher.state_dict().items())
    assert not torch.equal(student, trainer.model.classifier.weight)


def test_it_has_the_seeds_settings_and_the_librarys_defaults_otherwise(trainer: SeedTrainer) -> None:
    arguments = trainer.args
    assert (arguments.learning_rate, arguments.weight_decay) == (2e-5, 0.01)
    assert (arguments.lr_scheduler_type, arguments.warmup_steps, arguments.max_grad_norm) == ("linear", 0, 1.0)
    assert arguments.report_to == [] and arguments.save_strategy == "no"
