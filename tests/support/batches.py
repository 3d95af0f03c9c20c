"""Small splits of every kind, and batches compared tensor for tensor."""

from __future__ import annotations

import numpy as np
import torch

from accel_kd.data.examples import Examples
from accel_kd.data.preprocessing import TokenisedSplit, tokenise_split
from accel_kd.signals import IGNORED_LABEL, Batch
from tests.support import tiny

KINDS = ["plain", "pairs", "teacher", "numbered"]
NUM_EXAMPLES = 37
_INPUTS = ["input_ids", "attention_mask", "token_type_ids"]


def split_of(kind: str, size: int = NUM_EXAMPLES) -> TokenisedSplit:
    """Texts of 2 to 9 words, pairs of them, with a teacher that has tokens of its own, with numbered teacher rows."""
    texts = [row["text"] for row in tiny.rows(2 * size)]
    pairs = texts[size:] if kind == "pairs" else None
    labels = np.where(np.arange(size) % 4 == 1, IGNORED_LABEL, np.arange(size) % 5)
    examples = Examples([f"{number:03d}" for number in range(size)], texts[:size], pairs, labels)
    other = tiny.tokenizer("bert", tiny.WORDS[::-1])
    other.pad_token = "rain"  # padded with another number, too
    for_teacher = (other, _INPUTS[:2]) if kind == "teacher" else None
    split = tokenise_split(examples, (tiny.tokenizer(), _INPUTS), for_teacher, 12)
    assert (split.teacher is not None) == (kind == "teacher")
    return split.numbered(np.arange(size)[::-1] * 3) if kind == "numbered" else split


def assert_equal(ours: Batch, theirs: Batch) -> None:
    """Each field, tensor for tensor: values, dtypes, shapes, the order of names."""
    pairs = [(ours.rows, theirs.rows), *zip(_tensors(ours), _tensors(theirs), strict=True)]
    assert list(ours.inputs) == list(theirs.inputs)
    assert list(ours.teacher_inputs or {}) == list(theirs.teacher_inputs or {})
    for one, other in pairs:
        assert one.dtype == other.dtype and torch.equal(one, other)
        assert one.is_contiguous()


def _tensors(batch: Batch) -> list[torch.Tensor]:
    optional = [] if batch.teacher_rows is None else [batch.teacher_rows]
    targets = [batch.targets.labels, batch.targets.counted]
    return [*batch.inputs.values(), *(batch.teacher_inputs or {}).values(), *targets, *optional]
