"""Every example once an epoch, in the same global batches, however many ranks and micro-batches share them."""

from __future__ import annotations

from collections import Counter
from itertools import chain, pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from accel_kd.data.loaders import EvaluationLoader, Shard, TrainingLoader
from accel_kd.data.preprocessing import Ragged, TokenisedSplit, TokenisedTexts
from accel_kd.signals import IGNORED_LABEL, Batch

WORLD_SIZES = [1, 2, 3, 4, 7]
ACCUMULATIONS = [1, 2, 4]
SIZES_AND_WORLDS = [(size, world) for world in WORLD_SIZES for size in sorted({1, max(1, world - 1), world + 1, 97})]


def split_of(size: int, *, unlabelled_every: int = 3, order: np.ndarray | None = None, seed: int = 0) -> TokenisedSplit:
    """`size` examples of 1 to 20 tokens; token `n` of an example is its own number, so that it can be recognised."""
    generator = np.random.default_rng([seed, size])
    lengths = generator.integers(1, 21, size)
    order = np.arange(size) if order is None else order
    labels = np.where(np.arange(size) % unlabelled_every == 1, IGNORED_LABEL, np.arange(size) % 5)
    ids = [f"{number * 7919 % 100_003:06d}" for number in range(size)]
    texts = TokenisedTexts({"input_ids": Ragged.of([[row + 1] * lengths[row] for row in order])}, {"input_ids": 0})
    return TokenisedSplit([ids[row] for row in order], labels[order].astype(np.int64), texts)


def ids_of(split: TokenisedSplit, rows: np.ndarray) -> list[str]:
    return [split.ids[row] for row in rows]


def counted_rows(batches: list[Batch]) -> list[int]:
    return list(chain.from_iterable(batch.rows[batch.targets.counted].tolist() for batch in batches))


@pytest.mark.parametrize("accumulation", ACCUMULATIONS)
@pytest.mark.parametrize(("size", "world_size"), SIZES_AND_WORLDS)
def test_each_example_comes_exactly_once_an_epoch_whoever_shares_the_batches(
    size: int, world_size: int, accumulation: int
) -> None:
    split = split_of(size)
    batch_size = 4 * world_size
    ranks = [
        TrainingLoader(split, batch_size=batch_size, accumulation=accumulation, shard=Shard(rank, world_size), seed=3)
        for rank in range(world_size)
    ]
    alone = TrainingLoader(split, batch_size=batch_size, seed=3).global_batches(1)
    seen: Counter[int] = Counter()
    for number, steps in enumerate(zip(*(loader.epoch(1) for loader in ranks), strict=True)):
        micro_batches = [micro_batch for step in steps for micro_batch in step.micro_batches]
        assert [len(step.micro_batches) for step in steps] == [accumulation] * world_size
        # The global batch is the same set of examples that one rank without accumulation would take.
        rows = counted_rows(micro_batches)
        assert sorted(rows) == sorted(alone[number].tolist())
        seen.update(rows)
        labels = split.labels[alone[number]]
        for step in steps:
            assert step.epoch == 1
            assert step.global_counts.positions == len(rows)
            assert step.global_counts.targets == np.count_nonzero(labels != IGNORED_LABEL)
            assert step.global_counts.tokens == split.lengths[alone[number]].sum()
        assert sum(int(micro_batch.tokens.sum()) for micro_batch in micro_batches) == step.global_counts.tokens
        for micro_batch in micro_batches:
            counted = micro_batch.targets.counted
            assert counted.all() or (len(counted) == 1 and not counted.any()), "a filler stands alone"
            for row, label, is_counted in zip(micro_batch.rows, micro_batch.targets.labels, counted, strict=True):
                assert label == (split.labels[row] if is_counted else IGNORED_LABEL)
        # Even pieces: a filler only where the batch has fewer examples than there are pieces, and then one a piece.
        sizes = [int(micro_batch.targets.counted.sum()) for micro_batch in micro_batches]
        assert max(sizes) - min(sizes) <= 1
        assert (0 in sizes) == (len(rows) < accumulation * world_size)
        shares = [sum(sizes[rank * accumulation :][:accumulation]) for rank in range(world_size)]
        assert max(shares) - min(shares) <= 1, "no rank has more to do than another"
    assert seen == Counter(range(size))
    assert number + 1 == ranks[0].steps_per_epoch == -(-size // batch_size)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(1, 5), st.integers(1, 4), st.integers(1, 20), st.integers(0, 9), st.booleans())
def test_ranks_cut_any_batch_without_loss_or_repeat(
    size: int, world_size: int, accumulation: int, batch_size: int, epoch: int, grouped: bool
) -> None:
    split = split_of(size)
    seen: Counter[int] = Counter()
    for rank in range(world_size):
        loader = TrainingLoader(
            split,
            batch_size=batch_size,
            accumulation=accumulation,
            shard=Shard(rank, world_size),
            group_by_length=grouped,
        )
        steps = list(loader.epoch(epoch))
        assert len(steps) == loader.steps_per_epoch
        seen.update(chain.from_iterable(counted_rows(step.micro_batches) for step in steps))
    assert seen == Counter(range(size))


@pytest.mark.parametrize("grouped", [True, False])
def test_the_order_is_a_function_of_seed_and_epoch_and_not_of_the_file(grouped: bool) -> None:
    one = split_of(97)
    other = split_of(97, order=np.random.default_rng(5).permutation(97))

    def batches(split: TokenisedSplit, seed: int, epoch: int) -> list[list[str]]:
        loader = TrainingLoader(split, batch_size=8, seed=seed, group_by_length=grouped)
        return [sorted(ids_of(split, rows)) for rows in loader.global_batches(epoch)]

    assert batches(one, 1, 2) == batches(other, 1, 2)
    assert batches(one, 1, 2) == batches(one, 1, 2)
    orders = [batches(one, seed, epoch) for seed, epoch in ((1, 2), (1, 3), (2, 2), (2, 1))]
    assert all(orders[a] != orders[b] for a in range(4) for b in range(a)), "another seed or epoch, another order"
    contents = [sorted(map(tuple, order)) for order in orders]
    assert contents[0] != contents[1], "not the same batches in another order either"


def test_without_grouping_the_rows_within_a_batch_do_not_depend_on_the_file_either() -> None:
    one, other = split_of(50), split_of(50, order=np.arange(50)[::-1])
    first, second = (TrainingLoader(split, batch_size=8, group_by_length=False) for split in (one, other))
    assert [ids_of(one, rows) for rows in first.global_batches(0)] == [
        ids_of(other, rows) for rows in second.global_batches(0)
    ]


def test_batches_hold_the_examples_that_they_say() -> None:
    split = split_of(41)
    for step in TrainingLoader(split, batch_size=6, accumulation=2).epoch(0):
        for batch in step.micro_batches:
            for row, tokens, mask in zip(
                batch.rows.tolist(), batch.inputs["input_ids"], batch.inputs["attention_mask"], strict=True
            ):
                length = int(split.lengths[row])
                assert tokens.tolist() == [row + 1] * length + [0] * (len(tokens) - length)
                assert mask.tolist() == [1] * length + [0] * (len(tokens) - length)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_iterating_leaves_torchs_generator_alone_and_workers_change_nothing(num_workers: int) -> None:
    split = split_of(23)
    plain = TrainingLoader(split, batch_size=8, accumulation=2, shard=Shard(1, 2), seed=4)
    loader = TrainingLoader(split, batch_size=8, accumulation=2, shard=Shard(1, 2), seed=4, num_workers=num_workers)
    expected = list(plain.epoch(2))
    before = torch.random.get_rng_state()
    steps = list(loader.epoch(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    for one, other in zip(steps, expected, strict=True):
        assert one.global_counts == other.global_counts
        for ours, theirs in zip(one.micro_batches, other.micro_batches, strict=True):
            assert torch.equal(ours.rows, theirs.rows)
            assert torch.equal(ours.targets.labels, theirs.targets.labels)
            assert torch.equal(ours.targets.counted, theirs.targets.counted)
            assert ours.inputs.keys() == theirs.inputs.keys()
            assert all(torch.equal(ours.inputs[name], theirs.inputs[name]) for name in ours.inputs)


def test_grouping_by_length_pads_far_less_and_keeps_batches_in_no_order_of_length() -> None:
    split = split_of(1000)

    def padding(grouped: bool) -> int:
        batches = TrainingLoader(split, batch_size=8, group_by_length=grouped).global_batches(0)
        return sum(int(split.lengths[rows].max() * len(rows) - split.lengths[rows].sum()) for rows in batches)

    assert padding(True) < padding(False) / 5
    one_group = split_of(300)
    longest = [int(one_group.lengths[rows].max()) for rows in TrainingLoader(one_group, batch_size=8).global_batches(0)]
    assert longest != sorted(longest) and longest != sorted(longest, reverse=True)
    assert abs(np.corrcoef(longest, np.arange(len(longest)))[0, 1]) < 0.4


@pytest.mark.parametrize("size", [480, 2400, 4000])
def test_batches_of_texts_that_all_differ_in_length_change_from_epoch_to_epoch(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = TrainingLoader(split_of(size), batch_size=8)
    monkeypatch.setattr(loader, "_lengths", np.arange(size))
    one, other = ({frozenset(rows.tolist()) for rows in loader.global_batches(epoch)} for epoch in (0, 1))
    assert len(one) == size // 8 and len(one & other) < len(one) / 20


@pytest.mark.parametrize("spare_padding", [None, 0, 7])
@pytest.mark.parametrize("batch_size", [1, 5, 128])
@pytest.mark.parametrize(("size", "world_size"), SIZES_AND_WORLDS)
def test_evaluation_sees_each_example_once_and_every_rank_has_equally_many_batches(
    size: int, world_size: int, batch_size: int, spare_padding: int | None
) -> None:
    split = split_of(size, unlabelled_every=10**6)
    loaders = [
        EvaluationLoader(split, batch_size=batch_size, shard=Shard(rank, world_size), spare_padding=spare_padding)
        for rank in range(world_size)
    ]
    ranks = [list(loader) for loader in loaders]
    assert len({len(batches) for batches in ranks}) == 1
    assert [len(loader) for loader in loaders] == [len(batches) for batches in ranks]
    assert Counter(chain.from_iterable(map(counted_rows, ranks))) == Counter(range(size))
    for batches in ranks:
        lengths = [int(split.lengths[row]) for row in counted_rows(batches)]
        assert lengths == sorted(lengths, reverse=True), "the longest first: memory runs out at once or never"
        for batch in batches:
            assert len(batch.rows) <= batch_size
            assert batch.targets.counted.all() or not batch.targets.counted.any()
            expected = np.where(batch.targets.counted, split.labels[batch.rows], IGNORED_LABEL)
            assert batch.targets.labels.tolist() == expected.tolist()
    one, again = ([batch.rows.tolist() for batch in loaders[0]] for _ in range(2))
    assert one == again, "the teacher's logits are kept by the number of the batch"


@pytest.mark.parametrize("batch_size", [5, 128])
@pytest.mark.parametrize("spare_padding", [0, 7, 40])
def test_evaluation_ends_a_batch_where_it_is_full_or_the_next_text_would_be_padded_too_much(
    spare_padding: int, batch_size: int
) -> None:
    split = split_of(300, unlabelled_every=10**6)
    batches = list(EvaluationLoader(split, batch_size=batch_size, spare_padding=spare_padding))
    rows = [counted_rows([batch]) for batch in batches]
    for batch, following in pairwise(rows):
        width = split.lengths[batch[0]]
        padding = sum(width - split.lengths[row] for row in batch)
        assert padding <= spare_padding
        assert len(batch) == batch_size or padding + width - split.lengths[following[0]] > spare_padding
    assert any(len(batch) == batch_size for batch in rows) is (batch_size == 5)
    any_padding = list(EvaluationLoader(split, batch_size=batch_size))
    assert {len(batch.rows) for batch in any_padding[:-1]} == {batch_size}
