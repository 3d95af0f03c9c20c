"""The fourth story: proves on this machine that every other way of running a recipe equals the plain one.

sample of the data -> teacher (fine-tuned a little, if the recipe does) -> the plain run, and a float64 reference of its
first step -> each other way, a run of the program of its own -> what they left on the disk compared -> table
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file

from accel_kd.assembly.data import read_data
from accel_kd.assembly.models import student_checkpoint
from accel_kd.config import load_recipe
from accel_kd.config.schema import RunConfig
from accel_kd.errors import RunFailure, UserError
from accel_kd.models.loading import load_config
from accel_kd.models.student import with_dropout
from accel_kd.run_directory import write_atomically
from accel_kd.tracking import describe_environment
from accel_kd.verify.processes import Starter, last_words, run_recipe
from accel_kd.verify.records import compare_bits, compare_gradients, compare_runs
from accel_kd.verify.reference import GRADIENT, INITIAL, LOSS, can_be_told, write_reference
from accel_kd.verify.report import Row, content, judge, table
from accel_kd.verify.sample import write_sample
from accel_kd.verify.ways import (
    FIRST_STEP,
    OWN_OPTIMIZER,
    PLAIN,
    REFERENCE,
    REFERENCE_TOLERANCE,
    NotRun,
    Way,
    baselines,
    ways,
)

logger = logging.getLogger(__name__)

_RECIPE = "recipe.yaml"
_BATCH_A_RANK = 8
_EVALUATION_BATCH = 16
_TEACHER_STEPS = 20


@dataclass(frozen=True)
class Settings:
    """How a verification is made."""

    ranks: int = 2
    steps: int = 8
    only: Sequence[str] = ()
    """Parts of names of ways; empty: all of them."""
    keep: bool = False
    """Keep the runs of ways that passed too, and where all passed the models and data that they began with."""
    timeout_seconds: float = 900.0
    preload: Sequence[str] = ()


@dataclass(frozen=True)
class Report:
    """How it came out."""

    rows: list[Row]
    text: str
    folder: Path

    @property
    def failed(self) -> list[str]:
        """The ways that failed."""
        return [row.way for row in self.rows if row.outcome == "FAIL"]


def verify(config: RunConfig, settings: Settings) -> Report:
    """Runs every way, compares, and leaves `verification.json`, `verification.md` and logs beside the run directory.

    Raises:
        UserError: a mistake in the recipe, its data or its models.
        RunFailure: the plain way itself fails.
    """
    started = time.monotonic()
    names = [REFERENCE] if can_be_told(config.objective) else []
    on_gpu = torch.cuda.device_count() >= settings.ranks
    every = ways(config, settings.ranks, _BATCH_A_RANK * settings.ranks, on_gpu=on_gpu)
    names += [way.name for way in every]
    for part in settings.only:
        if not any(part.lower() in name.lower() for name in names):
            raise UserError(f"--only: {part!r} is part of no way's name; there are {'; '.join(names)}")
    folder = Path(f"{config.run.directory}-verify")
    if folder.exists() and not (folder / _RECIPE).is_file():
        raise UserError(f"run.directory: {folder}, where verify would write, holds something else; choose another")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / _RECIPE).touch()
    _set_environment(on_gpu)
    threads = max(1, (os.cpu_count() or 1) // settings.ranks)
    starter = Starter(threads, settings.timeout_seconds, settings.preload)
    work = _Verification(config, settings, folder, starter, every)
    rows = work.run()
    facts: dict[str, Any] = {
        "recipe": config.model_dump(mode="json"), "ranks": settings.ranks, "steps": settings.steps,
        "device": torch.cuda.get_device_name() if on_gpu else f"cpu, {threads} threads a rank",
        "environment": describe_environment(), "seconds": time.monotonic() - started,
    }  # fmt: skip
    report = Report(rows, table(rows), folder)
    write_atomically(folder / "verification.json", json.dumps(content(rows, facts), indent=2) + "\n")
    write_atomically(folder / "verification.md", report.text + "\n")
    if not (report.failed or settings.keep):
        _leave_records_only(folder)
    return report


def _leave_records_only(folder: Path) -> None:
    """Models and data go: they are large, and the same command makes them again."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.suffix == ".safetensors":
            path.unlink()


def _set_environment(on_gpu: bool) -> None:
    """What all ranks inherit."""
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # looking must not touch a device before ranks are forked off
    if not on_gpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        os.environ["DS_ACCELERATOR"] = "cpu"


class _Verification:
    def __init__(
        self, config: RunConfig, settings: Settings, folder: Path, starter: Starter, every: Sequence[Way | NotRun]
    ) -> None:
        self._config, self._settings, self._folder, self._starter = config, settings, folder, starter
        self._every = every
        self._batch_size = _BATCH_A_RANK * settings.ranks
        self._recipe = folder / _RECIPE

    def run(self) -> list[Row]:
        """All rows; the plain run first, since everything is compared with it."""
        self._write_recipe()
        chosen = [way for way in self._every if self._is_wanted(way.name)]
        needed = {way.equals for way in chosen if isinstance(way, Way)} | {PLAIN}
        with_reference = self._is_wanted(REFERENCE) and can_be_told(self._config.objective)
        if with_reference:
            needed.add(FIRST_STEP)
        for baseline in baselines(self._batch_size):
            if baseline.name in needed:
                self._start(baseline, must_succeed=True)
                logger.info("verify: %s: there", baseline.name)
        self._write_initial()
        rows = [self._reference_row()] if with_reference else []
        for way in chosen:
            rows.append(Row(way.name, "not run", way.because) if isinstance(way, NotRun) else self._row(way))
            logger.info("verify: %s: %s (%.0f s)", rows[-1].way, rows[-1].outcome, rows[-1].seconds)
        return rows

    def _is_wanted(self, name: str) -> bool:
        return not self._settings.only or any(part.lower() in name.lower() for part in self._settings.only)

    def _write_recipe(self) -> None:
        """The plain way: the recipe on a sample of its data, for a few steps, without dropout."""
        config, steps = self._config, self._settings.steps
        data = read_data(config)
        # Two epochs, the last batch of each cut short; on the last rank a batch of evaluation that is all filler.
        num_train = self._batch_size * (steps // 2) - self._batch_size // 3
        available, ranks = len(data.splits["validation"]), self._settings.ranks
        evaluated_at_once = min(_EVALUATION_BATCH, max(1, (available - 1) // (2 * ranks)))
        num_validation = 2 * ranks * evaluated_at_once + 1
        sample = write_sample(data, self._folder / "data", num_train, num_validation)
        recipe = config.model_dump(mode="json")
        recipe["data"] |= sample
        recipe["teacher"] |= {
            "accept_chance_accuracy": True, "source": "streaming", "placement": "replicated", "dtype": "float32",
        }  # fmt: skip
        if (config.teacher.attention or "").startswith("flash"):  # there is none in fp32
            recipe["teacher"]["attention"] = None
        recipe["teacher"]["store"] |= {"path": str(self._folder / "stores")}
        recipe["training"] |= {
            "epochs": steps, "max_steps": steps, "batch_size": self._batch_size, "micro_batch_size": None,
            "precision": "no", "early_stopping_patience": None, "num_workers": 0, "max_nonfinite_steps": 0,
            "step_mode": "eager",
        }  # fmt: skip
        recipe["evaluation"] |= {
            "every_steps": steps, "micro_batch_size": evaluated_at_once, "metric": "accuracy", "keep": "last",
        }  # fmt: skip
        recipe["checkpoint"] = {"keep_last": 1, "keep_best": 0}
        recipe["tracking"] = {"mode": "disabled", "log_every_steps": 1}
        recipe["run"] |= {
            "directory": None, "rank_timeout": self._settings.timeout_seconds, "progress": False, "control": False,
            "resume": "auto", "stop_before": None, "threads": None,
        }  # fmt: skip
        if config.teacher.finetune is not None:
            self._finetune_teacher(recipe)
        self._recipe.write_text(yaml.safe_dump(recipe))

    def _finetune_teacher(self, recipe: dict[str, Any]) -> None:
        """One teacher for all ways, trained for a few steps; it need not be good, but have something to say."""
        tuned = self._folder / "teacher"
        recipe["teacher"]["finetune"] |= {"epochs": _TEACHER_STEPS, "max_steps": _TEACHER_STEPS, "batch_size": None}
        self._recipe.write_text(yaml.safe_dump(recipe))
        self._call(run_recipe, [str(self._recipe), ["training.max_steps=1", f"run.directory={tuned}"]], "teacher.log")
        recipe["teacher"] |= {"model": str(tuned / "teacher" / "model"), "revision": None, "finetune": None}

    def _write_initial(self) -> None:
        _, first_step, *_ = baselines(self._batch_size)
        settings = self._overrides(first_step)
        self._call(write_reference, [str(self._recipe), settings, str(self._folder)], "reference.log")
        self._initial = load_file(self._folder / INITIAL)

    def _reference_row(self) -> Row:
        loss = json.loads((self._folder / LOSS).read_text())["loss"]
        found = compare_gradients(
            load_file(self._folder / GRADIENT), loss, self._directory(FIRST_STEP), self._config.training.max_grad_norm
        )
        return judge(REFERENCE, REFERENCE_TOLERANCE, found, 0.0)

    def _row(self, way: Way) -> Row:
        started = time.monotonic()
        failure = self._start(way, must_succeed=False)
        seconds = time.monotonic() - started
        if failure is not None:
            return Row(way.name, "FAIL", failure, None, way.tolerance, seconds)
        plain, other = self._directory(way.equals), self._directory(way.name)
        try:
            compare = (
                compare_bits(plain, other) if way.tolerance.bit_equal else compare_runs(plain, other, self._initial)
            )
        except (ValueError, KeyError, OSError, IndexError) as error:
            return Row(way.name, "FAIL", f"cannot be compared: {error}", None, way.tolerance, seconds)
        row = judge(way.name, way.tolerance, compare, seconds)
        if row.outcome == "pass" and not self._settings.keep:
            shutil.rmtree(other)
        return row

    def _start(self, way: Way, *, must_succeed: bool) -> str | None:
        """Runs a way to its end; what went wrong, or None."""
        log = self._log(way.name)
        arguments = [str(self._recipe), self._overrides(way)]
        if way.is_killed:
            middle = self._directory(way.name) / "checkpoints" / f"step-{self._settings.steps // 2:08d}"
            codes = self._starter.run(
                run_recipe, arguments, log, ranks=way.ranks, launched=way.launched, kill_when=middle.is_dir
            )
            if codes == [0] * way.ranks:
                return "it had ended before it could be killed; give it more --steps"
            if set(codes) != {-signal.SIGKILL} or not middle.is_dir():
                return last_words(log, codes)
        codes = self._starter.run(run_recipe, arguments, log, ranks=way.ranks, launched=way.launched)
        failure = None if codes == [0] * way.ranks else last_words(log, codes)
        if failure is None and way.says not in log.read_text(errors="replace"):
            failure = f"it was not run that way: its log does not say {way.says!r}"
        if failure is not None and must_succeed:
            raise RunFailure(f"{way.name}: the recipe itself does not run: {failure} (see {log})")
        return failure

    def _call(self, target: Any, arguments: Sequence[Any], log: str) -> None:
        """Runs what every way needs, in one process."""
        path = self._folder / log
        codes = self._starter.run(target, arguments, path)
        if codes != [0]:
            raise RunFailure(f"{log.removesuffix('.log')}: the recipe itself does not run: {last_words(path, codes)}")

    def _overrides(self, way: Way) -> list[str]:
        dropout = [] if OWN_OPTIMIZER in (way.name, way.equals) else self._without_dropout
        return [*dropout, *way.settings, f"run.directory={self._directory(way.name)}"]

    @cached_property
    def _without_dropout(self) -> list[str]:
        """Masks are drawn by rank and micro-batch: what is compared across them has none."""
        try:
            with_dropout(load_config(student_checkpoint(load_recipe(str(self._recipe), []))), 0.0)
        except UserError:  # a model without a setting that is known; if it drops units all the same, ways will differ
            return []
        return ["student.dropout=0"]

    def _directory(self, name: str) -> Path:
        return self._folder / "".join(letter if letter.isalnum() else "_" for letter in name)

    def _log(self, name: str) -> Path:
        return self._directory(name).with_suffix(".log")
