"""The document of results says what the files of results say."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from fedunlearn.report.reproduction import Reproduction, read_reproduction
from fedunlearn.report.shape import Pair, Shape
from fedunlearn.report.tables import beside_as_markdown

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """The script that draws them, which is no module of the package."""
    spec = importlib.util.spec_from_file_location("draw_results", DOCS / "draw_results.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


DOCUMENTS = ["results.md", "audits.md", "theory.md", "performance.md", "scale.md", "flower-costs.md", "../README.md"]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_the_committed_results_are_what_their_files_say(script: ModuleType, document: str) -> None:
    text = (DOCS / document).read_text(encoding="utf-8")
    assert script.redrawn(text, script.PLACES[document]()) == text


def test_each_document_with_places_is_looked_at(script: ModuleType) -> None:
    assert sorted(DOCUMENTS) == sorted(script.PLACES)


@pytest.fixture
def reproduction(tmp_path: Path) -> Reproduction:
    pairs = (Pair("NoT", None, None, None, None, None),)
    shape = Shape(
        experiment="cpu/table-9",
        title="None",
        published="table-9",
        artefact="Table 9: none",
        paper="a, b",
        ours="c, d",
        pairs=pairs,
        before=1.0,
        fine_tuning=None,
        attack=None,
        seeds=(0,),
        missing=(),
        failures=(),
        seconds=1.0,
        session={},
    )
    found = Reproduction("table-9", "cpu", "fedunlearn reproduce table-9", (shape,))
    found.write(tmp_path / "table-9.json")
    return found


def found(folder: Path) -> dict[str, str]:
    return {path.stem: beside_as_markdown(read_reproduction(path)) for path in folder.glob("*.json")}


PLACE = "# Results\n\n<!-- found: table-9 -->{}<!-- end: table-9 -->\n\nMore.\n"


@pytest.mark.parametrize("there", ["", "\n\nold | numbers\n\n"])
def test_a_place_is_filled_and_nothing_else_is_changed(
    script: ModuleType, reproduction: Reproduction, tmp_path: Path, there: str
) -> None:
    drawn = script.redrawn(PLACE.format(there), found(tmp_path))
    assert drawn == PLACE.format(f"\n\n{beside_as_markdown(reproduction)}\n")
    assert script.redrawn(drawn, found(tmp_path)) == drawn


@pytest.mark.parametrize(
    "text",
    [
        "# Results\n",
        PLACE.format("") + "<!-- found: table-8 --><!-- end: table-8 -->",
        PLACE.format("") * 2,
        PLACE.format("").replace("<!-- end: table-9 -->", ""),
    ],
)
def test_a_file_without_its_place_is_not_passed_over(
    script: ModuleType, reproduction: Reproduction, tmp_path: Path, text: str
) -> None:
    with pytest.raises(ValueError, match=r"table-[89]"):
        script.redrawn(text, found(tmp_path))
