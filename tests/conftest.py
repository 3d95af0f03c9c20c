"""Leaves global state as it was found, and shares what is slow to make."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# Tiny matrices on two threads wait for each other, and for whatever else the machine does.
os.environ["OMP_NUM_THREADS"] = "1"
# No test may ask a network; a library that tries fails at once instead of waiting for it.
os.environ["HF_HUB_OFFLINE"] = "1"

import hypothesis
import torch
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from accel_kd.distributed import cpu_matmul
from tests.support.forks import Forks
from tests.support.tiny import write_data, write_model

torch.set_num_threads(1)
# The same examples in every run, and no time limit: another process may have the processor for as long as it likes.
hypothesis.settings.register_profile("ours", deadline=None, derandomize=True)
hypothesis.settings.load_profile("ours")


@pytest.fixture(autouse=True)
def _same_generators_for_every_test() -> Iterator[None]:
    """A test neither sees nor changes the random state of another."""
    state = torch.random.get_rng_state()
    torch.manual_seed(0)
    yield
    torch.random.set_rng_state(state)


@pytest.fixture(autouse=True)
def _same_library_for_every_test() -> Iterator[None]:
    """What multiplies on a CPU is a setting of the process; a test that starts a run in it may change that."""
    attention = ALL_ATTENTION_FUNCTIONS["sdpa"]
    with cpu_matmul.blas_as_by_default():
        yield
    AttentionInterface.register("sdpa", attention)


@pytest.fixture(scope="session")
def tiny_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A four-layer BERT-like classifier with random weights and the label names of the tiny data."""
    return write_model(tmp_path_factory.mktemp("teacher"), "bert", layers=4)


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """203 train, 53 validation and 61 test rows."""
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    """Starts runs at once; what they print lies in a folder of the file's own."""
    forks = Forks(tmp_path_factory.mktemp("output"))
    yield forks
    forks.close()
