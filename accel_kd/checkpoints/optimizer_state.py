"""What an optimizer remembers of each parameter, by the parameter's name instead of its place in a list."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

SEPARATOR = "//"
"""Between a parameter's name and what is remembered of it; no module name has it."""


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state of `optimizer` as `parameter//quantity`, on the devices where it lies; copies are the caller's.

    `model` names the parameters: the very ones that `optimizer` steps.
    """
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    tensors = {}
    for parameter, quantities in optimizer.state.items():
        for quantity, value in quantities.items():
            assert isinstance(value, Tensor), f"{quantity} of {names[parameter]} is no tensor"
            tensors[f"{names[parameter]}{SEPARATOR}{quantity}"] = value
    return tensors


def set_optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Gives `optimizer` the state that `optimizer_tensors` found; its settings (the learning rate) stay its own.

    Raises:
        ValueError: the state is of a parameter that the model lacks, or has another shape.
    """
    parameters = dict(model.named_parameters())
    by_parameter: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name, _, quantity = key.rpartition(SEPARATOR)
        if name not in parameters:
            raise ValueError(f"the optimizer remembers {name}, which the model does not have")
        if tensor.ndim and tensor.shape != parameters[name].shape:
            raise ValueError(
                f"the optimizer remembers {name} as {list(tensor.shape)}, not {list(parameters[name].shape)}"
            )
        by_parameter.setdefault(name, {})[quantity] = tensor
    names = {parameter: name for name, parameter in parameters.items()}
    order = [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]
    state = {number: by_parameter[name] for number, name in enumerate(order) if name in by_parameter}
    # Torch itself knows which of these belong on the parameter's device.
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
