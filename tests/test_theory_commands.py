"""`fedunlearn theory`: seven diagnoses of a network or a run; what is printed, kept and shown, and what is refused."""

from __future__ import annotations

import html
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from torch import nn

from diagnosed import quick
from diagnosed import tell as tell_any
from fedunlearn.diagnoses import DIAGNOSES
from fedunlearn.findings import Found, read_found
from fedunlearn.report.theory.page import SECTIONS, section_of

SEVEN = ("poset", "optimality", "cka", "coadaptation", "jacobian", "spectrum", "bound")
TINY_SHAPE = ("--shape", "1,8,8")


def branched() -> nn.Module:
    """A network of a user's own, which takes no arguments."""
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 36, 5))


def tell(*arguments: object) -> tuple[int, str, str]:
    return tell_any("theory", *arguments)


@pytest.fixture(scope="module", autouse=True)
def _quick() -> Iterator[None]:
    with quick():
        yield


@pytest.fixture(scope="module")
def untouched(kept: Path) -> Path:
    return kept


@pytest.fixture(scope="module")
def told(untouched: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, str]]:
    """What each command printed of a run, on standard output and error."""
    folder = Path(shutil.copytree(untouched, tmp_path_factory.mktemp("told") / "run"))
    said = {}
    with pytest.MonkeyPatch.context() as patch:  # drawing takes seconds: all is drawn with the last
        patch.setattr("fedunlearn.report.theory.page.publish_found", _undrawn)
        patch.setattr("fedunlearn.report.page.publish", lambda *_: None)
        for name in SEVEN[:-1]:
            said[name] = _told(name, folder)
    said[SEVEN[-1]] = _told(SEVEN[-1], folder)
    return said | {"folder": (str(folder), "")}


def _told(*arguments: object) -> tuple[str, str]:
    code, out, err = tell(*arguments)
    assert code == 0, err
    return out, err


def _undrawn(found: Found[Any], folder: Path) -> Path:
    found.write(folder)
    return folder / "theory.html"


@pytest.fixture(scope="module")
def folder(told: dict[str, tuple[str, str]]) -> Path:
    return Path(told["folder"][0])


def words(text: str) -> str:
    return re.sub(r"\s+", " ", text)


@pytest.mark.parametrize("name", SEVEN)
def test_what_a_command_finds_is_printed_and_kept(told: dict[str, tuple[str, str]], folder: Path, name: str) -> None:
    out, err = told[name]
    found = read_found(folder / "theory" / f"{name}.json", SECTIONS[name][0])
    assert found.command == f"fedunlearn theory {name} {folder}"
    assert found.about == "One of four leaves"
    assert found.seeds == (() if name == "poset" else (3, 4))
    section = section_of(found)
    assert out.startswith(section.title)
    assert out.endswith(f"theory: {folder / 'theory.html'}\n")
    for sentence in section.says:
        assert words(sentence) in words(out)
    for row in section.rows:
        assert row[0] in words(out)
    if name != "poset":
        assert err.splitlines() == [f"seed 3, {name}", f"seed 4, {name}"]


def test_the_seven_are_all_that_there_are() -> None:
    assert [name for name in SECTIONS if name != "advice"] == list(SEVEN)  # which has a command of its own
    assert set(DIAGNOSES) == {*SEVEN, "advice"} - {"poset"}
    code, out, _ = tell("--help")
    assert code == 0
    assert re.findall(r"^  (\w+) +[A-Z]", out, re.MULTILINE) == list(SEVEN)


def test_pictures_are_kept_as_svg_and_pdf(folder: Path) -> None:
    names = {picture.name for one in SEVEN for picture in section_of(_found(folder, one)).pictures}
    assert {path.stem for path in (folder / "theory").glob("*.svg")} == names
    assert {path.stem for path in (folder / "theory").glob("*.pdf")} == names
    for path in (folder / "theory").glob("*.svg"):
        ElementTree.fromstring(path.read_bytes())


def test_the_runs_page_and_the_theorys_link_to_each_other(folder: Path) -> None:
    assert '<a href="theory.html">What the theory says of this run</a>' in (folder / "report.html").read_text()
    assert '<a href="report.html">The report of this run</a>' in (folder / "theory.html").read_text()


def test_a_wide_table_is_broken_where_the_terminal_ends(told: dict[str, tuple[str, str]]) -> None:
    out, _ = told["cka"]
    assert max(map(len, out.splitlines())) <= 160
    from fedunlearn import console

    assert list(console._fitting([10, 20, 30, 5, 60], 65)) == [[0, 1, 2], [0, 3], [0, 4]]
    assert list(console._fitting([10, 20, 30], 64)) == [[0, 1, 2]]
    assert list(console._fitting([10, 20, 30], 63)) == [[0, 1], [0, 2]]
    assert list(console._fitting([50, 60], 61)) == [[0, 1]]  # nothing helps: it is folded


def test_json_is_all_that_is_printed(folder: Path) -> None:
    """Without the seeds that are known being looked at again."""
    known = DIAGNOSES["coadaptation"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedunlearn.report.theory.page.publish_found", _undrawn)
        patch.setattr("fedunlearn.report.page.publish", lambda *_: pytest.fail("the report has its link already"))
        patch.setitem(DIAGNOSES, "coadaptation", replace(known, of=lambda _: pytest.fail("it was looked at again")))  # type: ignore[arg-type]
        out, _ = _told("coadaptation", folder, "--json")
    content = json.loads(out)
    assert content["folder"] == str(folder)
    assert content["seeds"] == [3, 4]
    assert len(content["results"]) == 2
    kept = json.loads((folder / "theory" / "coadaptation.json").read_text())
    assert {name: value for name, value in content.items() if name != "folder"} == kept


def _found(folder: Path, name: str) -> Any:
    return read_found(folder / "theory" / f"{name}.json", SECTIONS[name][0])


def test_a_layer_and_a_seed_can_be_named(untouched: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(untouched, tmp_path / "run"))
    code, out, err = tell("optimality", run, "--layer", "conv2", "--seed", 4, "--output", tmp_path / "else", "--json")
    assert code == 0, err
    content = json.loads(out)
    assert content["seeds"] == [4]
    assert list(content["results"][0]["norms"]) == ["conv2.weight"]
    assert (tmp_path / "else" / "theory.html").exists()
    assert not (run / "theory.html").exists()


def test_the_poset_of_a_run_has_the_layers_that_its_method_negates(untouched: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(untouched, tmp_path / "run"))
    path = run / "experiment.toml"
    path.write_text(path.read_text().replace('kind = "NoT",', 'kind = "NoT", layers = "conv2",'))
    code, out, err = tell("poset", run, "-o", tmp_path / "else", "--json")
    assert code == 0, err
    assert json.loads(out)["results"][0]["verdicts"][0]["layers"] == ["conv2"]
    code, out, err = tell("poset", run, "-o", tmp_path / "else", "--layer", "conv1", "--json")
    assert json.loads(out)["results"][0]["verdicts"][0]["layers"] == ["conv1"]


@pytest.mark.parametrize("name", ["poset", "optimality"])
@pytest.mark.parametrize(
    ("model", "first", "place"),
    [
        ("layernorm-cnn", "conv1", "theory/layernorm-cnn"),
        ("test_theory_commands:branched", "0", "theory/test_theory_commands.branched"),
    ],
)
def test_a_network_alone(
    name: str, model: str, first: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = tell(name, model, *TINY_SHAPE)
    assert (code, err) == (0, "")
    assert out.endswith(f"theory: {place}/theory.html\n")
    found = _found(Path(place), name)
    assert (found.about, found.seeds) == (model, ())
    (result,) = found.results
    layers = result.verdicts[0].layers if name == "poset" else tuple(one.layer for one in result.conditions.layers)
    assert layers == (first,)
    page = (Path(place) / "theory.html").read_text()
    assert f"<h1>{model}</h1>" in page
    assert "report.html" not in page
    assert "Mean over" not in page
    assert not (Path(place) / "report.html").exists()
    code, out, _ = tell(name, model, *TINY_SHAPE, "--json", "-o", "own")
    assert code == 0
    assert json.loads(out)["folder"] == "own"
    assert Path("own/theory.html").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["poset", "layernorm-cmm"], "layernorm-cmm"),
        (["poset", "layernorm-cnn", "--shape", "3,x"], "--shape 3,x: write the sizes of one input, such as 3,32,32"),
        (["poset", "."], "no run's folder"),
        (["poset", "layernorm-cnn", "--layer", "nothing", *TINY_SHAPE], "nothing"),
        (["optimality", "layernorm-cnn", "--layer", "nothing", *TINY_SHAPE], "nothing"),
        (["optimality", "test_theory_commands:nothing"], "nothing"),
        (["optimality", "RUN", "--seed", "9"], "has no seed 9: take one of 3, 4"),
        (["cka", "."], "no run's folder"),
        (["jacobian", "RUN", "--layer", "nothing"], "nothing"),
        (["bound", "nowhere"], "nowhere is no run's folder"),
    ],
)
def test_a_mistake_is_one_sentence(
    arguments: list[str], says: str, untouched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = tell(*(str(untouched) if one == "RUN" else one for one in arguments))
    assert (code, out) == (2, "")
    assert says in err
    assert err.startswith("fedunlearn: ")
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())
    assert not (untouched / "theory").exists()


def test_a_broken_file_of_another_diagnosis_is_named(untouched: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(untouched, tmp_path / "run"))
    (run / "theory").mkdir()
    (run / "theory" / "cka.json").write_text("{}")
    code, _, err = tell("poset", run)
    assert code == 2
    assert f"{run / 'theory' / 'cka.json'} is no diagnosis of this version: remove it, to have it anew" in err


def test_every_number_stands_on_the_page(folder: Path) -> None:
    page = html.unescape((folder / "theory.html").read_text())
    for name in SEVEN:
        section = section_of(_found(folder, name))
        (there,) = re.findall(rf'<section aria-labelledby="{name}">(.*?)</section>', page, re.DOTALL)
        assert ("Mean over seeds 3, 4." in there) == (name != "poset")
        assert all(sentence in there for sentence in section.says)
        for row in section.rows:
            assert all(f">{cell}<" in there for cell in row)
        assert there.count("<figure>") == len(section.pictures)
