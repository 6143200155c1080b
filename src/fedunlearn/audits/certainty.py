"""How sure an audit is: curves and areas of attacks, intervals, and what so many shadows could have found."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

__all__ = [
    "ALIKE",
    "LEVEL",
    "POWER",
    "Interval",
    "auc",
    "curve",
    "excess_found",
    "found_at",
    "holm",
    "larger",
    "mean",
    "needed",
    "proportion",
    "sign_flips",
    "wins_found",
    "within",
]

LEVEL, POWER = 0.05, 0.8
"""Of tests, one-sided, and of intervals, two-sided; and the chance to find what an audit says it would have found."""

ALIKE = 2.0
"""By how much the variance of a mean over shadows is larger than if these were independent.

Each serves as a reference for all others. The attack's lead in shadow i is, to first order, a sum over shadows j of
what i and j say of a sample times the coins of both; and the same term stands in the lead of j.
"""

_POINTS = 60
_FLIPS = 9999
_RESAMPLES = 1000
_NEGATIVES = 10  # a rate of false positives of r needs 10 / r negatives


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval; the bounds are the estimate where there is nothing to tell it from."""

    value: float
    low: float
    high: float


def auc(members: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """How often a member's score is above another's, over all pairs; ties count half. By chance 0.5.

    Args:
        members, others: scores, ``(..., S)`` and ``(..., T)``.

    Returns:
        ``(...,)``: the area under each curve, by Mann's and Whitney's statistic.
    """
    count, rest = members.shape[-1], others.shape[-1]
    ranks = stats.rankdata(np.concatenate([members, others], -1), axis=-1)[..., :count].sum(-1)
    area: NDArray[np.float64] = (ranks - count * (count + 1) / 2) / (count * rest)
    return area


def found_at(members: NDArray[np.float64], others: NDArray[np.float64], rate: float, seed: int = 0) -> Interval | None:
    """Share of the members that an attack finds at a rate of false positives.

    Args:
        members, others: scores, ``(N, S)`` each, a row a model; the interval is a bootstrap over models.
        rate: of false positives, in (0, 1).
        seed: of the bootstrap.

    Returns:
        None: there are fewer negatives than ten times 1 / ``rate``, too few to tell.
    """
    if round(others.size * rate, 9) < _NEGATIVES:
        return None
    rng = np.random.default_rng(seed)
    drawn = rng.integers(len(members), size=(_RESAMPLES, len(members)))
    values = [_rate(members[rows], others[rows], rate) for rows in drawn]
    low, high = np.quantile(values, [LEVEL / 2, 1 - LEVEL / 2])
    return Interval(_rate(members, others, rate), float(low), float(high))


def curve(members: NDArray[np.float64], others: NDArray[np.float64]) -> list[tuple[float, float]]:
    """The receiver operating characteristic for logarithmic axes: (false positives, found) as shares in (0, 1].

    Args:
        members, others: scores, of any shape.
    """
    counts = np.unique(np.geomspace(1, others.size, _POINTS).round().astype(int))  # of false positives
    ordered, found = np.sort(others, axis=None)[::-1], np.sort(members, axis=None)
    thresholds = ordered[np.minimum(counts, others.size - 1)]
    shares = 1 - np.searchsorted(found, thresholds, side="right") / found.size
    shares[-1] = 1.0  # whoever takes everybody for a member finds all
    return [(float(rate), float(share)) for rate, share in zip(counts / others.size, shares, strict=True)]


def mean(values: NDArray[np.float64], *, alike: float = 1.0) -> Interval:
    """Mean with Student's interval; of one value: everything is possible.

    Args:
        values: ``(n,)``.
        alike: by how much the variance of the mean is larger than of independent values.
    """
    value = float(np.mean(values))
    if len(values) < 2:
        return Interval(value, -np.inf, np.inf)
    half = float(stats.t.ppf(1 - LEVEL / 2, len(values) - 1) * stats.sem(values) * np.sqrt(alike))
    return Interval(value, value - half, value + half)


def larger(values: NDArray[np.float64], *, alike: float = 1.0) -> float:
    """One-sided p-value of a mean above 0, by Student's test; arguments as of `mean`, two values at least."""
    spread = float(stats.sem(values) * np.sqrt(alike))
    if np.allclose(values, values[0], rtol=1e-12, atol=0):  # all are the same: as sure as so many coins
        return 0.5 ** len(values) if values[0] > 0 else 1.0
    return float(stats.t.sf(np.mean(values) / spread, len(values) - 1))


def within(members: NDArray[np.float64], others: NDArray[np.float64], seed: int = 0) -> Interval:
    """`auc` of one model, with a bootstrap over pairs of a member and its twin.

    Args:
        members, others: scores, ``(S,)`` each, twins at the same position.
        seed: of the bootstrap.
    """
    rng = np.random.default_rng(seed)
    drawn = rng.integers(len(members), size=(_RESAMPLES, len(members)))
    low, high = np.quantile(auc(members[drawn], others[drawn]), [LEVEL / 2, 1 - LEVEL / 2])
    return Interval(float(auc(members, others)), float(low), float(high))


def proportion(share: float, trials: float) -> Interval:
    """A share of so many trials with Clopper's and Pearson's interval, which never promises too much.

    Args:
        share: of the trials that succeeded, in [0, 1].
        trials: that are independent; need not be a whole number.
    """
    successes = share * trials
    low = float(stats.beta.ppf(LEVEL / 2, successes, trials - successes + 1)) if share > 0 else 0.0
    high = float(stats.beta.ppf(1 - LEVEL / 2, successes + 1, trials - successes)) if share < 1 else 1.0
    return Interval(share, low, high)


def sign_flips(differences: NDArray[np.float64], seed: int = 0) -> float:
    """How often chance alone gives a sum as large: p-value of the differences between members and their twins.

    Which of two twins was in training was a coin toss. Had the model not seen it, each difference could as well have
    the other sign, so this test needs no shadow and no assumption on the scores.
    """
    rng = np.random.default_rng(seed)
    signs = rng.integers(0, 2, size=(_FLIPS, len(differences)), dtype=np.int8) * 2 - 1
    return float(
        (1 + np.sum(signs @ differences >= differences.sum() - 1e-12 * np.abs(differences).sum())) / (1 + _FLIPS)
    )


def wins_found(shadows: int, tests: int = 1) -> float:
    """How often an attacker must be right about all data together to be found at level 5 % with a power of 80 %.

    Where its leads over the shadows are normal, as sums over many samples are, with mean d and variance 1, it is right
    in Phi(d) of the cases, and a test of their mean finds it where d is the sum of the two quantiles times the standard
    error. That stands for `ALIKE` shadows.

    Args:
        shadows: two at least.
        tests: among which this is one: each has its share of the level, as the surest has by Holm's adjustment.

    Returns:
        In (0.5, 1).
    """
    return float(stats.norm.cdf(_quantiles(shadows - 1, tests) * np.sqrt(ALIKE / shadows)))


def excess_found(areas: NDArray[np.float64], tests: int = 1) -> float:
    """By how much a mean area must be larger than by chance to be found at level 5 % with a power of 80 %.

    Args:
        areas: of the shadows, where nothing can be found, ``(N,)``; two at least.
        tests: see `wins_found`.
    """
    return float(_quantiles(len(areas) - 1, tests) * stats.sem(areas) * np.sqrt(ALIKE))


def needed(rate: float, tests: int = 1) -> int:
    """The smallest number of shadows with which `wins_found` is ``rate`` or less; ``rate`` in (0.5, 1)."""
    if not 0.5 < rate < 1:
        raise ValueError(f"a rate of wins to be found lies between 0.5 and 1, not at {rate}")
    shadows = 2
    while wins_found(shadows, tests) > rate:
        shadows += 1
    return shadows


def _quantiles(freedom: int, tests: int) -> float:
    """Of the level and of the power, in standard errors."""
    return float(stats.t.ppf(1 - LEVEL / tests, freedom) + stats.t.ppf(POWER, freedom))


def holm(p: list[float]) -> list[float]:
    """Holm's adjustment: the p-values of several tests, such that one false alarm in all of them is as rare as
    LEVEL."""
    order = np.argsort(p)
    adjusted, largest = [0.0] * len(p), 0.0
    for rank, position in enumerate(order):
        largest = max(largest, min(1.0, (len(p) - rank) * p[position]))
        adjusted[position] = largest
    return adjusted


def _rate(members: NDArray[np.float64], others: NDArray[np.float64], rate: float) -> float:
    """Members strictly above the threshold that at most ``rate`` of the others are strictly above."""
    position = others.size - 1 - int(round(rate * others.size, 9))  # 0.29 of 100 are 29
    return float(np.mean(members > np.partition(others, position, axis=None)[position]))
