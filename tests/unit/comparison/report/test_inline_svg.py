"""A figure inside a page: the same text each time, ids of its own, and no colour that the page does not know."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from accel_kd.comparison.figures.confusion_pairs import ConfusedPair, confusion_pairs
from accel_kd.comparison.figures.style import ON_DARK, dress, new_figure
from accel_kd.comparison.report.inline_svg import colour_variables, inline_svg


def drawn(name: str = "pairs", title: str = "Pairs") -> str:
    return inline_svg(confusion_pairs([ConfusedPair("on", "off", 3.0, 1.0)], "a", "b"), name, title, "on for off")


def test_the_same_figure_is_the_same_text_and_bears_no_date() -> None:
    assert drawn() == drawn()
    assert "date" not in drawn() and "<!--" not in drawn() and "metadata" not in drawn() and "<style" not in drawn()


def test_ids_are_the_figures_own_and_every_reference_finds_one() -> None:
    ids = set(re.findall(r' id="([^"]+)"', drawn("one")))
    assert all(name.startswith("one-") for name in ids)
    referred = re.findall(r'href="#([^"]+)"', drawn("one")) + re.findall(r"url\(#([^)]+)\)", drawn("one"))
    assert len(referred) > 10 and set(referred) <= ids
    assert not ids & set(re.findall(r' id="([^"]+)"', drawn("two")))


def test_it_says_what_it_shows_and_nothing_in_that_is_markup() -> None:
    root = ElementTree.fromstring(drawn(title="<script>alert(1)</script> & more"))
    assert (
        root.tag == "svg"
        and root.get("role") == "img"
        and root.get("aria-labelledby") == "pairs-title pairs-description"
    )
    assert [(child.tag, child.text) for child in root][:2] == [
        ("title", "<script>alert(1)</script> & more"),
        ("desc", "on for off"),
    ]
    assert root.find(".//script") is None
    assert "viewBox" in root.attrib and "width" not in root.attrib


def test_all_colours_are_variables_that_the_page_sets_for_day_and_night() -> None:
    text = drawn()
    assert not re.search(r"#[0-9a-f]{6}", text)
    used = set(re.findall(r"var\((--plot-[0-9a-f]+)\)", text))
    light, dark = colour_variables(dark=False), colour_variables(dark=True)
    assert len(used) > 3 and used <= light.keys() == dark.keys()
    assert set(light.values()) == set(ON_DARK) and set(dark.values()) == set(ON_DARK.values())


def test_a_colour_that_has_none_for_the_night_is_our_mistake() -> None:
    figure = new_figure(1.0)
    axes = figure.add_subplot()
    dress(axes, "x")
    inline_svg(figure, "name", "title", "description")
    axes.plot([0, 1], color="#123456")
    with pytest.raises(AssertionError, match="#123456"):
        inline_svg(figure, "name", "title", "description")
