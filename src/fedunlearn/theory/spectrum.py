"""The spectral content of a covariance, and the population's spectrum behind a sample's (supplement, 13.8)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog

__all__ = ["Psi", "Spectrum", "dimension", "population_spectrum", "sample_eigenvalues", "spectral_content"]

Floats = NDArray[np.float64]

_GRID = 500  # points on (0, 1]
_ATOMS, _POINTS = 160, 60
_RAYS = (0.15, 0.5, 1.0)  # imaginary parts of z, as shares of its real part
_LEAST = 0.01  # of the bulk's largest eigenvalue: what is smaller moves Psi little, and costs atoms and points
_PEELED = 0.05  # of the eigenvalues at most, as spikes
_NIL = 1e-12  # of the largest eigenvalue: a rounding error


@dataclass(frozen=True)
class Psi:
    """Psi of equation (89): the share of the variance that lies in the leading directions.

    Non-decreasing and concave, from 0 at 0 to 1 at 1.

    Attributes:
        alpha: shares of the dimensions, ascending in [0, 1], whole multiples of 1 / d.
        share: of the variance, one for each ``alpha``, in [0, 1].
    """

    alpha: tuple[float, ...]
    share: tuple[float, ...]


@dataclass(frozen=True)
class Spectrum:
    """A law of eigenvalues that sits in finitely many points.

    Attributes:
        atoms: eigenvalues, descending, in the units of the variance.
        weights: the share of the dimensions that has each; they sum to 1.
        spikes: how many of the largest were read off one by one, outside the linear programme.
        residual: the programme's value u, dimensionless: the largest violation of the Marcenko-Pastur equation. A
            few hundredths come from chance; much more says that the data are not what the equation is about.
    """

    atoms: tuple[float, ...]
    weights: tuple[float, ...]
    spikes: int
    residual: float

    def content(self, d: int) -> Psi:
        """`Psi` on the grid on which `spectral_content` has it: an atom's directions can be split."""
        mass, variance = np.array(self.weights), np.array(self.weights) * np.array(self.atoms)
        nodes, shares = (np.append(0.0, np.cumsum(values)) for values in (mass, variance))
        positions = _grid(d) / d
        return _psi(positions, np.interp(positions, nodes / nodes[-1], shares / shares[-1]))


def spectral_content(eigenvalues: Floats, d: int) -> Psi:
    """Psi(alpha), the sum of the floor(alpha d) largest eigenvalues over the sum of all: equation (89).

    Args:
        eigenvalues: of a covariance, ``(m,)`` in any order, m <= d; those that are not given are 0.
        d: its dimension.

    Returns:
        At all multiples of 1 / d where d <= 500; else at some, which lie close at small alpha.

    Raises:
        ValueError: there are more than ``d`` eigenvalues, or they are no covariance's.
    """
    if len(eigenvalues) > d:
        raise ValueError(f"{len(eigenvalues)} eigenvalues are too many for {d} dimensions: give d >= their number")
    ordered = _descending(eigenvalues)
    sums = np.append(0.0, np.cumsum(np.pad(ordered, (0, d - len(ordered)))))
    positions = _grid(d)
    return _psi(positions / d, sums[positions] / sums[-1])


def dimension(psi: Psi, beta: float = 0.95) -> float:
    """alpha_beta = min {alpha : Psi(alpha) >= beta}: the share of the dimensions that holds so much of the variance.

    Supplement, section 13.8. ``dimension(psi, beta) * d`` directions are enough.

    Args:
        psi: of a spectrum.
        beta: share of the variance, in (0, 1].

    Raises:
        ValueError: ``beta`` is not in (0, 1].
    """
    if not 0 < beta <= 1:
        raise ValueError(f"beta is a share of the variance in (0, 1], not {beta}")
    # 1e-12: all d eigenvalues together can come to a little less than 1, and 0.95 to 0.9499...
    return next(alpha for alpha, share in zip(psi.alpha, psi.share, strict=True) if share >= beta - 1e-12)


def sample_eigenvalues(rows: Floats) -> Floats:
    """The eigenvalues of the sample covariance, centred and divided by n - 1.

    Those of the n x n Gram matrix where there are fewer rows than columns: all others are 0.

    Args:
        rows: observations, ``(n, p)``, two at least.

    Returns:
        ``(min(n - 1, p),)``, descending.

    Raises:
        ValueError: there are fewer than two rows.
    """
    n, p = rows.shape
    if n < 2:
        raise ValueError("a covariance needs two observations or more")
    centred = rows - rows.mean(0)
    product = centred @ centred.T if n < p else centred.T @ centred
    eigenvalues: Floats = np.maximum(np.linalg.eigvalsh(product / (n - 1))[::-1], 0.0)
    return eigenvalues[: min(n - 1, p)]


def population_spectrum(eigenvalues: Floats, n: int, p: int) -> Spectrum:
    """The population's spectrum behind a sample's: El Karoui's inversion of the Marcenko-Pastur equation.

    The eigenvalues of a sample covariance of p coordinates spread as p / n grows, and say little of the population's
    unless this is small. (The supplement says that the spectrum tends to the Tracy-Widom law. That is the law of the
    largest eigenvalue alone; the bulk tends to the Marcenko-Pastur law.) El Karoui, "Spectrum estimation for large
    dimensional covariance matrices using random matrix theory", Ann. Statist. 36(6), 2008, looks for the law H with

        z = -1 / v(z) + gamma int t dH(t) / (1 + t v(z)),    gamma = p / n,

    where v is the Stieltjes transform of the spectrum of the n x n Gram matrix: a mixture of point masses that brings
    the largest violation over many z (the L-infinity version) to a minimum u, by a linear programme. Departures:

    - The equation is multiplied by v, so that it has no dimension; point masses and z lie on geometric grids. With
      equidistant ones spectra that decay are lost.
    - A direction among p has a mass of 1 / p, which the programme does not see. Eigenvalues that stand apart by
      1 + 4 n^(-2/3) or more, in the top 5 %, are spikes: read off one by one, without the bias that the others
      bring to them. Each takes a degree of freedom from the rest.
    - The mean of H is the rest's trace. That can always be met, since no mean is above the largest eigenvalue.

    Rows are taken to be independent, with independent coordinates in some basis and tails that are not heavy. The
    shape is not resolved where n / p is below about 0.5.

    Args:
        eigenvalues: of the sample covariance, ``(m,)`` in any order; beyond the min(n, p) largest all must be 0.
        n: degrees of freedom that the covariance was divided by: the observations, less one if they were centred.
        p: dimension.

    Raises:
        ValueError: ``n`` or ``p`` is below 2, or the eigenvalues are no covariance's.
        RuntimeError: the solver found no solution.
    """
    if min(n, p) < 2:
        raise ValueError(f"a spectrum needs two observations and two dimensions at least, not {n} and {p}")
    sample = _descending(eigenvalues)
    if len(sample) > min(n, p):
        if sample[min(n, p)] > _NIL * sample[0]:
            raise ValueError(f"a covariance of {n} observations of {p} has no more than {min(n, p)} eigenvalues")
        sample = sample[: min(n, p)]
    k = _spikes(sample, n)
    top, rest = sample[:k], sample[k:]
    spikes = top / (1 + (rest / (top[:, None] - rest)).sum(1) / n)
    # The rest is a sum over the n - k degrees of freedom that are left, and was divided by n.
    atoms, weights, residual = _inverted(rest * n / (n - k), n - k, p - k)
    atoms = np.concatenate([spikes, atoms])
    weights = np.concatenate([np.full(k, 1 / p), weights * (1 - k / p)])
    order = np.argsort(-atoms, kind="stable")
    order = order[weights[order] > 0]
    return Spectrum(tuple(atoms[order].tolist()), tuple(weights[order].tolist()), k, residual)


def _inverted(sample: Floats, n: int, p: int) -> tuple[Floats, Floats, float]:
    """Atoms, their weights and u, of the spectrum without spikes."""
    gamma, scale = p / n, sample[0]
    found = sample[sample > _NIL * scale] / scale
    least = max(found[-1], _LEAST)
    near = np.geomspace(0.3 * least, 1.5, _POINTS)
    rays = (near[:, None] * (1 + 1j * np.array(_RAYS))).ravel()
    z = np.concatenate([rays, -near[::5]])
    v = ((1 / (found - z[:, None])).sum(1) - (n - len(found)) / z) / n
    mean = found.sum() / p
    # Where p > n, sample eigenvalues are about gamma times the population's: what is small there is read off the mean.
    atoms = np.append(0.0, np.geomspace(0.1 * min(least, mean), 1.0, _ATOMS))
    tv = np.outer(v, atoms)
    terms, constants = -gamma * tv / (1 + tv), 1 + z * v
    parts = np.concatenate([terms.real, terms.imag[: len(rays)]])  # v is real where z is
    offsets = np.concatenate([constants.real, constants.imag[: len(rays)]])
    u = np.ones((len(parts), 1))
    solution = linprog(
        np.append(np.zeros(len(atoms)), 1.0),
        A_ub=np.block([[parts, -u], [-parts, -u]]),
        b_ub=np.concatenate([-offsets, offsets]),
        A_eq=np.array([np.append(np.ones(len(atoms)), 0.0), np.append(atoms, 0.0)]),
        b_eq=[1.0, mean],
        bounds=(0, None),
        method="highs",
    )
    if solution.status != 0:
        raise RuntimeError(f"the Marcenko-Pastur equation could not be inverted: {solution.message}")
    weights = np.maximum(solution.x[:-1], 0.0)
    return atoms * scale, weights / weights.sum(), float(solution.x[-1])


def _spikes(sample: Floats, n: int) -> int:
    """How many of the largest eigenvalues stand apart from the rest: the last such gap in the top 5 % counts."""
    tried = min(max(1, int(_PEELED * len(sample))), len(sample) - 1)
    upper, lower = sample[:tried], sample[1 : tried + 1]
    apart = np.flatnonzero((lower > _NIL * sample[0]) & (upper >= lower * (1 + 4 * n ** (-2 / 3))))
    return int(apart[-1]) + 1 if len(apart) else 0


def _descending(eigenvalues: Floats) -> Floats:
    ordered = np.sort(np.asarray(eigenvalues, dtype=np.float64))[::-1]
    if not len(ordered) or not np.isfinite(ordered).all() or ordered[0] <= 0 or ordered[-1] < -1e-9 * ordered[0]:
        raise ValueError("these are no eigenvalues of a covariance: give numbers >= 0, at least one above 0")
    return np.maximum(ordered, 0.0)


def _grid(d: int) -> NDArray[np.int64]:
    """Numbers of directions, 0 to d: all up to `_GRID`, else closer together where Psi bends."""
    count = min(d, _GRID)
    if d == count:
        return np.arange(d + 1)
    return np.unique(np.round(d * (np.arange(count + 1) / count) ** 2).astype(np.int64))


def _psi(alpha: Floats, share: Floats) -> Psi:
    return Psi(tuple(alpha.tolist()), tuple(share.tolist()))
