"""Which library multiplies fp32 matrices on a CPU: the BLAS that torch was built with, MKL on x86, or oneDNN.

Torch gives fp32 products to oneDNN only where that may round them to bf16. A CPU without instructions for it (AMX, some
of Arm's) has nothing to gain from rounding, and there oneDNN computes them in fp32 all the same: on AMD's processors
faster than MKL, whose kernels were made for others. `multiply_with` looks at what comes out before it relies on that.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from accel_kd.distributed.cpu_features import CPUINFO, is_amd_with_avx512
from accel_kd.errors import UserError

CpuMatmul = Literal["auto", "blas", "onednn"]

_ONEDNN, _BLAS = "bf16", "ieee"
"""What torch is told of the precision of its fp32 products, to have them done by either."""
_PRODUCTS: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]


def multiply_with(setting: CpuMatmul, cpuinfo: Path = CPUINFO) -> bool:
    """Has fp32 matrices multiplied by what `setting` says, from now on in this process; never rounded to less.

    Args:
        setting: `auto` is `onednn` on AMD's processors with AVX-512, where it was measured to be faster, else `blas`.
        cpuinfo: what the system says of its processors.

    Returns:
        Whether that is oneDNN.

    Raises:
        UserError: `onednn`, which torch lacks, or which would round on this CPU.
    """
    _PRODUCTS.fp32_precision = _BLAS
    if setting == "blas" or (setting == "auto" and not is_amd_with_avx512(cpuinfo)):
        return False
    if torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        _PRODUCTS.fp32_precision = _ONEDNN
        if not _rounds():
            _let_attention_use_blas()
            return True
        _PRODUCTS.fp32_precision = _BLAS
        why = "would round fp32 products to bf16 on this CPU"
    else:
        why = "is not part of this torch"
    if setting == "onednn":
        raise UserError(f"run.cpu_matmul: onednn {why}; use blas or auto")
    return False


def is_onednn() -> bool:
    """Whether oneDNN multiplies fp32 matrices now."""
    return bool(_PRODUCTS.fp32_precision == _ONEDNN)


@contextlib.contextmanager
def blas_as_by_default() -> Iterator[None]:
    """Meanwhile torch multiplies as in a process that never called `multiply_with`."""
    before = _PRODUCTS.fp32_precision
    _PRODUCTS.fp32_precision = _BLAS
    try:
        yield
    finally:
        _PRODUCTS.fp32_precision = before


def attended(attention: Callable[..., Any], query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Any:
    """`attention` of query, key and value, its own products by the BLAS.

    On a CPU attention multiplies many small blocks, for each of which oneDNN takes longer to start than to multiply:
    with texts of 16 tokens ten times as long in all, forward as backward.

    Args:
        attention: takes the three, and `options`; returns a tensor, or a tuple that starts with one.
        query, key, value: of the shapes that it takes.
        options: for `attention`.
    """
    # What is compiled has its products chosen by the compiler.
    if query.device.type != "cpu" or torch.compiler.is_compiling() or not is_onednn():
        return attention(query, key, value, **options)
    query, key, value = _OnednnBefore.apply(query, key, value)  # type: ignore[no-untyped-call]
    with blas_as_by_default():
        output = attention(query, key, value, **options)
    first, *others = output if isinstance(output, tuple) else (output,)
    first = _BlasBehind.apply(first)  # type: ignore[no-untyped-call]
    return (first, *others) if isinstance(output, tuple) else first


@torch.no_grad()
def _rounds() -> bool:
    """Whether a product's factors lose what fp32 has and bf16, tf32 and fp16 have not; of all the sizes that kernels
    are made for, and of the three products of a linear layer."""
    fine = 1.0 + 2.0**-20
    for rows, width, out in [(8, 16, 16), (48, 64, 256), (512, 768, 768)]:
        # The first terms of a sum keep all of theirs in fp32, and what is added later takes nothing away from that.
        inputs, ones = torch.full((rows, width), fine), torch.ones(out, width)
        products = [F.linear(inputs, ones), F.linear(ones, inputs), inputs @ ones.t(), ones @ inputs.t()]
        products.append(inputs.t() @ torch.ones(rows, out))
        for product, terms in zip(products, [width, width, width, width, rows], strict=True):
            if not torch.all(product > terms):
                return True
    return False


def _let_attention_use_blas() -> None:
    """For the models of Transformers that use torch's own attention."""
    known = ALL_ATTENTION_FUNCTIONS["sdpa"]
    if not isinstance(known, _AttentionByBlas):
        AttentionInterface.register("sdpa", _AttentionByBlas(known))


class _AttentionByBlas:
    """See `attended`; the signature is that of Transformers' attention functions."""

    def __init__(self, attention: Callable[..., Any]) -> None:
        self._attention = attention

    def __call__(self, module: Any, query: Tensor, key: Tensor, value: Tensor, *others: Any, **options: Any) -> Any:
        attention = functools.partial(self._attention, module)
        return attended(lambda *qkv, **named: attention(*qkv, *others, **named), query, key, value, **options)


class _BlasBehind(torch.autograd.Function):
    """What it is given; in the backward pass products go to the BLAS from here on, until `_OnednnBefore`."""

    @staticmethod
    def forward(ctx: Any, output: Tensor) -> Tensor:
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        _PRODUCTS.fp32_precision = _BLAS
        return gradient


class _OnednnBefore(torch.autograd.Function):
    """What it is given; in the backward pass products go to oneDNN again behind this."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor.view_as(tensor) for tensor in tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        _PRODUCTS.fp32_precision = _ONEDNN
        return gradients
