"""Any checkpoint on a whole split of a recipe's data: for `evaluate`, `export` and `benchmark model`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from accel_kd.assembly.data import read_data
from accel_kd.assembly.models import checkpoint
from accel_kd.config.load import load_recipe
from accel_kd.config.schema import RunConfig
from accel_kd.data.examples import Examples
from accel_kd.data.preprocessing import TokenisedSplit, tokenise_split
from accel_kd.errors import UserError
from accel_kd.models.labels import columns_by_name, names_in_order
from accel_kd.models.loading import Checkpoint, check_length, input_names, load_classifier, load_tokenizer
from accel_kd.run_directory import RunDirectory, owner_of, through_links
from accel_kd.signals import IGNORED_LABEL

_WHOLE = {"labelled_fraction": 1.0, "max_train_examples": None}
"""What a recipe leaves out or hides for training."""


@dataclass(frozen=True)
class WholeSplit:
    """The examples of a split that have a label, those too that the recipe leaves out or hides for training."""

    name: str
    examples: Examples
    label_names: list[str]


@dataclass(frozen=True)
class ScoredModel:
    """A classifier (fp32, on the CPU, without dropout), its tokenizer, the split as its tokens, and its logit column
    for each label of the data where the order differs."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    tokens: TokenisedSplit
    columns: Sequence[int] | None


def read_whole_split(config: RunConfig, split: str) -> WholeSplit:
    """Reads the data of the recipe.

    Raises:
        UserError: the data cannot be read, or have no such split, or no example of it has a label.
    """
    whole = config.data.model_copy(update=_WHOLE)
    data = read_data(config.model_copy(update={"data": whole}))
    if split not in data.splits:
        raise UserError(f"--split: the data have no {split} split, only {', '.join(data.splits)}")
    examples = data.splits[split]
    rows = np.flatnonzero(examples.labels != IGNORED_LABEL)
    if not len(rows):
        raise UserError("data.label: no example of the split has a label, and labels are needed here")
    return WholeSplit(split, examples.take(rows), data.label_names)


def data_read_whole(config: RunConfig) -> dict[str, Any]:
    """The settings of the data that decide what a whole split is, and what a model reads of it."""
    return config.data.model_copy(update=_WHOLE).model_dump(mode="json", exclude={"resident_megabytes"})


def read_scored_model(config: RunConfig, source: Checkpoint, data: WholeSplit) -> ScoredModel:
    """Loads a checkpoint for the labels of `data`.

    Raises:
        UserError: it cannot be loaded, reads fewer tokens than the recipe has, or its labels are not the data's.
    """
    model = load_classifier(source)
    check_length(model.config, config.data.max_length, "the model")
    columns = columns_by_name(names_in_order(model.config), data.label_names, "model")
    tokenizer = load_tokenizer(source)
    tokens = tokenise_split(data.examples, (tokenizer, input_names(model)), None, config.data.max_length)
    return ScoredModel(model.eval(), tokenizer, tokens, columns)


def is_run(path: str) -> bool:
    """Whether `path` is a run directory, finished or not, or is named as the `control` or `teacher` of one."""
    return owner_of(Path(path)).config.is_file()


def read_run(path: str, overrides: Sequence[str] = ()) -> tuple[RunDirectory, RunConfig]:
    """A finished run, or finished part of a run, and its recipe.

    Raises:
        UserError: it is not finished, has no such part, or its recipe cannot be read.
    """
    owner, directory = owner_of(Path(path)), RunDirectory(through_links(Path(path)))
    if owner.path != directory.path:
        directory = owner.part(directory.path.name)
        if not directory.path.is_dir():
            raise UserError(f"{path}: the run in {owner.path} trained no {directory.path.name}; name another model")
    if not directory.is_finished:
        raise UserError(f"{path}: holds a run that is not finished; finish it, or name the folder of a model")
    return directory, load_recipe(str(owner.config), overrides)


def student_of(directory: RunDirectory) -> Checkpoint:
    """The exported model of a finished run, or of a part of one."""
    return Checkpoint(str(directory.model), "model")


def teacher_of(directory: RunDirectory, config: RunConfig) -> Checkpoint:
    """The teacher of a run or of a part of one: the one that it fine-tuned, else the one that the recipe names.

    Raises:
        UserError: it had none.
    """
    tuned = owner_of(directory.path).part("teacher")
    if tuned.is_finished:
        return Checkpoint(str(tuned.model), "model")
    if config.teacher.model is None:
        raise UserError(f"--with-teacher: {directory.path} holds a run without a teacher; leave it out")
    return checkpoint(config.teacher, "teacher.model")
