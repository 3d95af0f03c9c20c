"""A fresh student: from its own checkpoint, from a configuration alone, or from layers of the teacher."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from accel_kd.errors import UserError
from accel_kd.models.labels import names_in_order
from accel_kd.models.loading import Checkpoint, load_classifier, load_config, new_classifier

_DROPOUTS = (
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "classifier_dropout",
    "dropout",
    "attention_dropout",
    "seq_classif_dropout",
    "hidden_dropout",
    "embd_pdrop",
    "attn_pdrop",
    "resid_pdrop",
    "classifier_dropout_prob",
)
"""What the encoders of Transformers call their dropout probabilities."""


def from_checkpoint(
    checkpoint: Checkpoint, label_names: Sequence[str], dropout: float | None = None
) -> PreTrainedModel:
    """The model at `checkpoint` with a head for `label_names`: its own where it has as many, else a new one.

    Raises:
        UserError: it cannot be loaded.
    """
    config = load_config(checkpoint)
    names = names_in_order(config)
    config = with_dropout(with_labels(config, label_names), dropout)
    model = load_classifier(checkpoint, config=config)
    if set(names) == set(label_names) and names != list(label_names):
        # Trained on these very labels: the head stays, in the data's order.
        permute_head(model, [names.index(name) for name in label_names])
    return model


def from_config(checkpoint: Checkpoint, label_names: Sequence[str], dropout: float | None = None) -> PreTrainedModel:
    """The architecture at `checkpoint` with random weights.

    Raises:
        UserError: there is no configuration, or Transformers has no classifier for it.
    """
    config = with_dropout(with_labels(load_config(checkpoint), label_names), dropout)
    return new_classifier(config, checkpoint.setting)


def from_teacher_layers(
    teacher: PreTrainedModel,
    label_names: Sequence[str],
    *,
    layers: Sequence[int] | int | None = None,
    dropout: float | None = None,
) -> PreTrainedModel:
    """A student made of some of the teacher's layers, and of its embeddings, pooler and head.

    Args:
        teacher: the model to copy from, its head already in the order of `label_names`; it keeps its weights.
        label_names: the student's labels.
        layers: which of the teacher's layers, or how many, evenly spaced with the first and the last; default half.
        dropout: every dropout probability of the student; None keeps the teacher's.

    Raises:
        UserError: the teacher has no such layer, or its stack of layers is not found.
    """
    stack_name, stack = _layer_stack(teacher)
    kept = chosen_layers(layers, len(stack))
    config = with_dropout(with_labels(teacher.config, label_names), dropout)
    config.num_hidden_layers = len(kept)
    student = new_classifier(config, "student.init")
    mapping = {f"{stack_name}.{theirs}.": f"{stack_name}.{ours}." for ours, theirs in enumerate(kept)}
    weights = {}
    for name, tensor in teacher.state_dict().items():
        if not name.startswith(f"{stack_name}."):
            weights[name] = tensor
            continue
        for old, new in mapping.items():
            if name.startswith(old):
                weights[new + name.removeprefix(old)] = tensor
    student.load_state_dict({name: tensor.to(torch.float32, copy=True) for name, tensor in weights.items()})
    return student


def evenly_spaced(count: int, total: int) -> list[int]:
    """`count` of `total` layers, the first and the last among them: 3 of 6 are 0, 2, 5."""
    if count == 1:
        return [0]
    return [round(number * (total - 1) / (count - 1)) for number in range(count)]


def with_labels(config: PretrainedConfig, label_names: Sequence[str]) -> PretrainedConfig:
    """A copy of `config` with these names for its logits, so that whoever loads the model gets them."""
    config = copy.deepcopy(config)
    config.id2label = dict(enumerate(label_names))
    config.label2id = {name: number for number, name in enumerate(label_names)}
    # Else a base model's own (several labels a text, say) decides what a pipeline makes of the logits.
    config.problem_type = "single_label_classification"
    return config


def with_dropout(config: PretrainedConfig, probability: float | None) -> PretrainedConfig:
    """A copy of `config` with every dropout probability that it has set to `probability`; as it is for None.

    Raises:
        UserError: it has none under a known name.
    """
    if probability is None:
        return config
    config = copy.deepcopy(config)
    present = [name for name in _DROPOUTS if isinstance(getattr(config, name, None), (int, float))]
    if not present:
        raise UserError(f"student.dropout: {type(config).__name__} has no dropout setting that is known here")
    for name in present:
        setattr(config, name, probability)
    return config


def permute_head(model: PreTrainedModel, columns: Sequence[int]) -> None:
    """Reorders the rows of the last linear layer so that logit `i` is the former logit `columns[i]`."""
    head = _head(model)
    with torch.no_grad():
        head.weight.copy_(head.weight[list(columns)].clone())
        if head.bias is not None:
            head.bias.copy_(head.bias[list(columns)].clone())


def _head(model: PreTrainedModel) -> nn.Linear:
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    heads = [module for module in linears if module.out_features == model.config.num_labels]
    if not heads:
        raise UserError(f"the head of {type(model).__name__} is not found: no linear layer gives its labels")
    return heads[-1]


def chosen_layers(layers: Sequence[int] | int | None, total: int) -> list[int]:
    """The layers to keep of `total`: those that are listed, or that many, evenly spaced; half of them for None.

    Raises:
        UserError: there are not as many, or not such a one.
    """
    if layers is None:
        layers = max(1, total // 2)
    if isinstance(layers, int):
        if layers > total:
            raise UserError(f"student.layers: {layers} layers were asked for, and the teacher has {total}")
        return evenly_spaced(layers, total)
    beyond = [layer for layer in layers if layer >= total]
    if beyond:
        raise UserError(f"student.layers: the teacher has no layer {beyond[0]}; it has 0 to {total - 1}")
    return list(layers)


def _layer_stack(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """The one list of modules as long as the config says that the encoder is deep."""
    depth = model.config.num_hidden_layers
    stacks = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) == depth]
    if len(stacks) != 1:
        raise UserError(
            f"student.init: teacher_layers cannot tell which modules of {type(model).__name__} are its {depth} layers"
        )
    return stacks[0]
