"""The head of a model card, which the Hub reads: only what the run knows, and ids only of what lies on the Hub."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData

from accel_kd.errors import UserError
from accel_kd.export.run_records import RunRecords
from accel_kd.locations import locate

_LICENCE_LINE = re.compile(r"^(?:licen[cs]e):\s*(\S.*)$", re.IGNORECASE | re.MULTILINE)


def metadata(records: RunRecords) -> ModelCardData:
    """What the Hub is told. No language: nothing in a run says which it is."""
    data, student, teacher = (records.config[section] for section in ("data", "student", "teacher"))
    # What the weights were made from; a teacher that only answered is named in the text.
    origin = {"checkpoint": student["model"], "teacher_layers": teacher["model"]}.get(student["init"])
    base, source = None if origin is None else hub_id(origin), hub_id(data["path"])
    tags = ["knowledge-distillation", "accel_kd"] if is_distilled(records) else ["accel_kd"]
    return ModelCardData(
        library_name="transformers",
        pipeline_tag="text-classification",
        tags=tags,
        base_model=base,
        datasets=None if source is None else [source],
        license=None if origin is None else front_matter(origin).get("license"),
        metrics=["accuracy", "f1"],
        model_name=records.title,
        eval_results=None if source is None else _results(records, source) or None,
    )


def is_distilled(records: RunRecords) -> bool:
    """Whether a teacher had a share in the loss."""
    return any(key.startswith("teacher/") for key in records.summary)


def hub_id(name: str) -> str | None:
    """`name` where it is an id on the Hub, None where it is a path or inside a package."""
    with contextlib.suppress(UserError):
        if locate(name, "name").path is None:
            return name
    return None


def front_matter(name: str) -> dict[str, Any]:
    """The head of the README.md in the folder that `name` is, where it is one and has one; else empty."""
    text = _readme(name)
    if not text.startswith("---\n"):
        return {}
    with contextlib.suppress(yaml.YAMLError):
        head = yaml.safe_load(text.split("\n---", 1)[0])
        return head if isinstance(head, dict) else {}
    return {}


def licence_of(name: str) -> str | None:
    """The licence, word for word, that the README.md in the folder `name` gives; None where it gives none."""
    found = front_matter(name).get("license")
    if isinstance(found, str):
        return found
    line = _LICENCE_LINE.search(_readme(name))
    return None if line is None else line.group(1).strip()


def _readme(name: str) -> str:
    # Of a folder only: beside a single file there may be anybody's.
    with contextlib.suppress(UserError, OSError):
        path = locate(name, "name").path
        if path is not None and path.is_dir():
            return (Path(path) / "README.md").read_text(encoding="utf-8", errors="replace")
    return ""


def _results(records: RunRecords, dataset: str) -> list[EvalResult]:
    """The figures on the test split of `dataset`. None on validation, which may be cut from train: a split that the
    data set has not."""
    data = records.config["data"]
    return [
        EvalResult(
            task_type="text-classification",
            dataset_type=dataset,
            dataset_name=dataset,
            dataset_config=data["name"],
            dataset_revision=data["revision"],
            dataset_split=data["splits"]["test"] or "test",
            metric_value=records.summary[f"test/{key}"],
            **metric,
        )
        for key, metric in (("accuracy", {"metric_type": "accuracy"}), ("macro_f1", _MACRO_F1))
        if f"test/{key}" in records.summary
    ]


_MACRO_F1: dict[str, Any] = {"metric_type": "f1", "metric_name": "macro F1", "metric_args": {"average": "macro"}}
