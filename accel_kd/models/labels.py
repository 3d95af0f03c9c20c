"""The teacher's label order against the data's: reconciled by name, or refused."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from transformers import PretrainedConfig

from accel_kd.errors import UserError

_UNNAMED = re.compile(r"LABEL_\d+")


def names_in_order(config: PretrainedConfig) -> list[str]:
    """The names of the model's labels, by its logit columns."""
    return [str(config.id2label[number]) for number in range(config.num_labels)]


def are_unnamed(names: Sequence[str]) -> bool:
    """Whether these are the placeholders that Transformers gives to labels without a name."""
    return all(_UNNAMED.fullmatch(name) for name in names)


def columns_by_name(model_names: Sequence[str], data_names: Sequence[str], setting: str) -> list[int] | None:
    """The model's logit column for each label of the data; None where the order is the same already.

    Labels without names, on either side, are taken in their order: only a score can tell whether that is right.

    Raises:
        UserError: the two sets of names differ, or there are not equally many.
    """
    if len(model_names) != len(data_names):
        numbers = f"{setting}: has {len(model_names)} labels, the data have {len(data_names)}"
        raise UserError(f"{numbers}{_difference(model_names, data_names)}")
    if are_unnamed(model_names) or are_unnamed(data_names):
        return None
    if set(model_names) != set(data_names):
        raise UserError(f"{setting}: its labels are not the data's{_difference(model_names, data_names)}")
    if len(set(model_names)) < len(model_names):
        raise UserError(f"{setting}: its config gives one name to several labels, so they cannot be told apart")
    if list(model_names) == list(data_names):
        return None
    column = {name: number for number, name in enumerate(model_names)}
    return [column[name] for name in data_names]


def chance_threshold(labels: NDArray[np.int64], num_labels: int) -> float:
    """The accuracy up to which a model cannot be told from one that guesses, on a sample with these `labels`.

    Guessing the commonest label, or any, is right with probability p; three standard deviations of a binomial share
    above it is what luck alone all but never reaches.
    """
    counts = np.bincount(labels, minlength=num_labels)
    p = max(counts.max() / counts.sum(), 1.0 / num_labels)
    return float(p + 3.0 * math.sqrt(p * (1.0 - p) / len(labels)))


def _difference(model_names: Sequence[str], data_names: Sequence[str]) -> str:
    if are_unnamed(model_names) or are_unnamed(data_names):
        return ""
    parts = []
    for who, names in (
        ("only the model has", sorted(set(model_names) - set(data_names))),
        ("only the data have", sorted(set(data_names) - set(model_names))),
    ):
        if names:
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            parts.append(f"{who} {', '.join(names[:5])}{more}")
    return f": {'; '.join(parts)}" if parts else ""
