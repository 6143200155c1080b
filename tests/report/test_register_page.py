"""The operator's page: a made-up service told number by number, for eyes and screen readers; and served."""

from __future__ import annotations

import base64
import html
import http.client
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import story
from looking import LOOKS, barriers, complaints, hang_together, needs_browser
from playwright.sync_api import Browser
from story import CLASS, HEAD, SINGLE, WHOLE, Events

from fedunlearn.commands.register_page import page
from fedunlearn.deletion.events import (
    Began,
    Enrolled,
    Event,
    Fault,
    Instead,
    Opened,
    Recovered,
    Refused,
    RoundDone,
    Started,
)
from fedunlearn.deletion.register import Register, RegisterError
from fedunlearn.deletion.signing import SigningKey
from fedunlearn.deletion.standing import standing
from fedunlearn.report.register import register_page
from fedunlearn.report.register_figures import moments, quality

HOSTILE = "<script>alert(1)</script>&\"'" + "_of_every_layer" * 8
FORMULA = r"$\frac{$ \N{x} 病院" + "\ud800"


def made(events: Events) -> str:
    return register_page(standing(events), replace(HEAD, count=len(events)))


@pytest.fixture(scope="module")
def text() -> str:
    return made(story.told())


@pytest.fixture(scope="module")
def settled() -> str:
    return made(story.settled(story.told()))


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The story on its way and at its end; with hostile words; of nothing; with one state only."""
    folder = tmp_path_factory.mktemp("pages")
    hostile = [(at, spoiled(event)) for at, event in story.settled(story.told(HOSTILE, HOSTILE))]
    told = {"on its way": story.told(), "settled": story.settled(story.told()), "hostile": hostile, "empty": []}
    for name, events in told.items():
        (folder / f"{name}.html").write_text(made(events), encoding="utf-8")
    return {name: folder / f"{name}.html" for name in told}


def spoiled(event: Event) -> Event:
    """With hostile text wherever somebody else than the server has a say."""
    if isinstance(event, Fault):
        return replace(event, client=HOSTILE, what=HOSTILE, detail=HOSTILE)
    if isinstance(event, Refused):
        return replace(event, request=HOSTILE, why=HOSTILE)
    if isinstance(event, RoundDone) and event.absent:
        return replace(event, absent={HOSTILE: HOSTILE, FORMULA: FORMULA})
    if isinstance(event, Opened):
        return replace(event, about={HOSTILE: HOSTILE, "training": {HOSTILE: [HOSTILE]}})
    return event


def words(markup: str) -> str:
    """What is read of it; figures have their own words."""
    without = re.sub(r"<svg.*?</svg>", "", markup, flags=re.DOTALL)
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", without))).strip()


def table(text: str, label: str) -> list[list[str]]:
    (found,) = re.findall(rf'aria-label="{label}".*?<tbody>(.*?)</tbody>', text, re.DOTALL)
    rows = [re.findall(r"<t[hd]\b.*?</t[hd]>", row, re.DOTALL) for row in found.split("</tr>")]
    return [list(map(words, row)) for row in rows if row]


def section(text: str, name: str) -> str:
    (found,) = re.findall(rf'<section aria-labelledby="{name}">(.*?)</section>', text, re.DOTALL)
    return words(found)


def attention(text: str) -> list[str]:
    """The sentences on top."""
    (head,) = re.findall(r"<header>(.*?)</header>", text, re.DOTALL)
    return list(map(words, re.findall(r"<li>(.*?)</li>", head.split("<nav")[0], re.DOTALL)))


@needs_browser
@pytest.mark.parametrize(("width", "scheme"), LOOKS)
def test_a_browser_has_nothing_to_complain_of(
    browser: Browser, pages: dict[str, Path], width: int, scheme: str
) -> None:
    assert complaints(browser, pages["on its way"], width, scheme) == []
    assert barriers(browser, pages["on its way"], width, scheme) == []


@needs_browser
@pytest.mark.parametrize("name", ["settled", "hostile", "empty"])
def test_nor_of_its_other_states(browser: Browser, pages: dict[str, Path], name: str) -> None:
    assert complaints(browser, pages[name], 390, "light") == []
    assert complaints(browser, pages[name], 1440, "light") == []
    assert barriers(browser, pages[name], 390, "light") == []


@needs_browser
@pytest.mark.parametrize(("width", "cards"), [(390, True), (928, True), (929, False), (1185, False)])
def test_state_and_receipt_of_a_request_need_no_scrolling(
    browser: Browser, pages: dict[str, Path], width: int, cards: bool
) -> None:
    """Nor does what was refused or went wrong; where each row is a card, each value says what it is."""
    context = browser.new_context(viewport={"width": width, "height": 900})
    try:
        tab = context.new_page()
        tab.goto(pages["settled"].as_uri())
        assert tab.locator("table.cards").count() == 3
        for one in tab.locator("table.cards").all():
            assert one.evaluate("one => one.parentElement.scrollWidth <= one.parentElement.clientWidth")
        receipt = tab.locator(".life tr:first-child td:nth-child(6)")
        named = "one => [getComputedStyle(one, '::before').content, getComputedStyle(one).display]"
        assert receipt.evaluate(named) == (['"Receipt"', "block"] if cards else ["none", "table-cell"])
    finally:
        context.close()


@needs_browser
def test_the_figure_can_be_read_on_a_phone(browser: Browser, pages: dict[str, Path]) -> None:
    """No word runs out of it or into another one, and a line of text is nine pixels high at least."""
    context = browser.new_context(viewport={"width": 390, "height": 900})
    try:
        tab = context.new_page()
        tab.goto(pages["settled"].as_uri())
        box = "one => (({left, right, top, bottom}) => [left, right, top, bottom])(one.getBoundingClientRect())"
        around = tab.locator(".timeline figure").evaluate(box)
        words = [word.evaluate(box) for word in tab.locator(".timeline svg text").all()]
    finally:
        context.close()
    assert around[1] <= 390
    assert len(words) > 15
    for left, right, top, bottom in words:
        assert around[0] <= left < right <= around[1]
        assert max(right - left, bottom - top) >= 9  # one is upright
    apart = [max(a[0] - b[1], b[0] - a[1], a[2] - b[3], b[2] - a[3]) for a, b in combinations(words, 2)]
    assert min(apart) > -1  # a line of text has more room above and below its letters than that


@pytest.mark.parametrize("name", ["on its way", "settled", "hostile", "empty"])
def test_the_page_is_one_file_that_hangs_together(pages: dict[str, Path], name: str) -> None:
    text = pages[name].read_text(encoding="utf-8")
    hang_together(text, outside=set(re.findall(r'"(data:application/json;base64,[^"]+)"', text)))


def test_hostile_words_are_words(pages: dict[str, Path]) -> None:
    text = pages["hostile"].read_text(encoding="utf-8")
    assert HOSTILE not in text
    assert "<script" not in text
    assert text.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 10
    assert "$\\frac{$ \\N{x} 病院?" in html.unescape(text)  # half a surrogate pair has no place in a file


@pytest.mark.parametrize(
    ("events", "sentence"),
    [
        ([], "This register is empty: no server has begun to write in it."),
        (story.told()[:1], "No request was entered yet; no unlearning is under way; no round is over yet."),
        (
            story.told()[:9],
            "1 request: 1 waiting; no unlearning is under way; the last round, 6 (training round 6), was over at "
            "2026-11-30 18:01:10 UTC.",
        ),
        (
            story.told(),
            "3 requests: 2 answered, 1 being answered; unlearning 2 is recovering (1 round so far); the last round, "
            "12 (recovery round 1 of unlearning 2), was over at 2026-11-30 18:04:30 UTC.",
        ),
        (
            story.settled(story.told()),
            "3 requests: 3 answered; no unlearning is under way; the last round, 12 (recovery round 1 of "
            "unlearning 2), was over at 2026-11-30 18:04:30 UTC.",
        ),
    ],
    ids=["empty", "opened", "filed", "on its way", "settled"],
)
def test_how_it_stands_in_a_sentence(events: Events, sentence: str) -> None:
    assert f'<p class="lead verdict">{sentence}</p>' in made(events)


def test_what_the_operator_should_look_at_first(text: str, settled: str) -> None:
    traces = "The audit found traces of what was to be forgotten: unlearning 1."
    none = "No audit could be made: unlearning 2."
    limit = "Recovery ended at the limit of rounds, before the stop rule was met: unlearning 2."
    few = "Too few clients answered since the last round, 1 time: 1 of 3 clients answered, and 2 are needed."
    silent = "In the last 5 rounds and since, 1 fault: hospital-4: silent (1)."
    assert attention(text) == [traces, few]
    assert attention(settled) == [traces, none, limit, few]
    assert attention(made(story.told()[:9])) == [silent]
    assert attention(made(story.told()[:3])) == []
    nobody = [*story.told()[:3], (story.told()[-1][0], Fault("", "stranger", "on no list", "train", 1))]
    assert attention(made(nobody)) == ["In the last 2 rounds and since, 1 fault: an unknown node: stranger (1)."]


def test_faults_are_forgotten_after_five_rounds() -> None:
    """That of the fourth round is told up to the eighth."""
    for rounds, told in ((4, True), (8, True), (9, False)):
        clock = story.Clock()
        for number in range(rounds):
            if number == 3:
                clock.add(Fault("hospital-4", "silent", "no answer", "train", 3))
            clock.add(story.done("train", number, None, 50.0))
        assert bool(attention(made(clock.events))) is told


def test_requests_with_their_states(text: str, settled: str) -> None:
    rows = table(text, "Requests and their states")
    assert [row[:4] + row[5:] for row in rows] == [
        ["cccccccc…", "hospital-3", "instances data deleted already", "consent was withdrawn", "none yet"],
        ["bbbbbbbb…", "whoever holds it filed by the operator", "class:3", "an error in the labels", "receipt"],
        ["aaaaaaaa…", "hospital-2", "client", "the study is over", "receipt"],
    ]
    assert rows[0][4] == (
        "recovering in unlearning 2 filed 18:02:40 2026-11-30 acknowledged 18:02:50 unlearning 18:04:10 "
        "recovering 18:04:30 verified not yet done not yet"
    )
    days = table(settled, "Requests and their states")[0][4]
    assert days.endswith("recovering 18:04:30 verified 09:30:10 2026-12-01 done 09:30:20")


def test_a_request_that_is_refused_after_it_was_entered() -> None:
    events = [*story.told()[:9], ("2026-12-02T00:00:00+00:00", Refused(WHOLE, "hospital-2", "it was withdrawn"))]
    text = made(events)
    (row,) = table(text, "Requests and their states")
    assert row[4] == "refused it was withdrawn filed 18:01:20 2026-11-30 refused 00:00:00 2026-12-02"
    assert row[5] == "none"
    assert table(text, "Refused requests") == [["2026-12-02 00:00:00", "aaaaaaaa…", "hospital-2", "it was withdrawn"]]


def test_the_operators_refusals_and_a_clients(text: str) -> None:
    why = "there is no client 'hospital-9' in this federation"
    assert table(text, "Refused requests") == [["2026-11-30 18:02:00", "dddddddd…", "the operator", why]]
    nameless = [*story.told()[:1], ("2026-11-30T18:02:00+00:00", Refused("", "hospital-1", "no request at all"))]
    assert table(made(nameless), "Refused requests")[0][1:3] == ["without an id", "hospital-1"]


def test_a_stranger_comes_between_rounds() -> None:
    stranger = ("2026-11-30T18:02:00+00:00", Fault("", "stranger", "node 7: its key is on no list", "look", 2))
    (row,) = table(made([*story.told()[:3], stranger]), "Faults and waits, one by one")
    assert row[1:] == ["stranger", "an unknown node", "between rounds", "node 7: its key is on no list"]


def test_what_an_unlearning_that_began_again_is_held_against() -> None:
    """From before the first of its four rounds to after the last."""
    clock = story.Clock()
    clock.add(story.filed(WHOLE, "hospital-1", "client", ""), Began(0, [WHOLE], {}, "b", "c", 80.0, {}))
    clock.add(story.done("unlearn", 0, 0, None), story.done("unlearn", 1, 0, None), Instead(0, {"name": "NoT"}, "why"))
    clock.add(story.done("unlearn", 0, 0, None), story.done("recover", 0, 0, 70.0))
    above, _ = quality(standing(clock.events)).figure.axes
    lines = {str(line.get_label()): line for line in above.lines}
    assert list(lines["before the request"].get_xdata())[:2] == [0.5, 4.5]


def test_rounds_in_numbers(text: str) -> None:
    rows = table(text, "Rounds in numbers")
    assert [row[0] for row in rows] == [str(number) for number in range(12, 0, -1)]
    assert rows[0][:3] == ["12", "recovery round 1 of unlearning 2", "2026-11-30 18:04:30"]
    assert rows[0][3:] == ["55.0 %", "3 of 3", "nobody", "0000reco…"]
    assert rows[3][3] == "not known"
    assert rows[5][4] == "nobody asked"
    assert rows[8][:2] + rows[8][4:6] == ["4", "training round 4", "3 of 4", "hospital-4: silent"]


def test_the_figure_tells_its_numbers() -> None:
    alt = quality(standing(story.told())).alt
    assert alt == (
        "Accuracy on validation samples in percent over 12 rounds; training 47.0 at first, 82.0 at last; unlearning "
        "21.5 at first, 18.0 at last; recovery 60.0 at first, 55.0 at last; unlearnings began, by rounds before them: "
        "1 after 6, 2 after 10; clients that took part: 3 to 4, 3.5 on average."
    )


def test_what_is_drawn() -> None:
    whole = standing(story.told())
    above, below = quality(whole).figure.axes
    lines = {str(line.get_label()): line for line in above.lines}
    own: Any = lines["recovery"].get_markevery()
    assert [list(lines["recovery"].get_xdata())[place] for place in own] == [8, 10, 12]  # 9 is not known
    assert [list(lines["recovery"].get_ydata())[place] for place in own] == [60.0, 80.5, 55.0]
    assert list(lines["training"].get_ydata()) == [47, 54, 61, 68, 75, 82]
    assert moments(whole) == [6, 10]
    assert [(one.get_text(), one.get_position()[0]) for one in above.texts] == [("1", 6.5), ("2", 10.5)]
    asked, took = (patch.get_data().values for patch in below.patches)  # type: ignore[attr-defined]
    assert list(asked) == [4, 4, 4, 4, 4, 4, 0, 3, 3, 3, 0, 3]
    assert list(took) == [4, 4, 4, 3, 4, 4, 0, 3, 3, 3, 0, 3]
    assert list(below.lines[-1].get_xdata()) == [4]


def test_an_unlearning_without_a_round_stands_after_all() -> None:
    began = next(place for place, (_, event) in enumerate(story.told()) if isinstance(event, Began))
    whole = standing(story.told()[: began + 1])
    assert moments(whole) == [6]
    assert "Layers negated not known Accuracy before 82.0 % Accuracy after not known Recovery 0 rounds; it has not" in (
        section(made(story.told()[: began + 1]), "unlearnings")
    )


def test_no_accuracy_is_known() -> None:
    events: Events = [("2026-11-30T18:00:00+00:00", story.done("train", 0, None, None))]
    picture = quality(standing(events))
    assert "not known of any" in picture.alt
    assert picture.figure.axes[0].texts[-1].get_text() == "not known of any round"


def test_moments_say_who_asked(text: str) -> None:
    said = section(text, "quality")
    assert "Unlearning 2 , after 10 rounds, 2026-11-30 18:04:10: hospital-3 (instances)" in said
    assert "Unlearning 1 , after 6 rounds, 2026-11-30 18:02:10: hospital-2 (client), whoever holds it (class:3)" in said


def test_unlearnings(text: str, settled: str) -> None:
    said = section(text, "unlearnings")
    assert said.startswith(f"Unlearnings {story.LIMITS} Unlearning 2 not audited yet The audit comes after recovery.")
    assert said.endswith(
        "Unlearning 1 traces found One of 2 clients found traces. "
        "Asked by hospital-2 (client), whoever holds it (class:3) Began 2026-11-30 18:02:10 UTC, after 6 rounds "
        'Method NoT(layers=["conv1"]) Layers negated conv1.weight, conv1.bias '
        "Accuracy before 82.0 % Accuracy after 80.5 % Recovery 3 rounds; the stop rule was met "
        "Sent 9 kB down, 4.5 kB up Passes 3,200 samples forward, 1,600 backward Time 10.0 s in rounds"
    )
    later = section(settled, "unlearnings")
    assert "Recovery 1 round; at the limit of rounds, before the stop rule was met" in later
    assert "Unlearning 2 not audited Not audited: data already deleted." in later


def test_a_new_model_has_no_old_signs() -> None:
    """The sign history of one that was retrained begins anew."""
    clock = story.Clock()
    clock.add(story.filed(WHOLE, "hospital-1", "client", ""), Began(0, [WHOLE], {}, "b", "c", None, {}, [["conv1"]]))
    clock.add(story.done("unlearn", 0, 0, None), Recovered(0, "nobody"))
    said = section(made(clock.events), "unlearnings")
    assert "Method not known Layers negated none" in said
    assert "nobody stays to recover with" in said


def test_receipts_in_full_to_read_and_to_keep(text: str) -> None:
    links = re.findall(r'href="data:application/json;base64,([^"]+)" download="(.*?)"', text)
    assert [name for _, name in links] == ["receipt-bbbbbbbb.json", "receipt-aaaaaaaa.json"]
    kept = [json.loads(base64.b64decode(link)) for link, _ in links]
    assert kept == [story.receipt(CLASS, "traces found"), story.receipt(WHOLE, "traces found")]
    shown = [json.loads(html.unescape(one)) for one in re.findall(r"<pre.*?>(.*?)</pre>", text, re.DOTALL)]
    assert shown == kept
    assert next(iter(shown[0])) == "audit"
    (row,) = (row for row in re.findall(r"<tr id=.*?</tr>", text, re.DOTALL) if "bbbbbbbb" in row)
    (anchor,) = re.findall(r'href="#(.*?-receipt)"', row)
    assert f'<details id="{anchor}"><summary>Receipt of bbbbbbbb…' in text
    assert SINGLE not in text


def test_the_audit_is_a_receipts_first_field_though_a_register_sorts_names() -> None:
    events = story.settled(story.told())
    at, last = events[-1]
    events[-1] = (at, replace(last, receipt=dict(sorted(story.receipt(SINGLE).items(), reverse=True))))  # type: ignore[arg-type]
    first = re.findall(r"<pre.*?>(.*?)</pre>", made(events), re.DOTALL)[0]
    assert next(iter(json.loads(first))) == "audit"


@needs_browser
def test_a_receipt_can_be_downloaded(browser: Browser, pages: dict[str, Path], tmp_path: Path) -> None:
    context = browser.new_context(accept_downloads=True)
    try:
        tab = context.new_page()
        tab.goto(pages["settled"].as_uri())
        tab.locator("summary", has_text="Receipt of cccccccc").click()
        with tab.expect_download() as waiting:
            tab.locator("a[download]").first.click()
        waiting.value.save_as(tmp_path / "kept.json")
        assert waiting.value.suggested_filename == "receipt-cccccccc.json"
    finally:
        context.close()
    assert json.loads((tmp_path / "kept.json").read_bytes()) == story.receipt(SINGLE, "not audited")


def test_faults_and_waits_newest_first(text: str) -> None:
    assert table(text, "Faults and waits, one by one") == [
        [
            "2026-11-30 18:04:40",
            "waited",
            "too few clients",
            "recovery round 2",
            "1 of 3 clients answered, and 2 are needed",
        ],
        ["2026-11-30 18:00:40", "silent", "hospital-4", "training round 4", "no answer within 600 s, asked twice"],
    ]


def test_the_register(text: str) -> None:
    said = section(text, "register")
    assert f"Register {HEAD.register} Events 29 Last hash {HEAD.hash} Key in force {HEAD.key} Clients 4 on" in said
    assert f"Key changed 2026-11-30 18:04:00, to {story.NEXT}" in said
    assert "fedunlearn requests verify DIR --key server.pub" in said
    assert "seed 0" in said
    joined = [*story.told(), ("2026-11-30T18:05:00+00:00", Enrolled({"a": "ecdsa"}))]
    assert "Clients 5 on the list" in section(made(joined), "register")
    assert "Clients not known Key changed never" in section(made([]), "register")
    again = [Started({"every": 1, "limit": 2}, {"torch": "2.0"}), Started({"every": 1, "limit": 3}, {"torch": "2.1"})]
    started = section(made([*story.told(), *(("2026-11-30T18:05:00+00:00", one) for one in again)]), "register")
    assert started.endswith('seed 0 every 1 limit 3 software {"torch": "2.1"}')
    simulated = [("2026-11-30T18:00:00+00:00", Opened({}, story.SERVER, {}))]
    assert "Clients those of a simulation, without keys" in section(made([*simulated]), "register")


def test_a_service_of_years_fits_on_a_page() -> None:
    text = made(list(story.long(500, 10_000, 3_000)))
    assert 1_000_000 < len(text.encode()) < 3_000_000
    assert len(table(text, "Requests and their states")) == 500
    assert len(table(text, "Faults and waits, one by one")) == len(table(text, "Rounds in numbers")) == 200
    assert "On this page: 200 of 5,000; the register has them all." in section(text, "troubles")
    assert "Refusals on this page: 200 of 500; the register has them all." in section(text, "requests")
    shown = text.count("<details id=")
    assert 100 < shown < 500
    assert f"Receipts on this page, newest first: {shown} of 500; of the others" in section(text, "receipts")
    links = set(re.findall(r'href="#(request-\d+-receipt)"', text))
    assert links == set(re.findall(r'<details id="(.*?)"', text))
    assert sum(row[5] == "in the register" for row in table(text, "Requests and their states")) == 500 - shown


def test_of_more_requests_than_there_is_room_for_those_under_way_are_shown() -> None:
    """The first of 600 is the only one that is not settled, and the oldest."""
    clock = story.Clock()
    for number in range(600):
        clock.add(story.filed(f"{number:032x}", "hospital-1", "client", ""))
        if number:
            clock.add(Refused(f"{number:032x}", "hospital-1", "it was withdrawn"))
    text = made(clock.events)
    rows = table(text, "Requests and their states")
    assert len(rows) == 500
    assert rows[0][4].startswith("filed filed 18:00:00")
    assert all(row[4].startswith("refused") for row in rows[1:])
    assert "Requests on this page: 500 of 600; the register has them all." in section(text, "requests")


def test_what_is_taken_together_keeps_its_extremes() -> None:
    """2,000 rounds, five to a dot: bars from the least to the most, dots at the mean."""
    clock = story.Clock()
    for number in range(2000):
        clock.add(story.done("train", number, None, float(number % 5), story.HOSPITALS[: 1 + number % 3]))
    above, below = quality(standing(clock.events)).figure.axes
    bars, dots = above.lines[:2]
    assert list(bars.get_ydata())[:2] == [0.0, 4.0]
    assert list(dots.get_ydata()) == [2.0] * 400
    assert list(dots.get_xdata())[:2] == [3.0, 8.0]  # rounds 1 to 5, 6 to 10
    asked, took = (patch.get_data().values for patch in below.patches)  # type: ignore[attr-defined]
    assert set(asked) == {3}
    assert set(took) == {1}


@dataclass(frozen=True)
class Served:
    """A register in its folder, and its page on a port."""

    folder: Path
    key: SigningKey
    process: subprocess.Popen[str]
    address: str

    def ask(self, path: str = "/", method: str = "GET", **headers: str) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection(self.address, timeout=30)
        connection.request(method, path, headers=headers)
        return connection.getresponse()


@pytest.fixture(scope="module")
def register(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SigningKey]:
    """A real one, with the story in it as far as its events need no node's key."""
    folder = tmp_path_factory.mktemp("served")
    key = SigningKey.make(folder / "server.key")
    about = {"seed": 0}
    with Register.create(folder / "register", key, Opened({}, key.public.text, about)) as made:
        made.append(*(event for _, event in story.told() if isinstance(event, RoundDone) and event.phase == "train"))
    return folder / "register", key


def test_the_page_of_a_folder(
    register: tuple[Path, SigningKey], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder, _ = register
    page(folder)
    page(folder, tmp_path / "other.html")
    assert capsys.readouterr().out.splitlines() == [
        f"page: {folder / 'register.html'}",
        f"page: {tmp_path / 'other.html'}",
    ]
    head = Register.read(folder).head
    text = (tmp_path / "other.html").read_text(encoding="utf-8")
    assert (folder / "register.html").read_text(encoding="utf-8") == text
    assert f"{head.register} Events {head.count} Last hash {head.hash} Key in force {head.key}" in section(
        text, "register"
    )
    with pytest.raises(ValueError, match="--serve writes no file"):
        page(folder, tmp_path / "other.html", serve=True)
    with pytest.raises(RegisterError):
        page(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


@pytest.fixture(scope="module")
def served(register: tuple[Path, SigningKey]) -> Iterator[Served]:
    folder, key = register
    code = "import sys, pathlib; from fedunlearn.commands.register_page import page; "
    command = [sys.executable, "-c", f"{code} page(pathlib.Path(sys.argv[1]), serve=True)", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ)
    try:
        assert process.stdout is not None
        told = process.stdout.readline()
        (address,) = re.findall(r"http://(127\.0\.0\.1:\d+)/", told)
        yield Served(folder, key, process, address)
    finally:
        process.kill()
        process.communicate()


def test_the_served_page_is_always_new_and_kept_nowhere(served: Served) -> None:
    answer = served.ask()
    first = answer.read().decode()
    assert answer.status == 200
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["Refresh"] == "10"
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'; style-src 'unsafe-inline';")
    assert "script-src" not in answer.headers["Content-Security-Policy"]
    assert "Faults and waits There was none." in section(first, "troubles")
    with Register.open(served.folder, served.key) as written:
        written.append(Fault("hospital-1", "late", "it came too late", "train", 6))
        again = served.ask().read().decode()  # while a server holds the register
    assert [row[1:] for row in table(again, "Faults and waits, one by one")] == [
        ["late", "hospital-1", "training round 7", "it came too late"]
    ]


def test_nothing_else_is_served(served: Served) -> None:
    assert served.ask("/register.sqlite").status == 404
    assert served.ask("/../server.key").status == 404
    assert served.ask("/?x").status == 404
    assert served.ask(method="POST").status == 501
    assert served.ask(Host="elsewhere.example").status == 421
    assert served.ask(Host=served.address.replace("127.0.0.1", "localhost")).status == 200


def test_a_reader_who_says_nothing_keeps_nobody_waiting(served: Served) -> None:
    silent = http.client.HTTPConnection(served.address)
    silent.connect()
    assert served.ask().status == 200
    silent.close()


@needs_browser
def test_a_browser_shows_what_is_served(browser: Browser, served: Served) -> None:
    context = browser.new_context()
    try:
        tab = context.new_page()
        found: list[str] = []
        tab.on("console", lambda message: found.append(message.text))
        tab.on("request", lambda request: found.append(request.url))
        tab.goto(f"http://{served.address}/")
        assert "training round 6" in tab.locator(".lead").inner_text()
        assert set(found) <= {f"http://{served.address}/", "data:,"}
        assert tab.evaluate("getComputedStyle(document.querySelector('.track, .facts')).display") == "grid"
    finally:
        context.close()


def test_a_register_that_is_damaged_meanwhile_is_said_and_mended_at_the_next_reload(served: Served) -> None:
    file = served.folder / "register.sqlite"
    hidden = file.rename(file.with_name("elsewhere"))
    try:
        answer = served.ask()
        assert answer.status == 503
        assert answer.headers["Refresh"] == "10"
        assert b"Traceback" not in answer.read()
    finally:
        hidden.rename(file)
    assert served.ask().status == 200


def test_ctrl_c_ends_it(served: Served) -> None:
    """The last test of the server."""
    served.process.send_signal(signal.SIGINT)
    out, err = served.process.communicate(timeout=30)
    assert served.process.returncode == 0
    assert err == ""
    assert out.strip() == ""
