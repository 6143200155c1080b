"""Forgetting quality: by hand, against plain loops, and what it is worth with how many models."""

from __future__ import annotations

import itertools
import math
import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedunlearn.audits.forgetting import FEWEST, forgetting_quality, privacy_loss

Floats = NDArray[np.float64]
SHIFT = st.sampled_from([0.0, 0.5, 2.0])


def drawn(models: int, samples: int, shift: float, seed: int) -> tuple[Floats, Floats]:
    rng = np.random.default_rng(seed)
    return rng.normal(shift, 1, (models, samples)), rng.normal(0, 1, (models, samples))


def by_loops(unlearned: list[float], retrained: list[float]) -> float:
    """The best threshold in each direction on every second model, measured on the others."""
    surest = 0.0
    values = sorted({*unlearned[::2], *retrained[::2]})
    cuts = [(a + b) / 2 for a, b in itertools.pairwise(values)]
    for sign in (1, -1) if cuts else ():
        leads = []
        for cut in cuts:
            found = sum(sign * u > sign * cut for u in unlearned[::2]) / len(unlearned[::2])
            false = sum(sign * r > sign * cut for r in retrained[::2]) / len(retrained[::2])
            leads.append(found - false)
        cut = statistics.median(cut for cut, lead in zip(cuts, leads, strict=True) if lead > max(leads) - 1e-9)
        missed = [sign * u <= sign * cut for u in unlearned[1::2]]
        alarms = [sign * r > sign * cut for r in retrained[1::2]]
        fnr, fpr = sum(missed) / len(missed), sum(alarms) / len(alarms)
        if fnr == fpr == 0:
            return math.inf
        if fnr and fpr:
            odds = max((1 - 1e-6 - fpr) / fnr, (1 - 1e-6 - fnr) / fpr)
            surest = max(surest, math.log(odds) if odds > 0 else 0.0)
    return surest


def quality(losses: list[float]) -> float:
    """Bins of 0.5 from 1 to 13, two divided by two to their power."""
    bins = [next((n for n in range(1, 13) if loss < n / 2), 13) for loss in losses]
    return sum(2.0 ** (1 - n) for n in bins) / len(bins)


def test_a_privacy_loss_by_hand() -> None:
    """In either half every fourth unlearned model says 0, and every fourth retrained one 1: log((1 - 1/4) / (1/4))."""
    unlearned, retrained = np.repeat([0.0, 1, 1, 1], 2), np.repeat([1.0, 0, 0, 0], 2)
    assert privacy_loss(unlearned, retrained) == pytest.approx(math.log((0.75 - 1e-6) / 0.25))
    assert privacy_loss(retrained, unlearned) == pytest.approx(math.log((0.75 - 1e-6) / 0.25))
    assert privacy_loss(unlearned, unlearned) == 0


@given(st.integers(4, 24), st.integers(4, 24), SHIFT, st.integers(0, 10**6), st.booleans())
@settings(max_examples=60)
def test_it_is_the_loops(one: int, other: int, shift: float, seed: int, rounded: bool) -> None:
    rng = np.random.default_rng(seed)
    unlearned, retrained = rng.normal(shift, 1, one), rng.normal(0, 1, other)
    if rounded:
        unlearned, retrained = unlearned.round(), retrained.round()
    expected = by_loops(unlearned.tolist(), retrained.tolist())
    assert privacy_loss(unlearned, retrained) == pytest.approx(expected, abs=1e-9)


@given(st.integers(0, 10**6), SHIFT)
@settings(max_examples=30)
def test_the_direction_of_signals_does_not_matter(seed: int, shift: float) -> None:
    unlearned, retrained = (part[:, 0] for part in drawn(40, 1, shift, seed))
    assert privacy_loss(-unlearned, -retrained) == pytest.approx(privacy_loss(unlearned, retrained), abs=1e-9)


def test_separated_models_are_told_apart_with_certainty_and_constants_not_at_all() -> None:
    low, high = np.linspace(0, 1, 64), np.linspace(2, 3, 64)
    assert privacy_loss(low, high) == privacy_loss(high, low) == math.inf
    assert privacy_loss(np.ones(64), np.ones(64)) == 0
    assert privacy_loss(np.ones(64), np.zeros(64)) == math.inf
    apart = forgetting_quality(np.ones((64, 3)), np.zeros((64, 3)))
    assert apart == 2 / 2**13
    assert forgetting_quality(np.ones((64, 3)), np.ones((64, 3))) == 1
    assert forgetting_quality(np.ones((64, 2)), np.array([[1.0, 0.0]] * 64)) == (1 + 2 / 2**13) / 2


def test_an_attacker_of_one_kind_of_error_tells_nothing() -> None:
    """Half of the unlearned models cannot be told from the retrained, which all are at 0: never a false alarm."""
    unlearned = np.repeat([0.0, 1.0], 2).repeat(8).reshape(2, -1).T.ravel()
    assert privacy_loss(unlearned, np.zeros(32)) == 0


@given(st.integers(0, 10**6), SHIFT)
@settings(max_examples=20)
def test_the_quality_is_the_mean_of_the_samples_bins(seed: int, shift: float) -> None:
    unlearned, retrained = drawn(64, 6, shift, seed)
    losses = [privacy_loss(a, b) for a, b in zip(unlearned.T, retrained.T, strict=True)]
    assert forgetting_quality(unlearned, retrained) == pytest.approx(quality(losses))


def test_with_how_many_models_it_says_what() -> None:
    """Models that differ in nothing, and such that lie three standard deviations apart."""
    found = {
        (models, shift): forgetting_quality(*drawn(models, 400, shift, seed=1))
        for models in (64, 256)
        for shift in (0.0, 3.0)
    }
    assert found == {
        (64, 0.0): pytest.approx(0.85, abs=0.05),
        (64, 3.0): pytest.approx(0.36, abs=0.06),
        (256, 0.0): pytest.approx(0.93, abs=0.05),
        (256, 3.0): pytest.approx(0.03, abs=0.03),
    }


def test_too_few_models_say_nothing() -> None:
    assert FEWEST == 64
    enough, few = np.zeros((64, 3)), np.zeros((63, 3))
    for one, other in ((few, enough), (enough, few)):
        with pytest.raises(ValueError, match="of 63 models of a kind would say nothing: take 64 or more"):
            forgetting_quality(one, other)
    for wrong in (np.zeros((64, 2)), np.zeros(64)):
        with pytest.raises(ValueError, match="do not fit"):
            forgetting_quality(enough, wrong)
    with pytest.raises(ValueError, match="do not fit"):
        forgetting_quality(enough[:, :0], enough[:, :0])
