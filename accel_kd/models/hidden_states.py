"""The hidden states of a Transformers model: how many layers it has, how wide they are, and picking some of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import PretrainedConfig

from accel_kd.errors import UserError


@dataclass(frozen=True)
class Stack:
    """`depth` layers of `width`; the hidden states are one more, the embeddings being layer 0."""

    depth: int
    width: int

    def has(self, layer: int) -> bool:
        """Whether there is that layer, counted from the end where it is negative."""
        return -self.depth - 1 <= layer <= self.depth


def stack_of(config: PretrainedConfig, setting: str) -> Stack:
    """The layers that a model of that configuration has; `setting` is what errors name.

    Raises:
        UserError: the configuration speaks of none, or of two stacks.
    """
    text = config.get_text_config()
    depth, width = getattr(text, "num_hidden_layers", None), getattr(text, "hidden_size", None)
    if config.is_encoder_decoder or not isinstance(depth, int) or not isinstance(width, int):
        raise UserError(
            f"objective.terms: hidden_states reads one stack of equally wide layers, which the {type(config).__name__} "
            f"of {setting} does not describe; leave the term out"
        )
    return Stack(depth, width)


def picked(output: Any, layers: Iterable[int]) -> dict[int, Tensor]:
    """Of what a model returned with `output_hidden_states=True`, the states `[B, L, H]` of some layers, by number.

    Raises:
        UserError: it returned none.
    """
    states = getattr(output, "hidden_states", None)
    if states is None:
        raise UserError(
            f"objective.terms: hidden_states was asked for, and a {type(output).__name__} came without any; leave the "
            "term out, or choose models that return them"
        )
    return {layer: states[layer] for layer in layers}
