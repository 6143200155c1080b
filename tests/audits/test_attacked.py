"""Attacks with shadows: who is a reference for whom, what chance alone gives, and that a leak is found."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from scipy.special import expit

from fedunlearn.audits import membership
from fedunlearn.audits.certainty import ALIKE, LEVEL, POWER, auc, sign_flips, wins_found
from fedunlearn.audits.lira import lira
from fedunlearn.audits.membership import (
    Attacked,
    Evidence,
    Scorer,
    beside_chance,
    beside_retrain,
    by_confidence,
    by_likelihood,
    by_population,
)
from fedunlearn.audits.rmia import rmia

Floats = NDArray[np.float64]
SCORERS = [by_confidence, by_likelihood, by_population]


def evidence(seed: int, shadows: int = 8, targets: int = 12, leak: float = 0.0, width: int = 1) -> Evidence:
    """Signals that differ from sample to sample, and are larger by ``leak`` where a model has seen the sample."""
    rng = np.random.default_rng(seed)
    heads = rng.random((shadows + 1, targets)) < 0.5
    heads[-1] = False
    member = np.concatenate([~heads, heads], 1)[..., None]
    signals = rng.normal(0, 2, (2 * targets, 1)) + rng.normal(size=(shadows + 1, 2 * targets, width)) + leak * member
    return Evidence(signals, heads, rng.normal(size=(shadows + 1, 30)))


@pytest.mark.parametrize("width", [1, 2])
def test_an_attacked_model_is_no_reference_of_its_own(width: int) -> None:
    """Nor is the audited model one for any shadow."""
    given = evidence(1, shadows=6, width=width, leak=1)
    member, chances, population = given.member, expit(given.signals[..., -1]), expit(given.population)
    likely, popular = by_likelihood(given), by_population(given)
    for audited in range(7):
        rest = [model for model in range(6) if model != audited]
        expected = lira(given.signals[rest], member[rest], given.signals[audited])
        assert likely[audited] == pytest.approx(expected, rel=1e-6, abs=1e-6)
        others = rmia(chances[rest], member[rest], chances[audited], population[rest], population[audited])
        assert popular[audited] == pytest.approx(others, abs=1e-12)
    assert np.array_equal(by_confidence(given), given.signals[..., -1])


def test_coins_that_are_tossed_again_are_fair_and_of_shadows_alone() -> None:
    given = evidence(5, shadows=20, targets=100)
    again = given.tossed(np.random.default_rng(0))
    assert not again.heads[-1].any()
    assert again.heads[:-1].mean() == pytest.approx(0.5, abs=0.04)
    assert (again.heads[:-1] == given.heads[:-1]).mean() == pytest.approx(0.5, abs=0.04)
    assert again.signals is given.signals


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


def test_a_result_by_hand() -> None:
    """Three shadows: won, lost, and a draw, which is half a win; and the run's own model last."""
    members = np.array([[2.0, 3.0], [0.0, 0.0], [1.0, 2.0], [5.0, 6.0]])
    others = np.array([[0.0, 1.0], [1.0, 1.0], [2.0, 1.0], [1.0, 2.0]])
    found = Attacked(members, others).result()
    assert found.sample.value == pytest.approx((1 + 0 + 0.5) / 3)
    assert found.client.value == 0.5
    assert found.found_at == {}
    assert found.here.value == 1
    assert found.here_p == pytest.approx(0.25, abs=0.03)  # both signs happen to be right
    draws = Attacked(np.ones((5, 3)), np.ones((5, 3))).result()
    assert (draws.client.value, draws.sample.value, draws.here_p) == (0.5, 0.5, 1.0)
    many = Attacked(np.ones((11, 100)), np.zeros((11, 100))).result()
    assert list(many.found_at) == [0.01]
    assert many.found_at[0.01].value == 1


@pytest.mark.parametrize("scorer", SCORERS)
@given(seed=st.integers(0, 10**6), flips=st.integers(0, 2**12 - 1))
@settings(max_examples=8)
def test_label_swaps_change_nothing(scorer: Scorer, seed: int, flips: int) -> None:
    """Which of two twins is called the target is a matter of names."""
    given = evidence(seed, leak=0.5)
    swapped = np.array([flips >> bit & 1 for bit in range(12)], dtype=np.bool_)
    order = np.where(swapped, np.arange(12) + 12, np.arange(12))
    order = np.concatenate([order, (order + 12) % 24])
    other = Evidence(given.signals[:, order], given.heads ^ swapped, given.population)
    one, two = Attacked.of(given, scorer), Attacked.of(other, scorer)
    assert two.members == pytest.approx(one.members, rel=1e-9, abs=1e-9)
    assert two.others == pytest.approx(one.others, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("scorer", SCORERS)
def test_where_nothing_leaks_areas_are_a_half_wins_a_fair_coin_and_p_values_true(
    scorer: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over 200 audits of signals that do not know who was a member.

    Limits: what happens by chance once in a thousand times. To take a mean over shadows for one of independent ones
    would raise a false alarm in one audit of eight.
    """
    monkeypatch.setattr(membership, "_REDRAWN", 39)
    areas, errors, wins, sample, client, here = [], [], [], [], [], []
    for seed in range(200):
        method = evidence(seed, shadows=10, targets=8)
        attacked = Attacked.of(method, scorer)
        areas.append(attacked.areas.mean())
        errors.append(stats.sem(attacked.areas))
        wins.append((attacked.leads > 0).mean())
        found = beside_chance(method, scorer, seed + 1)
        sample.append(found.sample_p)
        client.append(found.client_p)
        here.append(sign_flips(attacked.members[-1] - attacked.others[-1]))
    for values in (areas, wins):
        assert abs(stats.ttest_1samp(values, 0.5).statistic) < 3.3
    for p_values in (sample, client, here):
        alarms = sum(p <= LEVEL for p in p_values)
        assert stats.binomtest(alarms, 200, LEVEL, alternative="greater").pvalue > 0.001
        assert alarms > 0
    ratio = np.var(areas, ddof=1) / np.square(errors).mean()
    assert ratio < 1.3 * ALIKE
    if scorer is by_likelihood:
        assert ratio > 1.5  # which is why intervals are widened, and coins tossed again


@pytest.mark.parametrize("scorer", [by_likelihood, by_population])
def test_a_leak_is_found(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership, "_REDRAWN", 199)
    given, nothing = evidence(5, 12, 40, leak=2), evidence(1, 12, 40)
    attacked, retrain = Attacked.of(given, scorer), Attacked.of(nothing, scorer)
    by_chance, by_retrain = beside_chance(given, scorer), beside_retrain(attacked, retrain)
    assert (by_chance.sample_p, by_chance.client_p) == (1 / 200, 1 / 200)  # no toss of coins comes near
    assert by_retrain.sample_p < 0.01
    assert by_retrain.client_p < 0.05
    assert by_chance.excess.value == pytest.approx(attacked.areas.mean() - 0.5)
    assert by_retrain.excess.value == pytest.approx((attacked.areas - retrain.areas).mean())
    assert by_chance.excess.low > 0.2
    found = attacked.result()
    assert found.sample.low > 0.7
    assert found.client.value == 1
    assert found.here_p < 0.01


def test_a_leak_of_the_stated_size_is_found_as_often_as_stated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of leaks whose attacker is right about all data together as often as `wins_found` says, four in five."""
    monkeypatch.setattr(membership, "_REDRAWN", 39)
    shadows, repeats = 12, 120
    wins, found = [], 0
    for seed in range(repeats):
        given = evidence(seed, shadows, targets=20, leak=0.57)
        attacked = Attacked.of(given, by_likelihood)
        wins.append((attacked.leads > 0).mean())
        found += beside_chance(given, by_likelihood, seed + 1).client_p <= LEVEL
    assert np.mean(wins) == pytest.approx(wins_found(shadows), abs=0.03)
    assert stats.binomtest(int(found), repeats, POWER, alternative="less").pvalue > 0.001


def test_likelihood_finds_more_than_confidence_where_samples_differ() -> None:
    given = evidence(0, 20, 60, leak=1.5)
    ratio, plain = (Attacked.of(given, scorer).areas.mean() for scorer in (by_likelihood, by_confidence))
    assert ratio > plain + 0.1


def test_two_that_are_the_same_differ_in_nothing() -> None:
    """Where retrained models may give something away, the same from the method's is no finding."""
    attacked = Attacked.of(evidence(0, leak=3), by_likelihood)
    found = beside_retrain(attacked, attacked)
    assert (found.excess.value, found.excess.low, found.excess.high) == (0, 0, 0)
    assert (found.sample_p, found.client_p) == (1, 1)


def leading(leads: Floats) -> Attacked:
    """Three targets in each shadow, and a last row for the audited model, whose members lead by so much together."""
    rows = np.append(leads, 0.0)[:, None]
    return Attacked(rows * np.array([0.5, 0.3, 0.2]), np.zeros((len(rows), 3)))


def test_a_comparison_with_retrained_models_by_hand() -> None:
    """Areas 1, 1, 0 beside 1, 0, 0; leads 1, 2, -1 beside 1, -1, -1."""
    ours, theirs = leading(np.array([1.0, 2.0, -1.0])), leading(np.array([1.0, -1.0, -1.0]))
    assert ours.areas.tolist() == [1, 1, 0]
    found = beside_retrain(ours, theirs)
    assert found.excess.value == pytest.approx(1 / 3)
    error = np.std([0, 1, 0], ddof=1) / math.sqrt(3) * math.sqrt(ALIKE)
    assert found.sample_p == pytest.approx(stats.t.sf((1 / 3) / error, 2))
    assert found.client_p == pytest.approx(found.sample_p)  # the differences are 0, 3, 0
    assert found.excess.high == pytest.approx(1 / 3 + stats.t.ppf(0.975, 2) * error)


@given(st.lists(st.integers(-2, 2), min_size=2, max_size=12), st.lists(st.integers(-2, 2), min_size=2, max_size=12))
def test_areas_are_each_shadows_own(members: list[int], others: list[int]) -> None:
    rows = np.array([members, members[::-1]], dtype=float), np.array([others, others], dtype=float)
    assert Attacked(*rows).areas.tolist() == [auc(np.array(members, dtype=float), np.array(others, dtype=float))]
