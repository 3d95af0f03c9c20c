"""Which modules of a model are its layers: what is gathered as a whole where weights are shared out over ranks."""

from __future__ import annotations

from torch import nn


def layers(model: nn.Module) -> list[nn.Module]:
    """The modules that are gathered one at a time: those that the model's own code says must not be split, but for what
    holds its input embeddings; or, where it says nothing, the members of its longest list of modules of one class."""
    unsplit = set(getattr(model, "_no_split_modules", None) or ())
    modules = dict(model.named_modules())
    embeddings = getattr(model, "get_input_embeddings", lambda: None)()
    place = next((name for name, module in modules.items() if module is embeddings), "")
    named = [
        module
        for name, module in modules.items()
        if type(module).__name__ in unsplit and not f"{place}.".startswith(f"{name}.")
    ]
    if named:
        return named
    lists = [list(module) for module in modules.values() if isinstance(module, nn.ModuleList)]
    return max((members for members in lists if len({type(member) for member in members}) == 1), key=len, default=[])
