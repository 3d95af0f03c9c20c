"""A student with its projections to the teacher's width: what is trained on hidden states, and not what is exported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from accel_kd.models.hidden_states import picked

_STUDENT = "student."
"""What the names of the student's weights begin with beside its projections."""


@dataclass(frozen=True)
class Projection:
    """From which layer of the student, how wide that is, and how wide the teacher's is; `to_width` None: as it is."""

    layer: int
    from_width: int
    to_width: int | None


class ProjectedStudent(nn.Module):
    """One module for both, so that DDP, FSDP and DeepSpeed prepare, synchronise, shard and step them as one.

    Each linear map has no bias (TinyBERT, arXiv 1909.10351; one a layer, as the regressors of FitNets, arXiv
    1412.6550). In evaluation mode it is the student and nothing else. Its state holds `student.*` and `projections.*`.
    """

    def __init__(self, student: PreTrainedModel, projections: Sequence[Projection]) -> None:
        """New weights are drawn from torch's global generator."""
        super().__init__()
        self.student = student
        self.projections = nn.ModuleList(
            nn.Identity() if each.to_width is None else nn.Linear(each.from_width, each.to_width, bias=False)
            for each in projections
        )
        self._layers = [each.layer for each in projections]

    def forward(self, **inputs: Tensor) -> Any:
        """The student's output for inputs `[B, L]`; in training `hidden_states` are a dict, by layer: `[B, L, H]`."""
        if not self.training:
            return self.student(**inputs)
        output = self.student(**inputs, output_hidden_states=True)
        # What padding holds is multiplied by a gradient of 0, and 0 times NaN would reach the projection.
        attended = inputs["attention_mask"].bool().unsqueeze(-1)
        output.hidden_states = {
            layer: projection(torch.where(attended, states, 0.0))
            for projection, (layer, states) in zip(self.projections, picked(output, self._layers).items(), strict=True)
        }
        return output

    def num_parameters(self) -> int:
        """Those of the student: what the run is about."""
        number: int = self.student.num_parameters()
        return number

    # What Accelerate asks of a model of Transformers: by which modules to shard, how wide it is, which weights are one.

    @property
    def _no_split_modules(self) -> Any:
        return self.student._no_split_modules

    @property
    def config(self) -> PretrainedConfig:
        """The student's."""
        return self.student.config

    def tie_weights(self) -> None:
        """Ties the student's weights again, after they were put elsewhere."""
        self.student.tie_weights()


def without_projections(model: nn.Module) -> PreTrainedModel:
    """The student of what was trained: what is exported."""
    return model.student if isinstance(model, ProjectedStudent) else model


def exported_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of the weights of `model` those of the student, as it names them itself."""
    if not isinstance(model, ProjectedStudent):
        return dict(weights)
    return {name.removeprefix(_STUDENT): tensor for name, tensor in weights.items() if name.startswith(_STUDENT)}


def trained_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The student's `weights` as `model` names them."""
    prefix = _STUDENT if isinstance(model, ProjectedStudent) else ""
    return {f"{prefix}{name}": tensor for name, tensor in weights.items()}
