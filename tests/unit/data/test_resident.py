"""A batch that is cut out of a split on the device is the batch that is made of it in host memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from accel_kd.data import resident
from accel_kd.data.buckets import PadTo, bucket_length
from accel_kd.data.loaders import EvaluationLoader, Shard, TrainingLoader
from accel_kd.data.resident import ResidentSplit, resident_bytes
from accel_kd.signals import Batch
from tests.support.batches import KINDS, NUM_EXAMPLES, assert_equal, split_of

CPU = torch.device("cpu")
SPLITS = {kind: split_of(kind) for kind in KINDS}


@pytest.fixture(autouse=True, scope="module")
def several_chunks() -> Iterator[None]:
    """The splits are small."""
    with mock.patch.object(resident, "_CHUNK", 5):
        yield


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(KINDS),
    st.lists(st.integers(0, NUM_EXAMPLES - 1), min_size=1, max_size=9),
    st.booleans(),
    st.booleans(),
)
def test_a_resident_batch_is_the_plain_one(kind: str, rows: list[int], counted: bool, padded: bool) -> None:
    pad_to: PadTo | None = partial(bucket_length, most=12) if padded else None
    index = np.array(rows, dtype=np.int64)
    held = ResidentSplit(SPLITS[kind], CPU, pad_to)
    expected = SPLITS[kind].batch(index, counted=counted, pad_to=pad_to)
    assert_equal(held.batch(index, counted=counted), expected)
    if padded:
        assert expected.inputs["input_ids"].shape[1] in (8, 12)


@pytest.mark.parametrize("pad_to", [None, partial(bucket_length, most=12)], ids=["longest", "bucket"])
@pytest.mark.parametrize("kind", KINDS)
def test_loaders_give_the_same_steps_from_either_place_over_ranks_accumulation_and_a_resumed_epoch(
    kind: str, pad_to: PadTo | None
) -> None:
    for world_size, accumulation, first_step in ((1, 1, 0), (3, 2, 0), (2, 4, 2), (1, 3, 5)):
        for rank in range(world_size):
            shared = {
                "batch_size": 6, "accumulation": accumulation, "shard": Shard(rank, world_size), "seed": 4,
                "pad_to": pad_to,
            }  # fmt: skip
            plain = list(TrainingLoader(SPLITS[kind], **shared).epoch(3, first_step))
            loader = TrainingLoader(SPLITS[kind], resident_on=CPU, **shared)
            before = torch.random.get_rng_state()
            resident = list(loader.epoch(3, first_step))
            assert torch.equal(torch.random.get_rng_state(), before)
            assert len(resident) == loader.steps_per_epoch - first_step
            for ours, theirs in zip(resident, plain, strict=True):
                assert_same_batches(ours.micro_batches, theirs.micro_batches)
                without = [dataclasses.replace(step, micro_batches=[]) for step in (ours, theirs)]
                assert without[0] == without[1]
            # What is asked for after the end of an epoch.
            assert list(loader.epoch(0, loader.steps_per_epoch)) == []


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_gives_the_same_batches_from_either_place_again_and_again(kind: str) -> None:
    for rank in range(3):
        shared = {"batch_size": 6, "shard": Shard(rank, 3)}
        plain = list(EvaluationLoader(SPLITS[kind], **shared))
        loader = EvaluationLoader(SPLITS[kind], resident_on=CPU, **shared)
        assert len(loader) == len(plain)
        for _ in range(2):
            assert_same_batches(list(loader), plain)


def assert_same_batches(ours: Sequence[Batch], theirs: Sequence[Batch]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert_equal(one, other)


@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("pad_to", [None, partial(bucket_length, most=12)], ids=["longest", "bucket"])
def test_every_rank_counts_the_positions_that_all_of_them_compute(world_size: int, pad_to: PadTo | None) -> None:
    ranks = [
        TrainingLoader(SPLITS["plain"], batch_size=6, accumulation=2, shard=Shard(rank, world_size), pad_to=pad_to)
        for rank in range(world_size)
    ]
    for steps in zip(*(loader.epoch(0) for loader in ranks), strict=True):
        computed = sum(batch.inputs["input_ids"].numel() for step in steps for batch in step.micro_batches)
        assert {step.token_positions for step in steps} == {computed}
        tokens = sum(int(batch.tokens.sum()) for step in steps for batch in step.micro_batches)
        assert steps[0].global_counts.tokens == tokens <= computed


@pytest.mark.parametrize("kind", KINDS)
def test_the_size_is_that_of_all_tensors_that_stay(kind: str) -> None:
    resident = ResidentSplit(SPLITS[kind], CPU)
    every_row = resident.batch(np.arange(NUM_EXAMPLES))
    held = [*every_row.inputs.values(), *(every_row.teacher_inputs or {}).values(), every_row.targets.labels]
    assert resident_bytes(SPLITS[kind]) == sum(tensor.nbytes for tensor in held)


def test_a_padded_length_below_the_longest_text_is_a_mistake() -> None:
    with pytest.raises(AssertionError, match="do not go into 3"):
        SPLITS["plain"].batch(np.arange(4), pad_to=lambda longest: 3)
