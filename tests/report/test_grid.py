"""What a diagnosis finds beside what the paper prints of it: every number by hand, in JSON, text, terminal and page."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from looking import LOOKS, barriers, complaints, hang_together, needs_browser
from playwright.sync_api import Browser
from test_shape import GAPS, RESNET, fabricated

from fedunlearn.console import print_reproduction
from fedunlearn.diagnoses import Bounds, Similarities, Spectra
from fedunlearn.evaluation.published import finding
from fedunlearn.findings import Found
from fedunlearn.report.beside import pictures_of
from fedunlearn.report.found import grid_of
from fedunlearn.report.grid import Entry, Grid
from fedunlearn.report.page import publish_reproduction, reproduction_page
from fedunlearn.report.report import Report
from fedunlearn.report.reproduction import Reproduction, read_reproduction
from fedunlearn.report.shape import Shape, shape_of
from fedunlearn.report.tables import BESIDE, beside, beside_as_markdown, how_to_read
from fedunlearn.theory.activations import Similarity
from fedunlearn.theory.bound import Bound
from fedunlearn.theory.gradient_spectrum import Band, GradientSpectrum
from handmade import HOSTILE

PLACES = ("conv1", "relu1", "pool1", "norm1", "conv2", "relu2", "pool2", "norm2", "head")
METHODS = {"FT": (9.0, 9.0), "NoT": (4.0, 1.0)}


def report(**said: Any) -> Report:
    return fabricated("table-3/cifar-10/cnn", METHODS, **said)


def bound(printed: float, corrected: float) -> Bound:
    return Bound((), 0.1, 0.5, 0.0, 1.0, 2.0, 0.4, 0.2, 0.2, 0.1, 0.1, 0.1, printed, corrected, 0.05, 1.0, 1.0)


def found_bounds(name: str = "NoT") -> Found[Bounds]:
    """At seed 1 NoT's gap was not closed, and its corrected bound is 0."""
    first = Bounds({"FT": bound(8.0, 6.0), name: bound(2.0, 1.0)}, {"FT": 40.0, name: 10.0}, 100.0)
    second = Bounds({"FT": bound(6.0, 4.0), name: bound(1.0, 0.0)}, {"FT": 20.0, name: None}, 100.0)
    return Found("bound", "Made up", "", (0, 1), (first, second))


def alike(value: float, places: tuple[str, ...] = PLACES) -> dict[str, Similarity]:
    return {place: Similarity(0.9, value - 0.01 * at, 64) for at, place in enumerate(places)}


def found_similarities(places: tuple[str, ...] = PLACES) -> Found[Similarities]:
    """At seed 1 the last position of NoT's first model is not defined."""
    labels = {"Retrain, first": 0.5, "NoT, first": 0.7, "PUF, first": 0.6, "FT, last": 0.9}
    first = Similarities({label: alike(value, places) for label, value in labels.items()})
    second = Similarities({label: alike(value + 0.1, places) for label, value in labels.items()})
    second.models["NoT, first"][places[-1]] = Similarity(math.nan, math.nan, 64)  # type: ignore[index]
    return Found("cka", "Made up", "", (0, 1), (first, second))


def spectrum(reaches: Mapping[float, float]) -> GradientSpectrum:
    """Whose curve comes to a share of the variance at a share of the dimensions, straight between."""
    curve = {0.0: 0.0, **reaches, 1.0: 1.0}
    shares = tuple(curve)
    band = Band(shares, shares, shares)
    alpha = tuple(curve.values())
    return GradientSpectrum(("w",), 9, 64, 64, 60, 2, alpha, band, band, 0.1, 0.1, shares, 0.1, ())


def found_spectra() -> Found[Spectra]:
    retrain = spectrum({0.95: 0.4, 0.99: 0.5, 0.999: 0.8})
    one, other = (
        {"Retrain": retrain, "FT": retrain, "NoT": spectrum(at)}
        for at in (
            {0.95: 0.2, 0.99: 0.4, 0.999: 0.6},
            {0.95: 0.3, 0.99: 0.4, 0.999: 0.4},
        )
    )
    return Found("spectrum", "Made up", "", (0, 1), (Spectra(one), Spectra(other)))


def entry(grid: Grid, label: str, column: str) -> Entry:
    row = next(row for row in grid.rows if row.label == label)
    return row.entries[grid.columns.index(column)]


@pytest.fixture(scope="module")
def table_3() -> Grid:
    return grid_of(report(), "cpu/table-3-cnn", "table-3/cifar-10/cnn", found_bounds())


@pytest.fixture(scope="module")
def figure_3() -> Grid:
    return grid_of(report(), "cpu/table-3-cnn", "figure-3/cifar-10/cnn", found_similarities())


def test_table_3_by_hand(table_3: Grid) -> None:
    assert table_3.heading == "table-3-cnn: digits, tiny (scale cpu), beside the paper's cifar-10, cnn"
    assert table_3.artefact == "Table 3: Estimated lower bound on unlearning time"
    assert table_3.columns == ("t", "FLOPs", "t, corrected", "t, measured")
    assert [row.label for row in table_3.rows] == ["FT", "NoT", "FT / NoT"]
    assert entry(table_3, "FT", "t") == Entry(2.46, (8.0, 6.0))
    assert entry(table_3, "NoT", "FLOPs") == Entry(2.33e12, (200.0, 100.0))
    assert entry(table_3, "FT", "t, corrected") == Entry(None, (6.0, 4.0))
    assert entry(table_3, "NoT", "t, measured") == Entry(None, (10.0, None))


def test_the_ratio_is_of_each_seed_and_the_papers_follows_from_its_numbers(table_3: Grid) -> None:
    ratio = entry(table_3, "FT / NoT", "t")
    assert ratio.published == pytest.approx(2.46 / 0.04)
    assert ratio.ours == (4.0, 6.0)
    assert (ratio.mean, ratio.sd) == (5.0, pytest.approx(2**0.5))
    assert entry(table_3, "FT / NoT", "FLOPs").published == pytest.approx(1.51e14 / 2.33e12)
    assert entry(table_3, "FT / NoT", "FLOPs").ours == (4.0, 6.0)
    # Where NoT's bound is 0, or it was not unlearned, there is no ratio.
    assert entry(table_3, "FT / NoT", "t, corrected").ours == (6.0, None)
    assert entry(table_3, "FT / NoT", "t, measured").ours == (4.0, None)


def test_what_is_not_defined_has_no_part_in_the_mean() -> None:
    assert (Entry(None, (None, None)).mean, Entry(None, (None, None)).sd) == (None, None)
    assert (Entry(None, (4.0, None)).mean, Entry(None, (4.0, None)).sd) == (4.0, None)
    assert (Entry(None, (4.0, 6.0, None)).mean, Entry(None, (4.0, 6.0, None)).sd) == (5.0, pytest.approx(2**0.5))


def test_a_method_of_another_name_stands_where_the_experiment_says() -> None:
    own = report(series={"NoT": "NoT(layers=conv1)"})
    grid = grid_of(own, "cpu/x", "table-3/cifar-10/cnn", found_bounds("NoT(layers=conv1)"))
    assert entry(grid, "NoT", "t") == Entry(0.04, (2.0, 1.0))


def test_a_method_that_is_not_there_is_one_sentence() -> None:
    with pytest.raises(ValueError, match="has no NoT that came to its end, which the paper's numbers are of: run it"):
        grid_of(report(), "cpu/x", "table-3/cifar-10/cnn", found_bounds("PUF"))


def test_figure_3_by_hand(figure_3: Grid) -> None:
    printed = finding("figure-3/cifar-10/cnn")
    assert figure_3.columns == printed.columns
    # The paper's that we have, in its order; then ours.
    assert [row.label for row in figure_3.rows] == ["Retrain, first", "NoT, first", "FT, last", "PUF, first"]
    assert entry(figure_3, "NoT, first", "l1.conv") == Entry(1.0, (0.7, pytest.approx(0.8)))
    assert entry(figure_3, "NoT, first", "head").published == 0.27
    assert entry(figure_3, "NoT, first", "head").ours == (pytest.approx(0.62), None)
    assert entry(figure_3, "PUF, first", "l2.conv").published is None
    assert entry(figure_3, "PUF, first", "l2.conv").mean == pytest.approx(0.61)


def test_positions_of_another_network_have_nothing_beside_them() -> None:
    places = (*PLACES[:-1], "conv3", "head")
    grid = grid_of(report(), "cpu/x", "figure-3/cifar-10/cnn", found_similarities(places))
    assert grid.columns == places
    assert all(one.published is None for row in grid.rows for one in row.entries)
    assert {len(row) for row in beside(grid)[1]} == {len(beside(grid)[0])} == {1 + len(places)}


def test_figure_7_is_normalised_by_a_random_network() -> None:
    grid = grid_of(report(), "cpu/table-3-resnet", "figure-7/cifar-10/resnet-18", found_similarities())
    assert grid.columns == PLACES
    normalised = [f"{label}, normalised" for label in ("NoT, first", "PUF, first", "FT, last")]
    assert [row.label for row in grid.rows] == ["Retrain, first", "NoT, first", "PUF, first", "FT, last", *normalised]
    # (0.7 - 0.5) / (1 - 0.5), and (0.8 - 0.6) / (1 - 0.6)
    assert entry(grid, "NoT, first, normalised", "conv1").ours == pytest.approx((0.4, 0.5))
    assert entry(grid, "NoT, first, normalised", "head").ours[1] is None
    assert all(one.published is None for row in grid.rows for one in row.entries)


def test_figure_8_by_hand() -> None:
    grid = grid_of(report(), "cpu/table-3-cnn", "figure-8/cifar-10/cnn", found_spectra())
    (column,) = grid.columns
    assert [row.label for row in grid.rows] == ["at 100 %", "at 99 %", "at 95 %"]
    whole = entry(grid, "at 100 %", column)
    assert whole.published == (0.7, 0.8)
    assert whole.ours == pytest.approx((0.6 / 0.8, 0.4 / 0.8), abs=0.02)
    assert entry(grid, "at 99 %", column).published is None
    assert entry(grid, "at 99 %", column).ours == pytest.approx((0.8, 0.8), abs=0.02)
    assert entry(grid, "at 95 %", column).ours == pytest.approx((0.5, 0.75), abs=0.02)
    heads, rows = beside(grid)
    assert heads == [("Variance", ""), (column, "paper"), (column, "ours")]
    assert rows[0][1] == "0.7 to 0.8"
    assert rows[1][1] == ""
    assert pictures_of(grid) == []


def test_the_table_of_both(table_3: Grid) -> None:
    heads, rows = beside(table_3)
    assert heads == [
        *(("Method", ""), ("t", "paper"), ("t", "ours"), ("FLOPs", "paper"), ("FLOPs", "ours")),
        *(("t, corrected", "ours"), ("t, measured", "ours")),
    ]
    assert rows == [
        ["FT", "2.46", "7.00 ± 1.41", "1.51e+14", "700 ± 141", "5.00 ± 1.41", "30.0 ± 14.1"],
        ["NoT", "0.04", "1.50 ± 0.71", "2.33e+12", "150 ± 71", "0.500 ± 0.707", "10.0"],
        ["FT / NoT", "61.5", "5.00 ± 1.41", "64.8", "5.00 ± 1.41", "6.00", "4.00"],
    ]
    never = replace(found_bounds(), results=(replace(found_bounds().results[0], measured={"FT": None, "NoT": None}),))
    lost = grid_of(report(), "cpu/x", "table-3/cifar-10/cnn", replace(never, seeds=(0,)))
    assert [row[-1] for row in beside(lost)[1]] == ["not defined"] * 3


def test_curves_are_drawn_of_both_and_told_in_words(figure_3: Grid) -> None:
    paper, here = pictures_of(figure_3)
    assert (paper.name, here.name) == ("cpu-table-3-cnn-paper", "cpu-table-3-cnn-here")
    assert "NoT, first 1.00, 0.89, 0.92, 0.94, 0.85, 0.69, 0.70, 0.70, 0.27" in paper.alt
    assert "PUF, first" not in paper.alt
    assert "NoT, first 0.75, 0.74" in here.alt
    assert "mean over 2 seeds" in here.caption
    assert paper.figure.axes[0].get_ylim() == here.figure.axes[0].get_ylim()


def test_a_figure_of_which_nothing_was_read_is_drawn_of_ours_alone() -> None:
    grid = grid_of(report(), "cpu/table-3-resnet", "figure-7/cifar-10/resnet-18", found_similarities())
    assert [picture.name for picture in pictures_of(grid)] == ["cpu-table-3-resnet-here"]


def test_columns_of_unlike_numbers_are_no_curve(table_3: Grid) -> None:
    assert pictures_of(table_3) == []


def test_what_came_of_it_is_what_the_diagnosis_says(table_3: Grid) -> None:
    said = list(replace(table_3, missing=(7,), failures=("PUF is left out",)).sentences())
    assert said[0].startswith("The time of FT is that of NoT ")
    assert said[-2:] == ["PUF is left out", "Not complete yet, and not counted: seed 7."]
    assert list(table_3.doubts()) == []


@pytest.fixture(scope="module")
def shape() -> Shape:
    return shape_of(fabricated(RESNET, GAPS), "cpu/table-1-resnet")


@pytest.fixture(scope="module")
def mixed(table_3: Grid, figure_3: Grid, shape: Shape) -> Reproduction:
    """Both kinds of blocks, which no artefact has, and text that a page must survive."""
    hostile = replace(figure_3, experiment="cpu/figure-3-own", title=HOSTILE, says=(HOSTILE,))
    figure_8 = grid_of(report(), "cpu/figure-8-cnn", "figure-8/cifar-10/cnn", found_spectra())
    return Reproduction("table-3", "cpu", f"fedunlearn {HOSTILE}", (table_3, hostile, figure_8, shape))


def test_json_there_and_back(mixed: Reproduction, tmp_path: Path) -> None:
    mixed.write(tmp_path / "table-3.json")
    again = read_reproduction(tmp_path / "table-3.json")
    assert again == mixed
    assert [type(block).__name__ for block in again.blocks] == ["Grid", "Grid", "Grid", "Shape"]
    content = json.loads((tmp_path / "table-3.json").read_text())
    assert content["blocks"][0]["rows"][1]["entries"][3] == {"published": None, "ours": [10.0, None]}
    assert content["blocks"][2]["rows"][0]["entries"][0]["published"] == [0.7, 0.8]


def test_how_to_read_it_speaks_of_what_is_there(mixed: Reproduction, table_3: Grid) -> None:
    alone = replace(mixed, blocks=(table_3, table_3))
    (said,) = how_to_read(alone)
    assert "learning rate times steps" in said
    assert "Only FT / NoT can be compared" in said or "only FT / NoT can be compared" in said
    for word in ("Gap", "Rank", "oracle"):
        assert word not in said
        assert word not in reproduction_page(alone, [[], []]).split("<main>")[1]
    assert len(how_to_read(mixed)) == 4
    assert how_to_read(mixed)[-1] == BESIDE


def test_the_markdown_is_the_same_table(mixed: Reproduction, table_3: Grid) -> None:
    text = beside_as_markdown(replace(mixed, blocks=(table_3,)))
    assert "| Method | t paper | t ours | FLOPs paper | FLOPs ours | t, corrected ours | t, measured ours |" in text
    assert "| FT / NoT | 61.5 | 5.00 ± 1.41 | 64.8 | 5.00 ± 1.41 | 6.00 | 4.00 |" in text.splitlines()
    assert "`cpu/table-3-cnn`, seeds 0, 1. The time of FT" in text
    assert "Rank" not in text


def test_what_is_printed_fits(mixed: Reproduction, capsys: pytest.CaptureFixture[str]) -> None:
    print_reproduction(mixed)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 160
    printed = [" ".join(line.split()) for line in lines]
    assert "FT / NoT 61.5 5.00 ± 1.41 64.8 5.00 ± 1.41 6.00 4.00" in printed
    assert "FCU 0.85±0.24 6.00±0.07 0.50±0.07 1 3 1 47 % 25 % 47 % 30 %" in printed
    assert any(line.startswith("Retrain, first 0.93 0.550 ± 0.071 0.82 0.540 ± 0.071") for line in printed)
    assert any(line.startswith("PUF, first 0.650 ± 0.071 0.640 ± 0.071") for line in printed)
    assert any(line.endswith("0.53 0.470 ± 0.071") for line in printed)  # further down, the last position


def test_the_page_has_the_papers_numbers_and_ours(mixed: Reproduction) -> None:
    page = reproduction_page(mixed, [[]] * 4)
    text = html.unescape(page)
    for block in mixed.blocks:
        for cells in beside(block)[1]:
            assert all(f">{cell}<" in text for cell in cells), cells
    assert page.count("before the request the gap was 12.00 points") == 1
    assert page.count('href="table-3-cnn/theory.html"') == 1
    assert page.count("theory.html") == 3
    assert "which methods come close to Retrain" not in page
    hang_together(
        page,
        outside={f"{block.folder}/report.html" for block in mixed.blocks}
        | {f"{block.folder}/theory.html" for block in mixed.blocks if isinstance(block, Grid)},
    )
    assert HOSTILE not in page
    assert html.escape(HOSTILE) in page


@pytest.fixture(scope="module")
def written(mixed: Reproduction, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return publish_reproduction(mixed, tmp_path_factory.mktemp("grid"))


def test_publishing_writes_page_figures_and_json(written: Path, mixed: Reproduction) -> None:
    assert written.name == "table-3.html"
    assert written.read_text(encoding="utf-8").count("<figure>") == 2 + 3
    names = {path.stem for path in written.parent.glob("table-3-figures/*.svg")}
    assert {"cpu-figure-3-own-paper", "cpu-figure-3-own-here"} < names
    assert read_reproduction(written.parent / "table-3.json") == mixed


@needs_browser
@pytest.mark.parametrize(("width", "scheme"), LOOKS)
def test_a_browser_has_nothing_to_complain_of(browser: Browser, written: Path, width: int, scheme: str) -> None:
    assert complaints(browser, written, width, scheme) == []
    assert barriers(browser, written, width, scheme) == []
