"""What a browser, and a reader of the text, have to say of a page."""

from __future__ import annotations

import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: apt-get install chromium")

QUIET = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-sync")
LOOKS = [(width, scheme) for width in (1440, 390) for scheme in ("light", "dark")]


def complaints(browser: Browser, path: Path, width: int, scheme: str) -> list[str]:
    """All that is wrong with a page, to a browser."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)  # type: ignore[arg-type]
    try:
        tab = context.new_page()
        found: list[str] = []
        tab.on("console", lambda message: found.append(f"console: {message.type} {message.text}"))
        tab.on("pageerror", lambda error: found.append(f"error: {error}"))
        tab.on("dialog", lambda dialog: (found.append(f"dialog: {dialog.message}"), dialog.dismiss()))  # type: ignore[func-returns-value]
        tab.on("request", lambda request: found.append(f"request: {request.url}"))
        tab.goto(path.as_uri())
        found.remove(f"request: {path.as_uri()}")
        found = [entry for entry in found if entry != "request: data:,"]
        tab.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
        found += overflowing(tab)
        return found
    finally:
        context.close()


def overflowing(tab: Page) -> list[str]:
    """What is wider than its place, but for what is made to be scrolled."""
    script = """() => {
        const seen = [];
        const wide = document.documentElement.clientWidth;
        if (document.documentElement.scrollWidth > wide) seen.push(`page: ${document.documentElement.scrollWidth}`);
        for (const one of document.body.querySelectorAll('*')) {
            if (one.closest('.scroll, pre, svg, .skip')) continue;
            const box = one.getBoundingClientRect();
            const place = `${one.tagName} ${one.className} ${box.left} ${box.right}`;
            if (box.right > wide + 1 || box.left < -1) seen.push(place);
        }
        return seen;
    }"""
    return [f"overflow: {entry}" for entry in tab.evaluate(script)]


def barriers(browser: Browser, path: Path, width: int, scheme: str) -> list[str]:
    """What axe finds that keeps people out."""
    context = browser.new_context(
        viewport={"width": width, "height": 900},
        color_scheme=scheme,
        bypass_csp=True,  # type: ignore[arg-type]
    )
    try:
        tab = context.new_page()
        tab.goto(path.as_uri())
        tab.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
        violations = Axe().run(tab).response["violations"]
        return [f"{one['id']}: {[node['html'][:120] for node in one['nodes'][:3]]}" for one in violations]
    finally:
        context.close()


class Outline(HTMLParser):
    """Ids, links to them, headings, and images with their descriptions."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.levels: list[int] = []
        self.images: list[str | None] = []
        self.tags: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        self.tags.add(tag)
        if identity := named.get("id"):
            self.ids.append(identity)
        if tag == "a" and (target := named.get("href")):
            self.links.append(target)
        if re.fullmatch("h[1-6]", tag):
            self.levels.append(int(tag[1]))
        if named.get("role") == "img":
            self.images.append(named.get("aria-label"))


def hang_together(text: str, outside: set[str]) -> None:
    """A page is one file: ids, links within and to files beside it, headings in order, images told, no script."""
    outline = Outline(text)
    assert len(set(outline.ids)) == len(outline.ids)
    within = {link for link in outline.links if link.startswith("#")}
    assert {link.removeprefix("#") for link in within} <= set(outline.ids)
    assert set(outline.links) - within == outside
    assert outline.levels[0] == 1
    assert all(
        after <= before + 1 or before == 1 for before, after in zip(outline.levels, outline.levels[1:], strict=False)
    )
    assert all(label and re.search(r"\d", label) for label in outline.images)  # in words and numbers
    assert outline.tags.isdisjoint({"script", "img", "iframe", "object", "embed"})
    assert not re.search(r"(src|@import|url\()\s*=?\s*[\"']?https?:", text)
