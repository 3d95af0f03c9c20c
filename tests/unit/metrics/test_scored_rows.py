"""Every example of a split is scored exactly once, in the split's order, whatever arrives."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from accel_kd.errors import RunFailure
from accel_kd.metrics.scored_rows import RowCollector, ScoredRows
from accel_kd.signals import IGNORED_LABEL

NUM_ROWS, NUM_CLASSES = 7, 4


@pytest.fixture(scope="module")
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


@pytest.fixture(scope="module")
def logits() -> Tensor:
    return 3 * torch.randn(NUM_ROWS, NUM_CLASSES, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def teacher_logits() -> Tensor:
    return 3 * torch.randn(NUM_ROWS, NUM_CLASSES, generator=torch.Generator().manual_seed(1))


LABELS = torch.tensor([0, 1, 2, 3, 0, 1, 2])


def collect(
    accelerator: Accelerator, logits: Tensor, teacher: Tensor | None, batches: Sequence[Sequence[int]]
) -> ScoredRows:
    collector = RowCollector()
    for rows in batches:
        index = torch.tensor(rows)
        counted = torch.ones(len(rows), dtype=torch.bool)
        collector.add(index, counted, LABELS[index], logits[index], None if teacher is None else teacher[index])
    return collector.gather(accelerator, NUM_ROWS)


def assert_same(one: ScoredRows, other: ScoredRows) -> None:
    for name, values in vars(one).items():
        np.testing.assert_array_equal(values, getattr(other, name), err_msg=name)


def test_rows_hold_what_plain_loops_compute(accelerator: Accelerator, logits: Tensor, teacher_logits: Tensor) -> None:
    rows = collect(accelerator, logits, teacher_logits, [range(NUM_ROWS)])
    assert rows.labels.tolist() == LABELS.tolist()
    assert rows.teacher_argmax is not None and rows.teacher_kl is not None
    for row in range(NUM_ROWS):
        student, teacher = logits[row].double().tolist(), teacher_logits[row].double().tolist()
        q = [math.exp(value) / sum(map(math.exp, student)) for value in student]
        p = [math.exp(value) / sum(map(math.exp, teacher)) for value in teacher]
        assert rows.argmax[row] == q.index(max(q)) and rows.teacher_argmax[row] == p.index(max(p))
        assert rows.confidence[row] == pytest.approx(max(q), rel=1e-12)
        assert rows.loss[row] == pytest.approx(-math.log(q[LABELS[row]]), rel=1e-12)
        kl = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        assert rows.teacher_kl[row] == pytest.approx(kl, rel=1e-10), "KL(teacher || student), in nats"


def test_a_student_equal_to_its_teacher_has_no_divergence(accelerator: Accelerator, logits: Tensor) -> None:
    rows = collect(accelerator, logits, logits, [range(NUM_ROWS)])
    assert rows.teacher_kl is not None and rows.teacher_kl.tolist() == [0.0] * NUM_ROWS
    assert rows.teacher_argmax is not None and rows.teacher_argmax.tolist() == rows.argmax.tolist()
    # A constant added to all logits of a row is no difference.
    shifted = collect(accelerator, logits, logits + 100, [range(NUM_ROWS)])
    np.testing.assert_allclose(shifted.teacher_kl, 0, atol=1e-6)


def test_half_precision_logits_are_scored_in_double(accelerator: Accelerator, logits: Tensor) -> None:
    rows = collect(accelerator, logits.bfloat16(), None, [range(NUM_ROWS)])
    expected = torch.log_softmax(logits.bfloat16().double(), dim=-1).gather(1, LABELS[:, None]).squeeze(1)
    np.testing.assert_allclose(rows.loss, -expected, rtol=1e-12)


def test_without_a_teacher_there_is_nothing_of_it(accelerator: Accelerator, logits: Tensor) -> None:
    rows = collect(accelerator, logits, None, [range(NUM_ROWS)])
    assert rows.teacher_argmax is None and rows.teacher_kl is None


def test_the_order_and_the_batches_in_which_rows_arrive_do_not_matter(
    accelerator: Accelerator, logits: Tensor, teacher_logits: Tensor
) -> None:
    plain = collect(accelerator, logits, teacher_logits, [range(NUM_ROWS)])
    for batches in ([[6, 2], [0], [5, 1, 4, 3]], [[row] for row in reversed(range(NUM_ROWS))]):
        assert_same(collect(accelerator, logits, teacher_logits, batches), plain)


def test_an_example_that_arrives_twice_counts_once(
    accelerator: Accelerator, logits: Tensor, teacher_logits: Tensor
) -> None:
    plain = collect(accelerator, logits, teacher_logits, [range(NUM_ROWS)])
    assert_same(collect(accelerator, logits, teacher_logits, [[0, 1, 2, 3], [3, 4, 5, 6], [0]]), plain)


def test_rows_that_are_not_counted_leave_no_trace(accelerator: Accelerator, logits: Tensor) -> None:
    plain = collect(accelerator, logits, None, [range(NUM_ROWS)])
    collector = RowCollector()
    filler, nobody = torch.tensor([0]), torch.tensor([False])
    no_label = torch.tensor([IGNORED_LABEL])
    collector.add(filler, nobody, no_label, torch.full((1, NUM_CLASSES), math.nan), None)
    collector.add(torch.arange(NUM_ROWS), torch.ones(NUM_ROWS, dtype=torch.bool), LABELS, logits, None)
    collector.add(filler, nobody, no_label, torch.zeros(1, NUM_CLASSES), None)
    assert_same(collector.gather(accelerator, NUM_ROWS), plain)


def test_scoring_a_batch_asks_the_device_for_no_value(logits: Tensor, teacher_logits: Tensor) -> None:
    """Fake tensors refuse whatever a host would have to wait for: a size or a value that depends on data."""
    with FakeTensorMode() as fake:
        collector = RowCollector()
        index, counted = torch.arange(NUM_ROWS), torch.ones(NUM_ROWS, dtype=torch.bool)
        student, teacher = (fake.from_tensor(each) for each in (logits, teacher_logits))
        collector.add(index, counted, fake.from_tensor(LABELS), student, teacher)


def test_a_missing_or_a_foreign_example_ends_the_run(accelerator: Accelerator, logits: Tensor) -> None:
    with pytest.raises(RunFailure, match="gathered 6 different examples of a split that has 7"):
        collect(accelerator, logits, None, [[0, 1, 2, 4, 5, 6]])
    with pytest.raises(RunFailure):
        collect(accelerator, logits, None, [[0, 1, 2, 4, 5, 6, 6]])
    collector = RowCollector()
    rows = torch.tensor([0, 1, 9])
    collector.add(rows, torch.ones(3, dtype=torch.bool), LABELS[:3], logits[:3], None)
    with pytest.raises(RunFailure, match="gathered 3 different examples of a split that has 3"):
        collector.gather(accelerator, 3)
