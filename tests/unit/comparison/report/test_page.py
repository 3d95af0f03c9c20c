"""One file that needs nothing else, in which nothing that a run says is code."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path

import pytest

from accel_kd.comparison.report.page import write_page
from accel_kd.errors import UserError
from tests.support.made_up_comparison import Wanted, made_up_comparison

MADE = datetime(2026, 11, 26, 9, 30, tzinfo=UTC)
EVIL = "<script>alert(1)</script>"
WANTED = (Wanted(EVIL, 0.8, 2, 1.0), Wanted('"><img src=x onerror=alert(2)>', 0.86))


class Elements(HTMLParser):
    """The tags of a page with their attributes, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data.strip())


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("page") / "new" / "page.html"
    write_page(made_up_comparison(WANTED, notes=("a <b>note</b>",)), path, MADE)
    return path.read_text(encoding="utf-8")


def test_what_a_run_is_called_is_shown_and_never_run(html: str) -> None:
    elements = Elements(html)
    assert [tag for tag, _ in elements.tags].count("script") == 1
    assert not [tag for tag, _ in elements.tags if tag in ("img", "iframe", "object", "link")]
    assert not [name for _, attributes in elements.tags for name in attributes if name.startswith("on")]
    assert EVIL in elements.texts and "a <b>note</b>" in elements.texts
    assert EVIL not in html


def test_nothing_in_it_comes_from_elsewhere(html: str) -> None:
    for tag, attributes in Elements(html).tags:
        assert "src" not in attributes, tag
        assert (attributes.get("href") or "#").startswith("#"), tag
    assert not re.search(r"@import|url\((?!#)", html)
    assert set(re.findall(r"https?://[^\"' ]+", html)) <= set()


def test_the_browser_is_told_the_only_script_that_may_run(html: str) -> None:
    script = html.split("<script>")[1].split("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = (a["content"] for tag, a in Elements(html).tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def test_it_says_the_verdict_the_origins_and_when_it_was_made(html: str) -> None:
    texts = Elements(html).texts
    headings = ["Verdict", "Results", "Settings that differ", "Figures", "Notes", "Runs, and where each was read"]
    assert [text for text in texts if text in headings] == headings
    assert any(
        re.search(r" is better than <script>.*: \+\d+\.\d points \(.* to .*\) on the same 600 rows\.$", t)
        for t in texts
    )
    assert f"/runs/{EVIL}-0" in texts
    assert any(text.startswith("Made 2026-11-26 09:30 UTC by accel_kd ") for text in texts)


def test_all_ids_are_different(html: str) -> None:
    ids = [attributes["id"] for _, attributes in Elements(html).tags if "id" in attributes]
    assert len(ids) == len(set(ids)) > 100


def test_the_same_comparison_is_the_same_page_but_for_the_time(tmp_path: Path, html: str) -> None:
    write_page(made_up_comparison(WANTED, notes=("a <b>note</b>",)), tmp_path / "page.html", MADE.replace(hour=10))
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == html.replace("09:30 UTC", "10:30 UTC")


def test_what_is_not_drawn_and_not_compared_is_said(tmp_path: Path) -> None:
    comparison = made_up_comparison([Wanted("alone", 0.8)])
    (setting,) = comparison.settings
    run = replace(setting.runs[0], predictions=None, curve=None, measured=())
    bare = replace(comparison, settings=(replace(setting, runs=(run,), differs={}, figures={}),))
    write_page(bare, tmp_path / "page.html")
    texts = Elements((tmp_path / "page.html").read_text(encoding="utf-8")).texts
    assert "Nothing could be compared with alone row by row; the notes say why." in texts
    assert "Not drawn" in texts and "Learning curves: no run has a log of its training loss." in texts
    assert "The recipes do not differ." in texts and "None." in texts
    assert "1 run of 1 setting on the test split; the baseline is" in texts


def test_the_models_of_one_run_are_said_to_be_of_one_recipe(tmp_path: Path) -> None:
    comparison = made_up_comparison([Wanted("control", 0.8), Wanted("student", 0.85)])
    settings = tuple(replace(setting, differs={"part": setting.name}) for setting in comparison.settings)
    write_page(replace(comparison, settings=settings), tmp_path / "page.html")
    texts = Elements((tmp_path / "page.html").read_text(encoding="utf-8")).texts
    assert "These are models of one recipe." in texts and "The recipes do not differ." not in texts


def test_of_many_settings_the_top_has_one_sentence_each(tmp_path: Path) -> None:
    comparison = made_up_comparison([Wanted(f"trial {n}", 0.8) for n in range(7)])
    bare = tuple(
        replace(one, runs=tuple(replace(run, predictions=None, curve=None, measured=()) for run in one.runs))
        for one in comparison.settings
    )
    write_page(replace(comparison, settings=bare), tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert html.split("</ul>")[0].count("<li") == 6
    assert html.count("out of scope</td>") == 6


def test_a_file_that_cannot_be_written_is_the_users_to_change(tmp_path: Path) -> None:
    comparison = made_up_comparison([Wanted("alone", 0.8)])
    with pytest.raises(UserError, match=r"^the page: .* cannot be written: .*; name another file$"):
        write_page(comparison, tmp_path)
