"""The paper's printed numbers, as we ship them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedunlearn.evaluation import published as module
from fedunlearn.evaluation.published import finding, names, published, quantity, runs_of, titles, whole_of


def test_a_block_as_it_stands_in_the_paper() -> None:
    """Table 1, CIFAR-10 with the CNN."""
    block = published("table-1/cifar-10/cnn")
    assert block.title.startswith("Table 1: Client-wise")
    rows = {row.method: row for row in block.rows}
    assert list(rows) == ["Retrain", "FT", "FedEraser", "FUKD", "PGD", "MoDE", "FCU", "NoT"]
    assert rows["NoT"].retain == (91.69, 0.02)
    assert rows["NoT"].mia == (50.23, 0.21)
    assert rows["NoT"].gap == 0.29
    assert rows["NoT"].bytes == pytest.approx(7.09e9 / 1.35e10)
    assert rows["Retrain"].bytes == 1


def test_a_row_of_table_8_whose_printed_gap_does_not_follow_from_its_means() -> None:
    """Printed are 0.82, 1.67, 0.90 and 0.85; the means are 0.02, 0.84, 0.36 and 0.30 apart."""
    row = published("table-8/cifar-100/resnet-18").rows[1]
    assert (row.method, row.test, row.gap) == ("NR-Freeze", (60.30, 0.31), 0.38)
    assert pytest.approx(row.gap) == (0.02 + 0.84 + 0.36 + 0.30) / 4
    assert row.bytes == pytest.approx(7.43e11 / 7.34e11)


def test_every_block_can_be_read_and_its_gaps_follow_from_its_means() -> None:
    tables = [name for name in names() if name.startswith("table-") and quantity(name) == "gap"]
    assert len(tables) == 15
    for name in tables:
        rows = {row.method: row for row in published(name).rows}
        for row in rows.values():
            measures = ("retain", "forget", "test", "mia")
            apart = [abs(getattr(row, m)[0] - getattr(rows["Retrain"], m)[0]) for m in measures]
            assert row.gap == pytest.approx(sum(apart) / 4, abs=0.006)


def test_a_figure_as_it_is_read_off() -> None:
    """Its bytes are shares of Retrain's, which Table 1 prints for the same data and network: 1.76e12."""
    block = published("figure-4")
    assert block.title == "Figure 4: Average gap against communication, by negated ViT layer"
    assert block.drawn
    ft, not_, *others = block.rows
    assert (ft.method, not_.method, others[0].method) == ("FT", "NoT", "class-token-negated")
    assert (not_.gap, not_.last, not_.retain) == (0.84, 1.08, None)
    assert not_.bytes == pytest.approx(8.1e11 / 1.76e12)
    assert [gap for _, gap in not_.curve] == [28.5, 11.4, 2.3, 0.84, 1.08]
    assert [share * 1.76e12 for share, _ in not_.curve] == pytest.approx([1.18e10, 1e11, 4e11, 8.1e11, 1.77e12])
    assert others[0].bytes is None  # its best round cannot be read


def test_a_figures_parts_by_the_share_that_leaves() -> None:
    """Where five of ten stay instead of nine, training anew sends five ninths."""
    fcu = next(row for row in published("figure-6/50").rows if row.method == "FCU")
    assert (fcu.gap, fcu.last) == (2.22, 2.88)
    assert fcu.bytes == pytest.approx(5.7e11 / (1.76e12 * 5 / 9))
    by_share = {name: [row.method for row in published(name).rows] for name in names() if "figure-6" in name}
    assert by_share == {f"figure-6/{share}": ["FT", "FCU", "NoT"] for share in (10, 50, 90)}


def test_figure_1_draws_four_methods_of_table_1() -> None:
    block = published("figure-1")
    assert [row.method for row in block.rows] == ["Retrain", "MoDE", "FCU", "NoT"]
    assert set(block.rows) < set(published("table-1/caltech-101/vit").rows)
    assert whole_of("figure-1") == "table-1/caltech-101/vit"
    assert whole_of("figure-4") is None
    assert not block.drawn


def test_centralized_unlearning_has_no_bytes() -> None:
    assert {row.bytes for row in published("table-2/cifar-10/resnet-18").rows} == {None}


def test_table_3_as_it_is_printed() -> None:
    found = finding("table-3/cifar-10/cnn")
    assert found.title == "Table 3: Estimated lower bound on unlearning time"
    assert (found.dataset, found.model) == ("cifar-10", "cnn")
    assert found.columns == ("t", "FLOPs")
    assert found.rows == {"FT": (2.46, 1.51e14), "NoT": (0.04, 2.33e12)}
    assert finding("table-3/caltech-101/vit").rows["NoT"] == (0.0006, 3.56e16)


def test_figure_3_as_it_is_read_off() -> None:
    found = finding("figure-3/cifar-10/cnn")
    assert found.columns[:4] == ("l1.conv", "l1.relu", "l1.pool", "l1.norm")
    assert list(found.rows) == [
        *("Retrain, first", "NoT, first", "first layer kept, rest drawn anew"),
        *("first layer negated, rest drawn anew", "FT, last", "Retrain, last", "NoT, last"),
    ]
    assert {len(row) for row in found.rows.values()} == {len(found.columns)} == {9}
    assert found.rows["NoT, first"] == (1.0, 0.89, 0.92, 0.94, 0.85, 0.69, 0.7, 0.7, 0.27)
    assert found.rows["NoT, last"][-1] == 0.94


def test_figures_7_and_8_have_two_curves_unread_and_a_range() -> None:
    for part in ("cifar-10/resnet-18", "caltech-101/vit"):
        found = finding(f"figure-7/{part}")
        assert (found.columns, found.rows) == ((), {})
    for part in ("cifar-10/cnn", "cifar-10/resnet-18", "caltech-101/vit"):
        found = finding(f"figure-8/{part}")
        assert found.columns == ("NoT's dimension, of Retrain's",)
        assert found.rows == {"at 100 %": ((0.7, 0.8),)}


@pytest.mark.parametrize(
    ("name", "of"),
    [
        *(("table-3", "bound"), ("table-3/cifar-10/cnn", "bound"), ("figure-3", "cka"), ("figure-7/x/y", "cka")),
        *(("figure-8", "spectrum"), ("table-1", "gap"), ("figure-4", "gap"), ("figure-1", "gap")),
    ],
)
def test_what_each_is_of(name: str, of: str) -> None:
    assert quantity(name) == of


def test_scores_and_findings_are_not_taken_for_each_other() -> None:
    for name in names():
        if quantity(name) == "gap":
            assert published(name).rows
            with pytest.raises(ValueError, match=f"{name} has scores, and no finding of a diagnosis"):
                finding(name)
        else:
            assert finding(name).title
            with pytest.raises(ValueError, match=rf"{name} has no scores, but what a diagnosis finds \("):
                published(name)
    with pytest.raises(ValueError, match="the paper has no 'table-3/x/y': take one of "):
        finding("table-3/x/y")


def test_whose_runs_an_artefact_is_found_in() -> None:
    assert runs_of("figure-1") == {"table-1/caltech-101/vit"}
    assert runs_of("figure-3") == {"table-3/cifar-10/cnn"}
    two = {f"{run}/{part}" for run in ("table-3", "figure-7") for part in ("cifar-10/resnet-18", "caltech-101/vit")}
    assert runs_of("figure-7") == two <= set(names())
    assert runs_of("figure-8") == {*two, "table-3/cifar-10/cnn"}
    assert runs_of("table-1") == runs_of("table-3") == runs_of("figure-4") == set()
    assert {"table-3", "figure-3", "figure-7", "figure-8"} <= set(titles())


def test_a_table_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match=r"the paper has no 'table-9/x/y': take one of table-1/cifar-10/cnn, "):
        published("table-9/x/y")


def test_the_file_is_all_that_the_paper_prints() -> None:
    content = json.loads((Path(module.__file__).parent / "published.json").read_text())
    assert [table["id"] for table in content["tables"]] == [f"table-{number}" for number in range(1, 9)]
    assert content["paper"]["doi"] == "10.1109/CVPR52734.2025.02399"
