"""The page of a comparison in a real browser."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from accel_kd.comparison.figures.style import BLUE, ORANGE
from accel_kd.comparison.report.page import write_page
from accel_kd.comparison.report.words import NONE
from tests.support.chromium import chromium, console, missing, requests, view
from tests.support.made_up_comparison import Wanted, made_up_comparison

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))

EVIL = "<script>alert(1)</script>"
COMPARISON = made_up_comparison((Wanted("control", 0.80, 1, 1.0), Wanted("distilled", 0.88, 2, 0.1), Wanted(EVIL, 0.7)))
FIGURES = [
    "paired_differences", "accuracy_latency", "learning_curves", "calibration", "confusion_pairs_1",
    "confusion_pairs_2",
]  # fmt: skip


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    with chromium(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "page.html"
    write_page(COMPARISON, path)
    return path


def opened(browser: Chrome, page: Path, width: int = 1400, scheme: str = "light") -> None:
    console(browser), requests(browser)
    view(browser, width, scheme)
    browser.get(page.as_uri())


def elements(browser: Chrome, selector: str) -> list[Any]:
    return browser.find_elements("css selector", selector)


def pixels(element: Any) -> np.ndarray:
    """What an element looks like `[height, width, 3]`, 0 to 255."""
    from matplotlib.image import imread

    return np.round(255 * imread(io.BytesIO(element.screenshot_as_png), format="png")[..., :3])


def has_colour(picture: np.ndarray, colour: str) -> bool:
    wanted = [int(colour[place : place + 2], 16) for place in (1, 3, 5)]
    return bool((np.abs(picture - wanted).max(axis=-1) <= 12).sum() > 20)


def test_every_figure_is_rendered_without_a_word_on_the_console_or_a_request(browser: Chrome, page: Path) -> None:
    opened(browser, page)
    assert [one.get_attribute("id") for one in elements(browser, "figure")] == FIGURES
    for name in FIGURES:
        (svg,) = elements(browser, f"#{name} svg.plot")
        assert svg.size["width"] > 300 and svg.size["height"] > 100, name
        drawn = browser.execute_script(
            "return [...arguments[0].querySelectorAll('path, use')].filter((one) => one.getBBox().width > 0).length",
            svg,
        )
        assert drawn > 30, name
        assert svg.accessible_name, name
    curves, differences = (elements(browser, f"#{name} svg")[0] for name in ("learning_curves", "paired_differences"))
    assert has_colour(pixels(curves), BLUE) and has_colour(pixels(curves), ORANGE)
    assert not has_colour(pixels(differences), BLUE)
    assert console(browser) == []
    assert requests(browser) == [page.as_uri()]


def test_a_run_that_is_called_like_a_script_is_only_called_so(browser: Chrome, page: Path) -> None:
    opened(browser, page)
    assert len(browser.execute_script("return document.scripts")) == 1
    (name,) = {one.text for one in elements(browser, "tbody th") if "script" in one.text and "-0" not in one.text}
    assert name == EVIL


def test_a_click_on_a_heading_sorts_and_a_second_one_turns_round(browser: Chrome, page: Path) -> None:
    opened(browser, page)
    table = elements(browser, "table")[0]

    def names() -> list[str]:
        return [one.text.removesuffix(" (baseline)") for one in table.find_elements("css selector", "tbody th")]

    (heading,) = (one for one in table.find_elements("css selector", "thead th") if "accuracy" in one.text)
    by_accuracy = sorted(COMPARISON.settings, key=lambda setting: setting.figures["test/accuracy"].mean)
    worst_first = [setting.name for setting in by_accuracy]
    assert names() == [setting.name for setting in COMPARISON.settings] != worst_first
    button = heading.find_element("css selector", "button")
    button.click()
    assert names() == worst_first and heading.get_attribute("aria-sort") == "ascending"
    button.click()
    assert names() == worst_first[::-1] and heading.get_attribute("aria-sort") == "descending"
    table.find_element("css selector", "thead th button").click()
    assert names() == sorted(worst_first) and heading.get_attribute("aria-sort") is None
    assert console(browser) == []


def test_what_a_table_lacks_stays_last_however_it_is_sorted(browser: Chrome, page: Path) -> None:
    opened(browser, page)
    table = elements(browser, "table")[1]
    place = [one.text for one in table.find_elements("css selector", "thead th")].index("p")
    for _ in range(2):
        table.find_elements("css selector", "thead th button")[place].click()
        cells = [
            row.find_elements("css selector", "th, td")[place].text
            for row in table.find_elements("css selector", "tbody tr")
        ]
        assert cells == ["0.0123"] * 3 + [NONE] * 3


@pytest.mark.parametrize("width", [400, 1400])
def test_nothing_stands_beyond_the_edge(browser: Chrome, page: Path, width: int) -> None:
    opened(browser, page, width)
    assert browser.execute_script("return document.documentElement.scrollWidth") == width
    for one in elements(browser, "figure, .scroll, .verdicts li"):
        assert one.rect["x"] >= 0 and one.rect["x"] + one.rect["width"] <= width


def test_by_night_paper_is_dark_and_letters_are_light_in_the_figures_too(browser: Chrome, page: Path) -> None:
    opened(browser, page, scheme="light")
    (svg,) = elements(browser, "#calibration svg")
    by_day = pixels(svg).mean()
    opened(browser, page, scheme="dark")
    (svg,) = elements(browser, "#calibration svg")
    by_night = pixels(svg)
    assert by_day > 220 and by_night.mean() < 60
    assert has_colour(by_night, "#e8eaed")


def test_the_watch_sees_errors_and_requests(browser: Chrome, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("<!DOCTYPE html><img src='http://127.0.0.1:9/x.png'><script>nothing()</script>", encoding="utf-8")
    opened(browser, page)
    assert "http://127.0.0.1:9/x.png" in requests(browser)
    assert any("nothing is not defined" in entry["message"] for entry in console(browser))
