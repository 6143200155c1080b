"""The noise of mini-batches: against the exact covariance and Hessian of a network of 67 parameters."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from tanh_network import RecordedMemory, draw, flat_hessian, sample_gradients, signature, tiny
from torch import nn

from fedunlearn.theory import noise
from fedunlearn.theory.losses import central_differences, double_backward
from fedunlearn.theory.noise import Noise, diagonal_noise, full_noise

LR, BATCH, COUNT = 0.1, 8, 120
Estimate = Callable[..., Noise]
BOTH = [full_noise, diagonal_noise]


def exact(batch: int = BATCH, count: int = COUNT) -> tuple[torch.Tensor, torch.Tensor]:
    """S of batches drawn without replacement, and H."""
    samples = draw(count)
    gradients = sample_gradients(tiny(), samples)
    covariance = torch.from_numpy(np.cov(gradients.numpy().T)) / batch * (1 - batch / count)
    return LR * covariance, flat_hessian(tiny(), samples)


@pytest.fixture(scope="module")
def full() -> Noise:
    return full_noise(tiny(), draw(COUNT), lr=LR, batch_size=BATCH, draws=500)


@pytest.fixture(scope="module")
def diagonal() -> Noise:
    return diagonal_noise(tiny(), draw(COUNT), lr=LR, batch_size=BATCH, draws=500)


def test_section_5_the_full_estimate_is_the_exact_trace(full: Noise) -> None:
    s, h = exact()
    assert full.trace == pytest.approx(float(s.trace()), rel=0.06)
    rise = float((s @ h).trace()) / 2
    assert abs(full.rise - rise) < 3.5 * full.error
    assert full.error < 0.08 * rise


def test_section_5_the_diagonal_estimate_is_that_of_the_exact_diagonals(diagonal: Noise) -> None:
    s, h = exact()
    assert diagonal.trace == pytest.approx(float(s.trace()), rel=0.06)
    rise = float(s.diagonal() @ h.diagonal()) / 2
    assert abs(diagonal.rise - rise) < 3.5 * diagonal.error + 0.05 * rise  # the variances are estimates too
    assert diagonal.error < 0.08 * rise


def test_section_5_the_diagonal_approximation_says_too_little(full: Noise, diagonal: Noise) -> None:
    """Supplement 13.1 takes S and H as diagonal, and calls A negligible on these grounds."""
    s, h = exact()
    ratio = float((s @ h).trace() / (s.diagonal() @ h.diagonal()))
    assert ratio > 1.5
    assert full.rise / diagonal.rise == pytest.approx(ratio, rel=0.2)


@pytest.mark.parametrize("estimate", BOTH)
def test_section_5_both_curvatures_give_the_same_noise(estimate: Estimate) -> None:
    one, other = (
        estimate(tiny(), draw(COUNT), lr=LR, batch_size=BATCH, draws=6, curvature=curvature)
        for curvature in (double_backward, central_differences)
    )
    assert one.trace == other.trace
    assert (one.rise, one.error) == pytest.approx((other.rise, other.error), rel=1e-6)


def test_with_few_draws_both_are_sums_over_the_mini_batches_that_were_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Welford's update against numpy; and all covariances with the exact Hessian, to the last digits."""
    generator, (x, y) = torch.Generator().manual_seed(3), draw(COUNT)
    gradients = sample_gradients(tiny(), (x, y))
    means = [gradients[torch.randperm(COUNT, generator=generator)[:BATCH]].mean(0) for _ in range(5)]
    s = LR * np.cov(torch.stack(means).numpy().T, ddof=1)
    monkeypatch.setattr(noise, "_HESSIAN", COUNT)  # the Hessian of all samples, and not of a part
    full, diagonal = (e(tiny(), (x, y), lr=LR, batch_size=BATCH, draws=5, seed=3) for e in BOTH)
    assert (full.trace, diagonal.trace) == pytest.approx((s.trace(), s.trace()), rel=1e-10)
    rise = np.trace(s @ flat_hessian(tiny(), (x, y)).numpy()) / 2
    assert full.rise == pytest.approx(rise, rel=1e-8)


def test_the_hessian_of_a_part_stands_for_that_of_all() -> None:
    """Above 64 samples each product has a fresh part: its mean is that of all."""
    count = 700
    s, h = exact(count=count)
    found = full_noise(tiny(), draw(count), lr=LR, batch_size=BATCH, draws=250)
    assert abs(found.rise - float((s @ h).trace()) / 2) < 3.5 * found.error
    assert found.error < 0.12 * found.rise


@pytest.mark.parametrize("estimate", BOTH)
def test_noise_is_proportional_to_the_learning_rate(estimate: Estimate) -> None:
    once, twice = (estimate(tiny(), draw(50), lr=lr, batch_size=5, draws=10) for lr in (0.1, 0.2))
    assert (twice.trace, twice.rise, twice.error) == pytest.approx((2 * once.trace, 2 * once.rise, 2 * once.error))


@pytest.mark.parametrize("estimate", BOTH)
def test_whoever_takes_all_samples_has_no_noise(estimate: Estimate) -> None:
    assert estimate(tiny(), draw(20), lr=1, batch_size=20) == Noise(0, 0, 0)
    assert estimate(tiny(), draw(20), lr=1, batch_size=19, draws=5).trace > 0


@pytest.mark.parametrize("estimate", BOTH)
def test_the_same_seed_gives_the_same_and_the_model_is_left_as_it_was(estimate: Estimate) -> None:
    model = tiny()
    before = signature(model)
    one, again, other = (estimate(model, draw(50), lr=0.1, batch_size=5, draws=6, seed=seed) for seed in (0, 0, 1))
    assert one == again != other
    assert signature(model) == before


@pytest.mark.parametrize("estimate", BOTH)
def test_one_draw_has_no_covariance(estimate: Estimate) -> None:
    with pytest.raises(ValueError, match=r"two mini-batches or more, not 1"):
        estimate(tiny(), draw(50), lr=0.1, batch_size=5, draws=1)


@pytest.mark.parametrize("curvature", [double_backward, central_differences])
@pytest.mark.parametrize("estimate", BOTH)
def test_three_copies_of_the_parameters_suffice(estimate: Estimate, curvature: Callable[..., float]) -> None:
    """Three million parameters, of which a layer is a sixteenth; what else is counted are parts of a layer's size."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(440, 440) for _ in range(16)), nn.Linear(440, 3))
    samples = torch.randn(4, 440), torch.tensor([0, 1, 2, 0])
    size = sum(one.nbytes for one in model.parameters())
    with RecordedMemory() as memory:
        estimate(model, samples, lr=0.1, batch_size=2, draws=2, curvature=curvature)
    assert 2 * size < memory.peak < 3.25 * size
