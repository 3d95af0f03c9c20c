"""Tiny models and data sets, made in well under a second, that go through the same doors as real ones."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
)

LABELS = ["alarm", "bank", "music", "oos", "weather"]
_WORDS = {
    "alarm": ["wake", "clock", "ring", "snooze"],
    "bank": ["money", "pay", "account", "card"],
    "music": ["song", "play", "album", "band"],
    "oos": ["poem", "planet", "knit", "fossil"],
    "weather": ["rain", "sun", "snow", "wind"],
}
_FILLERS = ["the", "a", "please", "my", "now", "today", "can", "you", "what", "is", "me", "tell"]
WORDS = sorted({word for words in _WORDS.values() for word in words} | set(_FILLERS))


def rows(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Texts of 2 to 9 words with a keyword of their label, and a wrong keyword now and then; all different."""
    generator = random.Random(seed)
    found: dict[str, str] = {}
    while len(found) < count:
        label = generator.choice(LABELS)
        words = [*generator.choices(_FILLERS, k=generator.randint(1, 7)), generator.choice(_WORDS[label])]
        if generator.random() < 0.3:
            words.append(generator.choice(_WORDS[generator.choice(LABELS)]))
        generator.shuffle(words)
        found.setdefault(" ".join(words), label)
    return [{"text": text, "label": label} for text, label in found.items()]


def write_data(folder: Path, *, train: int = 203, validation: int = 53, test: int = 61, seed: int = 0) -> Path:
    """A folder with train.jsonl, validation.jsonl and test.jsonl; the sizes divide by no number of ranks in use."""
    folder.mkdir(parents=True, exist_ok=True)
    everything = rows(train + validation + test, seed)
    bounds = {"train": (0, train), "validation": (train, train + validation), "test": (train + validation, None)}
    for split, (start, stop) in bounds.items():
        lines = [json.dumps(row) for row in everything[start:stop]]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def tokenizer(kind: str = "bert", words: Sequence[str] = WORDS) -> PreTrainedTokenizerFast:
    """Whole words as tokens, with the special tokens and the features of `kind`."""
    vocabulary = {token: number for number, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    names = ["input_ids", "token_type_ids", "attention_mask"] if kind == "bert" else ["input_ids", "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=names,
        model_max_length=64,
    )


def config(
    kind: str = "bert",
    *,
    layers: int = 4,
    labels: Sequence[str] = LABELS,
    dropout: float = 0.1,
    spread: float = 0.3,
    width: int = 32,
) -> PreTrainedConfig:
    """A configuration of `bert`, `roberta` or `distilbert` with `width` hidden units.

    Random weights with a wide `spread` give logits that differ between texts and labels, so that a divergence has
    something to say; with 0.05 the model can be trained.
    """
    names = {"id2label": dict(enumerate(labels)), "label2id": {name: n for n, name in enumerate(labels)}}
    size = len(WORDS) + 4
    names["initializer_range"] = spread  # type: ignore[assignment]
    if kind == "distilbert":
        return DistilBertConfig(
            vocab_size=size, dim=width, hidden_dim=64, n_layers=layers, n_heads=2, max_position_embeddings=64,
            dropout=dropout, attention_dropout=dropout, seq_classif_dropout=dropout, **names,
        )  # fmt: skip
    shape = {
        "vocab_size": size, "hidden_size": width, "intermediate_size": 64, "num_hidden_layers": layers,
        "num_attention_heads": 2, "max_position_embeddings": 66, "pad_token_id": 0,
        "hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout,
    }  # fmt: skip
    return RobertaConfig(**shape, type_vocab_size=1, **names) if kind == "roberta" else BertConfig(**shape, **names)


_CLASSES: dict[str, type[PreTrainedModel]] = {
    "bert": BertForSequenceClassification,
    "roberta": RobertaForSequenceClassification,
    "distilbert": DistilBertForSequenceClassification,
}


def write_model(folder: Path, kind: str = "bert", *, seed: int = 0, **options: object) -> Path:
    """A folder with config, safetensors and tokenizer of a model with random weights; `options` as `config` takes."""
    torch.manual_seed(seed)
    model = _CLASSES[kind](config(kind, **options))  # type: ignore[arg-type]
    model.save_pretrained(folder)
    tokenizer(kind).save_pretrained(folder)
    return folder
