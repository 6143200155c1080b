"""The paper's numbers beside ours: ranks, shares, orders and doubts, by hand on fabricated runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kendalltau  # type: ignore[import-untyped]

from fedunlearn.atomic import FileError
from fedunlearn.evaluation.cost import Cost
from fedunlearn.evaluation.published import published
from fedunlearn.evaluation.rows import Row
from fedunlearn.evaluation.scores import Scores
from fedunlearn.federation import Phase, Traffic
from fedunlearn.report.beside import pictures_of
from fedunlearn.report.page import page, publish_reproduction, reproduction_page
from fedunlearn.report.report import Failure, Report
from fedunlearn.report.reproduction import Reproduction, read_reproduction
from fedunlearn.report.shape import Pair, Shape, kendall, shape_of
from fedunlearn.report.tables import beside, beside_as_markdown

APART = 0.1  # of a seed from the mean of both, in every measure
SPREAD = APART / 2**0.5  # of a gap then: its measures have sd APART * sqrt(2), Retrain's have none
RESNET = "table-1/cifar-10/resnet-18"


def row(seed: int, method: str, gap: float, rounds: int, bytes_: int, flops: int, phase: Phase = "recover") -> Row:
    """All four measures ``gap`` above Retrain's."""
    scores = Scores(retain=90 + gap, forget=80 + gap, test=80 + gap, mia=50 + gap)
    cost = Cost(Traffic(down=bytes_ // 2, up=bytes_ - bytes_ // 2), flops, seconds=1.0)
    return Row(seed, method, phase, rounds, {phase: cost}, scores)


def fabricated(block: str, gaps: Mapping[str, tuple[float, float]], seeds: int = 2, **said: Any) -> Report:
    """Methods with their gaps after 5 rounds, a quarter of Retrain's bytes, and after 10, a half of them."""
    rows = []
    for seed in range(seeds):
        apart = APART * (2 * seed - 1) if seeds > 1 else 0.0
        rows += [row(seed, "Original", 12.0, 20, 1100, 2200, "train"), row(seed, "Retrain", 0.0, 20, 1000, 2000)]
        for method, (half, last) in gaps.items():
            rows += [row(seed, method, half + apart, 5, 250, 600), row(seed, method, last + apart, 10, 500, 1100)]
    experiment = {"title": "Made up", "published": block, "data": {"name": "digits"}, "model": {"name": "tiny"}, **said}
    return Report(experiment, tuple(rows), {})


GAPS = {"FT": (9.0, 9.0), "MoDE": (3.0, 2.0), "FCU": (0.5, 6.0), "NoT": (4.0, 1.0), "PUF": (7.0, 7.0)}


@pytest.fixture(scope="module")
def shape() -> Shape:
    return shape_of(fabricated(RESNET, GAPS), "cpu/table-1-resnet")


def pair(shape: Shape, method: str) -> Pair:
    return next(pair for pair in shape.pairs if pair.method == method)


def test_methods_stand_in_the_papers_order_and_those_that_it_lacks_behind_them(shape: Shape) -> None:
    assert [one.method for one in shape.pairs] == ["Retrain", "FT", "PGD", "MoDE", "FCU", "NoT", "PUF"]
    assert [one.label for one in shape.pairs] == ["Retrain", "FT", None, "MoDE", "FCU", "NoT", "PUF"]
    assert pair(shape, "PGD").fixed is None
    assert pair(shape, "PUF").published is None


def test_the_heading_says_whose_numbers_these_are(shape: Shape) -> None:
    assert shape.heading == "table-1-resnet: digits, tiny (scale cpu), beside the paper's cifar-10, resnet-18"


def test_gaps_and_shares_of_retrains_price(shape: Shape) -> None:
    fcu = pair(shape, "FCU")
    assert fcu.published is not None
    assert fcu.fixed is not None
    assert fcu.oracle is not None
    assert (fcu.published.gap, fcu.fixed.gap, fcu.oracle.gap) == pytest.approx((0.85, 6.0, 0.5), abs=1e-9)
    assert (fcu.fixed.bytes, fcu.oracle.bytes) == (0.5, 0.25)
    assert (fcu.fixed.flops, fcu.oracle.flops) == (0.55, 0.3)
    assert fcu.published.bytes == pytest.approx(5.73e11 / 1.23e12)
    assert fcu.published.flops == pytest.approx(2.64e18 / 5.66e18)
    assert fcu.fixed.measures["forget"] == pytest.approx((86.0, APART * 2**0.5))


def test_the_spread_of_a_gap_follows_from_those_of_its_measures(shape: Shape) -> None:
    not_ = pair(shape, "NoT")
    assert not_.published is not None
    assert not_.fixed is not None
    sds = (0.31, 2.06, 1.61, 0.83, 0.00, 0.64, 0.35, 0.29)  # NoT's as printed, and Retrain's
    assert not_.published.spread == pytest.approx(sum(sd**2 for sd in sds) ** 0.5 / 4)
    assert not_.fixed.spread == pytest.approx(SPREAD)


def test_ranks_and_tau_are_over_the_methods_that_both_have(shape: Shape) -> None:
    """Paper: FCU 0.85, NoT 1.78, MoDE 1.84, FT 4.72. Ours: NoT 1, MoDE 2, FCU 6, FT 9: two pairs of six turned."""
    after, oracle = shape.orders
    assert after.ranks == {"FT": (4, 4), "MoDE": (3, 2), "FCU": (1, 3), "NoT": (2, 1)}
    assert after.tau == pytest.approx((4 - 2) / 6)
    assert oracle.ranks == {"FT": (4, 4), "MoDE": (3, 3), "FCU": (1, 1), "NoT": (2, 2)}
    assert oracle.tau == 1


def test_a_pair_is_reversed_if_both_differences_are_larger_than_their_spreads(shape: Shape) -> None:
    """In the paper FCU and NoT are 0.93 apart, with spreads of 0.24 and 0.72; FCU and MoDE 0.99, with 0.24 and 0.35."""
    assert shape.orders[0].reversed == (("FCU", "MoDE"),)
    assert shape.orders[1].reversed == ()
    says = list(shape.sentences())
    assert says[0].endswith("in the paper, but not here, by more than both spreads: FCU before MoDE.")
    assert says[1] == (
        "At the oracle's round, Kendall's tau of the two orders is +1.00 over 4 methods; "
        "no pair is reversed by more than both spreads."
    )


def test_of_one_seed_nobody_can_say_that_a_pair_is_reversed() -> None:
    alone = shape_of(fabricated(RESNET, GAPS, seeds=1), "cpu/table-1-resnet")
    assert alone.orders[0].reversed is None
    assert "one seed has no spread" in " ".join(alone.sentences())
    not_ = pair(alone, "NoT").fixed
    assert not_ is not None
    assert not_.spread is None


def test_one_common_method_has_no_order() -> None:
    lonely = shape_of(fabricated(RESNET, {"NoT": (1.0, 1.0)}), "cpu/table-1-resnet")
    assert [order.tau for order in lonely.orders] == [None, None]
    assert "there is no order to compare: 1 method in common" in " ".join(lonely.sentences())


gaps = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=8)


@given(pairs=gaps)
def test_tau_is_scipys(pairs: list[tuple[int, int]]) -> None:
    one, other = [a for a, _ in pairs], [b for _, b in pairs]
    ours = kendall(one, other)
    if len(set(one)) < 2 or len(set(other)) < 2:
        assert ours is None
    else:
        assert ours == pytest.approx(kendalltau(one, other).statistic)


@pytest.mark.parametrize(
    ("gap", "doubt"),
    [(4.99, "cannot tell the methods apart: fine-tuning ends 4.99 points from Retrain, less than 5"), (5.01, None)],
)
def test_a_setting_with_hardly_anything_to_forget_cannot_tell(gap: float, doubt: str | None) -> None:
    doubts = list(shape_of(fabricated(RESNET, {"FT": (gap, gap)}), "cpu/x").doubts())
    assert len(doubts) == (doubt is not None)
    assert doubt is None or doubt in doubts[0]


def test_without_fine_tuning_nobody_can_tell() -> None:
    doubts = list(shape_of(fabricated(RESNET, {"NoT": (1.0, 1.0)}), "cpu/x").doubts())
    assert doubts == ["This setting cannot tell whether anything had to be forgotten: fine-tuning (FT) is not in it."]


@pytest.mark.parametrize(("attack", "doubts"), [(89.0, 1), (91.0, 0), (None, 0)])
def test_a_backdoor_that_hardly_works_is_none_to_remove(shape: Shape, attack: float | None, doubts: int) -> None:
    found = list(replace(shape, attack=attack).doubts())
    assert len(found) == doubts
    assert all("before unlearning 89 % of the attacks succeed, less than 90 %" in doubt for doubt in found)


def test_failures_and_missing_seeds_are_told() -> None:
    report = fabricated(RESNET, GAPS)
    lost = replace(report, failures=(Failure("MoDE", 1, 3, "the loss is nan"),), missing=(7,))
    shape = shape_of(lost, "cpu/x")
    assert pair(shape, "MoDE").label is None
    assert "MoDE is left out: in seed 1, after 3 rounds of recovery: the loss is nan" in list(shape.sentences())
    assert "Not complete yet, and not counted: seed 7." in list(shape.sentences())


def test_a_method_of_another_name_stands_where_the_experiment_says() -> None:
    series = {"NoT": "NoT(layers=conv1)", "class-token-negated": "NoT(layers=norm1)"}
    own = {"FT": (9.0, 8.0), "NoT(layers=conv1)": (0.3, 2.0), "NoT(layers=norm1)": (9.5, 9.5), "PUF": (1.0, 1.0)}
    shape = shape_of(fabricated("figure-4", own, series=series), "cpu/figure-4")
    assert [(one.method, one.label) for one in shape.pairs] == [
        ("FT", "FT"),
        ("NoT", "NoT(layers=conv1)"),
        ("class-token-negated", "NoT(layers=norm1)"),
        ("position-embedding-negated", None),
        ("first-attention-query-negated", None),
        ("second-attention-query-negated", None),
        ("PUF", "PUF"),
    ]
    not_ = pair(shape, "NoT")
    assert [share for share, _ in not_.curve] == [0.25, 0.5]
    assert [gap for _, gap in not_.curve] == pytest.approx([0.3, 2.0])
    assert not_.published_curve == published("figure-4").rows[1].curve
    # Best against the oracle's round, last against the last one: FT is the paper's third at both.
    after, oracle = shape.orders
    assert after.ranks == {"FT": (2, 2), "NoT": (1, 1), "class-token-negated": (3, 3)}
    assert oracle.ranks == {"FT": (2, 2), "NoT": (1, 1), "class-token-negated": (3, 3)}


def test_a_figure_of_a_tables_methods_shows_those_alone() -> None:
    report = fabricated("table-1/caltech-101/vit", GAPS)
    shape = shape_of(report, "cpu/table-1-vit", "figure-1")
    assert [one.method for one in shape.pairs] == ["Retrain", "MoDE", "FCU", "NoT"]
    assert not list(shape.doubts())  # fine-tuning is in the run, though not in the figure
    names = [picture.name.removeprefix("cpu-table-1-vit-") for picture in pictures_of(shape)]
    assert names == ["retain", "forget", "test", "mia", "bytes", "flops"]


def test_pictures_have_their_numbers_in_words(shape: Shape) -> None:
    by_name = {picture.name: picture for picture in pictures_of(shape)}
    assert list(by_name) == ["cpu-table-1-resnet-gap", "cpu-table-1-resnet-bytes", "cpu-table-1-resnet-flops"]
    gap = by_name["cpu-table-1-resnet-gap"].alt
    assert "FCU 0.85 in the paper, 0.50 here" in gap
    assert "PGD 4.69 in the paper, not known here" in gap
    assert "PUF" not in gap


def test_a_figures_curves_have_one_axis_of_bytes() -> None:
    shape = shape_of(fabricated("figure-6/50", {"FT": (9.0, 9.0), "NoT": (3.0, 1.0)}), "cpu/figure-6-50")
    paper, here = pictures_of(shape)
    assert paper.figure.axes[0].get_xlim() == here.figure.axes[0].get_xlim()
    assert "NoT 0.68 at best" in paper.alt
    assert "Dotted: the last gap, whose bytes cannot be read (FT)." in paper.caption
    assert "FCU not run" in here.alt
    assert "NoT 1.00 at best, 1.00 at last" in here.alt


def test_centralized_unlearning_has_no_bytes() -> None:
    shape = shape_of(fabricated("table-2/cifar-10/resnet-18", {"FT": (9.0, 9.0), "NoT": (3.0, 1.0)}), "cpu/table-2")
    heads, rows = beside(shape)
    assert "Bytes" not in [first for first, _ in heads]
    assert {len(row) for row in rows} == {len(heads)}
    assert [picture.name for picture in pictures_of(shape)] == ["cpu-table-2-gap", "cpu-table-2-flops"]


def test_the_table_of_both(shape: Shape) -> None:
    heads, rows = beside(shape)
    sides = [("Gap", "paper"), ("Gap", "ours"), ("Gap", "oracle"), ("Rank", "paper"), ("Rank", "ours")]
    prices = [("Bytes", "paper"), ("Bytes", "oracle"), ("FLOPs", "paper"), ("FLOPs", "oracle")]
    assert heads == [("Method", ""), *sides, ("Rank", "oracle"), *prices]
    by_method = {row[0]: row[1:] for row in rows}
    ours = ["6.00±0.07", "0.50±0.07", "1", "3", "1"]
    assert by_method["FCU"] == ["0.85±0.24", *ours, "47 %", "25 %", "47 %", "30 %"]
    assert by_method["PGD"] == [by_method["PGD"][0], *[""] * 5, "49 %", "", "49 %", ""]


@pytest.fixture
def reproduction(shape: Shape) -> Reproduction:
    figure = shape_of(fabricated("figure-6/50", {"FT": (9.0, 9.0), "NoT": (3.0, 1.0)}), "cpu/figure-6-50")
    return Reproduction("table-1", "cpu", "fedunlearn reproduce table-1", (shape, figure))


def test_json_there_and_back(reproduction: Reproduction, tmp_path: Path) -> None:
    reproduction.write(tmp_path / "table-1.json")
    assert read_reproduction(tmp_path / "table-1.json") == reproduction
    content = json.loads((tmp_path / "table-1.json").read_text())
    assert (content["artefact"], content["scale"], content["title"]) == (
        "table-1",
        "cpu",
        "Table 1: Client-wise federated unlearning, IID, first client forgets",
    )
    block = content["blocks"][0]
    assert block["seeds"] == [0, 1]
    assert block["orders"][0]["tau"] == pytest.approx(1 / 3)
    assert block["says"] == list(reproduction.blocks[0].sentences())
    assert block["seconds"] == 2 * 7  # a second each of what there is: two seeds, seven methods
    assert content["seconds"] == 2 * 7 + 2 * 4


@pytest.mark.parametrize("text", ["{}", '{"format": 1}', '{"format": 1, "artefact": "table-1", "blocks": 3}'])
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "other.json").write_text(text)
    with pytest.raises(FileError, match=r"other\.json is no reproduction"):
        read_reproduction(tmp_path / "other.json")


def test_the_page_has_the_papers_numbers_and_ours(reproduction: Reproduction) -> None:
    html = reproduction_page(reproduction, [[], []])
    for block in reproduction.blocks:
        _, rows = beside(block)
        for cells in rows:
            assert all(cell in html for cell in cells), cells
    assert "digits, tiny (scale cpu), beside the paper&#39;s cifar-10, resnet-18" in html
    assert "<script" not in html


def test_publishing_writes_page_figures_and_json(reproduction: Reproduction, folder: Path) -> None:
    path = publish_reproduction(reproduction, folder)
    assert path == folder / "table-1.html"
    html = path.read_text(encoding="utf-8")
    assert html.count("<figure>") == 5
    assert len(list((folder / "table-1-figures").glob("*.svg"))) == 5
    assert read_reproduction(folder / "table-1.json") == reproduction


def test_the_markdown_is_the_same_table(reproduction: Reproduction) -> None:
    text = beside_as_markdown(reproduction)
    lines = text.splitlines()
    assert "**table-1-resnet: digits, tiny (scale cpu), beside the paper's cifar-10, resnet-18**" in lines
    assert "| Method | Gap paper | Gap ours | Gap oracle | Rank paper | Rank ours | Rank oracle |" in text
    assert "| FCU | 0.85±0.24 | 6.00±0.07 | 0.50±0.07 | 1 | 3 | 1 | 47 % | 25 % | 47 % | 30 % |" in lines
    assert "`fedunlearn reproduce table-1`" in lines


def test_a_runs_own_page_shows_a_figure_too(report: Report) -> None:
    series = {"position-embedding-negated": "NoT"}
    drawn = replace(report, experiment={**report.experiment, "published": "figure-4", "series": series})
    html = page([drawn])
    assert "as read off the figure, at each curve" in html
    beside_it = html.index('<th scope="row">position-embedding-negated</th>')
    assert html.index('<th scope="row">NoT</th><td class="left">here</td>') > beside_it
