"""Dropout that takes a CPU half of the time of torch's.

Torch draws for each element on its own, on one thread: some six nanoseconds each. Whole words of random bits from the
same generator take a quarter of that.
"""

from __future__ import annotations

from types import MethodType

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_VALUES = 2**32
"""Of the 32 random bits that an element gets; a probability is rounded to so many parts."""


def draw_whole_words(model: nn.Module) -> None:
    """Has the dropout modules of `model` draw so where they compute on a CPU; in place.

    Elements are dropped with the module's probability, independently, as before; it takes other draws. A mask depends
    on torch's generator alone, so that checkpoints hold all there is to know. What calls torch's function past the
    modules, as attention mostly does, stays as it is.
    """
    for module in model.modules():
        if type(module) is nn.Dropout:
            module.forward = MethodType(_forward, module)  # type: ignore[method-assign]


def _forward(module: nn.Dropout, inputs: Tensor) -> Tensor:
    """In place of `nn.Dropout.forward`: any shape and floating-point type."""
    dropped = round(module.p * _VALUES)
    is_trivial = not module.training or module.inplace or not 0 < dropped < _VALUES
    if is_trivial or inputs.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(inputs, module.p, module.training, module.inplace)
    # Two elements a word: the generator gives 64 bits as fast as 32.
    words = torch.empty((inputs.numel() + 1) // 2, dtype=torch.int64).random_(-(2**63), None)
    bits = words.view(torch.int32)[: inputs.numel()].view(inputs.shape)
    kept = torch.ge(bits, dropped - _VALUES // 2, out=torch.empty(inputs.shape, dtype=inputs.dtype))
    return inputs * kept.mul_(_VALUES / (_VALUES - dropped))
