"""Distances between laws: the estimates, and the paper's Lemmas 3, 4 and 7 on small discrete laws, exactly."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from scipy.optimize import linprog

from fedunlearn.theory.transport import permutation_p, sliced, sliced_wasserstein, variation

Floats = NDArray[np.float64]


def wasserstein(points: Floats, one: Floats, other: Floats) -> float:
    """Exactly, by linear programming: points ``(k, d)`` with weights ``(k,)`` of the same mass."""
    count = len(points)
    cost = np.linalg.norm(points[:, None] - points[None], axis=-1)
    rows, columns = np.kron(np.eye(count), np.ones(count)), np.kron(np.ones(count), np.eye(count))
    found: Any = linprog(cost.ravel(), A_eq=np.vstack([rows, columns]), b_eq=np.concatenate([one, other]))
    assert found.success
    return float(found.fun)


def total_variation(one: Floats, other: Floats) -> float:
    return float(np.abs(one - other).sum() / 2)


def image(of: Floats, one: Floats, other: Floats) -> tuple[Floats, Floats, Floats]:
    """Two laws carried along a function that takes these values: values that are equal become one point."""
    points, where = np.unique(of, axis=0, return_inverse=True)
    carried = [np.bincount(where.ravel(), law, minlength=len(points)) for law in (one, other)]
    return points, carried[0], carried[1]


weights = st.lists(st.integers(0, 5), min_size=5, max_size=5).filter(any)
places = st.lists(st.tuples(st.integers(-4, 4), st.integers(-4, 4)), min_size=5, max_size=5, unique=True)
values = st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=5, max_size=5)
slopes = st.lists(st.integers(-2, 2), min_size=4, max_size=4)


def law(counts: list[int]) -> Floats:
    return np.array(counts) / sum(counts)


def lipschitz(points: Floats, of: Floats) -> float:
    distance = np.linalg.norm(points[:, None] - points[None], axis=-1) + np.eye(len(points))
    steps: Floats = np.linalg.norm(of[:, None] - of[None], axis=-1) / distance
    return float(steps.max())


@settings(max_examples=50)
@given(places, values, weights, weights)
def test_lemma_3_a_function_stretches_wasserstein_by_its_slope_and_variation_not_at_all(
    at: list[tuple[int, int]], of: list[tuple[int, int]], one: list[int], other: list[int]
) -> None:
    points, f, p, q = np.array(at, float), np.array(of, float), law(one), law(other)
    there, carried, carried_other = image(f, p, q)
    moved = wasserstein(there, carried, carried_other)
    assert moved <= lipschitz(points, f) * wasserstein(points, p, q) + 1e-9
    assert total_variation(carried, carried_other) <= total_variation(p, q) + 1e-12


@settings(max_examples=50)
@given(values, weights, weights)
def test_lemma_4_a_bounded_function_moves_by_twice_its_bound(
    of: list[tuple[int, int]], one: list[int], other: list[int]
) -> None:
    f, p, q = np.array(of, float), law(one), law(other)
    bound = float(np.linalg.norm(f, axis=1).max())
    assert wasserstein(*image(f, p, q)) <= 2 * bound * total_variation(p, q) + 1e-9


def test_erratum_8_without_lemma_4s_factor_two_points_are_too_far() -> None:
    """(62) leaves it out."""
    f, p, q = np.array([[-1.0], [1.0]]), np.array([1.0, 0]), np.array([0, 1.0])
    moved = wasserstein(*image(f, p, q))
    assert moved == pytest.approx(2)
    assert moved > 1 * total_variation(p, q)
    assert moved <= 2 * 1 * total_variation(p, q) + 1e-12


@settings(max_examples=50)
@given(places, slopes, values, weights, weights)
def test_lemma_7_as_stated_holds(
    at: list[tuple[int, int]], slope: list[int], of: list[tuple[int, int]], one: list[int], other: list[int]
) -> None:
    """f = g + h with g linear and h bounded: W moves by no more than max(Lip g, 2 sup h) times W + TV."""
    points, h, p, q = np.array(at, float), np.array(of, float), law(one), law(other)
    matrix = np.array(slope, float).reshape(2, 2)
    moved = wasserstein(*image(points @ matrix.T + h, p, q))
    lip, bound = float(np.linalg.norm(matrix, 2)), float(np.linalg.norm(h, axis=1).max())
    apart, varied = wasserstein(points, p, q), total_variation(p, q)
    assert moved <= lip * apart + 2 * bound * varied + 1e-9  # what the proof should arrive at
    assert moved <= max(lip, 2 * bound) * (apart + varied) + 1e-9  # the statement, (63) with (35)


@settings(max_examples=50)
@given(places, weights, weights)
def test_erratum_9_common_mass_stays_where_it_is_at_no_cost(
    at: list[tuple[int, int]], one: list[int], other: list[int]
) -> None:
    """(68) is an equality, so that one coupling serves both terms and TV need not be added to both sides."""
    points, p, q = np.array(at, float), law(one), law(other)
    rest = np.maximum(p - q, 0), np.maximum(q - p, 0)
    assert wasserstein(points, *rest) == pytest.approx(wasserstein(points, p, q), abs=1e-9)


def test_erratum_9_steps_65_and_66_fail_and_what_comes_of_both_is_right() -> None:
    """h = -1 and 1 at two points, g = 0: (65) says E|f(x) - f(y)| <= 1, (66) that P(x != y) sup h is 2 TV."""
    h, p, q = np.array([[-1.0], [1.0]]), np.array([1.0, 0]), np.array([0, 1.0])
    moved, varied, differ, bound = wasserstein(*image(h, p, q)), total_variation(p, q), 1.0, 1.0
    assert moved > differ * bound  # (65) as printed
    assert differ * bound != 2 * bound * varied  # (66) as printed
    assert moved <= differ * 2 * bound + 1e-12  # the triangle inequality has the 2
    assert differ * 2 * bound == 2 * bound * varied


def test_erratum_9_the_end_of_the_proof_is_weaker_than_the_statement() -> None:
    """(70) has 1 + |f| where the statement has |f|, which suffices: f = x / 10 between 0 and 1."""
    points, p, q = np.array([[0.0], [1.0]]), np.array([1.0, 0]), np.array([0, 1.0])
    moved, norm, both = wasserstein(points / 10, p, q), 0.1, wasserstein(points, p, q) + total_variation(p, q)
    assert moved <= norm * both < (1 + norm) * both


# The estimates


def test_fewer_lines_than_dimensions_do_not_see_what_is_at_right_angles_to_them() -> None:
    unseen = np.linalg.svd(sliced(np.eye(9), 8, 0).T)[2][-1]
    one = np.random.default_rng(0).normal(size=(20, 9))
    other = one + np.linspace(1, 5, 20)[:, None] * unseen
    assert sliced_wasserstein(sliced(one, 8, 0), sliced(other, 8, 0)) == pytest.approx(0, abs=1e-12)
    assert sliced_wasserstein(sliced(one, 9, 1), sliced(other, 9, 1)) > 0.1


def test_more_lines_than_dimensions_do_not_tell_all_laws_apart_either() -> None:
    """Sums of even and of odd numbers of steps, one at right angles to each line: taking it or not pairs them."""
    steps = sliced(np.eye(2), 6, 0).T @ [[0.0, 1.0], [-1.0, 0.0]]
    taken = np.array(list(itertools.product((0, 1), repeat=6)))
    one, other = (taken[taken.sum(1) % 2 == parity] @ steps for parity in (0, 1))
    assert sliced_wasserstein(sliced(one, 6, 0), sliced(other, 6, 0)) == pytest.approx(0, abs=1e-12)
    assert sliced_wasserstein(sliced(one, 6, 1), sliced(other, 6, 1)) > 0.001


@given(st.integers(0, 1000), st.integers(1, 30))
def test_on_one_line_the_distance_is_scipys(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    one, other = rng.normal(size=(count, 3)), rng.normal(1, 2, (count, 3))
    expected = np.mean([stats.wasserstein_distance(one[:, i], other[:, i]) for i in range(3)])
    assert sliced_wasserstein(one, other) == pytest.approx(expected, rel=1e-9)


def test_the_sliced_distance_is_less_than_the_exact_one_and_of_a_shift_known() -> None:
    rng = np.random.default_rng(0)
    points = rng.normal(size=(12, 3))
    one, other = np.repeat([1 / 6, 0], 6), np.repeat([0, 1 / 6], 6)
    lines = sliced(points, 500, seed=0)
    assert sliced_wasserstein(lines[:6], lines[6:]) <= wasserstein(points, one, other)
    # of a shift by v the mean of |<v, direction>|, half of |v| in three dimensions
    shifted = sliced(points + np.array([2.0, 0, 0]), 4000, seed=0)
    assert sliced_wasserstein(sliced(points, 4000, seed=0), shifted) == pytest.approx(1, rel=0.03)


def test_the_order_of_a_sample_means_nothing() -> None:
    one = sliced(np.random.default_rng(0).normal(size=(50, 4)), 8, seed=0)
    assert sliced_wasserstein(one, one[::-1]) == 0
    assert permutation_p(one, one[::-1].copy(), seed=0) == 1


def test_of_equal_laws_p_is_uniform_and_of_different_ones_it_is_the_least() -> None:
    rng = np.random.default_rng(0)
    found = [permutation_p(rng.normal(size=(15, 2)), rng.normal(size=(15, 2)), seed) for seed in range(120)]
    assert stats.kstest(found, "uniform").pvalue > 0.01
    assert permutation_p(rng.normal(size=(40, 2)), rng.normal(2, 1, (40, 2)), seed=0) == 1 / 200


def test_a_layer_that_is_dead_is_its_own_mirror_image() -> None:
    assert variation(np.zeros((20, 3)), -np.zeros((20, 3)), seed=0).value == 0


def test_samples_of_different_size_are_refused() -> None:
    with pytest.raises(ValueError, match="as many of each"):
        sliced_wasserstein(np.zeros((2, 1)), np.zeros((3, 1)))
    with pytest.raises(ValueError, match="10 at least"):
        variation(np.zeros((9, 1)), np.zeros((9, 1)), seed=0)
    with pytest.raises(ValueError, match="diverged"):
        variation(np.full((10, 1), np.nan), np.zeros((10, 1)), seed=0)


def test_section_7_of_a_symmetric_law_the_variation_to_its_mirror_image_is_0() -> None:
    """Y and -Y in pairs: a classifier that remembers y must gain nothing at -y, in either direction."""
    leads = []
    for seed in range(4):
        y = np.random.default_rng(seed).normal(size=(200, 6))
        found = variation(y, -y, seed)
        leads += [found.logistic / found.error, found.forest / found.error]
    assert max(map(abs, leads)) < 4
    assert abs(np.mean(leads)) < 1.5


@pytest.mark.parametrize("mean", [0.3, 1.0])
def test_section_7_of_a_shifted_normal_law_it_is_nearly_reached_and_not_surpassed(mean: float) -> None:
    """TV of N(m, 1) and N(-m, 1) is 2 Phi(m) - 1."""
    truth = 2 * float(stats.norm.cdf(mean)) - 1
    y = np.random.default_rng(0).normal(mean, 1, (500, 1))
    found = variation(y, -y, seed=0)
    assert truth - 4 * found.error < found.value < truth + 3 * found.error
    assert found.value == max(found.logistic, found.forest)
    assert found.error == pytest.approx(math.sqrt(1 - found.value) / math.sqrt(500), rel=0.6)


def test_a_law_that_no_line_tells_from_its_mirror_image_is_found_by_the_forest() -> None:
    """Y exponential with its mean taken off: a threshold at 0 leads by 1 - 2/e = 0.26, the distance is 0.53."""
    truth = math.exp(-2) + 2 / math.e * (math.cosh(1) - 1)
    y = np.random.default_rng(0).exponential(size=(600, 1)) - 1
    found = variation(y, -y, seed=0)
    assert found.logistic < 1 - 2 / math.e + 3 * found.error
    assert truth - 5 * found.error < found.forest < truth + 3 * found.error
    assert found.value == found.forest


def test_separate_laws_are_told_apart_in_more_dimensions_than_samples() -> None:
    y = np.random.default_rng(0).normal(1, 0.1, (20, 500))
    assert variation(y, -y, seed=0).logistic == 1
    assert variation(y, -y, seed=0) == variation(y, -y, seed=0)
