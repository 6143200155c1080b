"""An audit's page: every number of an audit made by hand stands where it belongs, for eyes and screen readers."""

from __future__ import annotations

import html
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from looking import LOOKS, barriers, complaints, hang_together, needs_browser
from markupsafe import escape
from playwright.sync_api import Browser

from fedunlearn.amounts import tell_p
from fedunlearn.atomic import read_json
from fedunlearn.auditing import Audit
from fedunlearn.console import print_audit
from fedunlearn.evaluation.rows import ORIGINAL
from fedunlearn.evaluation.table import REFERENCE
from fedunlearn.examination import AGAIN
from fedunlearn.report import audit_figures as figures
from fedunlearn.report.audit import audit_page, publish_audit
from fedunlearn.report.audit_numbers import Soon, relearnt
from fedunlearn.report.figures import looks
from fedunlearn.verdict import conclusion, summary, verdicts
from handmade import AUDIT, HOSTILE, KNOWN, facts

DASH = "\N{EN DASH}"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawing takes seconds: once for all tests."""
    return publish_audit(AUDIT, tmp_path_factory.mktemp("audited"))


@pytest.fixture(scope="module")
def text(written: Path) -> str:
    return written.read_text(encoding="utf-8")


def words(markup: str) -> str:
    """What is read of it; figures have their own words."""
    without = re.sub(r"<svg.*?</svg>", "", markup, flags=re.DOTALL)
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", without))).strip()


def table(text: str, label: str) -> dict[str, list[str]]:
    """The cells of a table's rows, by the row's heading."""
    (found,) = re.findall(rf'aria-label="{label}".*?<tbody>(.*?)</tbody>', text, re.DOTALL)
    rows = [re.findall(r"<t[hd]\b.*?</t[hd]>", row, re.DOTALL) for row in found.split("</tr>")]
    return {words(row[0]): list(map(words, row[1:])) for row in rows if row}


def section(text: str, name: str) -> str:
    (found,) = re.findall(rf'<section aria-labelledby="{name}">(.*?)</section>', text, re.DOTALL)
    return words(found)


@needs_browser
@pytest.mark.parametrize(("width", "scheme"), LOOKS)
def test_a_browser_has_nothing_to_complain_of(browser: Browser, written: Path, width: int, scheme: str) -> None:
    assert complaints(browser, written, width, scheme) == []
    assert barriers(browser, written, width, scheme) == []


def test_the_page_is_one_file_that_hangs_together(text: str) -> None:
    hang_together(text, outside={"report.html"})
    assert HOSTILE not in text
    assert html.escape(HOSTILE) in text
    assert "&lt;script&gt;alert(" in text


def test_the_conclusion_leads_and_each_method_has_its_verdict(text: str) -> None:
    assert [one.status for one in verdicts(AUDIT)] == ["not found", "found"]
    assert f'<p class="lead verdict">{escape(conclusion(AUDIT))}</p>' in text
    said = section(text, "verdicts")
    for one in verdicts(AUDIT):
        finding = one.finding[:1].upper() + one.finding[1:]
        p = f"adjusted for their number: {tell_p(one.p)}."
        assert f"{one.method} {one.status} {finding} What may be promised. {one.promise}" in said
        assert p in said
    unknown = section(audit_page(replace(AUDIT, shadows=8)), "verdicts")
    assert "NoT unknown 8 shadows are too few for a conclusion on the new model alone" in unknown


def test_the_numbers_of_an_attack(text: str) -> None:
    assert table(text, "Results of U-LiRA") == {
        "Retrain what is possible at all": [
            *("50.2 47.2 to 53.2", "54 34 to 54", "1.1 -0.9 to 3.1", f"{DASH} too few negatives"),
            *("48.7 38.7 to 58.7 p 0.620", "", "", ""),
        ],
        "Original before the request": [
            *("80.1 77.1 to 83.1", "95 75 to 95", "30.1 28.1 to 32.1", f"{DASH} too few negatives"),
            *("78.9 68.9 to 88.9 p <0.001", "", "", ""),
        ],
        "NoT": [
            *("51.3 48.3 to 54.3", "58 38 to 58", "1.3 -0.7 to 3.3", f"{DASH} too few negatives"),
            *("49.9 39.9 to 59.9 p 0.470", "+1.1 -3.9 to +6.1", "0.307", "0.271"),
        ],
        HOSTILE: [
            *("69.2 66.2 to 72.2", "92 72 to 92", "20.7 18.7 to 22.7", "10.1 8.1 to 12.1"),
            *("70.3 60.3 to 80.3 p 0.004", "+19.0 +14.0 to +24.0", "<0.001", "0.002"),
        ],
    }


def test_an_attack_that_could_not_be_tried_says_so(text: str) -> None:
    said = section(text, "attacks")
    assert "Results of LiRA on those who stay" not in text
    stay = said[said.index("LiRA on those who stay") :]
    assert stay.endswith("models of this run could be attacked like this.")
    assert said.count("could be attacked like this") == 1
    assert list(table(text, "Results of Before and after")) == ["Retrain what is possible at all", "NoT", HOSTILE]


def test_every_attacks_knowledge_is_told(text: str) -> None:
    said = section(text, "attacks")
    for one in AUDIT.attacks:
        assert f"{one.name} The attacker {one.knowledge}." in said


def test_relearning_by_hand() -> None:
    """The old model's loss is 0.1, so that 0.11 is low again: SLOW is there at step 8, SOON at 4, KNOWN at 0."""
    assert relearnt(AUDIT, lambda of: of.relearned) == {
        REFERENCE: Soon(6.0, 4, 4, 1.0, 0.5),
        ORIGINAL: Soon(0.0, 4, 4, 0.0, 0.5),
        "NoT": Soon(4.0, 4, 4, 4 / 6, 0.5),
        HOSTILE: Soon(0.0, 2, 4, None, 0.5),
        AGAIN: Soon(8.0, 4, 4, 8 / 6, 0.5),
    }
    twins = relearnt(AUDIT, lambda of: of.relearned_twins)
    assert twins[HOSTILE] == Soon(None, 0, 4, None, 0.5)
    assert twins[ORIGINAL] == Soon(4.0, 4, 4, 0.5, 0.5)


def test_a_retrained_model_that_needs_no_step_is_no_measure() -> None:
    first = AUDIT.examined[0]
    models = {**first.models, REFERENCE: facts(0.9, (KNOWN,), (KNOWN,))}
    found = relearnt(replace(AUDIT, examined=(replace(first, models=models),)), lambda of: of.relearned)
    assert found[REFERENCE].steps == 0
    assert {one.ratio for one in found.values()} == {None}


def test_relearning_in_the_table(text: str) -> None:
    found = table(text, "Relearning in numbers")
    assert found["NoT"] == ["4.0", "0.67", "50.0", "8.0", "1.00", "50.0"]
    partly = "0.0 of 2 in 4; the others not within 8 steps"
    assert found[HOSTILE] == [partly, DASH, "50.0", f"{DASH} not within 8 steps", DASH, "50.0"]
    assert "mean over 2 seeds and 2 repeats" in section(text, "relearning")


def test_distances_have_two_retrained_models_for_a_yardstick(text: str) -> None:
    found = table(text, "Distances to Retrain, and accuracies")
    assert list(found) == ["Retrain", "Original", "NoT", HOSTILE, "Retrain again the yardstick"]
    assert found["NoT"] == [
        *("25.0 20.0 to 30.0", "5.0 5.0 to 5.0", "12.5 12.5 to 12.5"),
        *("75.0 70.0 to 80.0", "65.0 60.0 to 70.0", "55.0 50.0 to 60.0"),
    ]


def test_one_seed_has_no_range() -> None:
    shown = audit_page(replace(AUDIT, examined=AUDIT.examined[:1]))
    found = table(shown, "Distances to Retrain, and accuracies")
    assert found["NoT"] == ["20.0", "5.0", "12.5", "80.0", "70.0", "60.0"]
    assert table(shown, "Accuracies with negations turned back")["NoT"][0] == "the old model, bit for bit"


def test_probes_layer_by_layer(text: str) -> None:
    rows = re.findall(r'aria-label="What probes find, layer by layer".*?<tbody>(.*?)</tbody>', text, re.DOTALL)
    told = words(rows[0])
    assert "conv<1> NoT 52.0 52.0 to 52.0 75.0 70.0 to 80.0 65.0 60.0 to 70.0" in told
    assert "head Retrain again 61.0 61.0 to 61.0 48.0 43.0 to 53.0 43.0 38.0 to 48.0" in told


def test_negations_turned_back(text: str) -> None:
    assert table(text, "Accuracies with negations turned back") == {
        "NoT": [
            "the old model, bit for bit, in 1 of 2 seeds",
            *("31.0 21.0 to 41.0 as it is: 75.0", "32.0 22.0 to 42.0 as it is: 65.0"),
            "33.0 23.0 to 43.0 as it is: 55.0",
        ]
    }


def test_without_negations_there_are_none_to_turn_back() -> None:
    models = [{m: replace(of, turned_back=None) for m, of in one.models.items()} for one in AUDIT.examined]
    seeds = tuple(replace(one, models=of) for one, of in zip(AUDIT.examined, models, strict=True))
    said = section(audit_page(replace(AUDIT, examined=seeds)), "turned-back")
    assert said == "Negations turned back No method of this run has negated a layer."


def test_forgetting_quality_or_why_there_is_none(text: str) -> None:
    assert "takes somewhat more than 128 shadows, and this audit has 32." in section(text, "quality")
    shown = audit_page(replace(AUDIT, quality={REFERENCE: 0.871, HOSTILE: 0.125}))
    assert table(shown, "Forgetting quality by method") == {REFERENCE: ["0.871"], HOSTILE: ["0.125"]}


def test_figures_tell_their_numbers() -> None:
    lira = AUDIT.attack("U-LiRA")
    assert "NoT 25.0% at 10.0% false positives, area 51.3%" in figures.receiver(AUDIT, lira).alt
    samples, clients = figures.intervals(AUDIT)
    assert "U-LiRA: Retrain 50.2% (47.2% to 53.2%), Original 80.1% (77.1% to 83.1%), NoT 51.3%" in samples.alt
    assert "Before and after: Retrain 100% (80% to 100%), NoT 96% (76% to 96%)" in clients.alt
    assert "noticed by U-LiRA, 54.2%." in samples.caption
    assert "noticed by an attack on the new model, 77%." in clients.caption
    assert "stay" not in samples.alt  # where there is nothing to draw
    scores = next(figures.histograms(AUDIT, lira))
    assert scores.alt == "Histogram of U-LiRA's scores, Retrain: median of members 0.25, of twins -0.25."
    slow = next(figures.relearning(AUDIT))
    assert slow.alt == (
        "Loss while Retrain learns again: forgotten 1 at first, 1 after 0 steps, 0.075 at last; "
        "twins 1 at first, 1 after 0 steps, 0.1 at last."
    )
    membership, accuracy = figures.probes(AUDIT)
    assert "NoT 52.0 in conv<1>, 61.0 in head" in membership.alt
    assert "NoT 10.0 in conv<1>, 5.0 in head" in accuracy.alt


def test_a_method_looks_alike_in_all_figures() -> None:
    drawn = looks(AUDIT.methods)
    assert drawn[REFERENCE].colour == "ink"
    assert drawn["NoT"].colour == "c1"
    assert drawn[ORIGINAL].colour == "faint"
    assert len({(one.colour, one.marker, str(one.dash)) for one in drawn.values()}) == len(drawn)
    (axes,) = figures.receiver(AUDIT, AUDIT.attack("U-LiRA")).figure.axes
    markers = [drawn[method].marker for method in (REFERENCE, ORIGINAL, "NoT", HOSTILE)]
    assert [line.get_marker() for line in axes.lines[1:]] == markers


def test_everything_is_written_beside_the_page(written: Path) -> None:
    folder = written.parent
    assert written == folder / "audit.html"
    assert Audit.read(folder / "audit.json") == AUDIT
    assert read_json(folder / "audit.json")["summary"]["verdicts"] == summary(AUDIT)["verdicts"]
    drawn = {path.name for path in (folder / "audit-figures").iterdir()}
    models = ("0-Retrain", "1-Original", "2-NoT", "3-b-x-b-of-every-layer-of-every-layer-of")
    names = ["intervals-samples", "intervals-clients", "roc-U-LiRA", "roc-Before-and-after"]
    names += [f"{kind}-{model}" for kind in ("scores", "relearning") for model in models]
    names += ["probes-membership", "probes-accuracy"]
    assert drawn == {f"{name}.{kind}" for name in names for kind in ("svg", "pdf")}
    for path in (folder / "audit-figures").glob("*.svg"):
        ElementTree.fromstring(path.read_bytes())


def test_what_is_printed_fits_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    print_audit(AUDIT)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    printed = [re.sub(r" +", " ", line).strip().replace(DASH, "-") for line in lines]
    assert "Retrain 50.2 (47.2-53.2) 54 (34-54)" in printed
    assert "NoT 51.3 (48.3-54.3) 0.307 58 (38-58) 0.271" in printed
    assert "LiRA on those who stay: no model could be attacked like this" in printed
    said = " ".join(printed)
    assert "NoT: not found None of 3 attacks told the data from others like them significantly" in said
    assert said.endswith(conclusion(AUDIT).rpartition(". ")[2])


@pytest.mark.parametrize(
    ("p", "told"), [(1.0, "1.000"), (0.05, "0.050"), (0.0014, "0.001"), (0.001, "0.001"), (0.0009, "<0.001")]
)
def test_a_p_value_is_never_told_as_nothing(p: float, told: str) -> None:
    assert tell_p(p) == told
