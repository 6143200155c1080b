"""Gradients with a spectrum that is known: found where it can be, warned of where it cannot."""

from __future__ import annotations

import dataclasses
import json
import time

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedunlearn.models import build
from fedunlearn.theory.gradient_spectrum import (
    Band,
    GradientSpectrum,
    dimension_ratio,
    gradient_spectrum,
)
from fedunlearn.theory.spectrum import dimension, spectral_content

P = 120


class Half(nn.Module):
    """One score against 0, which is 0 too: the gradient of a sample is -x/2 or x/2, by its label."""

    def __init__(self, p: int = P) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(p))

    def forward(self, x: Tensor) -> Tensor:
        score = x @ self.weight
        return torch.stack([torch.zeros_like(score), score], 1)


def normal(n: int, variances: NDArray[np.float64], seed: int = 0) -> tuple[Tensor, Tensor]:
    """Normal inputs with labels at random, so that gradients are normal with a quarter of their covariance."""
    random = np.random.default_rng(seed)
    x = random.standard_normal((n, len(variances))) * np.sqrt(variances)
    return torch.from_numpy(x).float(), torch.from_numpy(random.integers(0, 2, n))


def largest(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    return float(np.abs(np.array(a) - np.array(b)).max())


TWO = np.repeat([10.0, 1.0], P // 2)


@pytest.fixture(scope="module")
def two() -> GradientSpectrum:
    x, y = normal(960, TWO)
    return gradient_spectrum(Half(), x, y, subset_size=P, subsets=2, batches=240, batch_size=4)


def test_section_6_a_known_covariance_of_gradients_is_found_where_the_sample_misleads(two: GradientSpectrum) -> None:
    truth = spectral_content(TWO, P)
    assert two.alpha == truth.alpha
    assert largest(two.sample.mean, truth.share) > 0.15
    assert largest(two.population.mean, truth.share) < 0.04
    assert two.dimension() == pytest.approx(dimension(truth), abs=0.06)
    assert two.sample_dimension() < dimension(truth) - 0.1
    assert two.warnings == ()
    assert two.split_half < 0.06
    assert two.control_error < 0.1
    assert (two.parameters, two.elements, two.subsets) == (("weight",), P, 2)


def test_a_subset_of_all_coordinates_is_the_same_each_time(two: GradientSpectrum) -> None:
    assert two.population.low == pytest.approx(two.population.high, abs=1e-6)
    assert two.population.mean == pytest.approx(two.population.low, abs=1e-6)


def test_the_unit_of_the_loss_does_not_matter(two: GradientSpectrum) -> None:
    x, y = normal(960, TWO)
    small = gradient_spectrum(Half(), x * 1e-6, y, subset_size=P, subsets=2, batches=240, batch_size=4)
    assert largest(small.population.mean, two.population.mean) < 1e-3


def test_all_is_plain_numbers_and_the_seed_decides_them(two: GradientSpectrum) -> None:
    x, y = normal(960, TWO)
    again = gradient_spectrum(Half(), x, y, subset_size=P, subsets=2, batches=240, batch_size=4)
    assert again == two
    assert json.loads(json.dumps(dataclasses.asdict(two)))["population"]["mean"] == list(two.population.mean)


def test_subsets_differ_and_have_a_band() -> None:
    x, y = normal(400, 1 / np.arange(1, P + 1))
    found = gradient_spectrum(Half(), x, y, subset_size=30, subsets=3, batches=80, batch_size=4, seed=1)
    low, high = np.array(found.population.low), np.array(found.population.high)
    assert (low <= high + 1e-12).all()
    assert (high - low).max() > 0.05
    other = gradient_spectrum(Half(), x, y, subset_size=30, subsets=3, batches=80, batch_size=4, seed=2)
    assert other.population != found.population


def test_section_6_the_control_lies_below_where_coordinates_move_together() -> None:
    variances = 1 / np.arange(1, 61)
    rotation, _ = np.linalg.qr(np.random.default_rng(7).standard_normal((60, 60)))
    x, y = normal(480, variances)
    sizes = {"subset_size": 60, "subsets": 1, "batches": 120, "batch_size": 4}
    along = gradient_spectrum(Half(60), x, y, **sizes)
    across = gradient_spectrum(Half(60), x @ torch.from_numpy(rotation).float(), y, **sizes)
    assert largest(along.population.mean, across.population.mean) < 0.01  # the same spectrum in another basis
    assert largest(along.control, along.population.mean) < 0.08
    assert max(np.array(across.population.mean) - np.array(across.control)) > 0.25
    assert across.control_error < 0.1


def test_section_6_signs_of_whole_gradients_are_no_control() -> None:
    """Flipped as rows, gradients keep each eigenvalue, whatever the data: only signs of entries make a control."""
    random = np.random.default_rng(0)
    rows = random.standard_normal((20, 50)) * 1 / np.arange(1, 51)
    centred = rows - rows.mean(0)
    signs = random.choice([-1.0, 1.0], (20, 1))
    before, after = (np.linalg.svd(one, compute_uv=False) for one in (centred, signs * centred))
    assert after == pytest.approx(before, abs=1e-12)
    entries = np.linalg.svd(random.choice([-1.0, 1.0], (20, 50)) * centred, compute_uv=False)
    assert np.abs(entries - before).max() > 0.1


def test_gradients_of_very_different_sizes_are_warned_of() -> None:
    """A gradient in twenty is thirty times as large: the equation is not about such data."""
    x, y = normal(240, np.ones(60))
    x[::20] *= 30
    found = gradient_spectrum(Half(60), x, y, subset_size=60, subsets=1, batches=240, batch_size=1)
    assert found.control_error > 0.2
    assert any("sizes differ too much" in one for one in found.warnings)


@pytest.mark.parametrize(
    ("batches", "size", "warned"),
    [(8, 60, "0.13 a coordinate: below 0.5"), (32, 30, "about one a coordinate"), (40, 60, "")],
)
def test_section_6_too_few_gradients_and_one_a_coordinate_are_warned_of(batches: int, size: int, warned: str) -> None:
    x, y = normal(160, np.ones(P))
    found = gradient_spectrum(Half(), x, y, subset_size=size, subsets=1, batches=batches, batch_size=4)
    assert len(found.warnings) == (1 if warned else 0)
    assert all(warned in one for one in found.warnings)


def test_epochs_of_few_minibatches_are_warned_of() -> None:
    x, y = normal(36, np.ones(P))
    found = gradient_spectrum(Half(), x, y, subset_size=20, subsets=1, batches=40, batch_size=4)
    assert any("an epoch has only 9 minibatches" in one for one in found.warnings)


def made(mean: tuple[float, ...], sample: tuple[float, ...] = (0, 1, 1, 1, 1), size: int = 4) -> GradientSpectrum:
    band, raw = Band(mean, mean, mean), Band(sample, sample, sample)
    alpha = (0.0, 0.25, 0.5, 0.75, 1.0)
    return GradientSpectrum(("w",), 9, 8, 2, size, 1, alpha, raw, band, 0.0, 0.0, mean, 0.0, ())


def test_the_ratio_of_dimensions_by_hand() -> None:
    a, b = made((0, 0.6, 0.95, 0.992, 1)), made((0, 0.3, 0.6, 0.95, 1))
    assert (a.dimension(), b.dimension(), a.sample_dimension()) == (0.5, 0.75, 0.25)
    assert dimension_ratio(a, b) == 0.75
    assert dimension_ratio(a, b, level=0.95) == pytest.approx(2 / 3)
    assert dimension_ratio(a, b, level=1.0) == 1
    with pytest.raises(ValueError, match="take one size"):
        dimension_ratio(a, made(b.population.mean, size=5))
    with pytest.raises(ValueError, match="share of the variance"):
        dimension_ratio(a, b, level=0.0)


def test_section_6_the_samples_curve_cannot_give_figure_8_for_128_of_2000() -> None:
    """It reaches 1 at the rank, so that the ratio of two models' dimensions is about 1, however they differ."""
    dimensions = []
    for variances in (np.ones(300), np.linspace(3, 0, 300)):
        x, y = normal(80, variances)
        found = gradient_spectrum(Half(300), x, y, subset_size=300, subsets=1, batches=20, batch_size=4)
        dimensions.append((found.sample_dimension(1.0), found.dimension(0.95)))
    (flat, flat_found), (falling, falling_found) = dimensions
    assert flat == falling == pytest.approx(19 / 300)
    assert flat_found > 0.5
    assert falling_found < flat_found


def test_what_has_no_spectrum_is_refused() -> None:
    x, y = normal(40, np.ones(P))
    sizes = {"subset_size": 10, "subsets": 1, "batches": 10, "batch_size": 4}
    with pytest.raises(ValueError, match="no subset of 121"):
        gradient_spectrum(Half(), x, y, **{**sizes, "subset_size": 121})
    with pytest.raises(ValueError, match="6 batches"):
        gradient_spectrum(Half(), x, y, **{**sizes, "batches": 5})
    with pytest.raises(ValueError, match="all the same"):
        gradient_spectrum(Half(), x * 0, y, **sizes)
    with pytest.raises(ValueError, match="not finite"):
        gradient_spectrum(Half(), x * torch.inf, y, **sizes)
    with pytest.raises(ValueError, match="fits no parameter"):
        gradient_spectrum(Half(), x, y, parameters=["head"], **sizes)


def test_a_network_with_six_batches_has_a_spectrum() -> None:
    torch.manual_seed(0)
    model = build("layernorm-cnn", 3, (1, 8, 8))
    x, y = torch.randn(24, 1, 8, 8), torch.arange(24) % 3
    found = gradient_spectrum(model, x, y, subset_size=40, subsets=3, batches=6, batch_size=4, parameters=["conv1.*"])
    assert found.parameters == ("conv1.weight", "conv1.bias")
    assert 0 < found.dimension() <= 1
    assert model.training


@pytest.mark.long
def test_section_6_figure_8s_sizes_take_less_than_two_minutes() -> None:
    torch.manual_seed(0)
    model = build("resnet18", 10, (3, 32, 32))
    x, y = torch.randn(8192, 3, 32, 32), torch.randint(10, (8192,))
    start = time.monotonic()
    found = gradient_spectrum(model, x, y, parameters=["layer1.0.*"])
    assert time.monotonic() - start < 120
    assert (found.subsets, found.subset_size, found.batches) == (100, 2000, 128)
    assert found.sample_dimension(1.0) <= 0.0655
    assert "0.064 a coordinate" in found.warnings[0]
