"""What multiplies on a CPU: fp32 in any case, by oneDNN where that is asked for, attention by the BLAS all the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from accel_kd.distributed import cpu_matmul
from accel_kd.distributed.cpu_matmul import attended, blas_as_by_default, is_onednn, multiply_with
from accel_kd.errors import UserError
from accel_kd.models.first_token import read_first_token_only
from tests.support import tiny

_AMD = "processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel name\t: AMD EPYC 9R14\nflags\t\t: fpu sse avx2 avx512f\n\n"


def switched() -> bool:
    """Whether torch gives fp32 products to oneDNN at this moment."""
    return bool(cpu_matmul._PRODUCTS.fp32_precision == "bf16")


@pytest.fixture
def onednn() -> None:
    """Multiplied with, or the test is skipped."""
    try:
        multiply_with("onednn")
    except UserError as error:
        pytest.skip(str(error))


def _written(folder: Path, text: str) -> Path:
    file = folder / "cpuinfo"
    file.write_text(text)
    return file


def test_blas_is_what_is_asked_for(tmp_path: Path) -> None:
    assert not multiply_with("blas", _written(tmp_path, _AMD))
    assert not is_onednn()


@pytest.mark.parametrize(
    ("cpuinfo", "chosen"),
    [
        (_AMD, True),
        (_AMD.replace("AuthenticAMD", "GenuineIntel"), False),
        (_AMD.replace(" avx512f", ""), False),
        ("processor\t: 0\nFeatures\t: fp asimd bf16\n", False),
        ("", False),
    ],
)
def test_by_itself_onednn_multiplies_where_it_is_faster(
    cpuinfo: str, chosen: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_matmul, "_rounds", lambda: False)
    assert multiply_with("auto", _written(tmp_path, cpuinfo)) is chosen
    assert is_onednn() is chosen
    assert not multiply_with("auto", tmp_path / "missing")
    assert not is_onednn()


def test_what_would_round_is_refused_and_not_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_matmul, "_rounds", lambda: True)
    with pytest.raises(UserError, match="run.cpu_matmul: onednn would round fp32 products to bf16 on this CPU"):
        multiply_with("onednn")
    assert not is_onednn()
    assert not multiply_with("auto", _written(tmp_path, _AMD))
    assert not is_onednn()


def test_a_torch_without_onednn_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch._C, "_has_mkldnn", False)
    with pytest.raises(UserError, match="run.cpu_matmul: onednn is not part of this torch"):
        multiply_with("onednn")


def test_fp32_rounds_nothing() -> None:
    with blas_as_by_default():
        assert not cpu_matmul._rounds()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [8, 37, 48, 512])
@pytest.mark.parametrize("which", ["linear", "matmul", "bmm"])
def test_rounding_is_seen_whichever_product_of_whichever_size_does_it(
    which: str, rows: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rounding(product: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def rounded(first: Tensor, second: Tensor, *bias: Tensor) -> Tensor:
            if rows in first.shape:
                return product(first.to(dtype).float(), second, *bias)
            return product(first, second, *bias)

        return rounded

    if which == "linear":
        monkeypatch.setattr(cpu_matmul.F, "linear", rounding(F.linear))
    elif which == "bmm":
        monkeypatch.setattr(torch, "bmm", rounding(torch.bmm))
    else:
        monkeypatch.setattr(Tensor, "__matmul__", rounding(torch.matmul))
    assert cpu_matmul._rounds()


def test_onednn_is_as_exact_as_the_blas(onednn: None) -> None:
    """Forward and gradients of layers of many shapes, beside float64."""
    generator = torch.Generator().manual_seed(0)
    for rows, width, out in [(1, 768, 768), (37, 384, 1536), (528, 768, 3072), (640, 3072, 768), (48, 768, 151)]:
        layer, inputs = nn.Linear(width, out), torch.randn(rows, width, generator=generator)
        exact = nn.Linear(width, out).double()
        exact.load_state_dict(layer.state_dict())
        found = _products(layer, inputs)
        for own, true in zip(found, _products(exact, inputs.double()), strict=True):
            assert ((own - true).norm() / true.norm()).item() < 2e-6


def _products(layer: nn.Linear, inputs: Tensor) -> list[Tensor]:
    inputs = inputs.clone().requires_grad_()
    output = layer(inputs)
    gradients = torch.autograd.grad(output.square().sum() / 2, [inputs, layer.weight])
    return [output.detach(), *gradients]


def test_a_peer_multiplies_as_torch_does_by_default(onednn: None) -> None:
    with blas_as_by_default():
        assert not is_onednn() and not switched()
    assert is_onednn() and switched()


class _Watched(torch.autograd.Function):
    """Passes on what it is given, and notes whether oneDNN multiplies meanwhile."""

    @staticmethod
    def forward(ctx: Any, given: Tensor, name: str, seen: dict[str, bool]) -> Tensor:
        ctx.name, ctx.seen = name, seen
        seen[f"{name}, forward"] = switched()
        return given.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        ctx.seen[f"{ctx.name}, backward"] = switched()
        return gradient.clone(), None, None


@pytest.mark.parametrize("in_tuple", [False, True])
def test_attention_multiplies_by_the_blas_forward_and_backward_and_nothing_else_does(
    onednn: None, in_tuple: bool
) -> None:
    seen: dict[str, bool] = {}

    def attention(query: Tensor, key: Tensor, value: Tensor, factor: float) -> Any:
        product = _Watched.apply(query @ key.mT @ value, "attention", seen) * factor
        return (product, None) if in_tuple else product

    given = [torch.randn(2, 5, 4, requires_grad=True) for _ in range(3)]
    before = [_Watched.apply(tensor, f"before {number}", seen) for number, tensor in enumerate(given)]
    output = attended(attention, *before, dropout=0.0, factor=2.0)
    output = output[0] if in_tuple else output
    _Watched.apply(output, "behind", seen).sum().backward()
    of_attention = {"attention, forward": False, "attention, backward": False}
    assert seen == dict.fromkeys(seen, True) | of_attention
    assert len(seen) == 10
    assert switched()
    query, key, value = (tensor.detach().requires_grad_() for tensor in given)
    expected = query @ key.mT @ value * 2.0
    torch.testing.assert_close(output, expected)
    for own, true in zip(given, torch.autograd.grad(expected.sum(), [query, key, value]), strict=True):
        torch.testing.assert_close(own.grad, true)


def test_with_dropout_attention_multiplies_as_everything_else(onednn: None) -> None:
    seen: dict[str, bool] = {}

    def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return _Watched.apply(query @ key.mT @ value, "attention", seen)

    given = [torch.randn(2, 5, 4, requires_grad=True) for _ in range(3)]
    attended(attention, *given, dropout=0.1).sum().backward()
    assert seen == {"attention, forward": True, "attention, backward": True}


def test_an_attention_that_fails_leaves_onednn_to_the_rest(onednn: None) -> None:
    def attention(*qkv: Tensor) -> Tensor:
        raise KeyError

    with pytest.raises(KeyError):
        attended(attention, *(torch.ones(1, 2, 2) for _ in range(3)), dropout=0.0)
    assert switched()


class _Fails(torch.autograd.Function):
    """In its backward pass."""

    @staticmethod
    def forward(ctx: Any, given: Tensor) -> Tensor:
        return given.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        raise KeyError


def test_a_backward_pass_that_fails_within_attention_is_forgotten_at_the_next_one(onednn: None) -> None:
    given = [torch.randn(2, 5, 4, requires_grad=True) for _ in range(3)]
    with pytest.raises(KeyError):
        attended(lambda query, key, value: _Fails.apply(query @ key.mT @ value), *given, dropout=0.0).sum().backward()
    assert is_onednn()
    attended(lambda query, key, value: query @ key.mT @ value, *given, dropout=0.0)
    assert switched()


def test_attention_of_which_only_the_mask_learns_leaves_the_rest_of_the_backward_pass_to_onednn(onednn: None) -> None:
    given, mask = [torch.randn(2, 5, 4) for _ in range(3)], torch.zeros(5, 5, requires_grad=True)
    attended(lambda query, key, value: (query @ key.mT + mask) @ value, *given, dropout=0.0).sum().backward()
    assert switched() and mask.grad is not None


def test_a_backward_pass_in_a_peers_turn_does_not_bring_onednn_back(onednn: None) -> None:
    given = [torch.randn(2, 5, 4, requires_grad=True) for _ in range(3)]
    output = attended(lambda query, key, value: query @ key.mT @ value, *given, dropout=0.0)
    with blas_as_by_default():
        output.sum().backward()
        assert not switched()


def test_attention_may_change_what_it_is_given_and_be_changed_in_place(onednn: None) -> None:
    given = [torch.randn(2, 5, 4, requires_grad=True) for _ in range(3)]
    query, key, value = (tensor * 1.0 for tensor in given)
    output = attended(lambda query, key, value: query.mul_(2.0) @ key.mT @ value, query, key, value, dropout=0.0)
    output.mul_(3.0).sum().backward()
    expected = [tensor.detach().clone().requires_grad_() for tensor in given]
    (6.0 * expected[0] @ expected[1].mT @ expected[2]).sum().backward()
    for own, true in zip(given, expected, strict=True):
        torch.testing.assert_close(own.grad, true.grad)


@pytest.mark.parametrize("kind", ["bert", "distilbert", "roberta"])
@pytest.mark.parametrize("first_token_only", [False, True])
def test_models_attend_by_the_blas_and_multiply_by_onednn(
    onednn: None, kind: str, first_token_only: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model: PreTrainedModel = AutoModelForSequenceClassification.from_config(tiny.config(kind)).eval()
    if first_token_only:
        assert read_first_token_only(model)
    by_onednn: dict[str, list[bool]] = {"attention": [], "linear": []}
    torchs = F.scaled_dot_product_attention

    def noting(*arguments: Any, **options: Any) -> Tensor:
        by_onednn["attention"].append(switched())
        return torchs(*arguments, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", noting)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(lambda *_: by_onednn["linear"].append(switched()))
    ids = torch.arange(12).view(2, 6)
    model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.sum().backward()
    assert len(by_onednn["attention"]) == model.config.num_hidden_layers
    assert not any(by_onednn["attention"]), "without dropout"
    assert len(by_onednn["linear"]) > 12
    assert all(by_onednn["linear"])
    by_onednn["attention"].clear()
    model.train()(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.sum().backward()
    assert all(by_onednn["attention"]), "with dropout"


def test_what_is_registered_is_so_once(onednn: None) -> None:
    first = ALL_ATTENTION_FUNCTIONS["sdpa"]
    multiply_with("onednn")
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is first
