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

_ROUNDING_ALLOWED, _NONE_ALLOWED = "bf16", "ieee"
"""What torch is told of the rounding of fp32 factors; with the one it calls oneDNN, with the other its BLAS."""
_PRODUCTS: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]

_by_onednn = False
"""What was decided last. Torch's own switch, which all threads share, follows it."""


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
    _decide(False)
    if setting == "blas" or (setting == "auto" and not is_amd_with_avx512(cpuinfo)):
        return False
    if torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        _decide(True)
        if not _rounds():
            _let_attention_use_blas()
            return True
        _decide(False)
        why = "would round fp32 products to bf16 on this CPU"
    else:
        why = "is not part of this torch"
    if setting == "onednn":
        raise UserError(f"run.cpu_matmul: onednn {why}; use blas or auto")
    return False


def is_onednn() -> bool:
    """Whether oneDNN multiplies fp32 matrices in this process."""
    return _by_onednn


@contextlib.contextmanager
def blas_as_by_default() -> Iterator[None]:
    """Meanwhile torch multiplies as in a process that never called `multiply_with`."""
    before = _by_onednn
    _decide(False)
    try:
        yield
    finally:
        _decide(before)


def attended(
    attention: Callable[..., Any], query: Tensor, key: Tensor, value: Tensor, dropout: float, **options: Any
) -> Any:
    """`attention` of query, key and value, without dropout by the BLAS.

    Without dropout torch's attention for CPUs multiplies many small blocks, for each of which oneDNN takes longer to
    start than to multiply: with 48 texts of 16 tokens ten times as long in all, forward as backward. With dropout it
    multiplies whole batches of matrices, which oneDNN does as fast as the BLAS. Attention that does not come by here
    is right and, at such lengths, slow.

    Args:
        attention: takes the three, and `options`.
        query, key, value: of the shapes that it takes.
        dropout: its probability, which `attention` knows.
        options: for `attention`.
    """
    # What is compiled cannot switch in the middle.
    if not _by_onednn or dropout > 0.0 or query.device.type != "cpu" or torch.compiler.is_compiling():
        return attention(query, key, value, **options)
    _switch(False)
    try:
        output = attention(query, key, value, **options)
    finally:
        _switch(True)
    first: Tensor = output[0] if isinstance(output, tuple) else output
    learning = [tensor for tensor in (query, key, value) if tensor.requires_grad]
    if learning and first.requires_grad:
        # Backward it is the other way round: from its output's gradient to those of what it was given.
        first.register_hook(lambda gradient: _switch(False))  # type: ignore[no-untyped-call]
        for tensor in learning:
            tensor.register_hook(lambda gradient: _switch(True))  # type: ignore[no-untyped-call]
    return output


def _decide(by_onednn: bool) -> None:
    global _by_onednn
    _by_onednn = by_onednn
    _switch(by_onednn)


def _switch(to_onednn: bool) -> None:
    """Never to oneDNN where that was not decided: a backward pass may come late."""
    _PRODUCTS.fp32_precision = _ROUNDING_ALLOWED if to_onednn and _by_onednn else _NONE_ALLOWED


@torch.no_grad()
def _rounds() -> bool:
    """Whether a product's factors lose what fp32 has and bf16, tf32 and fp16 have not: products as of linear layers
    with and without bias, of their gradients, and of batches of matrices, in small, odd and large sizes."""
    fine = 1.0 + 2.0**-20
    for rows, width, out in [(8, 16, 16), (37, 61, 151), (48, 64, 256), (512, 768, 768)]:
        # The first terms of a sum keep all of theirs in fp32, and what is added later takes nothing away from that.
        inputs, ones, bias = torch.full((rows, width), fine), torch.ones(out, width), torch.zeros(out)
        sums_of_width = [
            F.linear(inputs, ones), F.linear(inputs, ones, bias), F.linear(ones, inputs), inputs @ ones.t(),
            ones @ inputs.t(), torch.bmm(inputs[None], ones.t()[None]),
        ]  # fmt: skip
        sums_of_rows = inputs.t() @ torch.ones(rows, out)
        if not (all((product > width).all() for product in sums_of_width) and (sums_of_rows > rows).all()):
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

    def __call__(
        self,
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        dropout: float = 0.0,
        **options: Any,
    ) -> Any:
        attention = functools.partial(self._attention, module)
        return attended(
            lambda *of: attention(*of, attention_mask, dropout=dropout, **options), query, key, value, dropout
        )
