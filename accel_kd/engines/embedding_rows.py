"""Gradients of large embedding tables as the few rows that a step's texts have, where one process trains on a CPU.

Two thirds of the weights of a MiniLM of three layers are its table, and a batch of short texts has some hundred of the
table's 30,522 rows. Torch fills a gradient of the whole table with zeros, adds those rows, and reads all of it for the
norm and for clipping. Here autograd gives the rows alone; the optimizer gets the whole gradient, from memory that stays
and in which only rows are written and cleared.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from accel_kd.models.embedding_tables import large_tables


class EmbeddingRows:
    """See the module. Gradients are those of dense tables, but for the order in which squares, and a token's rows that
    come several times, are summed up."""

    def __init__(self, model: nn.Module) -> None:
        """Has autograd give sparse gradients of the `large_tables` of `model`."""
        tables = large_tables(model)
        for table in tables:
            table.sparse = True
        self._tables: list[Tensor] = [table.weight for table in tables]
        self._whole: dict[Tensor, Tensor] = {}

    def gather(self) -> None:
        """After each backward pass: a row for each token becomes a row for each row of the table that has one."""
        for table in self._tables:
            if table.grad is not None and table.grad.is_sparse:
                table.grad = table.grad.coalesce()

    @torch.no_grad()
    def clip(self, parameters: Iterable[nn.Parameter], max_norm: float | None) -> Tensor:
        """Scales the gradients of `parameters`, gathered, down to `max_norm` (None: never).

        Returns:
            Their norm (scalar) before, as `torch.nn.utils.clip_grad_norm_`.
        """
        gradients = [p.grad.values() if p.grad.is_sparse else p.grad for p in parameters if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        # On a CPU nobody waits for this, and to scale by 1 is to read and write all gradients for nothing.
        if max_norm is not None and not bool(norm + 1e-6 <= max_norm):
            factor = torch.clamp(max_norm / (norm + 1e-6), max=1.0)
            for gradient in gradients:
                gradient.mul_(factor)
        return norm

    @contextlib.contextmanager
    def spread_out(self) -> Iterator[None]:
        """Meanwhile the tables' gradients are whole."""
        sparse = {table: table.grad for table in self._tables if table.grad is not None and table.grad.is_sparse}
        for table in sparse.keys() - self._whole.keys():
            self._whole[table] = torch.zeros_like(table)
        try:
            for table, gradient in sparse.items():
                table.grad = self._whole[table].index_copy_(0, gradient.indices()[0], gradient.values())
            yield
        finally:
            for table, gradient in sparse.items():
                self._whole[table].index_fill_(0, gradient.indices()[0], 0.0)
                table.grad = None
