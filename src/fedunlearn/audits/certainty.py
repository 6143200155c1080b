"""How sure an audit is: curves and areas of attacks, intervals, and what so many shadows could have found."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

__all__ = [
    "LEVEL",
    "POWER",
    "Interval",
    "auc",
    "curve",
    "detectable",
    "excess_found",
    "found_at",
    "holm",
    "mean",
    "needed",
    "proportion",
    "sign_flips",
    "within",
]

LEVEL, POWER = 0.05, 0.8
"""Of tests, one-sided, and of intervals, two-sided; and the chance to find what an audit says it would have found."""

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


def auc(members: NDArray[np.float64], others: NDArray[np.float64]) -> float:
    """How often a member's score is above another's, over all pairs; ties count half. By chance 0.5."""
    count = len(members)
    ranks = stats.rankdata(np.concatenate([members, others]))[:count]  # a bootstrap asks a thousand times: no detours
    return float((ranks.sum() - count * (count + 1) / 2) / (count * len(others)))


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


def mean(values: NDArray[np.float64]) -> Interval:
    """Mean of independent values with Student's interval; of one value: everything is possible."""
    value = float(np.mean(values))
    if len(values) < 2:
        return Interval(value, -np.inf, np.inf)
    half = float(stats.t.ppf(1 - LEVEL / 2, len(values) - 1) * stats.sem(values))
    return Interval(value, value - half, value + half)


def within(members: NDArray[np.float64], others: NDArray[np.float64], seed: int = 0) -> Interval:
    """`auc` of one model, with a bootstrap over pairs of a member and its twin.

    Args:
        members, others: scores, ``(S,)`` each, twins at the same position.
        seed: of the bootstrap.
    """
    rng = np.random.default_rng(seed)
    drawn = rng.integers(len(members), size=(_RESAMPLES, len(members)))
    low, high = np.quantile([auc(members[rows], others[rows]) for rows in drawn], [LEVEL / 2, 1 - LEVEL / 2])
    return Interval(auc(members, others), float(low), float(high))


def proportion(successes: int, trials: int) -> Interval:
    """A share with Clopper's and Pearson's interval, which never promises too much."""
    found = stats.binomtest(successes, trials).proportion_ci(1 - LEVEL, "exact")
    return Interval(successes / trials, float(found.low), float(found.high))


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


def detectable(trials: int) -> float | None:
    """The smallest rate of wins that so many trials tell from 1/2 at level 5 % with a power of 80 %, exactly.

    None: not even winning always would be told from chance, which takes five trials.
    """
    critical = int(stats.binom.isf(LEVEL, trials, 0.5)) + 1  # P(wins >= critical | chance) <= LEVEL
    if critical > trials:
        return None
    # P(wins >= critical | rate) = P(Beta(critical, trials - critical + 1) <= rate)
    return float(stats.beta.ppf(POWER, critical, trials - critical + 1))


def excess_found(areas: NDArray[np.float64]) -> float:
    """By how much a mean area must be larger than by chance to be found at level 5 % with a power of 80 %.

    Args:
        areas: of the shadows, where nothing can be found, ``(N,)``; two at least.
    """
    freedom = len(areas) - 1
    return float((stats.t.ppf(1 - LEVEL, freedom) + stats.t.ppf(POWER, freedom)) * stats.sem(areas))


def needed(rate: float) -> int:
    """The smallest number of trials with which `detectable` is ``rate`` or less; ``rate`` in (0.5, 1]."""
    if not 0.5 < rate <= 1:
        raise ValueError(f"a rate of wins to be found lies above 0.5 and not above 1, not at {rate}")
    trials = 5
    while (found := detectable(trials)) is None or found > rate:
        trials += 1
    return trials


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
    ordered = np.sort(others, axis=None)
    threshold = ordered[len(ordered) - 1 - int(round(rate * len(ordered), 9))]  # 0.29 of 100 are 29
    return float(np.mean(members > threshold))
