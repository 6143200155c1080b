"""The theory's page: all sections on one page, for eyes, keyboards and screen readers; and hostile text on it."""

from __future__ import annotations

import html
import math
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from looking import LOOKS, barriers, complaints, hang_together, needs_browser
from playwright.sync_api import Browser

from diagnosed import quick
from fedunlearn.diagnoses import DIAGNOSES, Bounds, Similarities, diagnose
from fedunlearn.findings import Found
from fedunlearn.report.rendering import THEORY
from fedunlearn.report.theory.page import SECTIONS, publish_found
from fedunlearn.subject import subjects
from fedunlearn.theory.activations import Similarity
from fedunlearn.theory.bound import Bound
from fedunlearn.theory.poset import LayerPoset
from handmade import HOSTILE


@pytest.fixture(scope="module")
def written(kept: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The page of a run's diagnoses, with a hostile title and command."""
    with quick():
        run = Path(shutil.copytree(kept, tmp_path_factory.mktemp("theory") / "run"))
        first = next(subjects(run))
        for name in DIAGNOSES:
            for _ in diagnose(name, run, command=HOSTILE, seeds=(3,)):
                pass
        ordered = LayerPoset.of(first.network(first.original), first.example).judged("conv1")
        yield publish_found(Found("poset", HOSTILE, HOSTILE, (), (ordered,)), run)


@pytest.fixture(scope="module")
def text(written: Path) -> str:
    return written.read_text(encoding="utf-8")


@needs_browser
@pytest.mark.parametrize(("width", "scheme"), LOOKS)
def test_a_browser_has_nothing_to_complain_of(browser: Browser, written: Path, width: int, scheme: str) -> None:
    assert complaints(browser, written, width, scheme) == []
    assert barriers(browser, written, width, scheme) == []


@needs_browser
def test_all_is_reached_by_the_keyboard(browser: Browser, written: Path) -> None:
    """The link past the head, the links to sections, and each table that is wider than a phone."""
    context = browser.new_context(viewport={"width": 390, "height": 900})
    try:
        tab = context.new_page()
        tab.goto(written.as_uri())
        seen = []
        for _ in range(60):
            tab.keyboard.press("Tab")
            seen.append(tab.evaluate("document.activeElement.getAttribute('href') || document.activeElement.ariaLabel"))
        assert seen[0] == "#poset"
        assert set(seen) >= {f"#{name}" for name in (*SECTIONS, "made")} | {"report.html"}
        wide = tab.evaluate("[...document.querySelectorAll('.scroll')].map(one => one.ariaLabel)")
        assert len(wide) == len(SECTIONS)
        assert set(wide) <= set(seen)
    finally:
        context.close()


def test_the_page_is_one_file_that_hangs_together(text: str) -> None:
    hang_together(text, outside={"report.html"})
    assert HOSTILE not in text
    assert html.escape(HOSTILE) in text


def test_sections_stand_in_one_order_whatever_was_asked_last(text: str) -> None:
    places = [text.index(f'<h2 id="{name}">') for name in SECTIONS]
    assert places == sorted(places)
    assert text.count("Of seed 3.") == len(DIAGNOSES)


def test_what_is_not_known_is_said(tmp_path: Path) -> None:
    """A CKA that is not defined, and a gap that was not closed, are words on the page, and no error."""
    odd = Similarity(math.nan, math.nan, 64)
    cka = Found("cka", "odd", "", (0,), (Similarities({"NoT, last": {"conv1": odd, "head": Similarity(1, 0.5, 64)}}),))
    cka.write(tmp_path)
    one = Bound((), 0.1, 0.5, 0.0, 1.0, 2.0, 0.4, 0.2, 0.2, 0.1, 0.1, 0.1, 2.5, 0.0, 0.05, 50.0, 0.0)
    bounds = {"FT": one, "NoT": replace(one, printed=0.0, corrected=0.0)}
    page = publish_found(Found("bound", "odd", "", (0,), (Bounds(bounds, {"FT": None, "NoT": None}, 3.0),)), tmp_path)
    assert page == tmp_path / THEORY
    said = html.unescape(page.read_text())
    assert ">undefined (undefined)<" in said
    assert said.count(">not reached<") == 2
    assert "The gap of FT and NoT did not come as far as Retrain's: no time could be measured." in said
