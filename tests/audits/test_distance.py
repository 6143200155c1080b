"""Distances of predictions: by hand, and against a plain loop and SciPy."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ks_2samp

from fedunlearn.audits.distance import disagreement, kolmogorov_smirnov

VALUES = st.lists(st.integers(-4, 4).map(float), min_size=1, max_size=30)
LOSSES = st.lists(st.integers(1, 60).map(lambda tenths: tenths / 10), min_size=1, max_size=30)


def test_disagreement_by_hand() -> None:
    assert disagreement(np.array([0, 1, 2, 2]), np.array([0, 2, 2, 1])) == 0.5
    assert disagreement(np.array([3]), np.array([3])) == 0.0
    assert disagreement(np.array([3, 1]), np.array([1, 3])) == 1.0


def test_predictions_of_other_samples_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match=r"\(2,\) and \(3,\) cannot be compared"):
        disagreement(np.array([1, 2]), np.array([1, 2, 3]))
    with pytest.raises(ValueError, match=r"\(0,\) and \(0,\) cannot be compared"):
        disagreement(np.array([], dtype=np.int64), np.array([], dtype=np.int64))


def test_kolmogorov_smirnov_by_hand() -> None:
    """Behind 2 two thirds of the one are there, and nothing of the other."""
    assert kolmogorov_smirnov(np.array([1.0, 2.0, 5.0]), np.array([4.0, 6.0])) == pytest.approx(2 / 3)
    assert kolmogorov_smirnov(np.array([1.0, 2.0]), np.array([2.0, 1.0])) == 0.0
    assert kolmogorov_smirnov(np.array([0.0]), np.array([1.0, 2.0])) == 1.0
    with pytest.raises(ValueError, match="0 and 1 values cannot be compared"):
        kolmogorov_smirnov(np.array([]), np.array([1.0]))


@given(VALUES, VALUES)
def test_it_is_the_largest_gap_between_two_distribution_functions(one: list[float], other: list[float]) -> None:
    gaps = [abs(sum(a <= x for a in one) / len(one) - sum(b <= x for b in other) / len(other)) for x in one + other]
    found = kolmogorov_smirnov(np.array(one), np.array(other))
    assert found == pytest.approx(max(gaps), abs=1e-12)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # about the p-value
        assert found == pytest.approx(ks_2samp(one, other).statistic, abs=1e-12)
    assert found == pytest.approx(kolmogorov_smirnov(np.array(other), np.array(one)), abs=1e-12)


@given(LOSSES, LOSSES)
def test_losses_and_confidences_are_as_far_apart(one: list[float], other: list[float]) -> None:
    ours, theirs = np.array(one), np.array(other)
    distance = kolmogorov_smirnov(-np.log(np.expm1(ours)), -np.log(np.expm1(theirs)))
    assert distance == pytest.approx(kolmogorov_smirnov(ours, theirs), abs=1e-12)
