"""The last layer of a classifier whose head reads the first token alone, computed for that token alone.

Keys and values of that layer still come from every token; its queries, its feed-forward network and its norms do not.
That is the same mathematics: what is left out is read by nothing. It takes other draws for dropout.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from accel_kd.distributed.cpu_matmul import attended
from accel_kd.models.layers import layers

_LIKE_BERT = {
    "BertForSequenceClassification",
    "CamembertForSequenceClassification",
    "ElectraForSequenceClassification",
    "RobertaForSequenceClassification",
    "XLMRobertaForSequenceClassification",
}
_LIKE_DISTILBERT = {"DistilBertForSequenceClassification"}
_ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-4}
"""How far the two ways may lie apart, beside logits of about 1; 0.05 in the lower precisions."""


def read_first_token_only(model: PreTrainedModel) -> bool:
    """Lets the last layer of `model` compute its first token alone, where that is known to be all that is read.

    Where the weights are there, the logits of two texts are compared with and without: a release of Transformers that
    computes its layers otherwise keeps them as they are. Not for models whose hidden states are read.

    Args:
        model: a classifier, not yet wrapped or spread over devices; changed in place.

    Returns:
        Whether it does so now.
    """
    name = type(model).__name__
    is_like_bert = name in _LIKE_BERT
    if not is_like_bert and name not in _LIKE_DISTILBERT:
        return False
    is_chunked = getattr(model.config, "chunk_size_feed_forward", 0) > 0
    # Other implementations of attention want other masks; decoders do not see all tokens.
    if model.config._attn_implementation != "sdpa" or getattr(model.config, "is_decoder", False) or is_chunked:
        return False
    found = layers(model)
    if not found:
        return False
    last = found[-1]
    if any(parameter.is_meta for parameter in model.parameters()):
        _shorten(last, is_like_bert)
        return True
    try:
        before = _logits_of_two_texts(model)
        _shorten(last, is_like_bert)
        is_same = torch.allclose(
            _logits_of_two_texts(model), before, rtol=0.0,
            atol=_ROUNDING.get(model.dtype, 0.05) * (1.0 + float(before.abs().max())),
        )  # fmt: skip
    # It lacks a part that was expected, wants other arguments, or reads no text as long as these.
    except (AttributeError, IndexError, RuntimeError, TypeError):
        is_same = False
    if not is_same:
        vars(last).pop("forward", None)
    return is_same


def _shorten(layer: nn.Module, is_like_bert: bool) -> None:
    layer.forward = MethodType(_bert_layer if is_like_bert else _distilbert_layer, layer)


def _bert_layer(
    layer: Any, hidden_states: Tensor, attention_mask: Tensor | None = None, *others: Any, **unread: Any
) -> Tensor:
    """In place of `BertLayer.forward`: `[N, L, H]` -> `[N, 1, H]`."""
    attention, first = layer.attention.self, _first(hidden_states)
    context = _of_first(
        attention.query(first), attention.key(hidden_states), attention.value(hidden_states),
        attention_mask, attention.num_attention_heads, attention.dropout.p if layer.training else 0.0,
    )  # fmt: skip
    output: Tensor = layer.feed_forward_chunk(layer.attention.output(context, first))
    return output


def _distilbert_layer(
    layer: Any, hidden_states: Tensor, attention_mask: Tensor | None = None, *others: Any, **unread: Any
) -> Tensor:
    """In place of `TransformerBlock.forward`: `[N, L, H]` -> `[N, 1, H]`."""
    attention, first = layer.attention, _first(hidden_states)
    context = _of_first(
        attention.q_lin(first), attention.k_lin(hidden_states), attention.v_lin(hidden_states),
        attention_mask, attention.n_heads, attention.dropout.p if layer.training else 0.0,
    )  # fmt: skip
    normed = layer.sa_layer_norm(attention.out_lin(context) + first)
    output: Tensor = layer.output_layer_norm(layer.ffn(normed) + normed)
    return output


def _first(hidden_states: Tensor) -> Tensor:
    """`[N, L, H]` -> `[N, 1, H]`. With the gaps of a slice, torch multiplies row by row, and rounds by whether the
    weights need a gradient."""
    return hidden_states[:, :1].contiguous()


def _of_first(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, num_heads: int, dropout: float) -> Tensor:
    """Scaled dot-product attention of one query `[N, 1, H]` a text to keys and values `[N, L, H]`; the mask is as
    Transformers hands it on, None or `[N, 1, 1 or L, L]`."""
    rows, width = key.shape[0], key.shape[-1] // num_heads
    query, key, value = (each.view(rows, -1, num_heads, width).transpose(1, 2) for each in (query, key, value))
    of_first = None if mask is None else mask[:, :, :1]
    context: Tensor = attended(
        F.scaled_dot_product_attention, query, key, value, dropout, attn_mask=of_first, dropout_p=dropout
    )
    return context.transpose(1, 2).flatten(2)


@torch.no_grad()
def _logits_of_two_texts(model: PreTrainedModel) -> Tensor:
    """Logits `[2, V]` of texts of seven and of four tokens, without dropout; no generator is drawn from."""
    device, was_training = model.device, model.training
    ids = torch.arange(14, device=device).view(2, 7) % model.config.vocab_size
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    try:
        logits: Tensor = model.eval()(input_ids=ids, attention_mask=mask).logits
    finally:
        model.train(was_training)
    return logits
