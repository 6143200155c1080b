"""How sure an audit is: against brute force, known intervals, exact sums, and the definitions of the tests."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from sklearn.metrics import roc_curve

from fedunlearn.audits.certainty import (
    ALIKE,
    LEVEL,
    POWER,
    auc,
    curve,
    excess_found,
    found_at,
    holm,
    larger,
    mean,
    needed,
    proportion,
    sign_flips,
    wins_found,
    within,
)

SCORES = st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=20)
Floats = NDArray[np.float64]


def power(wins: int, trials: int, rate: float) -> float:
    """Chance of so many wins or more, summed up."""
    return math.fsum(math.comb(trials, k) * rate**k * (1 - rate) ** (trials - k) for k in range(wins, trials + 1))


# Areas and curves


@given(SCORES, SCORES)
def test_the_area_is_the_share_of_ordered_pairs_and_ties_count_half(members: list[float], others: list[float]) -> None:
    pairs = [(a > b) + (a == b) / 2 for a in members for b in others]
    assert auc(np.array(members), np.array(others)) == pytest.approx(sum(pairs) / len(pairs), abs=1e-12)


@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=80),
    st.lists(st.integers(0, 40), min_size=2, max_size=80),
)
def test_the_curve_runs_through_the_points_of_scikit_learn(members: list[int], others: list[int]) -> None:
    """At each rate that it names, as many members as the best threshold finds that takes no more others than that."""
    found = curve(np.array(members, dtype=float), np.array(others, dtype=float))
    rates, shares = map(list, zip(*found, strict=True))
    assert found[-1] == (1, 1)
    assert rates == sorted(set(rates))
    assert shares == sorted(shares)
    assert rates[0] == 1 / len(others)
    labels = np.repeat([1, 0], [len(members), len(others)])
    false, true, _ = roc_curve(labels, np.array(members + others, dtype=float), drop_intermediate=False)
    for rate, share in found:
        assert share == pytest.approx(true[false <= rate + 1e-12].max(), abs=1e-12)
        assert rate * len(others) == pytest.approx(round(rate * len(others)), abs=1e-9)  # a threshold has such a rate


def test_a_curve_of_many_scores_has_few_points_evenly_over_the_powers_of_ten() -> None:
    rng = np.random.default_rng(0)
    found = curve(rng.normal(1, 1, (20, 500)), rng.normal(0, 1, (20, 500)))
    rates = [rate for rate, _ in found]
    assert 40 <= len(found) <= 60
    assert rates[0] == 1e-4
    assert sum(rate < 1e-2 for rate in rates) > 15
    for rate, share in found[20::10]:
        if rate < 1:
            assert share == pytest.approx(stats.norm.sf(stats.norm.isf(rate) - 1), abs=0.02)


@given(st.integers(1, 60), st.integers(1, 40), st.integers(0, 10**6), st.sampled_from([0.1, 0.29, 0.5, 0.01]))
@settings(max_examples=60)
def test_what_is_found_at_a_rate_is_what_the_best_threshold_finds(
    rows: int, columns: int, seed: int, rate: float
) -> None:
    rng = np.random.default_rng(seed)
    members, others = rng.integers(0, 30, size=(2, rows, columns)).astype(float)
    found = found_at(members, others, rate)
    allowed = Fraction(str(rate)) * others.size
    if allowed < 10:
        assert found is None
        return
    assert found is not None
    thresholds = [t for t in {*members.flat, *others.flat, -1.0} if (others > t).sum() <= allowed]
    assert found.value == pytest.approx(max(np.mean(members > t) for t in thresholds), abs=1e-12)
    assert 0 <= found.low <= found.high <= 1


@pytest.mark.parametrize("rate", [0.01, 0.001, 0.1, 0.02])
def test_a_rate_needs_ten_false_positives(rate: float) -> None:
    enough = round(10 / rate)
    scores = np.arange(enough, dtype=float)[None]
    assert found_at(scores, scores[:, 1:], rate) is None
    found = found_at(scores + 0.5, scores, rate)
    assert found is not None
    assert found.value == pytest.approx(11 / enough)  # the threshold is the eleventh of all


def test_a_share_of_the_others_is_a_whole_number_however_floats_round_it() -> None:
    """0.29 of 100 would be 28.999..."""
    scores = np.arange(100.0)[None]
    found = found_at(scores, scores, 0.29)
    assert found is not None
    assert found.value == 0.29


def test_the_interval_of_what_is_found_is_over_models() -> None:
    """Where half of the models give all away and half nothing, it is wide; where all are alike, it is narrow."""
    others = np.tile(np.linspace(0, 1, 100), (16, 1))
    half = np.where(np.arange(16)[:, None] % 2 == 0, 2.0, -1.0) * np.ones((16, 100))
    found = found_at(half, others, 0.05)
    assert found is not None
    assert found.value == 0.5
    assert found.low < 0.3
    assert found.high > 0.7
    assert found == found_at(half, others, 0.05)
    alike = found_at(np.tile(np.linspace(0.5, 1.5, 100), (16, 1)), others, 0.05)
    assert alike is not None
    assert alike.low == alike.value == alike.high


# Intervals


@pytest.mark.parametrize("count", [2, 5, 40])
def test_the_mean_has_students_interval(count: int) -> None:
    values = np.random.default_rng(count).normal(3, 2, count)
    found, theirs = mean(values), stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert found.value == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high))


def test_of_one_value_everything_is_possible_and_of_equal_ones_nothing_else() -> None:
    one, alike = mean(np.array([0.7])), mean(np.array([0.5, 0.5, 0.5]))
    assert (one.value, one.low, one.high) == (0.7, -math.inf, math.inf)
    assert (alike.value, alike.low, alike.high) == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(8, 10, 0.4439, 0.9748), (0, 10, 0.0, 0.3085), (10, 10, 0.6915, 1.0), (5, 10, 0.1871, 0.8129), (0, 1, 0, 0.975)],
)
def test_a_proportion_has_cloppers_and_pearsons_interval(successes: int, trials: int, low: float, high: float) -> None:
    found = proportion(successes / trials, trials)
    assert found.value == successes / trials
    assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 30))
def test_a_proportion_of_half_as_many_trials_is_less_sure(trials: int) -> None:
    sure, less = proportion(0.75, trials), proportion(0.75, trials / 2)
    assert less.low < sure.low < 0.75 < sure.high < less.high


@given(st.integers(1, 60), st.data())
def test_at_its_bounds_a_proportion_is_just_rare_enough(trials: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, trials))
    found = proportion(successes / trials, trials)
    if successes:
        assert power(successes, trials, found.low) == pytest.approx(0.025, abs=1e-9)
    if successes < trials:
        assert 1 - power(successes + 1, trials, found.high) == pytest.approx(0.025, abs=1e-9)


def test_the_interval_of_one_models_area_covers_the_area() -> None:
    """Nearly as often as it says: a percentile bootstrap of 60 pairs covers a little less than 95 %."""
    rng, truth = np.random.default_rng(0), float(stats.norm.cdf(1 / math.sqrt(2)))
    covered = 0
    for _ in range(30):
        members, others = rng.normal(1, 1, 60), rng.normal(0, 1, 60)
        found = within(members, others)
        assert found.value == auc(members, others)
        assert found.low < found.value < found.high
        covered += found.low <= truth <= found.high
    assert covered >= stats.binom.ppf(0.001, 30, 0.93)


def test_the_interval_of_one_models_area_is_over_pairs() -> None:
    """Twins that are far alike move together: resampling either alone would say otherwise."""
    rng = np.random.default_rng(1)
    pairs = rng.normal(0, 10, 200)
    together, apart = within(pairs + 0.1, pairs), within(pairs + 0.1, rng.permutation(pairs))
    assert together.high - together.low < (apart.high - apart.low) / 5


# Tests


def test_sign_flips_are_the_exact_enumeration_of_eight_differences() -> None:
    for seed in range(6):
        differences = np.random.default_rng(seed).normal(0.4, 1, 8)
        sums = [sum(s * d for s, d in zip(signs, differences, strict=True)) for signs in SIGNS]
        exact = sum(one >= differences.sum() - 1e-12 for one in sums) / 256
        error = math.sqrt(exact * (1 - exact) / 9999)
        assert abs(sign_flips(differences) - exact) < 4.5 * error + 1e-4


SIGNS = list(itertools.product((1, -1), repeat=8))


def test_without_a_leak_sign_flips_are_uniform() -> None:
    rng = np.random.default_rng(0)
    found = [sign_flips(rng.standard_t(3, 20) * rng.uniform(0.1, 5), seed) for seed in range(300)]
    assert stats.kstest(found, "uniform").pvalue > 0.01


def test_a_shift_is_found_and_its_opposite_is_not() -> None:
    differences = np.random.default_rng(0).normal(1, 1, 50)
    assert sign_flips(differences) == 1e-4  # of so many draws it is never less
    assert sign_flips(-differences) > 0.999
    assert sign_flips(np.zeros(10)) == 1.0
    assert sign_flips(differences) == sign_flips(1000 * differences)


def test_equal_sums_count_however_they_are_rounded() -> None:
    """Whatever the signs, 0.1, 0.2 and -0.3 give the sum, 0, in a quarter of the cases, and more in three eighths."""
    assert sign_flips(np.array([0.1, 0.2, -0.3])) == pytest.approx(5 / 8, abs=0.02)


def alike(rng: np.random.Generator, shadows: int, lead: float) -> Floats:
    """Leads of shadows that are each other's references: of variance 1, their mean of variance 2 / N."""
    shared = rng.normal(size=(shadows, shadows))
    shared = (shared + shared.T) / math.sqrt(2) * (1 - np.eye(shadows))
    found: Floats = lead + shared.sum(1) / math.sqrt(shadows - 1)
    return found


@pytest.mark.parametrize(("shadows", "tests"), [(12, 1), (32, 1), (32, 10)])
def test_wins_that_are_called_found_are_found_four_times_in_five(shadows: int, tests: int) -> None:
    rate, rng = wins_found(shadows, tests), np.random.default_rng(shadows)
    drawn = [alike(rng, shadows, float(stats.norm.ppf(rate))) for _ in range(600)]
    assert np.mean([leads > 0 for leads in drawn]) == pytest.approx(rate, abs=0.015)
    found = np.mean([larger(leads, alike=ALIKE) <= LEVEL / tests for leads in drawn])
    assert found == pytest.approx(POWER, abs=0.06)


@pytest.mark.parametrize("shadows", [12, 32])
def test_where_nothing_leads_one_test_in_twenty_is_a_false_alarm_however_alike_the_shadows_are(shadows: int) -> None:
    rng = np.random.default_rng(shadows)
    drawn = [alike(rng, shadows, 0.0) for _ in range(1000)]
    alarms, naive = (sum(larger(leads, alike=by) <= LEVEL for leads in drawn) for by in (ALIKE, 1.0))
    assert stats.binomtest(int(alarms), 1000, LEVEL).pvalue > 0.001
    assert naive > 1.6 * alarms


def test_wins_found_by_hand() -> None:
    quantiles = 1.6955 + 0.8534  # Student's, of 0.95 and 0.8 with 31 degrees of freedom
    assert wins_found(32) == pytest.approx(stats.norm.cdf(quantiles / 4), abs=1e-4)
    assert wins_found(32, 10) == pytest.approx(stats.norm.cdf((2.7440 + 0.8534) / 4), abs=1e-4)


@given(st.integers(2, 200), st.integers(1, 20))
def test_more_shadows_find_less_and_more_tests_need_more(shadows: int, tests: int) -> None:
    assert 0.5 < wins_found(shadows + 1, tests) <= wins_found(shadows, tests) <= wins_found(shadows, tests + 1) <= 1


@given(st.floats(0.6, 0.99), st.integers(1, 10))
def test_needed_is_the_first_number_of_shadows_that_suffices(rate: float, tests: int) -> None:
    shadows = needed(rate, tests)
    assert wins_found(shadows, tests) <= rate
    assert shadows == 2 or wins_found(shadows - 1, tests) > rate


def test_no_number_of_shadows_finds_a_fair_coin() -> None:
    for rate in (0.5, 0.2, 1.0, float("nan")):
        with pytest.raises(ValueError, match=r"between 0.5 and 1"):
            needed(rate)


def test_equal_values_are_as_sure_as_so_many_coins() -> None:
    assert larger(np.full(6, 0.3)) == 0.5**6
    assert larger(np.full(6, -0.3)) == larger(np.zeros(6)) == 1
    rounded = np.array([0.7, 0.8, 0.9]) - np.array([0.6, 0.7, 0.8])
    assert len(set(rounded.tolist())) > 1
    assert larger(rounded) == 0.5**3


@pytest.mark.parametrize("count", [8, 24])
def test_an_excess_that_is_called_found_is_found_four_times_in_five(count: int) -> None:
    """Areas of normal noise, on top of the excess that the same noise without it promises."""
    rng, rejected, repeats = np.random.default_rng(count), 0, 600
    for _ in range(repeats):
        excess = excess_found(rng.normal(0.5, 0.1, count))
        rejected += larger(rng.normal(excess, 0.1 * math.sqrt(ALIKE), count)) <= LEVEL
    assert rejected / repeats == pytest.approx(POWER, abs=0.06)
    freedom = count - 1
    areas = np.random.default_rng(0).normal(0.5, 0.1, count)
    quantiles = stats.t.ppf(0.95, freedom) + stats.t.ppf(0.8, freedom)
    assert excess_found(areas) == pytest.approx(quantiles * areas.std(ddof=1) * math.sqrt(ALIKE / count))


def test_holm_by_hand() -> None:
    """0.01 four times over; 0.02 three times; 0.03 twice would be 0.06 again; 0.04 no less than that."""
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])  # Wikipedia's
    assert holm([0.5, 0.9]) == [1, 1]
    assert holm([0.2]) == [0.2]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_rejects_what_its_steps_reject(p: list[float]) -> None:
    """Down from the smallest: stop at the first that is above the level by how many are left."""
    rejected: list[int] = []
    for rank, position in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        assume(abs(p[position] * (len(p) - rank) - LEVEL) > 1e-9)
        if p[position] > LEVEL / (len(p) - rank):
            break
        rejected.append(position)
    adjusted = holm(p)
    assert [one <= LEVEL for one in adjusted] == [position in rejected for position in range(len(p))]
    assert all(one >= raw and one <= 1 for one, raw in zip(adjusted, p, strict=True))
