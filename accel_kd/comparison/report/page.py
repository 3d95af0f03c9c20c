"""Writes a comparison as one HTML file: nothing in it comes from a network, and nothing that a run says is code.

Rendered by jinja2, because it escapes whatever it is not told to leave alone; a template by hand escapes only what
somebody thought of.
"""

from __future__ import annotations

import base64
import hashlib
from datetime import UTC, datetime
from pathlib import Path

from accel_kd import __version__
from accel_kd.comparison.compared import Comparison
from accel_kd.comparison.figures.drawn import DrawnFigure, LeftOut, drawn_figures
from accel_kd.comparison.figures.style import refuse_figures
from accel_kd.comparison.report.inline_svg import colour_variables, inline_svg
from accel_kd.comparison.report.tables import (
    Table,
    differences_table,
    differing_settings_table,
    measured_table,
    runs_table,
    settings_table,
)
from accel_kd.comparison.report.words import verdict_sentence
from accel_kd.errors import UserError

_MOST_WITH_SCOPES = 5
"""Settings up to which the verdicts in and out of scope stand at the top, not in the table alone."""
_HERE = Path(__file__).parent


def write_page(comparison: Comparison, path: Path, made: datetime | None = None) -> None:
    """Writes the page to `path`, whose folder is made if there is none.

    Args:
        comparison: what it shows.
        path: the HTML file.
        made: the time that it bears, now by default; all else is the same for the same comparison.

    Raises:
        UserError: matplotlib is not installed, or `path` cannot be written.
    """
    html = page_of(comparison, made)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(html, encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"the page: {path} cannot be written: {error}; name another file") from error


def page_of(comparison: Comparison, made: datetime | None = None) -> str:
    """The page as text.

    Raises:
        UserError: matplotlib is not installed.
    """
    refuse_figures("the page")
    return _rendered(comparison, made or datetime.now(UTC))


def _rendered(comparison: Comparison, made: datetime) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    figures = drawn_figures(comparison)
    with_scopes = len(comparison.settings) <= _MOST_WITH_SCOPES
    script = (_HERE / "sorting.js").read_text(encoding="utf-8")
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("page.html.jinja").render(
        title=_title(comparison),
        num_runs=sum(len(setting.runs) for setting in comparison.settings),
        comparison=comparison,
        verdicts=[(one, verdict_sentence(one)) for one in comparison.differences if with_scopes or one.scope == "all"],
        tables=_tables(comparison),
        drawn=[(one, inline_svg(one.figure, one.stem, one.title, one.description)) for one in _drawn(figures)],
        left_out=[one for one in figures if isinstance(one, LeftOut)],
        colours=[colour_variables(dark=False), colour_variables(dark=True)],
        is_one_recipe=any("part" in setting.differs for setting in comparison.settings),
        style=(_HERE / "page.css").read_text(encoding="utf-8"),
        script=script,
        # The browser itself then holds the page to its promise: no other script, and nothing from a network.
        script_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        made=f"{made:%Y-%m-%d %H:%M} {made.tzname() or 'local time'}",
        version=__version__,
    )


def _title(comparison: Comparison) -> str:
    others = [setting.name for setting in comparison.settings[1:]]
    if len(others) == 1:
        return f"{others[0]} beside {comparison.baseline}"
    return f"{len(others)} settings beside {comparison.baseline}"


def _drawn(figures: list[DrawnFigure | LeftOut]) -> list[DrawnFigure]:
    return [one for one in figures if isinstance(one, DrawnFigure)]


def _tables(comparison: Comparison) -> dict[str, Table]:
    return {
        "settings": settings_table(comparison),
        "differences": differences_table(comparison),
        "measured": measured_table(comparison),
        "differing": differing_settings_table(comparison),
        "runs": runs_table(comparison),
    }
