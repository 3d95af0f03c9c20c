"""The story of `accel-kd benchmark train`: the peer and ours side by side, in one process, on the same texts.

models laid down -> texts, teachers, store -> trials that take turns -> shares, evaluation -> memory and sameness, each
in a process of its own -> growth, if asked -> rows, table, plot
"""

from __future__ import annotations

import itertools
import logging
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from accel_kd.benchmark.command_line import append_rows, report
from accel_kd.benchmark.compared_models import Models, write_models
from accel_kd.benchmark.contestants import (
    EAGER,
    GRAPHED,
    Ours,
    Peer,
    refuse_impossible_mode,
)
from accel_kd.benchmark.growth import Growth, measure_growth, refuse_lengths
from accel_kd.benchmark.operations import Operations, ceiling
from accel_kd.benchmark.plots import plot_speeds, refuse_plot
from accel_kd.benchmark.report import circumstances
from accel_kd.benchmark.rounds import PEER, device_name, take_turns
from accel_kd.benchmark.sameness import Sameness
from accel_kd.benchmark.shares import teachers_share
from accel_kd.benchmark.step_batches import endless, endless_rows, every_shape_twice
from accel_kd.benchmark.train_report import Figures, growth_rows, growth_table, rows, text
from accel_kd.benchmark.train_trial import Request, in_process_of_its_own
from accel_kd.benchmark.workbench import (
    STREAMING,
    Workbench,
    opened,
    own_settings,
    refuse_what_the_peer_lacks,
)
from accel_kd.config import load_recipe
from accel_kd.data.loaders import MOST_BATCHES_A_GROUP
from accel_kd.data.preprocessing import TokenisedSplit
from accel_kd.evaluation import Evaluator
from accel_kd.teachers.base import TeacherSource
from accel_kd.teachers.placement import release_memory
from accel_kd.teachers.streaming import StreamingTeacher
from accel_kd.training.step_modes import StepMode

logger = logging.getLogger(__name__)

_FEWEST_BATCHES = 2 * MOST_BATCHES_A_GROUP
"""Batches of texts that are read at least, so that our loader sorts lengths within as many as it would in a run."""
_SHARE_STEPS = 5


@dataclass(frozen=True)
class Settings:
    """What is compared, and how long."""

    models: Models = "seed"
    sources: Sequence[str] = ("store", "streaming")
    modes: Sequence[StepMode] = (EAGER,)
    num_steps: int = 20
    num_rounds: int = 5
    warm_up: int = 5
    growth: Growth | None = None
    output: str | None = None
    """File that rows of JSON are appended to."""
    plot: str | None = None
    """File that takes the picture."""

    @property
    def total_steps(self) -> int:
        """Steps of each contestant: those of the rounds, of the warm-up, and of the shares."""
        return self.warm_up + self.num_rounds * (self.num_steps + 1) + _SHARE_STEPS + 1


def benchmark_train(
    recipe: str,
    overrides: Sequence[str],
    settings: Settings,
    ask: Callable[[Request], dict[str, Any]] = in_process_of_its_own,
) -> str:
    """Measures, and appends the rows to `settings.output`.

    Args:
        recipe: whose texts, labels, tokenizer, batch size, loss and precision.
        overrides: settings that replace the recipe's.
        settings: see there.
        ask: answers what is asked of one contestant alone.

    Returns:
        The report, as Markdown.

    Raises:
        UserError: the recipe cannot be compared, or a file not be written.
        RunFailure: a trial failed.
    """
    if settings.plot is not None:
        refuse_plot(settings.plot)
    append_rows(settings.output, [])  # a file that cannot be written is better known now than in an hour
    load_average = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="accel_kd_benchmark_") as name:
        folder = Path(name)
        settled = _settle(recipe, overrides, settings, folder)
        bench = opened(recipe, settled)
        for mode in settings.modes:
            refuse_impossible_mode(bench, mode)
        if settings.growth is not None:
            refuse_lengths(bench, settings.growth)
        where = circumstances(folder) | {
            "recipe": recipe, "overrides": list(overrides), "config": bench.config.model_dump(mode="json"),
            "models": settings.models, "num_steps": settings.num_steps, "num_rounds": settings.num_rounds,
            "warm_up": settings.warm_up, "load_average": load_average, "threads": torch.get_num_threads(),
            "num_ranks": 1, "device": device_name(bench.device),
        }  # fmt: skip
        figures = _compare(bench, settings, folder)
        bench.accelerator.free_memory()
        release_memory()
        figures = _ask_each(figures, settings, recipe, settled, folder, ask)
        append_rows(settings.output, [row | where for row in rows(figures)])
        findings = text(figures, where)
        if settings.growth is not None:
            rate = max(one.utilisation * one.ceiling for one in figures)
            cells = measure_growth(bench, recipe, settled, settings.growth, settings.modes, rate, folder, report)
            append_rows(settings.output, [row | where | row for row in growth_rows(cells)])
            findings += f"\n\n{growth_table(cells)}"
    if settings.plot is not None:
        plot_speeds(figures, where, settings.plot)
    return findings


def _settle(recipe: str, overrides: Sequence[str], settings: Settings, folder: Path) -> list[str]:
    """All settings that replace the recipe's, the models written to `folder`."""
    config = load_recipe(recipe, overrides)
    refuse_what_the_peer_lacks(config)
    wanted = max(_FEWEST_BATCHES, settings.total_steps) * config.training.batch_size
    num_texts = min(config.data.max_train_examples or wanted, wanted)
    return [*overrides, *write_models(settings.models, config, folder), *own_settings(folder, num_texts)]


def _compare(bench: Workbench, settings: Settings, folder: Path) -> list[Figures]:
    """The trials of all contestants, and what is measured on them while they are there; the peer first."""
    device, precision = bench.device, bench.config.training.precision or "no"
    best = ceiling(device, precision)
    peer = Peer(bench, folder, texts=endless_rows(bench.loader(bench.train)))
    entries = [_Entry(peer, EAGER, "", 0.0, 0.0)]
    for source in settings.sources:
        teacher, split, seconds = bench.teacher_source(source)
        logger.info("%s: there after %.1f s, over %d texts", source, seconds, len(split))
        entries += [_entry(bench, mode, source, teacher, split, seconds, settings) for mode in settings.modes]
    contestants = [entry.contestant for entry in entries]
    trials = take_turns(contestants, settings.num_rounds, settings.num_steps, settings.warm_up, report)
    best = max(best, ceiling(device, precision))
    longest = int(bench.train.lengths.max())
    of_models = partial(Operations.of, peer.student.config, peer.teacher.config, longest, device)
    of_peer, of_ours = (of_models(first_token_only=it) for it in (False, bench.config.training.first_token_only))
    peers_operations = of_peer.of_step(trials[PEER], with_teacher=True, with_padding=True)
    evaluation = _evaluate(contestants, bench, settings)
    found = []
    for entry in entries:
        name = entry.contestant.name
        runs_teacher = entry.contestant is peer or entry.source == STREAMING
        operations = of_peer if entry.contestant is peer else of_ours
        found.append(
            Figures(
                name=name,
                mode=entry.mode,
                source=entry.source,
                trials=trials[name],
                peers_trials=trials[PEER],
                flops_per_step=operations.of_step(trials[name], with_teacher=runs_teacher, with_padding=True),
                useful_flops_per_step=operations.of_step(trials[name], with_teacher=runs_teacher, with_padding=False),
                peers_flops_per_step=peers_operations,
                ceiling=best,
                teachers_share=_share(entry, device),
                setup_seconds=entry.setup_seconds,
                rehearsal_seconds=entry.rehearsal_seconds,
                evaluated_per_second=evaluation[name],
            )
        )
    return found


@dataclass(frozen=True)
class _Entry:
    """A contestant, what it is, and the seconds until its teacher could answer and its mode was ready."""

    contestant: Ours | Peer
    mode: StepMode
    source: str
    setup_seconds: float
    rehearsal_seconds: float


def _entry(
    bench: Workbench,
    mode: StepMode,
    source: str,
    teacher: TeacherSource,
    split: TokenisedSplit,
    setup_seconds: float,
    settings: Settings,
) -> _Entry:
    """Ours; a mode that compiles or records has done so for every shape that is to come."""
    loader = bench.loader(split)
    rehearsed = [] if mode == EAGER else every_shape_twice(itertools.islice(endless(loader), settings.total_steps))
    batches = itertools.chain(rehearsed, endless(loader))
    total_steps = len(rehearsed) + settings.total_steps
    ours = Ours(bench, f"{source}, {mode}", mode, teacher, batches, total_steps)
    seconds = ours.run(0, len(rehearsed)).seconds if rehearsed else 0.0
    return _Entry(ours, mode, source, setup_seconds, seconds)


def _share(entry: _Entry, device: torch.device) -> float | None:
    """Of the teacher in a step's time; None where it cannot be told, 0 where it is not there."""
    contestant = entry.contestant
    if isinstance(contestant, Peer):
        return teachers_share(contestant, contestant.teacher, _SHARE_STEPS, device)
    if not isinstance(contestant.teacher, StreamingTeacher):
        return 0.0
    if entry.mode == GRAPHED:  # it is within the graph
        return None
    return teachers_share(contestant, contestant.teacher.model, _SHARE_STEPS, device)


def _evaluate(contestants: Sequence[Ours | Peer], bench: Workbench, settings: Settings) -> dict[str, list[float]]:
    """Validation examples a second of each, round by round: of the peer, which takes long, over as many as a round of
    training takes; of ours over all of them, as in a run."""
    wanted = settings.num_steps * bench.config.training.batch_size
    some = bench.validation_examples.take(np.arange(min(len(bench.validation), wanted)))
    batch_size = bench.config.evaluation.micro_batch_size
    evaluator = Evaluator(bench.accelerator, bench.session.task, bench.validation, batch_size)
    found: dict[str, list[float]] = {contestant.name: [] for contestant in contestants}
    for _ in range(settings.num_rounds):
        for contestant in contestants:
            if isinstance(contestant, Peer):
                found[contestant.name].append(len(some) / contestant.evaluate(some))
            else:
                found[contestant.name].append(evaluator.num_examples / contestant.evaluate(evaluator))
    return found


def _ask_each(
    figures: Sequence[Figures],
    settings: Settings,
    recipe: str,
    overrides: list[str],
    folder: Path,
    ask: Callable[[Request], dict[str, Any]],
) -> list[Figures]:
    """The same with the peak of each alone, and with the losses of ours beside the peer's."""
    found = []
    for number, one in enumerate(figures):
        own = folder / f"alone-{number}"
        own.mkdir()
        request = Request("memory", recipe, overrides, str(own), one.name, one.mode, one.source)
        peak_bytes = ask(request)["peak_bytes"]
        one = replace(one, peak_bytes=peak_bytes)
        report(f"{one.name}, alone: {peak_bytes / 1e6:.0f} MB")
        if one.name != PEER:
            answer = ask(replace(request, measure="sameness"))
            same = Sameness(answer["losses"], answer["peers_losses"])
            one = replace(one, sameness=same)
            report(f"{one.name}, losses beside the {PEER}'s: {same.largest:.1e}, then {same.last:.1e}")
        found.append(one)
    return found
