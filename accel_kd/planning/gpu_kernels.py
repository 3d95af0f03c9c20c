"""What a GPU keeps where a CPU, on which models are traced, keeps something else."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode


class GpuKernels(TorchFunctionMode):
    """While it is entered, traced models call what they would call on a GPU.

    - Attention with a mask goes to the memory-efficient kernel: queries, keys, values, output and a log-sum a query are
      kept, and no `[B, heads, L, L]`. Under dropout a CPU, and the meta device, keep several of these.
    - Autocast computes layer norms and softmax in float32 on a GPU, and leaves them in the lower precision on a CPU.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is functional.scaled_dot_product_attention:
            return _efficient_attention(*args, **kwargs)
        if func in {functional.layer_norm, functional.softmax} and torch.is_autocast_enabled("cpu"):
            return func(args[0].float(), *args[1:], **kwargs)
        return func(*args, **kwargs)


def _efficient_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """The output `[B, heads, L, D]`, for queries, keys and values of that shape and a mask that expands to scores."""
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    if enable_gqa:
        groups = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(groups, -3), value.repeat_interleave(groups, -3)
    bias = None
    if attn_mask is not None:
        # The kernel adds its mask, and reads one of booleans as a float of the queries' precision.
        bias = torch.empty(attn_mask.shape, dtype=query.dtype, device=query.device)
        bias = bias.expand(*query.shape[:-1], key.shape[-2])
    output: Tensor
    output, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(
        query, key, value, bias, torch.is_grad_enabled(), dropout_p, is_causal, scale=scale
    )
    return output
