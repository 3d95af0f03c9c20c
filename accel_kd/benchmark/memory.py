"""Compares what `plan` says of a training step with what steps take: `python -m accel_kd.benchmark.memory demo`.

each configuration: planned -> steps in a fresh process, on its GPU or CPU -> a table, rows of JSON in a file
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from accel_kd.assembly.shapes import Lengths
from accel_kd.benchmark.command_line import (
    answered,
    append_rows,
    count,
    recipe_parser,
    report,
    run_as_program,
)
from accel_kd.benchmark.peak_memory import TIDY_ALLOCATOR
from accel_kd.benchmark.program import run_to_end
from accel_kd.benchmark.report import circumstances, heading, markdown
from accel_kd.config import RunConfig, load_recipe
from accel_kd.errors import EXIT_FAILURE, EXIT_SUCCESS
from accel_kd.planning.memory import Strategy
from accel_kd.run_plan.stages import Machine, Planner, Stage

_COMMON = ("run.control=false", "data.labelled_fraction=1", "tracking.mode=disabled")
"""So that each configuration may be without a teacher."""
_WITHOUT_TEACHER = "objective.alpha=1"
_CASES = (
    "training.batch_size=48 data.max_length=48",
    "training.batch_size=128 data.max_length=48",
    "training.batch_size=16 data.max_length=128",
    "training.batch_size=128 training.micro_batch_size=32 data.max_length=48",
    f"training.batch_size=48 data.max_length=128 {_WITHOUT_TEACHER}",
    "training.batch_size=48 data.max_length=48 student.layers=6",
    "training.batch_size=48 data.max_length=48 training.precision=bf16",
)
"""Settings of each configuration, where none are given."""
_TOLERANCE = 0.15


@dataclass(frozen=True)
class Comparison:
    """One configuration, planned and measured; bytes. `default_bytes` is measured with the C library's own ways of
    keeping freed memory, None on a GPU."""

    settings: str
    stage: Stage
    measured_bytes: int
    default_bytes: int | None
    device: str

    @property
    def ratio(self) -> float:
        """Planned over measured."""
        return self.stage.total / self.measured_bytes


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark's command line.

    Returns:
        0; 2 for a mistake of the user's; 1 where a step failed or a plan is off by more than 15 %.
    """
    return answered(lambda: _benchmark(_parser().parse_intermixed_args(arguments)))


def _benchmark(parsed: argparse.Namespace) -> int:
    cases = [[*_COMMON, *parsed.overrides, *case.split()] for case in parsed.case or _CASES]
    configs = [load_recipe(parsed.recipe, overrides) for overrides in cases]
    append_rows(parsed.output, [])  # a file that cannot be written is better known now than in a while
    found = []
    with tempfile.TemporaryDirectory(prefix="accel_kd_benchmark_") as name:
        where = circumstances(Path(name)) | {"recipe": parsed.recipe}
        for config, overrides, case in zip(configs, cases, parsed.case or _CASES, strict=True):
            compared = _compare(config, parsed, overrides, case, Path(name))
            found.append(compared)
            report(f"{case}: plan / measured = {compared.ratio:.3f}")
            append_rows(parsed.output, [_row(compared, overrides, parsed.ranks) | where])
    ranks = f"on {parsed.ranks} ranks" if parsed.ranks > 1 else "on 1 rank"
    what = " ".join([parsed.recipe, *parsed.overrides, ranks])
    print(f"{heading(where, found[0].device, what)}\n\n{_table(found)}", flush=True)
    return EXIT_SUCCESS if all(abs(one.ratio - 1) <= _TOLERANCE for one in found) else EXIT_FAILURE


def _compare(
    config: RunConfig, parsed: argparse.Namespace, overrides: Sequence[str], case: str, folder: Path
) -> Comparison:
    on_gpu = torch.cuda.is_available()
    lengths = Lengths(config.data.max_length, num_classes=parsed.classes)
    planner = Planner(config, Machine(parsed.ranks, 0, "cuda" if on_gpu else "cpu"), lengths)
    strategy = Strategy.ONE if parsed.ranks == 1 else Strategy.DDP
    [stage] = [stage for stage in planner.stages(config, strategy) if stage.name == "training"]
    request = {"recipe": parsed.recipe, "overrides": list(overrides), "num_classes": parsed.classes}
    tidy = _measure(request, parsed.ranks, folder / "log", () if on_gpu else TIDY_ALLOCATOR)
    only_tidy = on_gpu or parsed.tidy_only
    plain = None if only_tidy else _measure(request, parsed.ranks, folder / "log", ())["peak_bytes"]
    return Comparison(case, stage, tidy["peak_bytes"], plain, tidy["device"])


def _measure(request: dict[str, Any], num_ranks: int, log: Path, environment: Sequence[str]) -> dict[str, Any]:
    """What rank 0 of processes of their own says of `request`; `environment` holds `NAME=value`."""
    launcher = ["-m", "torch.distributed.run", f"--nproc_per_node={num_ranks}"] if num_ranks > 1 else []
    program = [sys.executable, *launcher, "-m", "accel_kd.benchmark.memory_trial", json.dumps(request)]
    run_to_end(["env", "TRANSFORMERS_VERBOSITY=error", *environment, *program], log)
    lines = log.read_text(encoding="utf-8").splitlines()
    answer: dict[str, Any] = json.loads([line for line in lines if line.startswith("{")][-1])
    return answer


def _row(compared: Comparison, overrides: Sequence[str], num_ranks: int) -> dict[str, Any]:
    return {
        "measured": "memory",
        "overrides": list(overrides),
        "num_ranks": num_ranks,
        "planned_bytes": compared.stage.total,
        "parts": {name: value for name, value in vars(compared.stage).items() if name != "name"},
        "measured_bytes": compared.measured_bytes,
        "default_allocator_bytes": compared.default_bytes,
        "ratio": compared.ratio,
        "device": compared.device,
    }


def _table(found: Sequence[Comparison]) -> str:
    """One line a configuration, megabytes."""
    lines = [["configuration", "plan, MB", "measured, MB", "plan / measured", "default malloc, MB", "plan / that"]]
    for one in found:
        plain = one.default_bytes
        default = ["-", "-"] if plain is None else [f"{plain / 1e6:.0f}", f"{one.stage.total / plain:.3f}"]
        lines.append(
            [
                f"`{one.settings}`",
                f"{one.stage.total / 1e6:.0f}",
                f"{one.measured_bytes / 1e6:.0f}",
                f"{one.ratio:.3f}",
                *default,
            ]
        )
    return markdown(lines)


def _parser() -> argparse.ArgumentParser:
    parser = recipe_parser(
        "accel_kd.benchmark.memory",
        "Compares what `plan` says of a training step with the memory that steps take: allocated on a GPU, "
        "resident beyond what was there before the models on a CPU.",
        "Weights and texts are random, and every text has data.max_length tokens.",
    )
    parser.add_argument(
        "--case", action="append", metavar="'key=value ...'", help="settings of one configuration; may be repeated"
    )
    parser.add_argument("--classes", type=count, help="labels of the models; default: as the teacher has them")
    parser.add_argument("--ranks", type=count, default=1, help="ranks under DDP on this machine; default: 1, alone")
    parser.add_argument("--tidy-only", action="store_true", help="on a CPU, measure without the default malloc's slack")
    return parser


if __name__ == "__main__":
    run_as_program(main)
