"""The page, looked at by a browser: at two widths, in light and dark, for eyes, keyboards and screen readers."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from looking import LOOKS, barriers, complaints, hang_together, needs_browser
from playwright.sync_api import Browser

from fedunlearn.evaluation.scores import ForgetSet
from fedunlearn.report.beside import pictures_of
from fedunlearn.report.drawing import COLOURS, axes_for, put_legend
from fedunlearn.report.page import page, publish, reproduction_page
from fedunlearn.report.report import Report
from fedunlearn.report.reproduction import Reproduction
from fedunlearn.report.shape import shape_of

KINDS = ("one", "odd", "several", "reproduction")


def with_figure(odd: Report) -> Report:
    """Beside curves, one of them for a method of an endless name."""
    endless = next(method for method in odd.methods if len(method) > 100)
    return replace(odd, experiment={**odd.experiment, "published": "figure-4", "series": {"NoT": endless}})


@pytest.fixture(scope="module")
def pages(report: Report, odd: Report, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Drawing takes seconds: once for all looks."""
    folder = tmp_path_factory.mktemp("pages")
    several = [replace(report, name="a"), replace(odd, name="b" * 60)]
    for kind, shown in zip(KINDS, ([report], [odd], several), strict=False):
        (folder / f"{kind}.html").write_text(page(shown), encoding="utf-8")
    shapes = (
        shape_of(report, "cpu/table-1-cnn"),
        shape_of(with_figure(odd), "cpu/figure-4"),
        shape_of(report, "cpu/figure-1", "figure-1"),
    )
    beside = Reproduction("table-1", "cpu", "fedunlearn reproduce <b>table-1</b>", shapes)
    written = reproduction_page(beside, [pictures_of(shape) for shape in shapes])
    (folder / "reproduction.html").write_text(written, encoding="utf-8")
    return {kind: folder / f"{kind}.html" for kind in KINDS}


@needs_browser
@pytest.mark.parametrize(("width", "scheme"), LOOKS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_browser_has_nothing_to_complain_of(
    browser: Browser, pages: dict[str, Path], kind: str, width: int, scheme: str
) -> None:
    path = pages[kind]
    assert complaints(browser, path, width, scheme) == []
    assert barriers(browser, path, width, scheme) == []


@needs_browser
@pytest.mark.parametrize(
    ("planted", "complaint"),
    [
        ("<script>console.error('planted')</script>", "console: error planted"),
        ("<script>throw new Error('planted')</script>", "error: planted"),
        ("<img src='http://localhost:9/planted.png' alt=''>", "request: http://localhost:9/planted.png"),
        ("<div style='width: 3000px'>planted</div>", "overflow: page: 3000"),
        ("<p style='position: absolute; left: -50px'>planted</p>", "overflow: P  -50"),
    ],
)
def test_what_is_looked_for_is_found(browser: Browser, tmp_path: Path, planted: str, complaint: str) -> None:
    path = tmp_path / "planted.html"
    path.write_text(f"<!doctype html><html lang=en><title>x</title><body style='margin:0'>{planted}</body></html>")
    assert any(entry.startswith(complaint) for entry in complaints(browser, path, 1440, "light"))


@needs_browser
def test_barriers_are_found(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "planted.html"
    path.write_text("<html><body><p style='color:#bbb;background:#ccc'>planted</p><img src='data:,'></body></html>")
    found = " ".join(barriers(browser, path, 1440, "light"))
    for barrier in ("color-contrast", "image-alt", "html-has-lang"):
        assert barrier in found


@needs_browser
def test_all_can_be_reached_by_the_keyboard(browser: Browser, pages: dict[str, Path]) -> None:
    path = pages["one"]
    tab = browser.new_page(viewport={"width": 390, "height": 900})
    tab.goto(path.as_uri())
    tab.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    wanted = tab.evaluate("document.querySelectorAll('a, summary, .scroll').length")
    seen = set()
    for _ in range(wanted + 5):
        tab.keyboard.press("Tab")
        seen.add(tab.evaluate("[...document.querySelectorAll('a, summary, .scroll')].indexOf(document.activeElement)"))
    assert seen - {-1} == set(range(wanted))
    tab.goto(path.as_uri())
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.className") == "skip"
    assert tab.evaluate("document.activeElement.getBoundingClientRect().left") >= 0  # and it is seen then
    tab.close()


@needs_browser
def test_light_and_dark_are_two_pages(browser: Browser, pages: dict[str, Path]) -> None:
    seen = []
    for scheme in ("light", "dark"):
        tab = browser.new_page(color_scheme=scheme)  # type: ignore[arg-type]
        tab.goto(pages["one"].as_uri())
        ground = tab.evaluate("getComputedStyle(document.documentElement).backgroundColor")
        line = tab.evaluate("getComputedStyle(document.querySelector('svg text')).fill")
        seen.append((ground, line))
        tab.close()
    assert seen[0][0] != seen[1][0]
    assert seen[0][1] != seen[1][1]  # the figures too


def luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_the_contrast_of_black_and_white() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)


@pytest.mark.parametrize("name", [name for name in COLOURS if name != "line"])
def test_every_colour_can_be_read_on_its_ground(name: str) -> None:
    """WCAG 2's AA for text, 4.5; axe does not look into drawings."""
    head = (Path(__file__).parents[2] / "src/fedunlearn/report/head.html").read_text()
    grounds = re.findall(r"--ground: (#\w+); --card: (#\w+); --mark: (#\w+)", head)
    assert len(grounds) == 2
    for colour, theme in zip(COLOURS[name], grounds, strict=True):
        for ground in theme:
            assert contrast(colour, ground) >= 4.5


@pytest.mark.parametrize("kind", KINDS)
def test_the_page_is_one_file_that_hangs_together(pages: dict[str, Path], kind: str) -> None:
    runs = {f"{run}/report.html" for run in ("table-1-cnn", "figure-4", "figure-1")}  # which lie beside the page
    hang_together(pages[kind].read_text(encoding="utf-8"), outside=runs if kind == "reproduction" else set())


def test_what_the_page_says_of_a_run(report: Report, pages: dict[str, Path]) -> None:
    text = re.sub(r"<svg.*?</svg>", "", pages["one"].read_text(encoding="utf-8"), flags=re.DOTALL)
    words = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", text))
    for said in (
        "To be forgotten: all data of client 0: 48 of 192 training samples (25 %), held by 1 of 4 clients.",
        "Digits, in small.",
        "fedunlearn run tiny.toml",
        "Table 1: Client-wise federated unlearning, IID, first client forgets (cifar-10, cnn)",
        "91.66 ± 0.12",
        "layernorm-cnn (channels [4, 8], kernel 3)",
        "digits, 4 clients, Iid, 60 samples each on average, 20% of them for validation",
        "torch ",
    ):
        assert said in words, said
    for line in report.table():
        for measure in (line.retain, line.forget, line.test, line.mia):
            assert f"{measure.mean:.2f} ± {measure.sd:.2f}" in words
        assert f"{line.gap.of_means:.2f}" in words
    for name in ("fixed", "oracle", "recovered"):
        assert f" {name} " in words


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        ({"kind": "Class", "label": 7}, "To be forgotten: class 7, whoever holds it: "),
        (
            {"kind": "Instances", "instances": {"0": [1, 2], "3": [4]}},
            "To be forgotten: 3 single samples of 2 clients: ",
        ),
        (
            {"kind": "Share", "share": 0.1, "seed": 0},
            "To be forgotten: 10% of every client&#39;s samples, drawn at random: ",
        ),
        (
            [{"kind": "Client", "client": "0"}, {"kind": "Class", "label": 7}],
            "To be forgotten: all data of client 0; class 7, whoever holds it: ",
        ),
    ],
)
def test_other_requests_in_words(report: Report, request_: dict[str, object], says: str) -> None:
    assert says in page([replace(report, experiment={**report.experiment, "request": request_})])


def test_what_was_asked_earlier_and_who_has_left_is_told_and_each_request_has_its_gap(report: Report) -> None:
    asked = [{"kind": "Client", "client": "2"}, [{"kind": "Class", "label": 1}, {"kind": "Client", "client": "3"}]]
    sets = (ForgetSet(10, 20), ForgetSet(30, 40), ForgetSet(50, 60))
    scored = [(row, row.scores) for row in report.rows]
    rows = tuple(replace(row, scores=replace(found, sets=sets) if found else None) for row, found in scored)
    told = page([replace(report, experiment={**report.experiment, "earlier": asked, "left": ["0"]}, rows=rows)])
    assert "Request 3, after all data of client 2; class 1, whoever holds it and all data of client 3. " in told
    assert "To be forgotten: all data of client 0. Client 0 has left already: " in told
    for number in (1, 2, 3):
        assert f"Gap, request {number}</th>" in told
    assert "Gap, request 4" not in told
    assert "50.00 ± 0.00" in told


def test_failures_and_missing_seeds_are_told(pages: dict[str, Path]) -> None:
    text = pages["odd"].read_text(encoding="utf-8")
    assert "FT is in no table: in seed 1, after 3 rounds: the training loss became &lt;nan&gt;" in text
    assert "is not complete: seed 7, 8 is missing" in text
    assert "&lt;script&gt;alert(" in text


def test_everything_is_written_beside_the_page(report: Report, folder: Path) -> None:
    assert publish([report], folder) == folder / "report.html"
    figures = {path.name for path in (folder / "figures").iterdir()}
    names = [*(f"measure-{m}" for m in ("retain", "forget", "test", "mia")), "gap-bytes", "gap-flops", "gap-seconds"]
    names += ["validation", *(f"losses-{m}" for m in ("0-Original", "1-Retrain", "2-FT", "3-NoT")), "partition"]
    assert figures == {f"{name}.{kind}" for name in names for kind in ("svg", "pdf")}
    for path in (folder / "figures").iterdir():
        content = path.read_bytes()
        if path.suffix == ".pdf":
            assert content.startswith(b"%PDF-")
            assert b"/Type3" not in content  # fonts that journals refuse
        else:
            ElementTree.fromstring(content)
            assert b"var(--" not in content
    first = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    publish([report], folder)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == first  # the same files again


def test_the_page_links_to_the_audit_that_lies_beside_it(
    report: Report, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedunlearn.report.page.write_pictures", lambda *_: None)  # which takes most of the time
    folder.mkdir()
    link = '<a href="audit.html">The audit of this run</a>'
    assert link not in publish([report], folder).read_text()
    (folder / "audit.html").write_text("of the same run")
    assert link in publish([report], folder).read_text()
    assert link not in publish([report, replace(report, name="other")], folder).read_text()  # of which it is not


def test_several_runs_on_one_page(report: Report, folder: Path) -> None:
    other = replace(report, name="other", experiment={**report.experiment, "title": "Another"})
    path = publish([replace(report, name="first"), other], folder)
    assert path == folder / "compare.html"
    text = path.read_text()
    assert "One of four leaves / Another" in text
    assert re.search(r"<code>title</code></th><td[^>]*>One of four leaves</td><td[^>]*>Another</td>", text)
    assert "first: NoT" in text  # in the legends
    assert (folder / "figures" / "run2-losses-3-NoT.svg").is_file()
    assert not (folder / "report.json").exists()


@given(st.sets(st.text(alphabet="ab", min_size=60, max_size=90), min_size=2, max_size=4))
@example({f"NoT(layers=encoder.layers.encoder_layer_{number}.self_attention[q])" for number in range(3)})
@settings(max_examples=15, deadline=None)
def test_what_a_legend_shortens_stays_distinct(labels: set[str]) -> None:
    with axes_for("", "", "", legend=sorted(labels)) as (figure, axes):
        for label in labels:
            axes.plot([0, 1], label=label)
        put_legend(figure, axes)
        (legend,) = figure.legends
        assert len({text.get_text() for text in legend.get_texts()}) == len(labels)
