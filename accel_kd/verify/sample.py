"""A small part of a recipe's data, laid on the disk, with sizes that divide by nothing: where counting goes wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from accel_kd.data.examples import Examples, content_order
from accel_kd.data.labels import LabelledSplits
from accel_kd.signals import IGNORED_LABEL


def write_sample(data: LabelledSplits, folder: Path, num_train: int, num_validation: int) -> dict[str, Any]:
    """Writes `num_train` and `num_validation` examples, drawn by their content, or as many as there are.

    Returns:
        The `data` settings that read them, beside those that say how examples become tokens.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", num_train), ("validation", num_validation)):
        examples = data.splits[split]
        chosen = examples.take(content_order(examples.ids, "verify")[:count])
        if split == "train" and (chosen.labels == IGNORED_LABEL).all():
            labelled = [row for row in range(len(examples)) if examples.labels[row] != IGNORED_LABEL]
            chosen = examples.take([*labelled[: count // 4], *content_order(examples.ids, "verify")])
            chosen = chosen.take(range(min(count, len(chosen))))
        _write(chosen, data.label_names, folder / f"{split}.jsonl")
    train = data.splits["train"]
    return {
        "path": str(folder),
        "name": None,
        "revision": None,
        "splits": {"train": "train", "validation": "validation", "test": None},
        "text": "text",
        "text_pair": None if train.pairs is None else "text_pair",
        "label": "label",
        "label_names": list(data.label_names),
        "max_train_examples": None,
        "labelled_fraction": 1.0,
        "allow_unlabelled": bool((train.labels == IGNORED_LABEL).any()),
    }


def _write(examples: Examples, label_names: list[str], file: Path) -> None:
    with file.open("w", encoding="utf-8") as lines:
        for row in range(len(examples)):
            number = int(examples.labels[row])
            content = {"text": examples.texts[row], "label": None if number == IGNORED_LABEL else label_names[number]}
            if examples.pairs is not None:
                content["text_pair"] = examples.pairs[row]
            lines.write(json.dumps(content, ensure_ascii=False) + "\n")
