"""Orders held against outcomes: Kendall's tau, its p by permutation, and regret."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fedunlearn.evaluation import agreement as module
from fedunlearn.evaluation.agreement import agreement

small = st.lists(st.integers(-3, 3), min_size=2, max_size=5)
pairs = small.flatmap(
    lambda rule: st.tuples(st.just(rule), st.lists(st.integers(-3, 3), min_size=len(rule), max_size=len(rule)))
)


@given(pairs)
def test_tau_is_scipys_with_ties(held: tuple[list[int], list[int]]) -> None:
    theirs = float(stats.kendalltau(*held).statistic)
    assert agreement([held[0]], [held[1]]).tau == pytest.approx(0.0 if math.isnan(theirs) else theirs)


@pytest.mark.parametrize(
    ("rule", "tau", "p"),
    [
        ([1, 2, 3], 1, 1 / 6),
        ([1, 3, 2], 1 / 3, 3 / 6),
        ([2, 1, 3], 1 / 3, 3 / 6),
        ([3, 1, 2], -1 / 3, 5 / 6),
        ([3, 2, 1], -1, 1),
        ([1, 1, 1], 0, 1),
        ([1, 1, 2], 2 / math.sqrt(6), 2 / 6),
    ],
)
def test_three_sets_by_hand(rule: list[float], tau: float, p: float) -> None:
    found = agreement([rule], [[10, 20, 30]])
    assert (found.tau, found.p) == (pytest.approx(tau), pytest.approx(p))


@pytest.mark.parametrize(("rule", "came"), [([4, 2, 3, 1], [4, 1, 3, 2]), ([1, 1, 3, 2], [5, 6, 6, 7])])
def test_p_is_scipys_exact_permutation_test(rule: list[float], came: list[float]) -> None:
    theirs = stats.permutation_test(
        (rule,),
        lambda one: stats.kendalltau(one, came).statistic,
        permutation_type="pairings",
        alternative="greater",
        n_resamples=np.inf,
    )
    found = agreement([rule], [came])
    assert found.tau == pytest.approx(theirs.statistic)
    assert found.p == pytest.approx(theirs.pvalue)


def test_of_several_networks_all_orders_of_each_are_drawn_together() -> None:
    """Of two with three sets there are 36; a mean of at least 2/3 have (1, 1), (1, 1/3) and (1/3, 1): 1 + 2 + 2."""
    came = [[1.0, 2.0, 3.0], [10.0, 20.0, 30.0]]
    assert agreement(came, came).p == pytest.approx(1 / 36)
    found = agreement([[1, 2, 3], [2, 1, 3]], came)
    assert found.tau == pytest.approx(2 / 3)
    assert found.p == pytest.approx(5 / 36)
    assert agreement([[1, 2, 3], [1, 2]], [[1, 2, 3], [2, 1]]).tau == 0  # networks count alike, whatever their sets


def test_where_there_are_too_many_orders_some_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    rule, came = [3, 1, 2, 5, 4], [2, 1, 4, 3, 5]
    exact = agreement([rule], [came])
    monkeypatch.setattr(module, "_MOST_ORDERS", 119)
    one = agreement([rule], [came], seed=0)
    assert one == agreement([rule], [came], seed=0)
    assert one.tau == exact.tau
    assert one.p == pytest.approx(exact.p, abs=0.02)  # four standard deviations
    assert one.p != agreement([rule], [came], seed=1).p


def test_their_own_order_is_always_among_those_that_are_drawn() -> None:
    nine, six = list(range(9)), list(range(6))
    assert agreement([nine], [nine]).p == pytest.approx(1 / 10_000)
    assert agreement([six, six], [six, six]).p == pytest.approx(1 / 10_000)  # together they have 518,400


def test_regret_is_what_the_first_choice_costs() -> None:
    came = [[4.0, 1.0, 3.0], [7.0, 9.0]]
    assert agreement([[2, 1, 3], [1, 2]], came).regret == 0
    assert agreement([[1, 2, 3], [2, 1]], came).regret == pytest.approx((3 + 2) / 2)
    assert agreement([[1, 1, 1], [1, 2]], came).regret == pytest.approx(3 / 2)  # of equals the first


@given(st.lists(pairs.filter(lambda held: len(held[0]) < 5), min_size=1, max_size=2))
def test_p_is_a_share_and_nothing_but_the_order_counts(held: list[tuple[list[int], list[int]]]) -> None:
    rules, outcomes = [rule for rule, _ in held], [came for _, came in held]
    found = agreement(rules, outcomes)
    assert 0 < found.p <= 1
    assert -1 - 1e-9 <= found.tau <= 1 + 1e-9
    assert agreement([[value**3 + 7 for value in rule] for rule in rules], outcomes) == found
    stretched = agreement(rules, [[math.exp(value) for value in came] for came in outcomes])
    assert (stretched.tau, stretched.p) == (found.tau, found.p)


def test_infinite_scores_are_an_order_too() -> None:
    found = agreement([[-math.inf, 1, math.inf, math.inf]], [[1, 2, 3, 3]])
    assert (found.tau, found.regret) == (pytest.approx(1), 0)


@pytest.mark.parametrize(
    ("rules", "outcomes", "says"),
    [
        ([[1]], [[1]], "two layer sets at least"),
        ([[1, 2]], [[1, 2, 3]], "each with a score and an outcome"),
        ([[1, 2], [1, 2]], [[1, 2]], "network by network: give both of each"),
        ([], [], "of one at least"),
        ([[1, math.nan]], [[1, 2]], "NaN has no place in an order: leave out"),
        ([[1, 2]], [[math.nan, 2]], "NaN has no place in an order: leave out"),
    ],
)
def test_what_is_no_order_is_refused(rules: list[list[float]], outcomes: list[list[float]], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        agreement(rules, outcomes)
