"""Names from a run are shown, never read."""

from __future__ import annotations

import importlib.util

import pytest

from accel_kd.comparison.figures.style import (
    MOST_SERIES,
    ON_DARK,
    dress,
    fitted,
    inches_of,
    new_figure,
    plain,
    refuse_figures,
    series_colours,
    short_signed,
    shortened,
    signed,
)
from accel_kd.errors import UserError


@pytest.mark.parametrize("name", [r"$\frac{1}{", "a $x$ b", r"cost \$5", "three $ and $ and $"])
def test_a_name_full_of_dollars_is_drawn_letter_by_letter(name: str) -> None:
    figure = new_figure(2.0)
    axes = figure.add_subplot()
    dress(axes, plain(name))
    figure.draw_without_rendering()
    shown, is_formula = axes.xaxis.label._preprocess_math(axes.xaxis.label.get_text())
    assert not is_formula and shown == name


def test_what_would_break_a_line_or_a_file_becomes_a_space() -> None:
    assert plain("a\nb\x00c\ud800d") == "a b c d"


@pytest.mark.parametrize(("most", "short"), [(5, "ab…fg"), (4, "ab…g"), (7, "abcdefg"), (99, "abcdefg")])
def test_a_long_name_loses_its_middle(most: int, short: str) -> None:
    assert shortened("abcdefg", most) == short
    assert len(short) <= most


@pytest.mark.parametrize("letter", ["W", "i", "$"])
def test_a_fitted_name_is_as_wide_as_it_may_be_and_keeps_the_rest(letter: str) -> None:
    text = fitted(letter * 500, 2.0, ": better").replace(r"\$", "$")
    assert text.endswith(letter + ": better") and "…" in text
    assert 1.8 < inches_of(text) <= 2.0 or letter == "$"
    assert fitted("short", 2.0, ": better") == "short: better"


@pytest.mark.parametrize(
    ("value", "text"), [(1.84, "+1.8"), (-0.61, "\N{MINUS SIGN}0.6"), (0.0, "0.0"), (-0.04, "0.0")]
)
def test_a_sign_is_said_where_there_is_one(value: float, text: str) -> None:
    assert signed(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(2.0, "+2"), (-0.5, "\N{MINUS SIGN}0.5"), (0.0, "0"), (0.1 + 0.2, "+0.3"), (0.25, "+0.25")]
)
def test_a_tick_has_the_digits_that_it_needs(value: float, text: str) -> None:
    assert short_signed(value) == text


def test_settings_have_colours_of_their_own_while_there_are_some() -> None:
    names = [f"setting {n}" for n in range(MOST_SERIES + 1)]
    colours = series_colours(names)
    assert len({colours[name] for name in names[:-1]}) == MOST_SERIES
    assert colours[names[-1]] == colours[names[0]]
    assert set(colours.values()) <= ON_DARK.keys()


def test_figures_are_refused_in_one_line_where_matplotlib_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_figures("--html")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"^--html: matplotlib is not installed; pip install 'accel_kd\[plots\]'.*$"):
        refuse_figures("--html")
