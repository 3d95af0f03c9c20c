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
    same_names = set(model_names) == set(data_names)
    if not same_names and (are_unnamed(model_names) or are_unnamed(data_names)):
        return None
    if not same_names:
        raise UserError(f"{setting}: its labels are not the data's{_difference(model_names, data_names)}")
    if len(set(model_names)) < len(model_names):
        raise UserError(f"{setting}: its config gives one name to several labels, so they cannot be told apart")
    if list(model_names) == list(data_names):
        return None
    column = {name: number for number, name in enumerate(model_names)}
    return [column[name] for name in data_names]


def balanced_accuracy(labels: NDArray[np.int64], argmax: NDArray[np.int64]) -> float:
    """The mean over the labels that occur of the share of their examples that is right."""
    return float(np.mean([(argmax[labels == label] == label).mean() for label in np.unique(labels)]))


def guessing_threshold(labels: NDArray[np.int64], argmax: NDArray[np.int64]) -> float:
    """The balanced accuracy up to which a model cannot be told from one that gives its answers by lot.

    Answers that are given as often as these but have nothing to do with the text are right on a label's examples with
    the probability with which that label is answered; four standard deviations above the mean of these shares is what
    luck alone all but never reaches. Balanced, since always answering the commonest label is a guess too.
    """
    occurring, counts = np.unique(labels, return_counts=True)
    answered = np.array([(argmax == label).mean() for label in occurring])
    variance = (answered * (1.0 - answered) / counts).sum() / len(occurring) ** 2
    return float(answered.mean() + 4.0 * math.sqrt(variance))


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
