"""The looks that a training takes at a store before it believes it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from accel_kd.canary import refuse_other_answers, refuse_other_labels
from accel_kd.capture import CaptureSettings, capture, columns_of_labels
from accel_kd.data.examples import Examples, content_ids
from accel_kd.data.pooled_rows import PooledRows, pool
from accel_kd.data.preprocessing import tokenise_split
from accel_kd.errors import RunFailure, UserError
from accel_kd.logit_store.encoding import encoding_of
from accel_kd.logit_store.manifest import fingerprint_of
from accel_kd.logit_store.reader import StoreReader, open_store
from accel_kd.logit_store.writer import StoreDescription, finished_shards, plan_shards, seal
from accel_kd.tasks.sequence_classification import SequenceClassification
from accel_kd.teachers.streaming import STEADY_ROWS, StreamingTeacher
from tests.support import tiny

ENCODINGS = {
    "full": {"type": "full", "dtype": "float16"},
    "top_k": {"type": "top_k", "k": 3, "value_bits": 8, "temperatures": [1.0]},
    "sampled": {"type": "sampled", "num_samples": 64, "temperature": 1.0, "seed": 0},
}


class Unasked:
    """Nobody asks to stop."""

    def is_wanted(self) -> bool:
        return False

    def tell_ranks(self) -> None:
        raise AssertionError

    def check_now(self) -> None:
        pass


def rows() -> PooledRows:
    found = tiny.rows(60)
    labels = np.array([tiny.LABELS.index(row["label"]) for row in found])
    ids = content_ids([[row["text"], None, row["label"]] for row in found])
    names = ["input_ids", "token_type_ids", "attention_mask"]
    examples = Examples(ids, [row["text"] for row in found], None, labels)
    return pool([tokenise_split(examples, (tiny.tokenizer(), names), None, 32)])[0]


def teacher(folder: Path, seed: int = 0) -> StreamingTeacher:
    tiny.write_model(folder / str(seed), seed=seed)
    model = AutoModelForSequenceClassification.from_pretrained(folder / str(seed), dtype=torch.float32)
    return StreamingTeacher(model, SequenceClassification(tiny.LABELS), torch.device("cpu"), min_rows=STEADY_ROWS)


def store(folder: Path, kind: str, source: StreamingTeacher) -> StoreReader:
    identity = {"encoding": ENCODINGS[kind]}
    description = StoreDescription(folder / "store", fingerprint_of(identity), identity, len(tiny.LABELS), 5)
    pooled = rows()
    plan = plan_shards(pooled.keys, pooled.texts.lengths, 25)
    settings = CaptureSettings(tokens_per_batch=200, rank=0, world_size=1, bar=False)
    encoding = encoding_of(ENCODINGS[kind], len(tiny.LABELS))
    capture(source, pooled, plan, description, encoding, None, settings, Unasked())
    seal(description, finished_shards(description)[0], {}, {})
    return open_store(folder / "store")


@pytest.mark.parametrize("kind", ENCODINGS)
def test_the_same_teacher_passes_and_another_is_refused_by_the_example(tmp_path: Path, kind: str) -> None:
    reader, pooled = store(tmp_path, kind, teacher(tmp_path)), rows()
    places = reader.lookup(pooled.keys)
    refuse_other_answers(reader, places, pooled, teacher(tmp_path), 16, seed=0)
    with pytest.raises(UserError, match="does not say what the teacher says"):
        refuse_other_answers(reader, places, pooled, teacher(tmp_path, seed=1), 16, seed=0)


@pytest.mark.parametrize("kind", ["full", "top_k"])
def test_rows_of_other_examples_are_noticed_by_both_looks(tmp_path: Path, kind: str) -> None:
    reader, pooled = store(tmp_path, kind, teacher(tmp_path)), rows()
    places, columns = reader.lookup(pooled.keys), columns_of_labels(pooled.labels, None)
    refuse_other_labels(reader, places, columns)
    with pytest.raises(UserError, match="does not say what the teacher says"):
        refuse_other_answers(reader, np.roll(places, 1), pooled, teacher(tmp_path), 16, seed=0)
    with pytest.raises(UserError, match="the labels or their order have changed"):
        refuse_other_labels(reader, places, (columns + 1) % len(tiny.LABELS))


def test_the_accuracy_is_that_of_the_rows_that_are_asked_for(tmp_path: Path) -> None:
    source, pooled = teacher(tmp_path), rows()
    reader = store(tmp_path, "full", source)
    some = np.arange(0, 60, 3)
    logits = source.signal(pooled.batch(some)).logits
    expected = float((logits.argmax(dim=-1).numpy() == pooled.labels[some]).mean())
    places = reader.lookup(pooled.keys[some])
    assert refuse_other_labels(reader, places, columns_of_labels(pooled.labels[some], None)) == expected


def test_a_teacher_with_its_dropout_left_on_is_not_stored(tmp_path: Path) -> None:
    source = teacher(tmp_path)

    def train_after_all(*inputs: object) -> None:
        for module in source.model.modules():
            module.training = isinstance(module, torch.nn.Dropout)

    source.model.register_forward_pre_hook(train_after_all)
    with pytest.raises(RunFailure, match="it gave different logits for the same texts"):
        store(tmp_path, "full", source)
    assert not list(tmp_path.rglob("*.safetensors.json"))
