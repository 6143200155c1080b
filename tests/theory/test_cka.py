"""CKA: against constants, brute force over tuples of samples, the formulas as they are written, and known limits."""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedunlearn.theory.cka import MinibatchCKA, cka, gram, normalised, unbiased_cka

X = torch.tensor([[1.0, 2], [3, 5], [0, 1], [4, 4], [2, 7]])
Y = torch.tensor([[2.0, 0, 1], [1, 1, 0], [3, 5, 2], [0, 2, 2], [1, 3, 4]])


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def hsic_over_tuples(x: Tensor, y: Tensor) -> float:
    """The U-statistic as it is defined, over all ordered tuples of four samples."""
    k, m = (x.double() @ x.double().T).numpy(), (y.double() @ y.double().T).numpy()
    terms = [k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q]) for i, j, q, r in permutations(range(len(x)), 4)]
    return float(np.mean(terms))


def hsic_as_written(x: Tensor, y: Tensor) -> float:
    """Equation 5 of Song et al."""
    n = len(x)
    k, m = (features.double().numpy() @ features.double().numpy().T for features in (x, y))
    np.fill_diagonal(k, 0)
    np.fill_diagonal(m, 0)
    one = np.ones(n)
    inner = np.trace(k @ m) + (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2)) - 2 * one @ k @ m @ one / (n - 2)
    return float(inner / (n * (n - 3)))


def of(hsic: list[float]) -> float:
    return hsic[0] / math.sqrt(hsic[1] * hsic[2])


def test_section_3_biased_constant() -> None:
    assert cka(X, Y) == pytest.approx(0.30154674250152397, abs=1e-15)


def test_section_3_unbiased_constant_is_the_brute_force_over_ordered_tuples() -> None:
    assert unbiased_cka(X, Y) == pytest.approx(-0.494687849300423, abs=1e-14)
    assert unbiased_cka(X, Y) == pytest.approx(of([hsic_over_tuples(*p) for p in ((X, Y), (X, X), (Y, Y))]))


@given(st.integers(4, 7), st.integers(1, 6), st.integers(1, 6), st.integers(0, 10**6))
@settings(max_examples=25)
def test_section_3_unbiased_is_the_mean_over_tuples_for_any_sizes(n: int, p: int, q: int, seed: int) -> None:
    x, y = normal(n, p, seed=seed), normal(n, q, seed=seed + 1)
    assert unbiased_cka(x, y) == pytest.approx(of([hsic_over_tuples(*p) for p in ((x, y), (x, x), (y, y))]), abs=1e-8)


@given(st.integers(2, 30), st.integers(1, 40), st.integers(1, 40), st.integers(0, 10**6))
@settings(max_examples=40)
def test_section_3_biased_is_the_correlation_of_centred_grams_whichever_are_smaller(
    n: int, p: int, q: int, seed: int
) -> None:
    x, y = normal(n, p, seed=seed), normal(n, q, seed=seed + 1)
    centre = np.eye(n) - 1 / n
    k, m = (centre @ features.numpy() @ features.numpy().T @ centre for features in (x, y))
    assert cka(x, y) == pytest.approx(np.vdot(k, m) / (np.linalg.norm(k) * np.linalg.norm(m)), abs=1e-10)
    assert -1e-12 <= cka(x, y) <= 1 + 1e-12


@pytest.mark.parametrize("measure", [cka, unbiased_cka])
def test_section_3_invariances(measure: object) -> None:
    assert callable(measure)
    x, y = normal(40, 6), normal(40, 9, seed=1)
    y[:, :3] += x[:, :3]
    turned = torch.linalg.qr(normal(6, 6, seed=2)).Q
    found = measure(x, y)
    assert measure(x, x) == pytest.approx(1, abs=1e-12)
    assert measure(y, x) == pytest.approx(found, abs=1e-12)
    assert measure(-3 * (x @ turned) + normal(6, seed=3), 0.1 * y - 5) == pytest.approx(found, abs=1e-12)
    assert measure(x, -x) == pytest.approx(1, abs=1e-12)  # signs are not seen
    assert abs(measure(x @ torch.diag(torch.arange(1.0, 7, dtype=torch.float64)), y) - found) > 1e-3


@pytest.mark.parametrize(("n", "p", "q", "expected"), [(100, 100, 100, 0.5022), (200, 50, 400, 0.3651)])
def test_section_3_independent_features(n: int, p: int, q: int, expected: float) -> None:
    x, y = normal(n, p), normal(n, q, seed=1)
    assert cka(x, y) == pytest.approx(math.sqrt(p * q / ((n + p) * (n + q))), abs=0.01)
    assert cka(x, y) == pytest.approx(expected, abs=0.01)
    assert abs(unbiased_cka(x, y)) < 0.02


def test_section_3_independent_features_of_many_samples() -> None:
    x, y = normal(500, 100), normal(500, 100, seed=1)
    assert cka(x, y) == pytest.approx(0.166, abs=0.005)
    assert abs(unbiased_cka(x, y)) < 0.005
    batched = MinibatchCKA()
    for a, b in zip(x.split(50), y.split(50), strict=True):
        batched.add(gram(a), gram(b))
    assert abs(batched.unbiased) < 0.015
    assert batched.biased > 0.6  # sqrt(100 * 100 / (150 * 150)), of batches of 50


def test_section_3_noise_on_top_also_in_minibatches() -> None:
    """Of Y = X + sZ the unbiased value is 1 / (1 + s^2) at any batch size; the biased one is not."""
    x, s = normal(1024, 100), 1.0
    y = x + s * normal(1024, 100, seed=1)
    assert unbiased_cka(x, y) == pytest.approx(1 / (1 + s**2), abs=0.02)
    batched = MinibatchCKA()
    for a, b in zip(x.split(32), y.split(32), strict=True):
        batched.add(gram(a), gram(b))
    assert batched.unbiased == pytest.approx(1 / (1 + s**2), abs=0.03)
    assert batched.biased > cka(x, y) + 0.2  # it has the bias of 32 samples
    assert batched.samples == 1024


def test_section_3_one_batch_is_all_and_several_are_their_sums() -> None:
    x, y = normal(26, 5).float(), normal(26, 7, seed=1).float()
    whole, parts = MinibatchCKA(), MinibatchCKA()
    whole.add(gram(x), gram(y))
    assert whole.unbiased == unbiased_cka(x, y)
    assert whole.biased == pytest.approx(cka(x, y), abs=1e-12)
    sums = np.zeros(3)
    for a, b in ((x[:10], y[:10]), (x[10:20], y[10:20]), (x[20:], y[20:])):
        parts.add(gram(a), gram(b))
        sums += len(a) * np.array([hsic_as_written(*pair) for pair in ((a, b), (a, a), (b, b))])
    assert parts.unbiased == pytest.approx(of(list(sums)), abs=1e-10)


def test_features_far_from_zero_lose_no_digits() -> None:
    """The formula as it is written takes differences of numbers that are 10^16 times as large as the result."""
    x, y = normal(12, 4), normal(12, 4, seed=1)
    assert unbiased_cka(x + 1e4, y + 1e4) == pytest.approx(unbiased_cka(x, y), abs=1e-9)
    shifted = of([hsic_as_written(*pair) for pair in ((x + 1e4, y), (x + 1e4, x + 1e4), (y, y))])
    assert abs(shifted - unbiased_cka(x, y)) > 1e-6


def test_maps_are_flattened_and_half_precision_is_widened() -> None:
    x, y = normal(9, 2, 3, 4), normal(9, 5, seed=1)
    assert cka(x, y) == cka(x.reshape(9, 24), y)
    assert cka(y[:, 0], y[:, :1]) == pytest.approx(1)
    halved = x.to(torch.bfloat16)
    assert cka(halved, y) == cka(halved.double(), y)


@pytest.mark.parametrize("constant", [torch.zeros(9, 3), torch.full((9, 3), 0.1), torch.full((9, 40), 1e6)])
def test_features_that_do_not_vary_have_no_cka(constant: Tensor) -> None:
    for measure in (cka, unbiased_cka):
        assert math.isnan(measure(constant, normal(9, 4)))
        assert math.isnan(measure(normal(9, 4), constant))


def test_features_that_are_no_numbers_have_no_cka() -> None:
    broken = normal(9, 4)
    broken[2, 1] = math.nan
    assert math.isnan(cka(broken, normal(9, 4)))
    assert math.isnan(unbiased_cka(broken, normal(9, 4)))


@pytest.mark.parametrize("scale", [1e-60, 1e60])
def test_tiny_and_huge_features_are_as_any_others(scale: float) -> None:
    x, y = normal(9, 4), normal(9, 4, seed=1)
    assert cka(scale * x, scale * y) == pytest.approx(cka(x, y))


def test_section_3_normalised_by_hand_and_masked() -> None:
    assert normalised(0.9, 0.6) == pytest.approx(0.75)
    assert normalised(0.6, 0.6) == 0
    assert normalised(1.0, 0.6) == 1
    assert normalised(0.5, 0.6) == pytest.approx(-0.25)
    assert normalised(0.5, 0.998) < -200
    for zero in (0.9995, 1.0, math.nan):
        assert math.isnan(normalised(0.5, zero))


def test_what_cannot_be_compared_is_said() -> None:
    with pytest.raises(ValueError, match="of 9 and of 8 samples"):
        cka(normal(9, 2), normal(8, 2))
    with pytest.raises(ValueError, match="1 samples are too few"):
        cka(normal(1, 2), normal(1, 2))
    with pytest.raises(ValueError, match="take 4 at least"):
        unbiased_cka(normal(3, 2), normal(3, 2))
    assert math.isnan(MinibatchCKA().unbiased)
