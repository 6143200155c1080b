"""The section on advice: its rows are the candidates', its sentences tell them and how far they came true."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedunlearn.diagnoses import Advised
from fedunlearn.findings import Found
from fedunlearn.report.theory.advice import _numbered, advice_as_markdown, agreements, section
from fedunlearn.theory.advice import Candidate, Prediction
from fedunlearn.theory.optimality import Conditions


def candidate(name: str, prediction: Prediction | None, *, covered: bool = False, preserved: bool = False) -> Candidate:
    conditions = Conditions((), True, (), (), covered, preserved or None, ())
    return Candidate((name,), conditions, name != "b", prediction)


def advised(outcomes: Mapping[str, float] = {}, *, predicted: bool = True, memory: float = 0.3) -> Advised:
    """Of distances 1 and less: b is the nearest, c the furthest."""
    one = candidate("a", Prediction(2.0, 0.5, 0.6, 0.2, ()) if predicted else None, covered=True, preserved=True)
    two = candidate("b", Prediction(1.5, 0.4, memory, 0.6, ("c",)) if predicted else None, preserved=True)
    three = candidate("c", Prediction(9.0, 0.9, 0.0, 0.0, ()) if predicted else None)
    found = {each.name: each for each in (one, two, three)}
    return Advised(found, {"a": 0, "b": 1, "c": 2}, outcomes, (1440, 2000) if predicted else (0, 0))


def test_rows_are_the_candidates_the_best_first() -> None:
    made = section(advised())
    assert [head for head, _ in made.heads] == [
        *("layers", "distance", "memory", "use", "loss", "optimality", "Cauchy", "to expect")
    ]
    expected = (
        "forgets (30% of memory is left) and keeps 60% of what it can; little gradient reaches c",
        "forgets too little: 60% of what tells whom it was trained on is left",
        "forgets, but recovers slowly: 0% of what it can do is left",
    )
    assert made.rows == (
        ("1. b", "0.50", "0.30", "0.60", "1.50", "a symmetry", "no", expected[0]),
        ("2. a", "1.00", "0.60", "0.20", "2.00", "Theorem 7", "yes", expected[1]),
        ("3. c", "1.00", "0.00", "0.00", "9.00", "unknown", "yes", expected[2]),
    )


def test_the_best_is_told_with_its_reasons() -> None:
    said = section(advised()).says
    assert said == (
        "Negate b: it forgets (30% of memory is left) and keeps 60% of what it can; little gradient reaches c; "
        "layer-wise optimality is preserved by a sign symmetry, though Theorem 7 does not cover it; paths go around "
        "it, so Theorem 6 says nothing of it.",
        "Predicted from 1,440 samples that it was trained on and 2,000 others, without any training.",
        "How far such predictions can be trusted is measured in docs/theory.md.",
    )


def test_where_nothing_is_better_than_to_leave_it_that_is_said() -> None:
    first, *_ = section(advised(memory=1.2)).says
    best = "No candidate is predicted to be better than to leave the model as it is, or to begin anew. The best is "
    assert first.startswith(best)
    assert section(advised(memory=0.9)).says[0].startswith("Negate b: it forgets too little")


def test_outcomes_stand_beside_and_each_rule_is_held_against_them() -> None:
    made = section(advised({"a": 6.0, "b": 4.0, "c": 9.5}))
    assert [head for head, _ in made.heads][-2:] == ["measured gap", "to expect"]
    assert [row[-2] for row in made.rows] == ["4.00", "6.00", "9.50"]
    adviser, first, loss = made.says[2:]
    # b < a < c came; predicted were b < a = c or c < a by rounding, the order of the layers is a, b, c, losses c, a, b
    assert adviser.startswith("Ranking by the adviser: Kendall's tau +")
    assert adviser.endswith("by permutation); its first choice is 0.00 points above the best.")
    assert first == (
        "Ranking by the first layer first: Kendall's tau +0.33 with the measured gaps of 3 sets (p 0.500 by "
        "permutation); its first choice is 2.00 points above the best."
    )
    assert loss == (
        "Ranking by the largest loss after negation first: Kendall's tau -1.00 with the measured gaps of 3 sets (p "
        "1.000 by permutation); its first choice is 5.50 points above the best."
    )


def test_with_two_outcomes_there_is_no_order_to_speak_of() -> None:
    made = section(advised({"a": 6.0, "b": 4.0}))
    assert [row[-2] for row in made.rows] == ["4.00", "6.00", ""]
    assert made.says[-1] == "How far such predictions can be trusted is measured in docs/theory.md."


def test_without_predictions_candidates_stand_as_they_run() -> None:
    made = section(advised(predicted=False))
    assert [head for head, _ in made.heads] == ["layers", "optimality", "Cauchy"]
    assert made.rows == (("1. a", "Theorem 7", "yes"), ("2. b", "a symmetry", "no"), ("3. c", "unknown", "yes"))
    assert made.says == ("Without a trained model and data nothing is predicted: the candidates stand as they run.",)
    assert made.pictures == ()


def test_the_picture_tells_all_points() -> None:
    (picture,) = section(advised()).pictures
    assert picture.name == "theory-advice"
    assert picture.alt == "Memory and use left: b 0.30 and 0.60; a 0.60 and 0.20; c 0.00 and 0.00."
    assert "numbers are rows of the table" in picture.caption
    axes = picture.figure.axes[0]
    points, *marks = axes.get_lines()
    assert [list(map(float, points.get_xdata())), list(map(float, points.get_ydata()))] == [
        [0.3, 0.6, 0],
        [0.6, 0.2, 0],
    ]  # type: ignore[arg-type]
    assert [str(mark.get_label()) for mark in marks] == ["wanted", "untouched", "anew"]
    assert [text.get_text() for text in axes.texts] == ["1", "2", "3"]
    ElementTree.fromstring(picture.svg())


def test_points_that_are_near_have_one_label() -> None:
    points = [(0.1, 0.1), (0.5, 0.5), (0.12, 0.15), (0.5, 0.9)]
    assert list(_numbered(points, (0.05, 0.1))) == [("1, 3", (0.12, 0.15)), ("2", (0.5, 0.5)), ("4", (0.5, 0.9))]


@given(st.lists(st.tuples(st.floats(-1, 2), st.floats(-1, 2)), max_size=8))
def test_every_point_is_numbered_once(points: list[tuple[float, float]]) -> None:
    labels = [label for label, _ in _numbered(points, (0.2, 0.2))]
    assert sorted(map(int, itertools.chain.from_iterable(label.split(", ") for label in labels))) == list(
        range(1, len(points) + 1)
    )


def test_of_many_candidates_the_first_twelve_are_numbered() -> None:
    many = {f"layer{n}": candidate(f"layer{n}", Prediction(1.0, 0.5, n / 40, 0.9 - n / 20, ())) for n in range(20)}
    made = section(Advised(many, {name: n for n, name in enumerate(many)}, {}, (50, 50)))
    (picture,) = made.pictures
    shown = ", ".join(text.get_text() for text in picture.figure.axes[0].texts).split(", ")
    assert sorted(map(int, shown)) == list(range(1, 13))
    assert len(made.rows) == 20


def test_rules_and_outcomes_are_of_the_sets_that_have_one() -> None:
    found = advised({"c": 9.5, "a": 6.0})
    assert found.came() == [6.0, 9.5]
    rules = found.rules()
    assert rules["the first layer first"] == [0.01, 2.01]  # of sets that begin alike the smaller one is first
    assert rules["the largest loss after negation first"] == [-2.0, -9.0]
    assert rules["the adviser"] == [pytest.approx(1), 1.0]


def test_rules_are_held_against_several_networks_at_once() -> None:
    one, other = advised({"a": 1.0, "b": 2.0, "c": 3.0}), advised({"a": 3.0, "b": 2.0, "c": 1.0})
    held = agreements([one, other])["the first layer first"]
    assert (held.tau, held.regret) == (0, 1)
    assert agreements([one])["the first layer first"].p == pytest.approx(1 / 6)


def test_markdown_has_a_table_a_network_and_one_of_all() -> None:
    outcomes = {"a": 6.0, "b": 4.0, "c": 9.5}
    found = Found("advice", "", "fedunlearn advise runs/x", (0, 1), (advised(outcomes), advised(outcomes)))
    text = advice_as_markdown({"x": found, "y": found})
    assert text.count("`fedunlearn advise runs/x`, means over seeds 0, 1") == 2
    assert text.count("| b | 0.30 | 0.60 | 0.50 | 1.50 | 4.00 |") == 2
    assert "| ranked by | x: tau (p), regret | y: tau (p), regret | all: tau (p), regret |" in text
    assert "| the first layer first | +0.33 (0.500), 2.00 | +0.33 (0.500), 2.00 | +0.33 (0.361), 2.00 |" in text
