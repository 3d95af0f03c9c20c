"""The story of `accel-kd benchmark model`.

models, split -> a process for each model and form, made ready -> rounds, in which all take turns -> medians -> rows
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from accel_kd.assembly.scored_models import WholeSplit, data_read_whole, read_whole_split
from accel_kd.config.schema import RunConfig
from accel_kd.errors import RunFailure, UserError
from accel_kd.model_benchmark.candidates import Candidate, find_candidates
from accel_kd.model_benchmark.contestant import TURNS, Job, Ready, Refused
from accel_kd.model_benchmark.figures import Latencies, accuracy_figures, speed_up, summarised
from accel_kd.model_benchmark.kept_rows import keep_rows_of_runs
from accel_kd.model_benchmark.measured_forms import EAGER, MEASURED_FORMS, check_packages
from accel_kd.model_benchmark.pool import Handle, Pool
from accel_kd.model_benchmark.timing import Round
from accel_kd.run_directory import write_atomically
from accel_kd.tracking.environment import describe_environment

logger = logging.getLogger(__name__)

_QUERY_SEED = 0
_PACKAGES = ("torchao", "onnxruntime", "onnx")


@dataclass(frozen=True)
class Settings:
    """What the command line asks for."""

    paths: Sequence[str]
    forms: Sequence[str]
    split: str = "test"
    with_teacher: bool = False
    device: str = "cpu"
    threads: int = 1
    batch_size: int = 32
    num_queries: int = 200
    num_rounds: int = 3
    json_file: str | None = None


@dataclass(frozen=True)
class Benchmark:
    """What was measured: `rows` as `model_benchmark.json` has them (one that could not be had has `refused`, and no
    figures), and `where`, with date, hardware, versions and the settings; `notes` say what was not kept."""

    rows: list[dict[str, Any]]
    where: dict[str, Any]
    notes: Sequence[str] = ()


@dataclass
class _Entry:
    """A model in a form, from its start to its rounds."""

    candidate: Candidate
    form: str
    handle: Handle | None
    said: Ready | Refused
    rounds: list[Latencies]


def benchmark_models(settings: Settings, config: RunConfig | None) -> Benchmark:
    """Measures all models in all forms; `config` is the recipe whose data are used, and may be left out for runs.

    Raises:
        UserError: a model, the data, a package or the device is not there, or no file for the rows can be.
        RunFailure: not one form of any model could be had, or a process died while it was measured.
    """
    _check(settings)
    candidates, config = find_candidates(settings.paths, config, with_teacher=settings.with_teacher)
    data = read_whole_split(config, settings.split)
    rows, one = _queries(data, settings.num_queries)
    with tempfile.TemporaryDirectory(prefix="accel_kd-benchmark-") as logs, Pool(Path(logs)) as pool:
        entries = []
        for candidate in candidates:
            for form in settings.forms:
                job = Job(
                    form, candidate.checkpoint, config, data, rows, one, settings.batch_size, settings.threads,
                    settings.device,
                )  # fmt: skip
                entries.append(_started(pool, candidate, job))
        ready = [entry for entry in entries if entry.handle is not None]
        _take_turns(ready, settings.num_rounds, len(data.examples))
    where = _where(settings, config, data, one, len(rows))
    measured = _rows(entries, data, settings, where)
    by_candidate = [(entry.candidate, row) for entry, row in zip(entries, measured, strict=True)]
    notes = keep_rows_of_runs(by_candidate, data_read_whole(config))
    if not ready:
        raise RunFailure(f"benchmark model: no form of any model could be had: {_reasons(entries)}")
    return Benchmark(measured, where, notes)


def _check(settings: Settings) -> None:
    unknown = [form for form in settings.forms if form not in MEASURED_FORMS]
    if unknown:
        raise UserError(f"--forms: {unknown[0]!r} is none; there are {', '.join(MEASURED_FORMS)}")
    for form in settings.forms:
        check_packages(form)
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device: cuda, but torch sees no GPU here")
    if settings.json_file is not None and not Path(settings.json_file).absolute().parent.is_dir():
        raise UserError(f"--json: {settings.json_file!r} lies in a folder that does not exist")


def _queries(data: WholeSplit, number: int) -> tuple[NDArray[np.int64], int]:
    """Rows drawn without repetition, the same at every call; and the row whose text has the median length."""
    size = len(data.examples)
    rows = np.random.default_rng(_QUERY_SEED).permutation(size)[:number]
    by_length = np.argsort([len(text) for text in data.examples.texts], kind="stable")
    return rows, int(by_length[size // 2])


def _started(pool: Pool, candidate: Candidate, job: Job) -> _Entry:
    handle, said = pool.start(job)
    if isinstance(said, Refused):
        if said.is_mistake:
            raise UserError(said.reason)
        logger.info("%s as %s cannot be had: %s", candidate.name, job.form, said.reason)
    else:
        logger.info("%s as %s is ready after %.1f s", candidate.name, job.form, said.seconds_to_make)
    return _Entry(candidate, job.form, handle, said, [])


def _reasons(entries: Sequence[_Entry]) -> str:
    return "; ".join(f"{e.form}: {e.said.reason}" for e in entries if isinstance(e.said, Refused))


def _take_turns(entries: Sequence[_Entry], num_rounds: int, num_rows: int) -> None:
    """Each kind of turn goes round all entries before the next begins, from another first one in every round."""
    for number in range(num_rounds if entries else 0):
        first = number % len(entries)
        order = [*entries[first:], *entries[:first]]
        turns: dict[int, list[Round]] = {id(entry): [] for entry in entries}
        for kind in TURNS:
            for entry in order:
                assert entry.handle is not None
                turns[id(entry)].append(entry.handle.turn(kind))
        for entry in entries:
            entry.rounds.append(Latencies.of(turns[id(entry)], num_rows))
        logger.info("round %s of %s", number + 1, num_rounds)


def _where(settings: Settings, config: RunConfig, data: WholeSplit, one: int, num_queries: int) -> dict[str, Any]:
    environment = describe_environment()
    packages = environment["packages"]
    for name in _PACKAGES:
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            packages[name] = None
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": environment["cpu"],
        "gpu": torch.cuda.get_device_name() if settings.device == "cuda" else None,
        "load_average": load,
        "platform": environment["platform"],
        "packages": packages,
        "data": config.data.path,
        "split": data.name,
        "num_examples": len(data.examples),
        "num_queries": num_queries,
        "one_query": data.examples.texts[one],
        "num_rounds": settings.num_rounds,
    }


def _rows(
    entries: Sequence[_Entry], data: WholeSplit, settings: Settings, where: dict[str, Any]
) -> list[dict[str, Any]]:
    """One row an entry; ratios are to the first model's eager form, or to the first form that could be had."""
    measured = [entry for entry in entries if entry.rounds]
    baseline = next((entry for entry in measured if entry.form == EAGER), next(iter(measured), None))
    rows = []
    for entry in entries:
        row: dict[str, Any] = {
            "model": entry.candidate.name, "form": entry.form, "device": settings.device, "threads": settings.threads,
            "batch_size": settings.batch_size, "split": data.name, "hardware": where["gpu"] or where["cpu"]["model"],
            "weights_sha256": entry.candidate.weights_sha256,
        }  # fmt: skip
        if isinstance(entry.said, Refused):
            rows.append(row | {"refused": entry.said.reason})
            continue
        assert baseline is not None and isinstance(baseline.said, Ready)
        eager = next((e.said for e in measured if e.candidate is entry.candidate and e.form == EAGER), None)
        same = None if not isinstance(eager, Ready) else float((eager.argmax == entry.said.argmax).mean())
        rows.append(
            row
            | dict(accuracy_figures(data.examples.labels, entry.said.argmax))
            | {"agreement_with_torch": same}
            | summarised(entry.rounds)
            | {
                "megabytes": entry.said.num_bytes / 10**6,
                "num_parameters": entry.said.num_parameters,
                "stored_dtype": entry.said.stored_dtype,
                "seconds_to_make": entry.said.seconds_to_make,
                "baseline": f"{baseline.candidate.name}, {baseline.form}",
                "speed_up": speed_up(baseline.rounds, entry.rounds),
                "size_ratio": baseline.said.num_bytes / entry.said.num_bytes,
                "measured": where,
            }
        )
    return rows


def write_rows(found: Benchmark, json_file: str) -> None:
    """All rows into the file that was asked for; raises `UserError` where it cannot be written."""
    text = json.dumps({"measured": found.where, "rows": found.rows}, indent=2, ensure_ascii=False)
    try:
        write_atomically(Path(json_file), text + "\n")
    except OSError as error:
        raise UserError(f"--json: {json_file} cannot be written: {error.strerror}") from error
