"""Gradients of embeddings by rows: the same training as with whole ones."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import DistilBertConfig, DistilBertForSequenceClassification

from accel_kd.engines import ReplicatedEngine, start_engine
from accel_kd.training.optimizer import OptimizerName, make_optimizer

_ROWS = 5000


class _Classifier(nn.Module):
    """A large table and a small one, whose rows are added."""

    def __init__(self, num_rows: int = _ROWS) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(num_rows, 8, padding_idx=0), nn.Embedding(6, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head((self.words(ids) + self.positions.weight[: ids.shape[1]]).mean(dim=1))


def _engines(
    model: nn.Module, optimizer: OptimizerName = "adamw", max_norm: float | None = None
) -> tuple[ReplicatedEngine, ReplicatedEngine]:
    """One whose gradients are whole, and one that leaves rows out."""
    engines = []
    for each in (model, copy.deepcopy(model)):
        engine = start_engine(Accelerator(cpu=True), each, make_optimizer(optimizer, each, 1e-2, 0.1), max_norm)
        assert isinstance(engine, ReplicatedEngine)
        engines.append(engine)
    engines[1].expect_eager_steps()
    return engines[0], engines[1]


def _batches(count: int, seed: int = 0) -> list[Tensor]:
    """Ids that come again and again, padding, and some that no batch has."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 40, (4, 5), generator=generator) * 97 for _ in range(count)]


def _step(engine: ReplicatedEngine, micro_batches: Sequence[Tensor], weight: float = 1.0) -> Tensor:
    for number, ids in enumerate(micro_batches):
        with engine.accumulating(is_last=number == len(micro_batches) - 1):
            engine.backward(engine.model(ids).square().sum() * weight)
    return engine.update()


def _state(engine: ReplicatedEngine) -> dict[str, Tensor]:
    return engine.weights(copy=True) | engine.optimizer_state(copy=True)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_every_bit_is_that_of_whole_gradients(optimizer: OptimizerName) -> None:
    torch.manual_seed(0)
    model = _Classifier()
    before = model.words.weight.detach().clone()
    whole, rows = _engines(model, optimizer)
    generator = torch.Generator().manual_seed(0)
    for _ in range(8):
        # No token twice in a batch: the two sum up repeated ones in different orders.
        ids = torch.randperm(40, generator=generator)[:20].view(4, 5) * 97
        _step(whole, [ids])
        _step(rows, [ids])
    expected, found = _state(whole), _state(rows)
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
    # A row that no text has decays all the same.
    if optimizer == "adamw":
        assert torch.allclose(found["words.weight"][1], before[1] * (1 - 1e-2 * 0.1) ** 8, rtol=1e-6)
    assert not torch.equal(found["words.weight"][1], before[1])
    assert not torch.allclose(found["words.weight"][97], before[97], rtol=1e-2)


@pytest.mark.parametrize("max_norm", [1e-3, 1e6])
def test_clipping_and_micro_batches_are_those_of_whole_gradients(max_norm: float) -> None:
    torch.manual_seed(0)
    whole, rows = _engines(_Classifier(), "sgd", max_norm)
    batches = _batches(9)
    for first in range(0, 9, 3):
        norms = [_step(engine, batches[first : first + 3]) for engine in (whole, rows)]
        assert norms[0] > 1e-2 and torch.allclose(*norms, rtol=1e-6) and not norms[1].requires_grad
    for name, tensor in _state(whole).items():
        assert torch.allclose(_state(rows)[name], tensor, rtol=1e-5, atol=1e-9), name


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_gradient_that_is_not_finite_changes_nothing_and_leaves_nothing_behind(optimizer: OptimizerName) -> None:
    torch.manual_seed(0)
    whole, rows = _engines(_Classifier(), optimizer, 1.0)
    first, poisoned, last = _batches(3)
    for engine in (whole, rows):
        _step(engine, [first])
        before = _state(engine)
        assert not torch.isfinite(_step(engine, [poisoned], weight=float("nan")))
        assert all(torch.equal(tensor, before[name]) for name, tensor in _state(engine).items())
        _step(engine, [last])
    for name, tensor in _state(whole).items():
        assert torch.allclose(_state(rows)[name], tensor, rtol=1e-5, atol=1e-9), name


def test_only_large_tables_of_their_own_are_left_out_rows_of() -> None:
    class Tied(_Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.other = nn.Embedding(_ROWS, 4)
            self.output = nn.Linear(4, _ROWS)
            self.output.weight = self.other.weight

    small, tied = _Classifier(100), Tied()
    frozen = _Classifier().requires_grad_(False)
    frozen.head.requires_grad_(True)
    limited = _Classifier()
    limited.words.max_norm = 1.0
    deep = _Classifier()
    deep.layers = nn.Linear(8, _ROWS + 2000)
    for model, expected in [(small, []), (tied, [True, False]), (frozen, [False]), (limited, [False]), (deep, [False])]:
        _, rows = _engines(model)
        tables = [module for module in rows.model.modules() if isinstance(module, nn.Embedding)]
        large = [table.sparse for table in tables if table.num_embeddings == _ROWS]
        assert large == expected
        assert not any(table.sparse for table in tables if table.num_embeddings < _ROWS)
        assert torch.isfinite(_step(rows, _batches(1) if model is not small else [torch.ones(2, 3, dtype=torch.long)]))


def test_micro_batches_add_up_rows_of_the_table_and_not_of_tokens() -> None:
    _, rows = _engines(_Classifier())
    for ids in [torch.full((4, 5), 7), torch.tensor([[7, 8, 9, 8, 7]] * 6)]:
        with rows.accumulating(is_last=False):
            rows.backward(rows.model(ids).sum())
    gradient = rows.model.words.weight.grad
    assert gradient is not None and gradient.is_coalesced() and gradient.indices().tolist() == [[7, 8, 9]]


def test_a_table_that_is_also_read_whole_has_a_whole_gradient() -> None:
    class AlsoRead(_Classifier):
        def forward(self, ids: Tensor) -> Tensor:
            return super().forward(ids) + self.words.weight.mean()

    torch.manual_seed(0)
    whole, rows = _engines(AlsoRead(), "sgd", 1.0)
    for ids in _batches(2):
        assert torch.allclose(_step(whole, [ids]), _step(rows, [ids]), rtol=1e-6)
    for name, tensor in _state(whole).items():
        assert torch.allclose(_state(rows)[name], tensor, rtol=1e-5, atol=1e-8), name


def test_a_transformers_model_trains_the_same() -> None:
    torch.manual_seed(0)
    config = DistilBertConfig(
        vocab_size=_ROWS, dim=16, hidden_dim=32, n_layers=2, n_heads=2, dropout=0.0, attention_dropout=0.0,
        seq_classif_dropout=0.0,
    )  # fmt: skip
    whole, rows = _engines(DistilBertForSequenceClassification(config), "sgd", 1.0)
    before = whole.weights(copy=True)
    for engine in (whole, rows):
        engine.model.train()
        for ids in _batches(4):
            with engine.accumulating(is_last=True):
                engine.backward(engine.model(input_ids=ids, labels=torch.tensor([0, 1, 0, 1])).loss)
            engine.update()
    for name, tensor in whole.weights().items():
        assert torch.allclose(rows.weights()[name], tensor, rtol=1e-4, atol=1e-6), name
        assert not torch.equal(tensor, before[name]), name
