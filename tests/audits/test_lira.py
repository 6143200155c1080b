"""LiRA: by hand, against a reference in loops, what may not matter to it, and what theory says it finds."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import multivariate_normal, norm

from fedunlearn.audits.certainty import auc
from fedunlearn.audits.lira import OWN_VARIANCE, lira

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


def drawn(models: int, samples: int, seed: int, *width: int) -> tuple[Floats, Bools, Floats]:
    """References, memberships (each sample in two models at least, and out of two) and an audited model."""
    rng = np.random.default_rng(seed)
    member = np.stack([rng.permutation(np.arange(models) % 2 == 0) for _ in range(samples)], 1)
    spread = rng.uniform(0.5, 2, size=(samples, *width))
    mean = rng.normal(0, 3, size=(samples, *width))
    return (
        mean + spread * rng.normal(size=(models, samples, *width)),
        member,
        mean + spread * rng.normal(size=(samples, *width)),
    )


def by_loops(references: Floats, member: Bools, audited: Floats) -> list[float]:
    """The attack written out: of each sample two lists of numbers, and SciPy's normal distribution of each."""
    found = []
    for sample, point in enumerate(audited):
        densities = []
        for seen in (True, False):
            own, squares, freedom = deviations(references, member, sample, seen)
            if len(references) < 64:
                squares, freedom = 0.0, 0
                for other in range(len(audited)):
                    _, more, free = deviations(references, member, other, seen)
                    squares, freedom = squares + more, freedom + free
            scale = math.sqrt(squares / freedom * (1 + 1 / len(own)))
            densities.append(float(norm.logpdf(point, float(np.mean(own)), scale)))
        found.append(densities[0] - densities[1])
    return found


def deviations(references: Floats, member: Bools, sample: int, seen: bool) -> tuple[list[float], float, int]:
    """A sample's signals in the models that have (not) seen it, their summed squared deviations, and how many less
    one."""
    values = [float(row[sample]) for row, flags in zip(references, member, strict=True) if flags[sample] == seen]
    mean = sum(values) / len(values)
    return values, sum((value - mean) ** 2 for value in values), len(values) - 1


def test_by_hand_with_two_samples_and_four_models() -> None:
    """Sample 0: in 2 and 4, out 0 and 2, audited at 3. Sample 1: in 6 and 6, out 1 and 1, audited at 6.

    Deviations from the samples' own means: in 1 + 1 + 0 + 0, over two degrees of freedom 1; out alike. Each mean is
    over two models, so that the variance is 1 (1 + 1/2) = 3/2. Sample 0 lies at its mean in, and 2 from its mean out:
    the ratio is 2^2 / 2 / (3/2) = 4/3. Sample 1: 5^2 / 2 / (3/2) = 25/3.
    """
    references = np.array([[2.0, 6.0], [4.0, 1.0], [0.0, 1.0], [2.0, 6.0]])
    member = np.array([[True, True], [True, False], [False, False], [False, True]])
    assert lira(references, member, np.array([3.0, 6.0])).tolist() == pytest.approx([4 / 3, 25 / 3], rel=1e-9)


def test_a_mean_over_fewer_models_is_less_certain_by_hand() -> None:
    """One sample, in three models at -1, 0, 1 and out of two at 9, 11: variances 1 and 2, times 4/3 and 3/2."""
    references = np.array([[-1.0], [0.0], [1.0], [9.0], [11.0]])
    member = np.array([[True], [True], [True], [False], [False]])
    expected = -(2**2) / (2 * 4 / 3) + 8**2 / (2 * 3) - (math.log(4 / 3) - math.log(3)) / 2
    assert float(lira(references, member, np.array([2.0]))[0]) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("models", [4, 7, 63, 64, 90])
def test_it_is_the_loops(models: int) -> None:
    """One variance for all below 64 models, one for each sample from then on."""
    assert OWN_VARIANCE == 64
    found = lira(*(case := drawn(models, 6, seed=models)))
    assert found.tolist() == pytest.approx(by_loops(*case), rel=1e-8, abs=1e-8)


@pytest.mark.parametrize("models", [8, 63, 64])
def test_vectors_have_scipys_multivariate_normal_distribution(models: int) -> None:
    references, member, audited = drawn(models, 5, models, 2)
    references[..., 1] += 0.7 * references[..., 0]  # so that their covariance matters
    ratios = []
    for sample, point in enumerate(audited):
        density = []
        for seen in (member, ~member):
            groups = [references[seen[:, other], other] for other in range(len(audited))]
            own = groups[sample]
            chosen = groups if models < 64 else [own]
            scatter = sum((group - group.mean(0)).T @ (group - group.mean(0)) for group in chosen)
            covariance = scatter / sum(len(group) - 1 for group in chosen) * (1 + 1 / len(own))
            density.append(multivariate_normal.logpdf(point, own.mean(0), covariance))
        ratios.append(density[0] - density[1])
    assert lira(references, member, audited).tolist() == pytest.approx(ratios, rel=1e-7, abs=1e-7)


@given(st.sampled_from([4, 9, 64]), st.integers(0, 10**6))
@settings(max_examples=30)
def test_one_dimensional_vectors_are_numbers(models: int, seed: int) -> None:
    references, member, audited = drawn(models, 4, seed)
    assert np.array_equal(lira(references[..., None], member, audited[:, None]), lira(references, member, audited))


@given(st.sampled_from([4, 9, 64]), st.integers(0, 10**6))
@settings(max_examples=30)
def test_swapping_who_has_seen_it_and_who_has_not_flips_the_sign(models: int, seed: int) -> None:
    references, member, audited = drawn(models, 4, seed)
    assert np.array_equal(lira(references, ~member, audited), -lira(references, member, audited))


@given(st.sampled_from([4, 9, 64]), st.integers(0, 10**6), st.floats(-50, 50), st.floats(0.1, 20), st.booleans())
@settings(max_examples=40)
def test_the_scale_of_signals_does_not_matter(models: int, seed: int, by: float, times: float, turned: bool) -> None:
    references, member, audited = drawn(models, 4, seed)
    before = lira(references, member, audited)
    factor = -times if turned else times
    after = lira(by + factor * references, member, by + factor * audited)
    assert after.tolist() == pytest.approx(before.tolist(), rel=1e-6, abs=1e-6)


@given(st.sampled_from([4, 9, 64]), st.integers(0, 10**6), st.randoms(use_true_random=False))
@settings(max_examples=30)
def test_the_order_of_models_does_not_matter(models: int, seed: int, random: object) -> None:
    references, member, audited = drawn(models, 4, seed)
    order = list(range(models))
    random.shuffle(order)  # type: ignore[attr-defined]
    found = lira(references[order], member[order], audited)
    assert found.tolist() == pytest.approx(lira(references, member, audited).tolist(), rel=1e-9, abs=1e-9)


@given(st.sampled_from([4, 9, 64]), st.integers(0, 10**6), st.integers(0, 3), st.booleans())
@settings(max_examples=30)
def test_a_sample_that_every_model_or_none_has_seen_scores_nothing(
    models: int, seed: int, sample: int, seen: bool
) -> None:
    references, member, audited = drawn(models, 4, seed)
    member[:, sample] = seen
    found = lira(references, member, audited)
    assert found[sample] == 0
    others = np.arange(4) != sample
    assume(np.abs(audited - references.mean(0))[others].max() > 1e-3)
    assert np.all(found[others] != 0)
    assert np.all(np.isfinite(found))


def test_an_unseen_samples_own_signals_do_not_count_for_others() -> None:
    """Where no model has seen it, its deviations are all "out"; the shared variance "in" is that of the others."""
    references, member, audited = drawn(8, 3, seed=1)
    member[:, 2] = False
    found, without = lira(references, member, audited), by_loops_in(references, member, audited)
    assert found[:2].tolist() == pytest.approx(without, rel=1e-8)


def by_loops_in(references: Floats, member: Bools, audited: Floats) -> list[float]:
    pooled = []
    for seen, samples in ((True, (0, 1)), (False, (0, 1, 2))):
        parts = [deviations(references, member, sample, seen) for sample in samples]
        pooled.append(sum(part[1] for part in parts) / sum(part[2] for part in parts))
    found = []
    for sample in (0, 1):
        own = [deviations(references, member, sample, seen)[0] for seen in (True, False)]
        scales = [math.sqrt(p * (1 + 1 / len(o))) for p, o in zip(pooled, own, strict=True)]
        one, other = (norm.logpdf(audited[sample], np.mean(o), s) for o, s in zip(own, scales, strict=True))
        found.append(float(one - other))
    return found


def test_signals_that_never_differ_tell_nothing() -> None:
    for models in (8, 64):
        _, member, _ = drawn(models, 3, seed=0)
        assert lira(np.ones((models, 3)), member, np.ones(3)).tolist() == [0, 0, 0]


def test_what_does_not_fit_is_refused() -> None:
    references, member, audited = drawn(4, 3, seed=0)
    for wrong in (
        (references[:3], member, audited),
        (references, member[:, :2], audited),
        (references, member, audited[:2]),
        (references[..., None], member, audited),
    ):
        with pytest.raises(ValueError, match="do not fit"):
            lira(*wrong)
    with pytest.raises(ValueError, match="two reference models or more"):
        lira(references[:1], member[:1], audited)


@pytest.mark.parametrize(("models", "samples"), [(60, 4000), (400, 2500)])
@pytest.mark.parametrize("leak", [0.5, 1.5])
def test_a_known_leak_gives_the_area_of_theory(models: int, samples: int, leak: float) -> None:
    """Signals N(mu + leak, 1) of members and N(mu, 1) of others: with many models, Phi(leak / sqrt 2)."""
    rng = np.random.default_rng(models)
    member = rng.random((models, samples)) < 0.5
    mean = rng.normal(0, 3, samples)
    references = mean + leak * member + rng.normal(size=(models, samples))
    inside = rng.random(samples) < 0.5
    audited = mean + leak * inside + rng.normal(size=samples)
    found = lira(references, member, audited)
    expected = float(norm.cdf(leak / math.sqrt(2)))
    assert auc(found[inside], found[~inside]) == pytest.approx(expected, abs=0.03)
    # Without references the differences between samples hide it.
    assert auc(audited[inside], audited[~inside]) < expected - 0.05
