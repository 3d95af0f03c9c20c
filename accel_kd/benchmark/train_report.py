"""What a comparison of trainers found, as rows for programs and as tables for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from accel_kd.benchmark.growth import Cell
from accel_kd.benchmark.report import heading, markdown
from accel_kd.benchmark.rounds import PEER, Spread, Trial
from accel_kd.benchmark.sameness import STEPS, TOLERANCE, Sameness
from accel_kd.training.step_modes import StepMode


@dataclass(frozen=True)
class Figures:
    """All that is known of one contestant; lists have one entry a round, and what was not asked is None."""

    name: str
    mode: StepMode
    source: str
    trials: list[Trial]
    peers_trials: list[Trial]
    flops_per_step: float
    """Of student and, where it runs, teacher, padding included."""
    useful_flops_per_step: float
    """Had no text been padded."""
    peers_flops_per_step: float
    """The peer's, padding included."""
    ceiling: float
    """Operations a second."""
    teachers_share: float | None
    setup_seconds: float
    """Until its teacher could answer; for a store: until it was filled."""
    rehearsal_seconds: float
    """Of the steps in which its mode compiled or recorded."""
    evaluated_per_second: list[float]
    peak_bytes: int | None = None
    sameness: Sameness | None = None
    """With the peer; None for the peer itself."""

    @property
    def speeds(self) -> list[float]:
        """Examples a second."""
        return [trial.examples_per_second for trial in self.trials]

    @property
    def ratios(self) -> list[float]:
        """Speed over the peer's of the same round, which had the same texts."""
        others = [trial.examples_per_second for trial in self.peers_trials]
        return [own / other for own, other in zip(self.speeds, others, strict=True)]

    @property
    def operations_ratio(self) -> float:
        """How many times as much the peer computes for the same texts: what the same utilisation would give."""
        return self.peers_flops_per_step / self.flops_per_step

    @property
    def seconds_per_step(self) -> float:
        return median(trial.seconds_per_step for trial in self.trials)

    @property
    def tokens_per_second(self) -> float:
        """Without padding."""
        return median(trial.tokens_per_second for trial in self.trials)

    @property
    def padding(self) -> float:
        """Share of the positions of all rounds."""
        return 1.0 - sum(trial.num_tokens for trial in self.trials) / sum(trial.num_positions for trial in self.trials)

    @property
    def utilisation(self) -> float:
        """Of the ceiling, by what was computed in all rounds, padding included."""
        num_steps, seconds = sum(len(one.lengths) for one in self.trials), sum(one.seconds for one in self.trials)
        return self.flops_per_step * num_steps / seconds / self.ceiling

    @property
    def evaluation_over_training(self) -> float:
        return median(self.evaluated_per_second) / median(self.speeds)


def rows(figures: Sequence[Figures]) -> list[dict[str, Any]]:
    """One row a contestant."""
    return [_row(one) for one in figures]


def _row(one: Figures) -> dict[str, Any]:
    row: dict[str, Any] = {
        "measured": "train",
        "contestant": one.name,
        "mode": one.mode if one.source else None,
        "source": one.source or None,
        "examples_per_second": one.speeds,
        "examples_per_second_median": median(one.speeds),
        "ratio": one.ratios,
        "ratio_median": median(one.ratios),
        "operations_ratio": one.operations_ratio,
        "seconds_per_step": [trial.seconds_per_step for trial in one.trials],
        "tokens_per_second": [trial.tokens_per_second for trial in one.trials],
        "padding": one.padding,
        "flops_per_step": one.flops_per_step,
        "useful_flops_per_step": one.useful_flops_per_step,
        "ceiling_flops_per_second": one.ceiling,
        "utilisation": one.utilisation,
        "useful_utilisation": one.utilisation * one.useful_flops_per_step / one.flops_per_step,
        "teacher_share": one.teachers_share,
        "student_share": None if one.teachers_share is None else 1.0 - one.teachers_share,
        "setup_seconds": one.setup_seconds,
        "rehearsal_seconds": one.rehearsal_seconds,
        "evaluated_per_second": one.evaluated_per_second,
        "evaluation_over_training": one.evaluation_over_training,
        "peak_bytes": one.peak_bytes,
        "same_loss": None,
    }
    if one.sameness is not None:
        row["same_loss"] = {
            "steps": STEPS,
            "largest_difference": one.sameness.largest,
            "difference_after": one.sameness.last,
            "tolerance": TOLERANCE,
            "holds": one.sameness.holds,
            "losses": list(one.sameness.losses),
            "peers_losses": list(one.sameness.peers_losses),
        }
    return row


def text(figures: Sequence[Figures], where: Mapping[str, Any]) -> str:
    """The report."""
    what = " ".join(["benchmark train", where["recipe"], *where["overrides"]])
    about = (
        f"models: {where['models']}; batch {where['config']['training']['batch_size']}; precision "
        f"{where['config']['training']['precision']}; threads: {where['threads']}; {_multiplied(where)}load average at "
        f"the start {where['load_average']:.2f}; {where['num_rounds']} rounds of {where['num_steps']} steps after "
        f"{where['warm_up']} to warm up; transformers {where['packages']['transformers']}"
    )
    return "\n\n".join(
        [heading(where, where["device"], what), about, _speeds(figures), _costs(figures), _notes(figures)]
    )


def _speeds(figures: Sequence[Figures]) -> str:
    over = f"over the {PEER}'s"
    lines = [["", "examples/s", "min to max", over, "min to max", "by operations", "tokens/s", "padding", "ms a step"]]
    for one in figures:
        speed, ratio = Spread.of(one.speeds), Spread.of(one.ratios)
        lines.append(
            [
                one.name, f"{speed.median:.4g}", f"{speed.low:.4g} to {speed.high:.4g}",
                f"{ratio.median:.2f}", f"{ratio.low:.2f} to {ratio.high:.2f}",
                f"{one.operations_ratio:.2f}", f"{one.tokens_per_second:.4g}",
                f"{one.padding:.1%}", f"{1000 * one.seconds_per_step:.4g}",
            ]
        )  # fmt: skip
    return markdown(lines)


def _costs(figures: Sequence[Figures]) -> str:
    after = f"loss, first {STEPS} steps"
    lines = [
        ["", "peak MB", "GFLOP a step", "utilisation", "teacher", "student", "evaluated/s", "over training", after,
         "and after them", f"within {TOLERANCE:g}"]
    ]  # fmt: skip
    for one in figures:
        share, same = one.teachers_share, one.sameness
        lines.append(
            [
                one.name,
                "-" if one.peak_bytes is None else f"{one.peak_bytes / 1e6:.0f}",
                f"{one.flops_per_step / 1e9:.4g}",
                f"{one.utilisation:.1%}",
                *(["-", "-"] if share is None else [f"{share:.0%}", f"{1 - share:.0%}"]),
                f"{median(one.evaluated_per_second):.4g}",
                f"{one.evaluation_over_training:.2f}",
                *(["-"] * 3 if same is None else [f"{same.largest:.1e}", f"{same.last:.1e}", _verdict(same)]),
            ]
        )
    return markdown(lines)


def _verdict(same: Sameness) -> str:
    return "yes" if same.holds else "NO"


def _notes(figures: Sequence[Figures]) -> str:
    notes = [
        f"Ceiling: {figures[0].ceiling / 1e9:.4g} GFLOP/s, the best product of two large matrices in this run; "
        "utilisation is of that, padding counted as computed.",
        f"In a round all have the same texts, the {PEER} in random order. By operations: what the same utilisation "
        "would give. Tokens are counted without padding.",
        f"Loss: the largest difference from the {PEER}'s, relative to it, from equal weights on the same batches in "
        "fp32 without dropout.",
        f"Evaluated: all of the validation split by ours, as in a run; by the {PEER}, of its first rows as many as a "
        "round trains on.",
    ]
    for one in figures[1:]:
        ready = f" and its mode was ready after {one.rehearsal_seconds:.1f} s of steps" * (one.rehearsal_seconds > 0)
        notes.append(f"{one.name}: its teacher could answer after {one.setup_seconds:.1f} s{ready}.")
    other = [one.name for one in figures if one.sameness is not None and not one.sameness.holds]
    if other:
        notes.append(f"NOT the same training as the {PEER}'s: {'; '.join(other)}.")
    return "\n".join(notes)


def _multiplied(where: Mapping[str, Any]) -> str:
    if where["device"] != "cpu" or where["cpu"]["matmul"] != "onednn":
        return ""
    return f"fp32 products: oneDNN's, the {PEER}'s the BLAS's; "


def growth_rows(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """One row a cell."""
    return [
        {
            "measured": "growth",
            "contestant": cell.contestant,
            "batch_size": cell.batch_size,
            "length": cell.length,
            "num_ranks": cell.num_ranks,
            "threads": cell.threads,
            "device": cell.device,
            "examples_per_second": cell.examples_per_second,
            "examples_per_second_median": cell.examples_per_second and median(cell.examples_per_second),
            "left_out": cell.because or None,
        }
        for cell in cells
    ]  # fmt: skip


def growth_table(cells: Sequence[Cell]) -> str:
    """Examples a second: a line a contestant and batch, a column a length; below, a line a contestant and its ranks."""
    sized = [cell for cell in cells if cell.length is not None]
    ranked = [cell for cell in cells if cell.length is None]
    parts = []
    if sized:
        lengths = sorted({cell.length for cell in sized if cell.length is not None})
        parts.append(
            _pivot(sized, "examples/s, length", lengths, lambda cell: cell.length, lambda cell: cell.batch_size)
        )
    if ranked:
        ranks = sorted({cell.num_ranks for cell in ranked})
        parts.append(
            _pivot(ranked, "examples/s, ranks", ranks, lambda cell: cell.num_ranks, lambda cell: cell.batch_size)
        )
    left_out = [
        f"{cell.contestant}, batch {cell.batch_size}, length {cell.length}: {cell.because}"
        for cell in cells
        if cell.because
    ]
    return "\n\n".join([*parts, *(["\n".join(left_out)] if left_out else [])])


def _pivot(cells: Sequence[Cell], corner: str, columns: Sequence[int], column: Any, line: Any) -> str:
    table = [[corner, "batch", *map(str, columns)]]
    for name in dict.fromkeys(cell.contestant for cell in cells):
        for number in sorted({line(cell) for cell in cells}):
            found = {column(c): c.examples_per_second for c in cells if c.contestant == name and line(c) == number}
            values = [found.get(wanted) for wanted in columns]
            table.append([name, str(number), *("-" if value is None else f"{median(value):.4g}" for value in values)])
    return markdown(table)
