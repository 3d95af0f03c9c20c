"""How the cost grows: with the batch, with the length of texts, and with the ranks of a CPU."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from transformers import PretrainedConfig, PreTrainedModel

from accel_kd.assembly.models import student_checkpoint
from accel_kd.benchmark.contestants import EAGER, GRAPHED, Ours, Peer
from accel_kd.benchmark.given import given_logits, given_step
from accel_kd.benchmark.growth_ranks import rank_trial
from accel_kd.benchmark.rounds import PEER, device_name, take_turns
from accel_kd.benchmark.workbench import Workbench
from accel_kd.errors import RunFailure, UserError
from accel_kd.models.loading import check_length, load_config
from accel_kd.planning.model_costs import DeviceType, ModelCosts, model_costs, on_meta
from accel_kd.planning.placement_choice import available_memory
from accel_kd.teachers.placement import release_memory
from accel_kd.training.step_modes import StepMode
from accel_kd.verify.processes import Starter, last_words

_WARM_UP = 1
_SHARE_OF_MEMORY = 0.8
_BYTES_A_TRAINED_PARAMETER = 16
"""The weight in fp32, its gradient, and AdamW's two moments."""
_RANKS_TIMEOUT_SECONDS = 1800.0


@dataclass(frozen=True)
class Growth:
    """Which sizes."""

    batch_sizes: Sequence[int] = (16, 48, 128, 512)
    lengths: Sequence[int] = (16, 64, 256)
    ranks: Sequence[int] = ()
    num_steps: int = 2
    num_rounds: int = 2
    step_seconds: float = 60.0
    """A step that will take longer is left out."""


@dataclass(frozen=True)
class Cell:
    """One contestant at one size; `length` is None where texts are the data's own."""

    contestant: str
    batch_size: int
    length: int | None
    num_ranks: int
    threads: int
    device: str
    examples_per_second: Sequence[float] | None
    """One a round; None: left out."""
    because: str = ""


def refuse_lengths(bench: Workbench, growth: Growth) -> None:
    """Raises `UserError` where a model does not read texts as long."""
    student = student_checkpoint(bench.config, bench.teacher)
    for source in (bench.teacher.checkpoint, student):
        try:
            check_length(load_config(source), max(growth.lengths), source.setting)
        except UserError as error:
            raise UserError(f"--lengths: {str(error).partition(': ')[2]}") from error


def measure_growth(
    bench: Workbench,
    recipe: str,
    overrides: Sequence[str],
    growth: Growth,
    modes: Sequence[StepMode],
    rate: float,
    folder: Path,
    report: Callable[[str], None],
) -> list[Cell]:
    """Every size, smallest first; what would take too long or too much memory is left out, and says so.

    `rate` is what steps were seen to compute here, operations a second; the rest is as in `benchmark_train`.

    Raises:
        RunFailure: ranks failed.
    """
    student, teacher = bench.make_student().config, bench.peers_teacher().config
    outlook = _Outlook(student, teacher, bench, rate, growth.step_seconds)
    cells: list[Cell] = []
    for batch_size, length in itertools.product(sorted(growth.batch_sizes), sorted(growth.lengths)):
        cells += _cells(bench, growth, modes, outlook, batch_size, length, folder)
        for cell in cells[-len(modes) - 1 :]:
            report(f"batch {batch_size}, length {length}, {cell.contestant}: {cell.because or _rate(cell)}")
    for num_ranks in growth.ranks:
        cells += _on_ranks(recipe, overrides, growth, modes, num_ranks, bench.config.training.batch_size, folder)
    return cells


def _rate(cell: Cell) -> str:
    assert cell.examples_per_second is not None, "a cell without figures says why"
    return f"{median(cell.examples_per_second):.4g} examples/s"


class _Outlook:
    """What a step of a size will take, told from its models' shapes."""

    def __init__(
        self, student: PretrainedConfig, teacher: PretrainedConfig, bench: Workbench, rate: float, limit: float
    ) -> None:
        """`rate` in operations a second; a step that takes more than `limit` seconds is objected to."""
        self._student, self._teacher = on_meta(student), on_meta(teacher)
        self._device, self._rate, self._limit = bench.device, rate, limit
        self._autocast = torch.bfloat16 if bench.config.training.precision == "bf16" else None

    def objections(self, batch_size: int, length: int) -> tuple[str, str]:
        """Why ours is left out, without a teacher, and why the peer, with its own; empty where it is not."""
        device: DeviceType = "cuda" if self._device.type == "cuda" else "cpu"

        def costs(model: PreTrainedModel, trains: bool) -> ModelCosts:
            cast = self._autocast
            return model_costs(model, batch_size, length, autocast_dtype=cast, trains=trains, device=device)

        student, teacher = costs(self._student, True), costs(self._teacher, False)
        own_bytes = _bytes_in_training(student)
        with_teacher = own_bytes + teacher.weight_bytes + teacher.forward_peak_bytes
        return (
            self._objection(student.step_flops, own_bytes),
            self._objection(student.step_flops + teacher.forward_flops, with_teacher),
        )

    def _objection(self, flops: int, num_bytes: int) -> str:
        seconds = flops / self._rate
        if seconds > self._limit:
            return f"left out: a step would take about {seconds:.0f} s"
        free = _free_bytes(self._device)
        if num_bytes > _SHARE_OF_MEMORY * free:
            return f"left out: it would take about {num_bytes / 1e9:.0f} GB, and {free / 1e9:.0f} GB are free"
        return ""


def _bytes_in_training(costs: ModelCosts) -> int:
    activations = max(moment.activation_bytes for moment in costs.moments)
    return _BYTES_A_TRAINED_PARAMETER * costs.num_parameters + activations


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return available_memory()


def _cells(
    bench: Workbench,
    growth: Growth,
    modes: Sequence[StepMode],
    outlook: _Outlook,
    batch_size: int,
    length: int,
    folder: Path,
) -> list[Cell]:
    """Ours in each mode, from given logits, and the peer, with its teacher."""
    ours, peers = outlook.objections(batch_size, length)
    objections = dict.fromkeys(modes, ours) | {PEER: peers}
    num_steps = _WARM_UP + growth.num_rounds * (growth.num_steps + 1)
    student = bench.make_student()
    step = given_step(student, batch_size, length)
    contestants: list[Ours | Peer] = []
    teacher = given_logits(batch_size, student.config.num_labels, bench.device)
    for mode in modes:
        if not objections[mode]:
            contestants.append(Ours(bench, mode, mode, teacher, itertools.repeat(step), num_steps))
    if not objections[PEER]:
        contestants.append(Peer(bench, folder, step.micro_batches * (growth.num_steps + 1)))
    trials = take_turns(contestants, growth.num_rounds, growth.num_steps, _WARM_UP) if contestants else {}
    speeds = {name: [trial.examples_per_second for trial in own] for name, own in trials.items()}
    contestants.clear()
    bench.accelerator.free_memory()
    release_memory()
    threads = torch.get_num_threads()
    return [
        Cell(_ours(name), batch_size, length, 1, threads, device_name(bench.device), speeds.get(name), because)
        for name, because in objections.items()
    ]


def _ours(name: str) -> str:
    return name if name == PEER else f"given logits, {name}"


def _on_ranks(
    recipe: str,
    overrides: Sequence[str],
    growth: Growth,
    modes: Sequence[StepMode],
    num_ranks: int,
    batch_size: int,
    folder: Path,
) -> list[Cell]:
    """The recipe's own texts and batch, shared out over ranks that share out the cores."""
    on_cpu = [mode for mode in modes if mode != GRAPHED] or [EAGER]
    threads = max(1, len(os.sched_getaffinity(0)) // num_ranks)
    answer, log = folder / f"ranks-{num_ranks}.json", folder / f"ranks-{num_ranks}.log"
    starter = Starter(threads, _RANKS_TIMEOUT_SECONDS, ["accel_kd.benchmark.growth_ranks"])
    given = (recipe, list(overrides), on_cpu, growth.num_steps, growth.num_rounds, str(answer))
    codes = starter.run(rank_trial, given, log, ranks=num_ranks)
    if any(codes):
        raise RunFailure(f"--ranks: {num_ranks} ranks: {last_words(log, codes)}")
    speeds: dict[str, list[float]] = json.loads(answer.read_text())
    return [Cell(_ours(name), batch_size, None, num_ranks, threads, "cpu", found) for name, found in speeds.items()]
