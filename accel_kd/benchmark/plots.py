"""The picture of a comparison: a bar a contestant, its spread, and its ratio to the peer."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accel_kd.benchmark.rounds import PEER, Spread
from accel_kd.benchmark.train_report import Figures
from accel_kd.errors import UserError

_PEERS_COLOUR, _OWN_COLOURS = "#8c8c8c", {"store": "#1f77b4", "streaming": "#ff7f0e"}


def refuse_plot(file: str) -> None:
    """Raises `UserError` where there is nothing to draw with, or `file` cannot be drawn into."""
    if importlib.util.find_spec("matplotlib") is None:
        raise UserError("--plot: matplotlib is not installed; pip install 'accel_kd[plots]', or leave --plot out")
    from matplotlib.figure import Figure

    trial = Path(file).with_name(f".trial-{Path(file).name}")  # an earlier picture stays until there is a new one
    save_plot(Figure(), str(trial))
    trial.unlink()


def plot_speeds(figures: Sequence[Figures], where: Mapping[str, Any], file: str) -> None:
    """Draws examples a second into `file`, whose ending says in which format.

    Raises:
        UserError: it cannot be written, or not in that format.
    """
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(8.0, 1.8 + 0.6 * len(figures)), layout="constrained")
    axes = drawing.add_subplot()
    speeds = [Spread.of(one.speeds) for one in figures]
    longest = max(speed.high for speed in speeds)
    for place, (one, speed) in enumerate(zip(figures, speeds, strict=True)):
        spread = [[speed.median - speed.low], [speed.high - speed.median]]
        colour = _OWN_COLOURS.get(one.source, _PEERS_COLOUR)
        axes.barh(place, speed.median, height=0.6, color=colour, xerr=spread, capsize=4, ecolor="#333333")
        ratio = "" if one.name == PEER else f"   {Spread.of(one.ratios).median:.2f}x"
        axes.text(speed.high + 0.02 * longest, place, f"{speed.median:.4g}{ratio}", va="center")
    axes.set_yticks(range(len(figures)), [one.name for one in figures])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.25 * longest)
    rounds = f"median of {where['num_rounds']} rounds, from the least to the most"
    axes.set_xlabel(f"examples/s: {rounds}\nx: over the {PEER}'s of the same round")
    axes.spines[["top", "right"]].set_visible(False)
    drawing.suptitle(_title(where), fontsize="medium", x=0.01, ha="left")
    save_plot(drawing, file)


def save_plot(drawing: Any, file: str) -> None:
    """Writes a figure into `file`.

    Raises:
        UserError: it cannot be written, or not in the format that its ending says.
    """
    try:
        drawing.savefig(file, dpi=150)
    except (OSError, ValueError) as error:
        raise UserError(f"--plot: {file} cannot be written: {error}") from error


def _title(where: Mapping[str, Any]) -> str:
    training = where["config"]["training"]
    device = where["device"] if where["device"] != "cpu" else f"{where['cpu']['model']}, threads: {where['threads']}"
    return (
        f"Training on {where['recipe']}, {where['models']} models, batch {training['batch_size']}, "
        f"precision {training['precision']}\n{device}; {where['date'][:10]}"
    )
