"""Reads the three splits from wherever they lie, as `datasets.Dataset`s with the source's own columns."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, DatasetDict, Features, Value, load_dataset, load_from_disk

from accel_kd.errors import UserError
from accel_kd.locations import locate

_FORMATS = {".csv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
_CLINC_SPLITS = {"train": "train", "val": "validation", "test": "test"}


@dataclass(frozen=True)
class SplitNames:
    """What the source calls the three splits; None where there is none."""

    train: str = "train"
    validation: str | None = "validation"
    test: str | None = "test"


def read_splits(
    path: str, split_names: SplitNames = SplitNames(), *, name: str | None = None, revision: str | None = None
) -> dict[str, Dataset]:
    """The splits that the source has, under our names `train`, `validation` and `test`.

    Raises:
        UserError: nothing readable there, no train split, an empty split, or a split that was named and is missing.
    """
    location = locate(path, "data.path")
    if location.path is None:
        source = _read_hub(path, name, revision)
    elif name is not None or revision is not None:
        raise UserError(f"data.name and data.revision choose within a Hub data set, and data.path {path!r} is local")
    elif location.path.is_dir():
        source = _read_folder(location.path)
    else:
        source = _read_file(location.path, split_names.train)
    return _choose(source, split_names, path)


def _choose(source: dict[str, Dataset], wanted: SplitNames, path: str) -> dict[str, Dataset]:
    defaults = SplitNames()
    chosen: dict[str, Dataset] = {}
    for ours in ("train", "validation", "test"):
        theirs = getattr(wanted, ours)
        if theirs is None:
            continue
        if theirs not in source:
            if ours == "train" or theirs != getattr(defaults, ours):
                raise UserError(f"data.splits.{ours}: {path!r} has no split {theirs!r}; it has {', '.join(source)}")
            continue
        if len(source[theirs]) == 0:
            raise UserError(f"data.splits.{ours}: the split {theirs!r} of {path!r} is empty")
        chosen[ours] = source[theirs]
    return chosen


def _read_hub(path: str, name: str | None, revision: str | None) -> dict[str, Dataset]:
    try:
        loaded = load_dataset(path, name, revision=revision)
    except Exception as error:  # the hub client raises a dozen unrelated types
        raise UserError(
            f"data.path: {path!r} is no file or folder here, and could not be read from the Hub: {_first_line(error)}"
        ) from error
    return dict(loaded)


def _read_folder(folder: Path) -> dict[str, Dataset]:
    if (folder / "dataset_dict.json").exists() or (folder / "state.json").exists():
        try:
            loaded = load_from_disk(str(folder))
        except Exception as error:  # a damaged folder surfaces as any of Arrow's, JSON's or the OS's errors
            raise UserError(
                f"data.path: {folder} was made by save_to_disk but cannot be read: {_first_line(error)}"
            ) from error
        return dict(loaded) if isinstance(loaded, DatasetDict) else {"train": loaded}
    files: dict[str, list[str]] = {}
    suffixes = set()
    for file in sorted(folder.iterdir()):
        if file.suffix in _FORMATS:
            # train.csv, train-00000-of-00002.parquet and train_1.csv all belong to train.
            split = file.stem.split("-")[0].rstrip("0123456789").rstrip("_")
            files.setdefault(split, []).append(str(file))
            suffixes.add(file.suffix)
    if not files:
        raise UserError(f"data.path: the folder {folder} holds no csv, json, jsonl or parquet file")
    if len({_FORMATS[suffix] for suffix in suffixes}) > 1:
        raise UserError(f"data.path: the folder {folder} mixes {', '.join(sorted(suffixes))}; keep one format")
    return {split: _load_files(_FORMATS[Path(names[0]).suffix], names) for split, names in files.items()}


def _read_file(file: Path, train_name: str) -> dict[str, Dataset]:
    if file.suffix not in _FORMATS:
        raise UserError(f"data.path: {file} is none of {', '.join(_FORMATS)}")
    if file.suffix == ".json" and (clinc := _clinc_layout(file)) is not None:
        return clinc
    return {train_name: _load_files(_FORMATS[file.suffix], [str(file)])}


def _load_files(format_name: str, files: list[str]) -> Dataset:
    # Without this, pandas takes a text or a label "None", "NA" or "null" for a gap.
    options: dict[str, Any] = {"keep_default_na": False, "na_values": [""]} if format_name == "csv" else {}
    try:
        return load_dataset(format_name, data_files=files, split="train", **options)
    except Exception as error:  # parsers of four formats, each with its own errors
        cause = error.__cause__ or error
        if isinstance(cause, StopIteration) or "corresponds to no data" in str(cause):
            raise UserError(f"data.path: {', '.join(files)} holds no rows") from error
        raise UserError(
            f"data.path: {', '.join(files)} cannot be read as {format_name}: {_first_line(cause)}"
        ) from error


def _clinc_layout(file: Path) -> dict[str, Dataset] | None:
    """The layout of clinc/oos-eval: `{"train": [[text, intent], ...], "oos_train": ...}`; None for other JSON."""
    try:
        content: Any = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError):
        return None  # JSON lines, or damaged: the general reader says what is wrong
    if not isinstance(content, dict) or not {"train", "val", "test"} <= content.keys():
        return None
    splits = {}
    for theirs, ours in _CLINC_SPLITS.items():
        parts = [content[theirs], content.get(f"oos_{theirs}", [])]
        if not all(isinstance(part, list) for part in parts):
            raise UserError(f"data.path: {file}, split {theirs!r}: not a list of pairs [text, label]")
        rows = [row for part in parts for row in part]
        for number, row in enumerate(rows):
            if not (isinstance(row, list) and len(row) == 2):
                raise UserError(f"data.path: {file}, split {theirs!r}, row {number}: not a pair [text, label]: {row!r}")
        splits[ours] = _from_pairs(rows)
    return splits


def _from_pairs(rows: list[list[Any]]) -> Dataset:
    columns = {"text": [row[0] for row in rows], "label": [row[1] for row in rows]}
    try:
        return Dataset.from_dict(columns, features=Features({"text": Value("string"), "label": Value("string")}))
    except Exception as error:  # pyarrow's conversion errors
        raise UserError(f"data.path: a CLINC150 row holds something else than text: {_first_line(error)}") from error


def class_label_names(dataset: Dataset, column: str) -> list[str] | None:
    """The names that a `ClassLabel` column brings, else None."""
    feature = dataset.features.get(column)
    return list(feature.names) if isinstance(feature, ClassLabel) else None


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"
