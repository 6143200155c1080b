"""Reports as data: JSON there and back, tables, what a figure shows."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from fedunlearn.evaluation.rows import curves
from fedunlearn.evaluation.scores import MEASURES, average_gap
from fedunlearn.evaluation.stopping import Recovered
from fedunlearn.report import figures, tables
from fedunlearn.report.page import page
from fedunlearn.report.report import Report, compare, read_report, write_report
from fedunlearn.runfolder import differences


def test_json_there_and_back(report: Report, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    write_report(report, path)
    assert read_report(path) == report
    content = json.loads(path.read_text())
    assert content["tables"]["oracle"][2]["method"] == "FT"
    assert content["format"] == 1


def test_a_start_at_chance_does_not_press_the_gaps_together(report: Report) -> None:
    series = figures.series_of([report])
    far = [replace(one, label="Far") for one in series if one.method == "NoT"]
    first, second, *others = far[0].points  # the first is free, and has no place on the axis
    assert second[0].scores is not None
    chance = replace(second[0].scores, retain=0, forget=0, test=0)
    far = [replace(far[0], points=(first, tuple(replace(row, scores=chance) for row in second), *others))]
    picture = next(iter(figures.prices([*series, *far], [report])))
    before = next(line for line in report.table() if line.method == "Original").gap.of_means
    assert picture.figure.axes[0].get_ylim() == (0, pytest.approx(1.6 * before))
    assert "Starts above the axis: " in picture.caption
    assert f"Far {far[0].gaps()[1]:.0f}" in picture.caption


def test_every_hyper_parameter_is_told_and_who_else_has_used_it(report: Report) -> None:
    methods = [{"kind": "Retrain"}, {"kind": "NoT", "include_bias": False, "batchnorm": "leave"}]
    pgd = {"kind": "PGD", "lr": 0.1, "momentum": 0.9, "iterations": 10, "updates": 5, "clip": 7.0}
    own = replace(
        report, labels=("Retrain", "NoT", "PGD"), experiment={**report.experiment, "methods": [*methods, pgd]}
    )
    told = {(s.method, s.entry): (s.value, s.origin and (s.origin.preset, s.origin.source)) for s in own.settings()}
    assert told["NoT", "batchnorm"] == ("leave", ("paper", "supplement"))
    assert told["NoT", "layers"] == ("first", None)  # which a file cannot say
    assert told["PGD", "lr"] == (0.1, ("paper-cnn", "supplement"))
    assert told["PGD", "clip"] == (7.0, None)  # nobody's
    assert told["PGD", "squared_radius"] == ("not set", None)
    assert {method for method, _ in told} == {"NoT", "PGD"}
    html = page([own])
    assert "preset paper-cnn: supplement of the NoT paper, section 14.1" in html
    assert html.count("the ball is not listed: a third") == 1


def test_the_rules_are_the_experiments(report: Report) -> None:
    assert report.rules[2] == Recovered(30, 40, 2)
    assert [rule.name for rule in report.rules] == ["fixed", "oracle", "recovered"]


def test_the_table_in_three_formats(report: Report) -> None:
    lines = report.table()
    rows = list(csv.DictReader(tables.as_csv([report]).splitlines()))
    assert [(row["rule"], row["method"]) for row in rows[:4]] == [("fixed", line.method) for line in lines]
    assert len(rows) == 12
    for row, line in zip(rows, lines, strict=False):
        assert float(row["forget_mean"]) == line.forget.mean
        assert float(row["gap_of_means"]) == line.gap.of_means
        assert int(row["bytes"]) == line.bytes
    markdown = tables.as_markdown([report]).splitlines()
    assert [cell.strip() for cell in markdown[2].strip("|").split("|")] == tables.cells(lines[0], MEASURES)
    assert {line.count("|") for line in markdown} == {9}
    latex = tables.as_latex([replace(report, name="a"), replace(report, name="b_1 & more")])
    assert latex.count("\\\\\n") == 1 + 8
    assert "b\\_1 \\& more & NoT & " in latex
    assert "±" not in latex
    assert latex.count("{") == latex.count("}")


def test_a_pipe_in_a_name_breaks_no_table(report: Report) -> None:
    rows = tuple(replace(row, method="a|b") if row.method == "NoT" else row for row in report.rows)
    assert "| a\\|b |" in tables.as_markdown([replace(report, rows=rows)])


def test_the_curves_are_those_of_the_rows(report: Report) -> None:
    series = {one.method: one for one in figures.series_of([report])}
    rows = curves(report.rows)
    negated = series["NoT"]
    assert negated.rounds() == [0, 2, 4, 6]
    at_four = [rows["NoT"][seed][2] for seed in (0, 1)]
    retrain = [rows["Retrain"][seed][-1].scores for seed in (0, 1)]
    assert negated.values("forget")[2] == [row.scores.forget for row in at_four if row.scores]
    expected = average_gap([row.scores for row in at_four if row.scores], [one for one in retrain if one])
    assert negated.gaps()[2] == expected.of_means
    assert series["Retrain"].gaps()[-1] == 0
    sent = [row.bill().traffic.down + row.bill().traffic.up for row in at_four]
    assert negated.price("bytes")[2] == sum(sent) / 2
    assert negated.price("flops")[2] == sum(row.bill().flops for row in at_four) / 2
    assert negated.price("seconds")[2] == pytest.approx(sum(row.bill().seconds for row in at_four) / 2)
    assert negated.gaps()[-1] == report.table()[3].gap.of_means


def test_a_curve_is_drawn_where_its_numbers_are(report: Report) -> None:
    series = figures.series_of([report])
    pictures = {picture.name: picture for picture in figures.measures(series, [report])}
    drawn = pictures["measure-forget"].figure.axes[0].get_lines()
    for line, one in zip(drawn, series, strict=True):
        means = [sum(values) / len(values) for values in one.values("forget")]
        assert list(line.get_xdata()) == one.rounds()
        assert list(line.get_ydata()) == pytest.approx(means)
    assert re.search(r"NoT \d+\.\d to \d+\.\d", pictures["measure-forget"].alt)
    (bytes_, *_) = figures.prices(series, [report])
    axes = bytes_.figure.axes[0]
    assert axes.get_xscale() == "log"
    assert list(axes.get_lines()[0].get_xdata()) == series[0].price("bytes")[1:]


def test_nobodys_validation_is_no_picture(report: Report) -> None:
    rows = tuple(
        replace(row, scores=replace(row.scores, validation=None)) if row.scores else row for row in report.rows
    )
    without = replace(report, rows=rows)
    assert figures.validation(figures.series_of([without]), [without]) is None
    assert figures.validation(figures.series_of([report]), [report]) is not None
    from fedunlearn.report.page import page

    assert "What the rule “recovered” reads; circles" not in page([without])


def test_many_clients_and_classes_have_a_partition_too(report: Report) -> None:
    (who,) = [report.partitions[0]]
    many = replace(
        who,
        clients=tuple(map(str, range(60))),
        classes=tuple(tuple(range(100)) for _ in range(60)),
        forget=(5,) * 60,
        validation=(1,) * 60,
    )
    picture = figures.partition(replace(report, partitions={0: many}))
    assert "60 clients with 4950 to 4950 samples of 100 classes; samples to be forgotten at 60 of them" in picture.alt
    assert len(picture.figure.axes[0].texts) == 0  # numbers would not fit


def test_runs_of_one_name_are_told_apart(report: Report, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_report(report, tmp_path / f"{name}.json")
    found = compare([tmp_path / "a.json", tmp_path / "b.json"])
    assert [one.name for one in found.reports] == ["tiny 1", "tiny 2"]
    assert found.differences == {}


def test_differences_by_dotted_name() -> None:
    one = {"a": 1, "b": {"c": [1], "d": {}}, "e": "x"}
    other = {"a": 1, "b": {"c": [2], "d": {"f": 3}}, "g": None}
    assert differences([one, other]) == {
        "b.c": ([1], [2]),
        "b.d": ({}, None),
        "e": ("x", None),
        "b.d.f": (None, 3),
    }
