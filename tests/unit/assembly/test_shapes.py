from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from accel_kd.assembly.models import checkpoint
from accel_kd.assembly.shapes import micro_batches, read_lengths, shapes
from accel_kd.config import RunConfig, load_recipe
from accel_kd.config.checks import accumulation_steps
from accel_kd.data.loaders import Shard, TrainingLoader
from accel_kd.models.student import from_checkpoint, from_teacher_layers
from tests.support.tiny import LABELS


def _recipe(data: Path, teacher: Path, *more: str) -> RunConfig:
    settings = [f"data.path={data}", "data.max_length=32", f"teacher.model={teacher}", "teacher.finetune=null"]
    return load_recipe("clinc150_minilm", [*settings, "student.layers=2", "training.batch_size=24", *more])


@pytest.mark.parametrize("grouped", ["true", "false"])
def test_micro_batches_are_those_of_the_loader(tiny_data: Path, tiny_teacher: Path, grouped: str) -> None:
    config = _recipe(tiny_data, tiny_teacher, "training.micro_batch_size=4", f"training.group_by_length={grouped}")
    lengths = read_lengths(config)
    found = micro_batches(lengths, config.training, world_size=2)
    assert lengths.splits is not None
    expected = []
    for rank in range(2):
        loader = TrainingLoader(
            lengths.splits["train"], batch_size=24, accumulation=accumulation_steps(config.training, 2),
            shard=Shard(rank, 2), seed=config.training.seed, group_by_length=config.training.group_by_length,
        )  # fmt: skip
        batches = [batch for step in loader.epoch(0) for batch in step.micro_batches]
        expected += [tuple(batch.inputs["input_ids"].shape) for batch in batches if batch.targets.counted.all()]
    assert sorted(zip(found.rows.tolist(), found.student_lengths.tolist(), strict=True)) == sorted(expected)
    assert np.array_equal(found.student_lengths, found.teacher_lengths)
    assert lengths.longest()[0] == max(length for _, length in expected)


def test_the_student_has_the_shape_that_a_run_gives_it(tiny_data: Path, tiny_teacher: Path) -> None:
    config = _recipe(tiny_data, tiny_teacher, "student.dropout=0.2")
    shape = shapes(config, read_lengths(config)).student
    teacher = from_checkpoint(checkpoint(config.teacher, "teacher.model"), LABELS)
    made = from_teacher_layers(teacher, LABELS, layers=2, dropout=0.2)
    assert {n: p.shape for n, p in shape.named_parameters()} == {n: p.shape for n, p in made.named_parameters()}
    assert shape.config.hidden_dropout_prob == made.config.hidden_dropout_prob == 0.2
    assert all(parameter.is_meta for parameter in shape.parameters())


def test_a_teacher_that_is_not_asked_has_no_shape(tiny_data: Path, tiny_teacher: Path) -> None:
    config = _recipe(tiny_data, tiny_teacher, "objective.alpha=1")
    assert shapes(config, read_lengths(config)).teacher is None


def test_without_data_each_text_has_the_maximal_length(tmp_path: Path, tiny_teacher: Path) -> None:
    config = _recipe(tmp_path / "absent.jsonl", tiny_teacher)
    lengths = read_lengths(config)
    assert lengths.rows is None and "absent.jsonl" in (lengths.missing or "")
    assert lengths.longest() == (32, 32)
    assert micro_batches(lengths, config.training, 2).rows.tolist() == [12]
