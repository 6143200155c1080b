"""In how many dimensions a model's gradients are noisy: the spectral content of section 13.8, and Figure 8."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedunlearn.randomness import stable_seed
from fedunlearn.theory.gradients import minibatch_gradients, parameters_named
from fedunlearn.theory.spectrum import Psi, dimension, population_spectrum, sample_eigenvalues, spectral_content

__all__ = ["RESOLVED", "Band", "GradientSpectrum", "NoVariance", "dimension_ratio", "gradient_spectrum"]

Floats = NDArray[np.float64]

RESOLVED = 0.5
"""Gradients a coordinate below which the shape of the spectrum is not resolved.

Normal data with known spectra, 400 coordinates: Psi is off by 0.08 at most at 0.5 and above, by 0.13 at 0.25, and by
0.13 too at the 0.064 of the supplement's ResNet-18 and ViT.
"""

_AT_ONE = 0.1  # around one gradient a coordinate, where the smallest eigenvalues tend to 0
_CHECKED = 20  # subsets on which halves and the control are computed
_FEW = 10  # batches an epoch
_POOL = 10  # samples a coordinate: drawn from 2 of them Psi is off by 0.3, from 20 by 0.005
_CONTROL = 0.1  # the control's error beyond that of estimated variances: as large as what is not resolved
_BAND = (0.1, 0.9)


class NoVariance(ValueError):
    """Gradients are all the same, so that there is nothing to be spread over dimensions."""


@dataclass(frozen=True)
class Band:
    """Psi over subsets of the coordinates, one value for each alpha.

    Attributes:
        mean: over subsets, which is the paper's estimator.
        low, high: the 10 % and 90 % quantiles.
    """

    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True)
class GradientSpectrum:
    """How minibatch gradients' variance is spread over dimensions.

    Attributes:
        parameters: names of those that coordinates were drawn from.
        elements: in them.
        batches: gradients, b.
        batch_size: samples in each.
        subset_size: coordinates in a subset, |K|.
        subsets: how many, p.
        alpha: shares of the dimensions of a subset, ascending from 0 to 1.
        sample: Psi of the sample covariance, which reaches 1 at (b - 1) / |K| however the gradients lie.
        population: Psi of the spectrum behind it.
        residual: mean over subsets of the inversion's violation (`Spectrum.residual`).
        split_half: the largest difference of ``population.mean`` between the two halves of the gradients, on the
            first 20 subsets. It says how chance moves the curve, not how few gradients bend it, which is the same in
            both.
        control: mean of the population's Psi where each entry of the centred gradients has a random sign, on the same
            subsets. Coordinates are then uncorrelated, and as large and as heavy-tailed as before: where
            ``population`` does not lie above it, it has nothing but unequal variances.
        control_error: the largest difference of ``control`` to Psi of its coordinates' variances, which is what
            should be found. Normal gradients have about 0.56 / sqrt(b) too, since variances are estimated.
        warnings: what cannot be trusted, a sentence each.
    """

    parameters: tuple[str, ...]
    elements: int
    batches: int
    batch_size: int
    subset_size: int
    subsets: int
    alpha: tuple[float, ...]
    sample: Band
    population: Band
    residual: float
    split_half: float
    control: tuple[float, ...]
    control_error: float
    warnings: tuple[str, ...]

    def dimension(self, beta: float = 0.95) -> float:
        """alpha_beta of the population's mean curve (`fedunlearn.theory.spectrum.dimension`)."""
        return dimension(Psi(self.alpha, self.population.mean), beta)

    def sample_dimension(self, beta: float = 0.95) -> float:
        """alpha_beta of the sample's mean curve: at most (b - 1) / |K|."""
        return dimension(Psi(self.alpha, self.sample.mean), beta)


def gradient_spectrum(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    subset_size: int = 2000,
    subsets: int = 100,
    batches: int = 128,
    batch_size: int = 64,
    parameters: Sequence[str] | None = None,
    seed: int = 0,
) -> GradientSpectrum:
    """Estimate Psi of the covariance of minibatch gradients at a model's weights, on random subsets of coordinates.

    Supplement, section 13.8, at t_max = 0. The defaults are Figure 8's for ResNet-18 (b = 128, |K| = 2000, p = 100,
    64 samples a batch), which look at its first residual block: ``parameters=["layer1.0.*"]``.

    Departures: Psi is that of the population (`population_spectrum`) beside that of the sample; both are averaged
    over subsets, the former with warnings. A control with random signs of whole gradients would find the same
    eigenvalues to the last digit, for their Gram matrix is D G D with D = diag(+-1): each entry has its own sign.

    What is found is the spectrum of what batches are drawn from. Drawn again and again from n samples, it is that of
    these n, which few of them distort as much as few gradients would; ``batch_size=1`` and ``batches=n`` see the
    distribution behind them, for a minibatch's covariance is a sample's over its size.

    Args:
        model: classifies ``(n, ...)`` into ``(n, classes)``; it is left as it was.
        x: inputs ``(n, ...)``.
        y: labels ``(n,)``, int64.
        subset_size: coordinates in a subset, |K|.
        subsets: how many are drawn, p.
        batches: gradients, b, the same for all subsets; six at least.
        batch_size: samples in each.
        parameters: globs of the names of those that coordinates are drawn from; None: all.
        seed: of minibatches, subsets and signs.

    Raises:
        ValueError: parameters are fewer than a subset has, batches too few, a glob or a batch size does not fit, or
            a gradient is not finite.
        NoVariance: on a subset all gradients are the same.
    """
    picked = parameters_named(model, parameters)
    elements = sum(picked.values())
    if not 2 <= subset_size <= elements:
        raise ValueError(f"{elements} parameters have no subset of {subset_size}: pick more or smaller subsets")
    if batches < 6 or subsets < 1:
        raise ValueError(f"a spectrum needs 6 batches and a subset at least, not {batches} and {subsets}")
    random = np.random.default_rng(stable_seed(seed, "subsets"))
    drawn = [random.choice(elements, subset_size, replace=False) for _ in range(subsets)]
    union, places = np.unique(np.concatenate(drawn), return_inverse=True)
    gradients = minibatch_gradients(
        model,
        x,
        y,
        batches=batches,
        batch_size=batch_size,
        parameters=parameters,
        coordinates=torch.from_numpy(union),
        seed=seed,
    ).numpy()
    columns = places.reshape(subsets, subset_size)
    found = [_estimated(gradients[:, one].astype(np.float64)) for one in columns]
    signs = np.random.default_rng(stable_seed(seed, "signs"))
    first, second, control, variances = np.mean(
        [_checked(gradients[:, one].astype(np.float64), signs) for one in columns[:_CHECKED]], 0
    )
    control_error = float(np.abs(control - variances).max())
    return GradientSpectrum(
        parameters=tuple(picked),
        elements=elements,
        batches=batches,
        batch_size=batch_size,
        subset_size=subset_size,
        subsets=subsets,
        alpha=found[0].alpha,
        sample=_band([one.sample for one in found]),
        population=_band([one.population for one in found]),
        residual=float(np.mean([one.residual for one in found])),
        split_half=float(np.abs(first - second).max()),
        control=tuple(control.tolist()),
        control_error=control_error,
        warnings=tuple(_warnings(batches, subset_size, batch_size, len(x), control_error)),
    )


def dimension_ratio(a: GradientSpectrum, b: GradientSpectrum, level: float = 0.99) -> float:
    """By how many dimensions a's gradients make do with fewer than b's: Psi_a^-1(level) / Psi_b^-1(level).

    Figure 8's caption has Psi_NoT^-1(1-) / Psi_Retrain^-1(1-) in [0.7, 0.8]. An estimated curve comes to 1 only by way
    of what cannot be told from 0, so that a level below 1 has to be named: the caption names none. Compare with other
    levels, and with ``split_half``, before you build on it.

    Args:
        a, b: of two models, with the same subset size.
        level: share of the variance, in (0, 1].

    Raises:
        ValueError: subsets have different sizes, or ``level`` is not in (0, 1].
    """
    if a.subset_size != b.subset_size:
        raise ValueError(
            f"subsets of {a.subset_size} and of {b.subset_size} coordinates have other spectra: take one size"
        )
    return a.dimension(level) / b.dimension(level)


@dataclass(frozen=True)
class _Subset:
    """Of the gradients on one subset of the coordinates."""

    alpha: tuple[float, ...]
    sample: tuple[float, ...]
    population: tuple[float, ...]
    residual: float


def _estimated(rows: Floats) -> _Subset:
    n, p = rows.shape
    if not np.isfinite(rows).all():
        raise ValueError("gradients are not finite: the model has diverged, so there is no spectrum")
    eigenvalues = sample_eigenvalues(rows)
    # Rounding leaves gradients that are all the same a variance of about 1e-32 of their squares.
    if eigenvalues.sum() <= 1e-20 * (rows**2).sum():
        raise NoVariance("gradients on a subset are all the same: pick parameters that the loss depends on")
    spectrum = population_spectrum(eigenvalues, n - 1, p)
    sample = spectral_content(eigenvalues, p)
    return _Subset(sample.alpha, sample.share, spectrum.content(p).share, spectrum.residual)


def _checked(rows: Floats, random: np.random.Generator) -> tuple[tuple[float, ...], ...]:
    """The population's Psi of both halves and of the control, and Psi of the control's variances."""
    flipped = (rows - rows.mean(0)) * random.choice([-1.0, 1.0], rows.shape)
    variances = spectral_content(flipped.var(0, ddof=1), rows.shape[1])
    return (*(_estimated(part).population for part in (rows[::2], rows[1::2], flipped)), variances.share)


def _band(curves: list[tuple[float, ...]]) -> Band:
    values = np.array(curves)
    low, high = np.quantile(values, _BAND, axis=0)
    return Band(tuple(values.mean(0).tolist()), tuple(low.tolist()), tuple(high.tolist()))


def _warnings(batches: int, subset_size: int, batch_size: int, samples: int, control_error: float) -> list[str]:
    said, ratio, epoch = [], batches / subset_size, samples // batch_size
    if ratio < RESOLVED:
        said.append(
            f"{batches} gradients of {subset_size} coordinates are {ratio:.2g} a coordinate: below {RESOLVED} the "
            "shape of the spectrum is not resolved, and Psi can be off by 0.13; take more batches or smaller subsets."
        )
    if abs(ratio - 1) <= _AT_ONE:
        said.append(
            f"{batches} gradients of {subset_size} coordinates are about one a coordinate, where the smallest "
            "eigenvalues tend to 0 and the inversion is least sure; take another size of subsets."
        )
    if batches > epoch and samples < _POOL * subset_size:
        said.append(
            f"{batches} batches were drawn from {samples} samples, {samples / subset_size:.2g} a coordinate: the "
            "spectrum is theirs, not of the distribution behind them; take batches of one sample, or more samples."
        )
    if epoch < _FEW < batches:
        said.append(
            f"an epoch has only {epoch} minibatches, which together have no noise, so gradients are not independent; "
            "take more samples or smaller minibatches."
        )
    if control_error > _CONTROL + 0.56 / batches**0.5:
        said.append(
            f"on gradients with random signs, whose spectrum is known, Psi is off by {control_error:.2f}: sizes differ "
            "too much between gradients or within them for the inversion to hold."
        )
    return said
