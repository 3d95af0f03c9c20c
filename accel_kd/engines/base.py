"""The seam between what trains a model and how a strategy holds its weights, gradients and optimizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Protocol

from torch import Tensor, nn


class Engine(Protocol):
    """A model in training. Every method is called by all ranks together.

    Whole tensors are given to rank 0, on its CPU and named as in the model's state dict; other ranks get none, and hold
    one at a time.
    """

    @property
    def model(self) -> nn.Module:
        """What is called with a batch. It, or what shares its parameters: then `update` takes the gradients that these
        were given, alike on all ranks."""
        ...

    def expect_eager_steps(self) -> None:
        """Is told before the first step that forward and backward are neither compiled nor recorded: between them and
        `update` gradients may be of any layout."""
        ...

    def accumulating(self, *, is_last: bool) -> AbstractContextManager[object]:
        """Surrounds the forward and backward pass of a micro-batch; ranks exchange gradients in the last one's."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Adds the gradient of `loss` (scalar), averaged over the ranks, to those of the step's micro-batches."""
        ...

    def update(self) -> Tensor:
        """Clips, takes the optimizer's step, and forgets the gradients. A gradient that is not finite changes nothing.

        Returns:
            The norm (scalar) of the whole gradient before clipping, the same on all ranks; not finite if it was not.
        """
        ...

    def rehearse(self, forward: Callable[[], Tensor]) -> None:
        """Does without a trace whatever the first backward pass of a process does once and for all, if that changes how
        later ones add up gradients; `forward` gives a scalar that depends on all parameters."""
        ...

    @property
    def step_was_skipped(self) -> bool:
        """Whether fp16's loss scale was too high for the last step, which is then no step of the schedule either."""
        ...

    @property
    def loss_scale(self) -> float | None:
        """fp16's; None in other precisions."""
        ...

    def scaler_state(self) -> dict[str, float] | None:
        """`scale`, and the `good_steps` since it last changed, as JSON; None in other precisions than fp16."""
        ...

    def load_scaler_state(self, state: Mapping[str, float]) -> None:
        """Goes on from what `scaler_state` gave."""
        ...

    def weights(self, *, copy: bool = False) -> dict[str, Tensor]:
        """The whole state dict in fp32, gathered tensor by tensor; `copy`: never memory that training goes on with."""
        ...

    def load_weights(self, weights: Mapping[str, Tensor], *, others_stay: bool = False) -> None:
        """Takes whole `weights`, which every rank gives; where `others_stay`, those that it lacks are as they were.

        Raises:
            ValueError: they are of another model.
        """
        ...

    def optimizer_state(self, *, copy: bool = False) -> dict[str, Tensor]:
        """What the optimizer remembers, whole, as `checkpoints.optimizer_state` names it."""
        ...

    def load_optimizer_state(self, state: Mapping[str, Tensor]) -> None:
        """Takes what `optimizer_state` gave, which every rank gives.

        Raises:
            ValueError: it is of another model.
        """
        ...

    def close(self) -> None:
        """Frees the memory; nothing else may be called afterwards."""
        ...


def refuse_other_names(
    expected: Mapping[str, Tensor], given: Mapping[str, Tensor], *, others_stay: bool = False
) -> None:
    """Raises `ValueError` unless both have the same names, or `given` some of them, with tensors of the same shape."""
    if others_stay:
        expected = {name: tensor for name, tensor in expected.items() if name in given}
    for name in sorted(expected.keys() ^ given.keys()):
        where = "lacks" if name in expected else "has, and the model lacks,"
        raise ValueError(f"it {where} {name}")
    for name, tensor in expected.items():
        if tensor.shape != given[name].shape:
            raise ValueError(f"its {name} is {list(given[name].shape)}, the model's {list(tensor.shape)}")
