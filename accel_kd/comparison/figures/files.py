"""The figures of a comparison as PNG files."""

from __future__ import annotations

from pathlib import Path

from accel_kd.comparison.compared import Comparison
from accel_kd.comparison.figures.drawn import DrawnFigure, LeftOut, drawn_figures
from accel_kd.comparison.figures.style import refuse_figures
from accel_kd.errors import UserError

_DOTS_PER_INCH = 200


def write_pngs(comparison: Comparison, folder: Path) -> list[Path]:
    """Writes each figure for which there is data into `folder`, which is made if there is none.

    Returns:
        The files, in the order in which they are read.

    Raises:
        UserError: matplotlib is not installed, or `folder` cannot be written.
    """
    refuse_figures("figures")
    return _save(drawn_figures(comparison), folder)


def _save(figures: list[DrawnFigure | LeftOut], folder: Path) -> list[Path]:
    """Writes what is drawn of `figures`, as `write_pngs` does."""
    drawn = [one for one in figures if isinstance(one, DrawnFigure)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for one in drawn:
            one.figure.savefig(folder / f"{one.stem}.png", dpi=_DOTS_PER_INCH)
    except OSError as error:
        raise UserError(f"figures: {folder} cannot be written: {error}; name another folder") from error
    return [folder / f"{one.stem}.png" for one in drawn]
