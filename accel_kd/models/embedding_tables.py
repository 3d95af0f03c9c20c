"""Embedding tables so large that a step's texts have few of their rows."""

from __future__ import annotations

from collections import Counter

from torch import nn

_FEWEST_ROWS = 4096
"""Smaller tables, of positions and token types, have most of their rows in each step."""


def large_tables(model: nn.Module) -> list[nn.Embedding]:
    """The tables of `model` whose gradient is that of few rows: plain ones that learn and that nothing else shares,
    where they are half or more of all that learns. A smaller share is not worth the memory that its gradient keeps."""
    uses = Counter(id(weight) for module in model.modules() for weight in module.parameters(recurse=False))
    tables = [
        module
        for module in model.modules()
        if type(module) is nn.Embedding and _is_large_and_plain(module) and uses[id(module.weight)] == 1
    ]
    learning = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return tables if 2 * sum(table.weight.numel() for table in tables) >= learning else []


def _is_large_and_plain(embedding: nn.Embedding) -> bool:
    # A norm's limit renews rows in the forward pass, and gradients by frequency are scaled by torch itself.
    is_plain = embedding.max_norm is None and not embedding.scale_grad_by_freq
    return is_plain and embedding.weight.requires_grad and embedding.num_embeddings >= _FEWEST_ROWS
