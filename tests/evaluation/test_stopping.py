"""When to stop: rules on curves that were written by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedunlearn.evaluation.cost import Cost
from fedunlearn.evaluation.rows import ORIGINAL, Row, curves
from fedunlearn.evaluation.scores import Scores
from fedunlearn.evaluation.stopping import Oracle, Recovered
from fedunlearn.evaluation.table import Line, table
from fedunlearn.federation import Traffic


@pytest.mark.parametrize(
    ("rule", "before", "curve", "expected"),
    [
        (Recovered(), 90.0, [10, 60, 85, 89.0, 89.5, 89.9], 5),  # 89, 89.5, 89.9 lie within a point
        (Recovered(), 90.0, [10, 60, 88.9, 88.9, 88.9, 88.9], None),  # flat, but 1.1 below
        (Recovered(), 90.0, [10, 60, 89, 89, 89], 4),  # exactly the margin is enough
        (Recovered(), 90.0, [95, 91, 95, 91, 95, 91], None),  # above, but never flat
        (Recovered(), 90.0, [90, 90, 90], 2),  # fine-tuning, which has lost nothing
        (Recovered(), 90.0, [90, 90], None),  # not yet three
        (Recovered(window=2), 90.0, [90, 90], 1),
        (Recovered(margin=0, flat=0), 90.0, [89, 90, 90, 90], 3),
        (Recovered(margin=5, flat=3), 90.0, [10, 84, 86, 87], 3),
        (Recovered(), 90.0, [90, 90, 88.0, 90, 90, 90], 5),  # a dip is waited out
        (Recovered(), None, [90, 90, 90], None),  # nobody keeps validation samples
        (Recovered(), 90.0, [None, 90, 90, 90], 3),
    ],
)
def test_where_the_rule_stops(
    rule: Recovered, before: float | None, curve: list[float | None], expected: int | None
) -> None:
    assert rule.position(before, curve) == expected


@given(
    st.floats(0, 100),
    st.lists(st.floats(0, 100), max_size=12),
    st.floats(0, 20),
    st.floats(0, 20),
    st.integers(2, 4),
)
def test_what_the_rule_promises(before: float, curve: list[float], margin: float, flat: float, window: int) -> None:
    rule = Recovered(margin, flat, window)

    def holds(end: int) -> bool:
        recent = curve[end - window + 1 : end + 1]
        return len(recent) == window and recent[-1] >= before - margin and max(recent) - min(recent) <= flat

    found = rule.position(before, curve)
    assert found == next((end for end in range(window - 1, len(curve)) if holds(end)), None)
    # It never looks ahead: what comes later cannot move it.
    if found is not None:
        assert rule.position(before, curve[: found + 1]) == found
        assert rule.position(before, [*curve[: found + 1], 0.0, 0.0]) == found


@pytest.mark.parametrize(
    ("wrong", "says"),
    [({"margin": -1.0}, "0 or more"), ({"flat": -0.1}, "0 or more"), ({"window": 1}, "2 scored rounds")],
)
def test_rules_that_cannot_be(wrong: dict[str, float], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Recovered(**wrong)  # type: ignore[arg-type]


def row(seed: int, method: str, rounds: int, retain: float, validation: float | None = None) -> Row:
    phase = "train" if method == ORIGINAL else "recover" if rounds else "unlearn"
    spent = {"recover": Cost(Traffic(100 * rounds, 100 * rounds), 10 * rounds, 1.0 * rounds)}
    checks = {"evaluate": Cost(Traffic(rounds), rounds, 0.5 * rounds)}
    return Row(seed, method, phase, rounds, {**spent, **checks}, Scores(retain, 0, 0, 0, validation=validation))


def rows() -> list[Row]:
    """NoT is closest at round 10 (both 92: gap 0.5), back within a point and flat at 15 in seed 0, never in seed 1."""
    retain = {0: 10, 5: 60, 10: 92, 15: 90, 20: 88}
    validation = {0: {0: 10, 5: 89.5, 10: 89.7, 15: 90, 20: 95}, 1: {0: 10, 5: 20, 10: 30, 15: 40, 20: 50}}
    found = []
    for seed in (0, 1):
        found += [row(seed, ORIGINAL, 20, 100, 90.0), row(seed, "Retrain", 20, 94, 88.0)]
        found += [row(seed, "NoT", number, retain[number], validation[seed][number]) for number in retain]
    return found


def line(found: list[Line], method: str = "NoT") -> Line:
    return next(one for one in found if one.method == method)


def test_all_rules_are_read_off_one_run() -> None:
    fixed, oracle, recovered = (line(table(rows(), rule)) for rule in (None, Oracle(), Recovered()))
    assert (fixed.rounds, fixed.gap.of_means, fixed.met, fixed.bytes, fixed.flops, fixed.seconds) == (
        20,
        1.5,
        2,
        4000,
        200,
        20,
    )
    assert (oracle.rounds, oracle.gap.of_means, oracle.bytes, oracle.flops, oracle.seconds) == (10, 0.5, 2000, 100, 10)
    # Seed 0 stops after 15, seed 1 goes on to 20: 17.5 rounds; the checks are in the price: 17.5 * 201 and 17.5 * 11.
    assert (recovered.rounds, recovered.met, recovered.seeds) == (17.5, 1, 2)
    assert (recovered.bytes, recovered.flops, recovered.seconds) == (3518, 192, 26.25)
    assert recovered.retain.mean == 89


def test_the_references_are_taken_at_their_end_by_every_rule() -> None:
    for rule in (Oracle(), Recovered()):
        for method in (ORIGINAL, "Retrain"):
            found = line(table(rows(), rule), method)
            assert (found.rounds, found.met, found.bytes) == (20, 2, 4000)


def test_the_oracle_does_not_take_the_model_before_recovery() -> None:
    """That would be not to unlearn at all, where a method has no step of its own."""
    changed = [
        replace(one, scores=Scores(94, 0, 0, 0)) if one.method == "NoT" and one.rounds == 0 else one for one in rows()
    ]
    assert line(table(changed, Oracle())).rounds == 10


def test_curves_are_in_the_order_of_rounds_and_seeds() -> None:
    found = curves([row(1, "FT", 5, 1), row(0, "FT", 5, 2), Row(0, "FT", "recover", 6, {}, None), row(0, "FT", 10, 3)])
    assert {seed: [one.rounds for one in points] for seed, points in found["FT"].items()} == {0: [5, 10], 1: [5]}
    assert list(found["FT"]) == [0, 1]
