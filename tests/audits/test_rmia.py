"""RMIA: by hand, against a plain loop over pairs, and what may not matter to it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedunlearn.audits.rmia import rmia

Floats = NDArray[np.float64]


def drawn(seed: int, models: int = 3, samples: int = 5, population: int = 7) -> tuple[Floats, ...]:
    """Probabilities of samples and of a population; at least one model has not seen the sample."""
    rng = np.random.default_rng(seed)
    member = rng.random((models, samples)) < 0.5
    member[rng.integers(models, size=samples), np.arange(samples)] = False
    shapes = (models, samples), samples, (models, population), population
    references, audited, population_references, audited_population = (rng.uniform(0.05, 1, size=one) for one in shapes)
    return references, member.astype(float), audited, population_references, audited_population


def attacked(seed: int, **other: object) -> Floats:
    references, member, audited, *population = drawn(seed)
    return rmia(references, member > 0, audited, *population, **other)  # type: ignore[arg-type]


def test_by_hand_with_three_models_and_four_of_the_population() -> None:
    """a = 0.5, so that p(x) = (1.5 p_out + 0.5) / 2.

    Sample 0 is out of models 1 and 2: p_out = (0.25 + 0.75) / 2, p = 0.625, ratio 0.9375 / 0.625 = 1.5.
    Sample 1 is out of model 0 alone: p_out = 1, p = 1, ratio 0.25. Sample 2 has been seen by all.
    The population's p_out are 0, 0, 0.5 and 1, so that p = 0.25, 0.25, 0.625 and 1, and with what the model says of
    them their ratios are 0.125, 0.25, 0.75 and 1. Sample 0 is at least twice as likely as three of them (1.5 / 0.75
    is gamma, and counts), sample 1 as one.
    """
    references = np.array([[0.9, 1.0, 0.9], [0.25, 0.7, 0.9], [0.75, 0.7, 0.9]])
    member = np.array([[True, False, True], [False, True, True], [False, True, True]])
    population_references = np.array([[0.0, 0.0, 0.25, 1.0], [0.0, 0.0, 0.5, 1.0], [0.0, 0.0, 0.75, 1.0]])
    audited, population = np.array([0.9375, 0.25, 0.9]), np.array([0.03125, 0.0625, 0.46875, 1.0])
    found = rmia(references, member, audited, population_references, population, a=0.5)
    assert found.tolist() == [0.75, 0.25, 0.5]
    more = rmia(references, member, audited, population_references, population, a=0.5, gamma=2.1)
    assert more.tolist() == [0.5, 0.0, 0.5]


@given(st.integers(0, 10**6), st.floats(0, 1), st.floats(1, 3))
@settings(max_examples=60)
def test_it_is_a_loop_over_all_pairs(seed: int, a: float, gamma: float) -> None:
    references, member, audited, population_references, population = drawn(seed)

    def ratio(chance: float, outside: list[float]) -> float:
        return chance / (0.5 * ((1 + a) * sum(outside) / len(outside) + 1 - a))

    others = [ratio(chance, list(column)) for chance, column in zip(population, population_references.T, strict=True)]
    expected, edges = [], []
    for sample, chance in enumerate(audited):
        out = [float(references[model, sample]) for model in range(3) if not member[model, sample]]
        own = ratio(float(chance), out)
        expected.append(sum(own / other >= gamma for other in others) / len(others))
        edges += [abs(own / other - gamma) for other in others]
    if min(edges) > 1e-9:  # else rounding decides
        assert attacked(seed, a=a, gamma=gamma).tolist() == pytest.approx(expected, abs=1e-12)


@given(st.integers(0, 10**6), st.integers(0, 10**6))
@settings(max_examples=40)
def test_models_that_have_seen_a_sample_are_not_looked_at(seed: int, other: int) -> None:
    references, member, audited, *population = drawn(seed)
    changed = np.where(member > 0, np.random.default_rng(other).random(references.shape), references)
    assert np.array_equal(
        rmia(changed, member > 0, audited, *population), rmia(references, member > 0, audited, *population)
    )


@given(st.integers(0, 10**6), st.floats(0, 1))
@settings(max_examples=40)
def test_the_likelier_the_model_makes_a_sample_the_higher_its_score(seed: int, more: float) -> None:
    references, member, audited, *population = drawn(seed)
    higher = audited + more * (1 - audited)
    before, after = (rmia(references, member > 0, one, *population) for one in (audited, higher))
    assert np.all(after >= before)
    assert np.all((before >= 0) & (after <= 1))


def test_the_scores_are_not_all_alike() -> None:
    found = np.concatenate([attacked(seed) for seed in range(20)])
    assert len(np.unique(found)) > 4


def test_chances_of_nothing_divide_nothing_by_nothing() -> None:
    """With a = 1 a sample that models without it call impossible has p = 0."""
    nobody = np.zeros((2, 3)), np.zeros((2, 3), dtype=np.bool_), np.array([0.0, 0.5, 1.0])
    found = rmia(*nobody, np.full((2, 4), 0.5), np.full(4, 0.5), a=1.0)
    assert found.tolist() == [0, 1, 1]


def test_a_sample_that_all_references_have_seen_is_an_even_chance() -> None:
    references, _, audited, *population = drawn(0)
    assert rmia(references, np.ones((3, 5), dtype=np.bool_), audited, *population).tolist() == [0.5] * 5


def test_what_does_not_fit_is_refused() -> None:
    references, flags, audited, population_references, population = drawn(0)
    member = flags > 0
    for wrong, told in (
        ((references[:2], member, audited, population_references, population), "memberships"),
        ((references, member[:, :4], audited, population_references, population), "memberships"),
        ((references, member, audited[:4], population_references, population), "memberships"),
        ((references[:0], member[:0], audited, population_references[:0], population), "memberships"),
        ((references, member, audited, population_references[:2], population), "a population of"),
        ((references, member, audited, population_references, population[:6]), "a population of"),
        ((references, member, audited, population_references[:, :0], population[:0]), "a population of"),
    ):
        with pytest.raises(ValueError, match=f"{told}.* do not fit"):
            rmia(*wrong)
