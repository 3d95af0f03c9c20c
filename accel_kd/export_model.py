"""The story of `accel-kd export`: a student in another form, kept only if it answers as the student does.

run or model -> its split -> the student's logits -> the form, written beside -> opened, its logits -> compared
-> refused, or shown at its place with tokenizer, record and card -> the Hub
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import tempfile
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoConfig, PretrainedConfig

from accel_kd.assembly.scored_models import (
    ScoredModel,
    WholeSplit,
    is_run,
    read_run,
    read_scored_model,
    read_whole_split,
    student_of,
)
from accel_kd.config.schema import RunConfig
from accel_kd.data.preprocessing import TokenisedSplit
from accel_kd.errors import RunFailure, UserError
from accel_kd.export.export_card import write_export_card
from accel_kd.export.hub import check_login, push_folder
from accel_kd.formats.agreement import Agreement, compare
from accel_kd.formats.base import Classifier, Form, Limits
from accel_kd.formats.forms import FORMS
from accel_kd.formats.torch_forms import TorchClassifier
from accel_kd.models.labels import columns_by_name, names_in_order
from accel_kd.models.loading import Checkpoint
from accel_kd.models.weights_digest import weights_digest
from accel_kd.run_directory import is_part_of_run
from accel_kd.tracking.environment import describe_environment
from accel_kd.whole_folder import whole_folder

logger = logging.getLogger(__name__)

RECORD = "export.json"
"""What was exported, and how far it is from the student; a folder without it is no export."""
_SINGLE_ROWS = 16
"""Rows that are given one at a time, as a service gives them; the rest comes in batches of `_BATCH`."""
_BATCH = 32


@dataclass(frozen=True)
class Request:
    """What the command line asks for; None for what it leaves out."""

    source: str
    form: str
    output: str | None = None
    split: str = "test"
    min_agreement: float | None = None
    max_difference: float | None = None
    repository: str | None = None
    is_private: bool = False


def export_model(request: Request, config: RunConfig | None) -> str:
    """Writes the form; `config` is the recipe whose data it is compared on, and may be left out for a run.

    Returns:
        What was written and how near it is, for people.

    Raises:
        UserError: what is named is not there, a package is missing, or there is no login to the Hub.
        RunFailure: the model cannot be had in this form, or answers otherwise than the student; nothing is left of it,
            and what was at its place before is there still.
    """
    form = FORMS[request.form]
    form.check_packages("--to")
    source, name, config, folder = _resolved(request, config)
    _refuse_other_content(folder)
    if request.repository is not None:
        check_login()
    torch.set_num_threads(config.run.threads or torch.get_num_threads())
    data = read_whole_split(config, request.split)
    student = read_scored_model(config, source, data)
    logger.info("the original answers %s rows of %s", f"{len(data.examples):,}", data.name)
    own = _logits(TorchClassifier(student.model, torch.device("cpu")), student.tokens, student.columns)
    limits = _limits(form, request)
    with whole_folder(folder) as temporary:
        logger.info("%s is written", form.name)
        form.write(student.model, student.tokenizer, temporary)
        student.tokenizer.save_pretrained(temporary)
        logger.info("%s answers the same rows", form.name)
        agreement = _agreement(form, temporary, student, data, own, limits)
        _refuse_what_differs(form, agreement, limits, data)
        record = _record(form, name, source, data, agreement, limits)
        (temporary / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        write_export_card(temporary, Path(source.name), form.usage, form.library, record)
    lines = [_sentence(form, agreement, data), f"The export is in {folder}"]
    if request.repository is not None:
        lines.append(f"It is on the Hub: {push_folder(folder, request.repository, is_private=request.is_private)}")
    return "\n".join(lines)


def _resolved(request: Request, config: RunConfig | None) -> tuple[Checkpoint, str, RunConfig, Path]:
    """The student, what people call it, the recipe of its data, and where the export goes."""
    if is_run(request.source):
        directory, own = read_run(request.source)
        folder = Path(request.output or directory.path / "exports" / request.form)
        return student_of(directory), _name_of(directory.path.resolve()), config or own, folder
    if config is None:
        raise UserError(f"--recipe: {request.source!r} is no run directory; name the recipe whose data it is tested on")
    if request.output is None:
        raise UserError(f"--output: {request.source!r} is no run directory; name the folder to write")
    return Checkpoint(request.source, "model"), Path(request.source).name, config, Path(request.output)


def _name_of(path: Path) -> str:
    """Of a run, or of a part of one: `runs/a/control` is `a-control`."""
    return f"{path.parent.name}-{path.name}" if is_part_of_run(path) else path.name


def _refuse_other_content(folder: Path) -> None:
    if Path.cwd().is_relative_to(folder.resolve()):  # it would be renamed under the feet of whoever works in it
        raise UserError(f"--output: {folder} is where this is called, or above it; name a folder inside")
    try:
        there = next(parent for parent in folder.absolute().parents if parent.exists())
        with tempfile.TemporaryDirectory(dir=there):  # now, and not after the whole split was answered
            pass
    except OSError as error:
        raise UserError(f"--output: {folder} cannot be written: {error.strerror}; name another folder") from error
    if folder.exists() and not (folder / RECORD).is_file() and (folder.is_file() or any(folder.iterdir())):
        raise UserError(f"--output: {folder} holds something else than an export; choose another")


def _limits(form: Form, request: Request) -> Limits:
    limits = form.limits
    if request.min_agreement is not None:
        limits = replace(limits, min_agreement=request.min_agreement)
    if request.max_difference is not None:
        limits = replace(limits, max_relative_difference=request.max_difference)
    return limits


def _logits(classifier: Classifier, tokens: TokenisedSplit, columns: Any) -> NDArray[np.float32]:
    """Logits `[n, V]` of the split in its order, columns in the order of the data's labels."""
    bounds = [*range(min(_SINGLE_ROWS, len(tokens))), *range(_SINGLE_ROWS, len(tokens), _BATCH), len(tokens)]
    texts = tokens.student
    parts = [classifier(texts.inputs(np.arange(start, stop))).numpy() for start, stop in pairwise(bounds)]
    logits: NDArray[np.float32] = np.concatenate(parts)
    return logits if columns is None else logits[:, list(columns)]


def _agreement(
    form: Form, folder: Path, student: ScoredModel, data: WholeSplit, own: NDArray[np.float32], limits: Limits
) -> Agreement:
    """The form as it lies in `folder`, with the label names that its own `config.json` gives, beside the student."""
    classifier = form.open(folder, torch.get_num_threads(), torch.device("cpu"))
    written: PretrainedConfig = AutoConfig.from_pretrained(folder)
    columns = columns_by_name(names_in_order(written), data.label_names, "the export")
    return compare(own, _logits(classifier, student.tokens, columns), student.tokens.labels, limits.tie_margin)


def _refuse_what_differs(form: Form, agreement: Agreement, limits: Limits, data: WholeSplit) -> None:
    broken = agreement.broken(limits)
    if broken:
        raise RunFailure(
            f"{form.name}: refused, since {' and '.join(broken)} (--min-agreement and --max-difference move that); "
            f"{_figures(agreement, data)}; nothing was kept"
        )


def _sentence(form: Form, agreement: Agreement, data: WholeSplit) -> str:
    return f"{form.name}: {_figures(agreement, data)}"


def _figures(agreement: Agreement, data: WholeSplit) -> str:
    ties = f" ({agreement.num_ties:,} others are ties)" if agreement.num_ties else ""
    return (
        f"{agreement.num_same:,} of {agreement.num_rows:,} labels of {data.name} are the same{ties}; logits differ by "
        f"{agreement.largest_difference:.3g} at most, {agreement.mean_difference:.3g} on average "
        f"({agreement.relative_difference:.3g} of their spread); accuracy {agreement.form_accuracy:.4f}, "
        f"the original's {agreement.student_accuracy:.4f}"
    )


def _record(
    form: Form, name: str, source: Checkpoint, data: WholeSplit, agreement: Agreement, limits: Limits
) -> dict[str, Any]:
    """What `export.json` holds, of JSON types only."""
    environment = describe_environment()
    packages = {name: version for name, version in environment["packages"].items() if version is not None}
    used = ("accel_kd", "torch", "transformers")
    return {
        "form": form.name,
        "student": source.name,
        "name": name,
        "student_weights_sha256": weights_digest(source),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "packages": {name: packages[name] for name in used if name in packages}
        | {name: importlib.metadata.version(name) for name in form.packages},
        "cpu": environment["cpu"]["model"],
        "compared": {"split": data.name, **asdict(agreement)},
        "limits": asdict(limits),
    }
