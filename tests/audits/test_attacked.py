"""Attacks with shadows: who is a reference for whom, what chance alone gives, and that a leak is found."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from fedunlearn.audits.certainty import LEVEL, POWER, auc, detectable, sign_flips
from fedunlearn.audits.lira import lira
from fedunlearn.audits.membership import (
    Attacked,
    Evidence,
    Scorer,
    by_confidence,
    by_likelihood,
    by_population,
    compared,
)
from fedunlearn.audits.rmia import rmia

Floats = NDArray[np.float64]
Attack = Callable[[Evidence, Scorer], Attacked]
SCORERS = [by_confidence, by_likelihood, by_population]
ATTACKS: list[Attack] = [Attacked.of, Attacked.in_turn]


def evidence(seed: int, shadows: int = 8, targets: int = 12, leak: float = 0.0, width: int = 1) -> Evidence:
    """Signals that differ from sample to sample, and are larger by ``leak`` where a model has seen the sample."""
    rng = np.random.default_rng(seed)
    heads = rng.random((shadows + 1, targets)) < 0.5
    heads[-1] = False
    member = np.concatenate([~heads, heads], 1)[..., None]
    signals = rng.normal(0, 2, (2 * targets, 1)) + rng.normal(size=(shadows + 1, 2 * targets, width)) + leak * member
    return Evidence(signals, heads, rng.normal(size=(shadows + 1, 30)))


class Spy:
    """Records who was attacked with whom; every sample's score is its signal."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, list[int]]] = []

    def __call__(self, given: Evidence, references: NDArray[np.int64], audited: int) -> Floats:
        self.seen.append((audited, references.tolist()))
        return given.signals[audited, :, -1]


def test_an_attacked_model_is_no_reference_of_its_own() -> None:
    """Nor is the audited model one for any shadow."""
    spy = Spy()
    Attacked.of(evidence(0, shadows=3), spy)
    assert spy.seen == [(0, [1, 2]), (1, [0, 2]), (2, [0, 1]), (3, [0, 1, 2])]


def test_in_turn_only_earlier_shadows_are_references() -> None:
    spy = Spy()
    Attacked.in_turn(evidence(0, shadows=5), spy)
    assert spy.seen == [(2, [0, 1]), (3, [0, 1, 2]), (4, [0, 1, 2, 3]), (5, [0, 1, 2, 3, 4])]


def test_heads_decide_which_twin_is_the_member() -> None:
    """By hand: targets at 1 and 2, their twins at 10 and 20, tenfold in the second shadow."""
    signals = np.array([1.0, 2.0, 10.0, 20.0]) * np.array([1, 10, 100])[:, None]
    given = Evidence(signals[..., None], np.array([[False, True], [True, True], [False, False]]), np.zeros((3, 1)))
    found = Attacked.of(given, by_confidence)
    assert found.members.tolist() == [[1, 20], [100, 200], [100, 200]]
    assert found.others.tolist() == [[10, 2], [10, 20], [1000, 2000]]
    assert found.areas.tolist() == [0.5, 1.0]
    assert found.leads.tolist() == [1 - 10 + 20 - 2, 100 - 10 + 200 - 20]
    assert given.member.tolist() == [[True, False, False, True], [False, False, True, True], [True, True, False, False]]


def test_scores_are_those_of_the_attacks() -> None:
    given = evidence(1, width=2, leak=1)
    references = np.array([0, 2, 5])
    member = np.concatenate([~given.heads, given.heads], 1)
    assert np.array_equal(by_confidence(given, references, 3), given.signals[3, :, 1])
    assert np.array_equal(
        by_likelihood(given, references, 3), lira(given.signals[[0, 2, 5]], member[[0, 2, 5]], given.signals[3])
    )
    chances, population = 1 / (1 + np.exp(-given.signals[..., 1])), 1 / (1 + np.exp(-given.population))
    expected = rmia(chances[[0, 2, 5]], member[[0, 2, 5]], chances[3], population[[0, 2, 5]], population[3])
    assert by_population(given, references, 3).tolist() == pytest.approx(expected.tolist(), abs=1e-12)


def test_a_result_by_hand() -> None:
    """Three shadows: won, lost, and a draw, of which half a win is none; and the run's own model last."""
    members = np.array([[2.0, 3.0], [0.0, 0.0], [1.0, 2.0], [5.0, 6.0]])
    others = np.array([[0.0, 1.0], [1.0, 1.0], [2.0, 1.0], [1.0, 2.0]])
    found = Attacked(members, others).result()
    assert found.sample.value == pytest.approx((1 + 0 + 0.5) / 3)
    assert found.client.value == 1 / 3
    assert found.found_at == {}
    assert found.here.value == 1
    assert found.here_p == pytest.approx(0.25, abs=0.03)  # both signs happen to be right
    draws = Attacked(np.ones((5, 3)), np.ones((5, 3))).result()
    assert (draws.client.value, draws.sample.value, draws.here_p) == (0.5, 0.5, 1.0)
    many = Attacked(np.ones((11, 100)), np.zeros((11, 100))).result()
    assert list(many.found_at) == [0.01]
    assert many.found_at[0.01].value == 1


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("scorer", SCORERS)
@given(seed=st.integers(0, 10**6), flips=st.integers(0, 2**12 - 1))
@settings(max_examples=8)
def test_label_swaps_change_nothing(attack: Attack, scorer: Scorer, seed: int, flips: int) -> None:
    """Which of two twins is called the target is a matter of names."""
    given = evidence(seed, leak=0.5)
    swapped = np.array([flips >> bit & 1 for bit in range(12)], dtype=np.bool_)
    order = np.where(swapped, np.arange(12) + 12, np.arange(12))
    order = np.concatenate([order, (order + 12) % 24])
    other = Evidence(given.signals[:, order], given.heads ^ swapped, given.population)
    one, two = attack(given, scorer), attack(other, scorer)
    assert two.members == pytest.approx(one.members, rel=1e-9, abs=1e-9)
    assert two.others == pytest.approx(one.others, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("scorer", SCORERS)
def test_where_nothing_leaks_areas_are_a_half_wins_a_fair_coin_and_p_values_true(scorer: Scorer) -> None:
    """Over 200 audits of signals that do not know who was a member.

    Limits: what happens by chance once in a thousand times. Had each shadow all others for references, as many as one
    p-value in eight would be below 0.05.
    """
    every, turns, errors, wins, sample, client, here = [], [], [], [], [], [], []
    for seed in range(200):
        method, retrain = (evidence(1000 * seed + kind, shadows=10, targets=8) for kind in (0, 1))
        attacked, all_others = Attacked.in_turn(method, scorer), Attacked.of(method, scorer)
        every.append(all_others.areas.mean())
        turns.append(attacked.areas.mean())
        errors.append([stats.sem(all_others.areas), stats.sem(attacked.areas)])
        wins.append(int((attacked.leads > 0).sum()))
        found = compared(attacked, Attacked.in_turn(retrain, scorer), blind=True)
        sample.append(found.sample_p)
        client.append(found.client_p)
        here.append(sign_flips(attacked.members[-1] - attacked.others[-1]))
    for areas in (every, turns):
        assert abs(stats.ttest_1samp(areas, 0.5).statistic) < 3.3
    assert stats.binomtest(sum(wins), 200 * 8).pvalue > 0.001
    expected = 200 * stats.binom.pmf(np.arange(9), 8, 0.5)
    groups = [np.add.reduceat(x, [0, 3, 4, 5, 6]) for x in (np.bincount(wins, minlength=9), expected)]
    assert stats.chisquare(*groups).pvalue > 0.001
    for p_values in (sample, client, here):
        alarms = sum(p <= LEVEL for p in p_values)
        assert stats.binomtest(alarms, 200, LEVEL, alternative="greater").pvalue > 0.001
    together, independent = np.var([every, turns], axis=1, ddof=1) / np.square(errors).mean(0)
    assert independent < 1.35
    if scorer is by_likelihood:
        assert together > 1.5  # which is why there is `in_turn`


@pytest.mark.parametrize("scorer", [by_likelihood, by_population])
def test_a_leak_is_found(scorer: Scorer) -> None:
    given, nothing = evidence(0, 12, 40, leak=2), evidence(1, 12, 40)
    attacked, retrain = Attacked.in_turn(given, scorer), Attacked.in_turn(nothing, scorer)
    for blind in (True, False):
        assert compared(attacked, retrain, blind=blind).sample_p < 0.01
    assert compared(attacked, retrain, blind=True).client_p == pytest.approx(0.5**10)
    found = Attacked.of(given, scorer).result()
    assert found.sample.low > 0.7
    assert found.client.value == 1
    assert found.here_p < 0.01


def test_likelihood_finds_more_than_confidence_where_samples_differ() -> None:
    given = evidence(0, 20, 60, leak=1.5)
    ratio, plain = (Attacked.of(given, scorer).areas.mean() for scorer in (by_likelihood, by_confidence))
    assert ratio > plain + 0.1


@pytest.mark.parametrize("shadows", [12, 24])
def test_a_leak_that_is_called_detectable_is_found_four_times_in_five(shadows: int) -> None:
    """Of set-level leaks whose attacker is right as often as `detectable` says, in 400 audits."""
    rate, rng = detectable(shadows), np.random.default_rng(shadows)
    assert rate is not None
    found = 0
    for _ in range(400):
        won = rng.random(shadows) < rate
        method = leading(np.where(won, 1.0, -1.0) * rng.uniform(0.1, 2, shadows))
        found += compared(method, leading(rng.normal(size=shadows)), blind=True).client_p <= LEVEL
    assert stats.binomtest(int(found), 400, POWER).pvalue > 0.001


def leading(leads: Floats) -> Attacked:
    """Three targets in each shadow, and a last row for the audited model, whose members lead by so much together."""
    rows = np.append(leads, 0.0)[:, None]
    return Attacked(rows * np.array([0.5, 0.3, 0.2]), np.zeros((len(rows), 3)))


def test_two_that_are_the_same_differ_in_nothing() -> None:
    """Where retrained models may give something away, the same from the method's is no finding."""
    attacked = Attacked.in_turn(evidence(0, leak=3), by_likelihood)
    found = compared(attacked, attacked, blind=False)
    assert (found.excess.value, found.excess.low, found.excess.high) == (0, 0, 0)
    assert (found.sample_p, found.client_p) == (1, 1)
    blind = compared(attacked, attacked, blind=True)
    assert blind.excess.value == 0
    assert blind.sample_p < 0.05  # but by chance alone nobody finds so much


def test_a_comparison_by_hand() -> None:
    """Wins where the other lost: one; losses where the other won: none. Against a coin: two of three."""
    ours, theirs = leading(np.array([1.0, 2.0, -1.0])), leading(np.array([1.0, -1.0, -1.0]))
    assert ours.areas.tolist() == [1, 1, 0]
    found, blind = (compared(ours, theirs, blind=blind) for blind in (False, True))
    assert found.excess.value == blind.excess.value == pytest.approx(1 / 3)
    assert found.client_p == 0.5
    assert blind.client_p == 0.5  # 3 of 8 have two wins, one three
    t = (1 / 3) / (np.std([0, 1, 0], ddof=1) / math.sqrt(3))
    assert found.sample_p == pytest.approx(stats.t.sf(t, 2))
    assert blind.sample_p == pytest.approx(stats.t.sf((2 / 3 - 0.5) / (np.std([1, 1, 0], ddof=1) / math.sqrt(3)), 2))


def test_where_all_shadows_give_the_same_area_the_p_value_is_that_of_as_many_coins() -> None:
    """However the differences are rounded."""
    all_found = leading(np.ones(6))
    assert compared(all_found, all_found, blind=True).sample_p == 0.5**6
    nothing = Attacked(np.ones((7, 3)), np.ones((7, 3)))
    assert compared(nothing, all_found, blind=True).sample_p == 1
    assert compared(nothing, all_found, blind=False).sample_p == 1
    ours, theirs = with_areas([7, 8, 9, 7]), with_areas([6, 7, 8, 6])
    assert len({float(difference) for difference in ours.areas - theirs.areas}) > 1  # of 0.1, in floats
    assert compared(ours, theirs, blind=False).sample_p == 0.5**4


def with_areas(tenths: list[int]) -> Attacked:
    """Of ten members and a twin of each, so many tenths of the pairs in order."""
    members = np.array([[1.0] * n + [-1.0] * (10 - n) for n in [*tenths, 0]])
    return Attacked(members, np.zeros_like(members))


@given(st.lists(st.integers(-2, 2), min_size=2, max_size=12), st.lists(st.integers(-2, 2), min_size=2, max_size=12))
def test_areas_are_each_shadows_own(members: list[int], others: list[int]) -> None:
    rows = np.array([members, members[::-1]], dtype=float), np.array([others, others], dtype=float)
    assert Attacked(*rows).areas.tolist() == [auc(np.array(members, dtype=float), np.array(others, dtype=float))]
