"""How all figures look: narrow enough for a telephone, in colours that a page can exchange for those of the night."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from accel_kd.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH = 5.0
"""Inches. On a screen of 400 pixels the smallest letters, of `SMALL` points, are then 9 pixels high."""
MEDIUM, SMALL = 10.0, 9.0

INK, SOFT, GRID, PAPER = "#1f2328", "#59636e", "#d9dee3", "#fefefe"
BLUE, ORANGE, GREEN, RED, GREY = "#1f5fa8", "#c2570c", "#1b7f5a", "#b3304c", "#5c6470"
_SERIES = {
    BLUE: "#6aaef5",
    ORANGE: "#f5a35c",
    GREEN: "#5fcf9f",
    "#7a3fa0": "#c79bee",
    RED: "#f2839a",
    "#7d6a00": "#d9c24a",
    "#0f7c8a": "#5cc9d8",
    "#7a4a2b": "#cf9f7d",
    "#b0348f": "#ee8fd5",
    GREY: "#aab3bf",
}
ON_DARK = {INK: "#e8eaed", SOFT: "#a3adb8", GRID: "#3a4149", PAPER: "#1b1f24", **_SERIES}
"""Every colour that a figure uses, and what stands for it on dark paper."""
MOST_SERIES = len(_SERIES)
"""So many lines can be told apart by their colour."""


def refuse_figures(setting: str) -> None:
    """Raises `UserError` where there is nothing to draw with; `setting` is what asked for figures."""
    if importlib.util.find_spec("matplotlib") is None:
        raise UserError(f"{setting}: matplotlib is not installed; pip install 'accel_kd[plots]', or leave it out")


def series_colours(names: Iterable[str]) -> dict[str, str]:
    """A colour for each name, the same in all figures; past `MOST_SERIES` they start again."""
    colours = list(_SERIES)
    return {name: colours[place % MOST_SERIES] for place, name in enumerate(dict.fromkeys(names))}


def new_figure(height: float) -> Figure:
    """An empty figure, `WIDTH` by `height` inches, which belongs to its caller alone."""
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH, height), layout="constrained", facecolor=PAPER)


def dress(axes: Any, x: str, y: str = "") -> None:
    """The axes' titles, colours and letters, with thin lines behind the data."""
    axes.set_facecolor(PAPER)
    axes.set_axisbelow(True)
    axes.grid(visible=True, color=GRID, linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(SOFT)
    axes.tick_params(which="both", color=SOFT, labelcolor=INK, labelsize=SMALL)
    axes.set_xlabel(x, color=INK, fontsize=MEDIUM)
    axes.set_ylabel(y, color=INK, fontsize=MEDIUM)


def legend(figure: Figure, handles: Iterable[Any], names: Iterable[str]) -> None:
    """One line a name, under the axes; `names` are `fitted`."""
    figure.legend(
        list(handles), list(names), loc="outside lower left", fontsize=SMALL, labelcolor=INK, frameon=False,
        borderaxespad=0.2,
    )  # fmt: skip


LEGEND_LINE = 0.2
"""Inches that a line of a legend adds to the height of a figure."""
LEGEND_WIDTH = 4.3
"""Inches that its words may take."""


def plain(text: str) -> str:
    """`text` as matplotlib shows it unread: `$` starts no formula, nothing breaks a line or cannot be drawn."""
    printable = "".join(letter if letter.isprintable() else " " for letter in text)
    return printable.replace("$", r"\$")


_MOST_LETTERS = 30
"""So many of the narrowest letters make an inch."""


def fitted(text: str, inches: float, rest: str = "") -> str:
    """`text` and `rest`, `plain`, in letters of `SMALL` points at most `inches` wide: what is too much is left out of
    the middle of `text`."""
    letters = min(len(text), int(inches * _MOST_LETTERS))
    while letters > 1 and inches_of(shortened(text, letters) + rest) > inches:
        letters -= 1
    return plain(shortened(text, letters) + rest)


def shortened(text: str, most: int) -> str:
    """`text` in at most `most` letters: its middle is what is left out."""
    if len(text) <= most:
        return text
    tail = (most - 1) // 2
    return f"{text[: most - 1 - tail]}…{text[len(text) - tail :]}"


def inches_of(text: str) -> float:
    """How wide `text` is in letters of `SMALL` points."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    points, _, _ = text_to_path.get_text_width_height_descent(plain(text), FontProperties(size=SMALL), ismath=False)
    return float(points) / 72


def signed(value: float, digits: int = 1) -> str:
    """With its sign, a true minus, and no sign before what is rounded to nothing."""
    rounded = round(value, digits)
    sign = "+" if rounded > 0 else "\N{MINUS SIGN}" if rounded < 0 else ""
    return f"{sign}{abs(rounded):.{digits}f}"


def short_signed(value: float) -> str:
    """`signed`, with no more digits than a tick of an axis needs."""
    digits = next((digits for digits in range(3) if abs(value - round(value, digits)) < 1e-9), 3)
    return signed(value, digits)
