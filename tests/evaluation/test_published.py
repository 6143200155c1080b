"""The paper's printed numbers, as we ship them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedunlearn.evaluation import published as module
from fedunlearn.evaluation.published import names, published


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


def test_every_block_can_be_read_and_its_gaps_follow_from_its_means() -> None:
    assert len(names()) == 15
    for name in names():
        rows = {row.method: row for row in published(name).rows}
        for row in rows.values():
            measures = ("retain", "forget", "test", "mia")
            apart = [abs(getattr(row, m)[0] - getattr(rows["Retrain"], m)[0]) for m in measures]
            assert row.gap == pytest.approx(sum(apart) / 4, abs=0.006)


def test_centralized_unlearning_has_no_bytes() -> None:
    assert {row.bytes for row in published("table-2/cifar-10/resnet-18").rows} == {None}


def test_a_table_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match=r"the paper has no 'table-9/x/y': take one of table-1/cifar-10/cnn, "):
        published("table-9/x/y")


def test_the_file_is_all_that_the_paper_prints() -> None:
    content = json.loads((Path(module.__file__).parent / "published.json").read_text())
    assert [table["id"] for table in content["tables"]] == [f"table-{number}" for number in range(1, 9)]
    assert content["paper"]["doi"] == "10.1109/CVPR52734.2025.02399"
