"""How far apart two laws are, by samples: sliced Wasserstein distance, and total variation from below."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.base import ClassifierMixin
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_predict
from threadpoolctl import threadpool_limits

__all__ = ["Variation", "permutation_p", "sliced", "sliced_wasserstein", "variation"]

_FEATURES = 32  # principal coordinates that a classifier has
_FOLDS = 5
_PERMUTATIONS = 199
_TREES, _LEAF = 30, 5
_TINY = 1e-300  # outputs that are all zero have no size


def sliced(points: NDArray[np.float64], slices: int, seed: int) -> NDArray[np.float64]:
    """Points on random lines through 0: uniform directions, the same for each seed and dimension.

    Args:
        points: ``(n, d)``.
        slices: number of directions.
        seed: of them.

    Returns:
        ``(n, slices)``.
    """
    directions = np.random.default_rng(seed).normal(size=(points.shape[1], slices))
    projected: NDArray[np.float64] = points @ (directions / np.linalg.norm(directions, axis=0))
    return projected


def sliced_wasserstein(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Mean over lines of the Wasserstein-1 distance of two samples; in the points' unit.

    It is 0 where the samples are equal, and no more than their Wasserstein-1 distance. Over all lines it would be 0
    nowhere else; over finitely many it can be. Fewer lines than dimensions leave a direction at right angles to them
    all, along which laws may differ unseen; and however many there are, some different laws look alike on each of them.

    Args:
        one, other: `sliced` samples of equal size, ``(n, slices)``.

    Raises:
        ValueError: sizes differ, or there is no sample.
    """
    if one.shape != other.shape or not one.size:
        raise ValueError(f"samples of shapes {one.shape} and {other.shape}: take as many of each, one at least")
    return float(np.abs(np.sort(one, axis=0) - np.sort(other, axis=0)).mean())


def permutation_p(one: NDArray[np.float64], other: NDArray[np.float64], seed: int) -> float:
    """How often two samples of one law are as far apart, by `sliced_wasserstein`: an exact permutation test.

    Args:
        one, other: `sliced`, independent samples, ``(n, slices)`` each.
        seed: of the permutations.

    Returns:
        In [1/200, 1]; uniform where the laws are equal.
    """
    rng, found, both = np.random.default_rng(seed), sliced_wasserstein(one, other), np.concatenate([one, other])
    as_far = 1
    for _ in range(_PERMUTATIONS):
        order = rng.permutation(len(both))
        as_far += sliced_wasserstein(both[order[: len(one)]], both[order[len(one) :]]) >= found * (1 - 1e-12)
    return as_far / (1 + _PERMUTATIONS)


@dataclass(frozen=True)
class Variation:
    """A lower bound of the total variation distance sup |P(A) - Q(A)| of two laws.

    Attributes:
        value: the larger of the two below, and 0 at least. Sampling and the choice of the larger can carry it above
            the distance by about two errors.
        error: standard error of that one.
        logistic, forest: 2 * accuracy - 1 of each classifier on samples that it was not fitted on.
        samples: of each law.
    """

    value: float
    error: float
    logistic: float
    forest: float
    samples: int


def variation(one: NDArray[np.float64], other: NDArray[np.float64], seed: int) -> Variation:
    """How well a classifier tells two laws apart, a lower bound of their total variation distance.

    A classifier says "one" on a set A, and 2 * accuracy - 1 = P(A) - Q(A) for classes of equal size. No classifier
    does better than the distance, and these see 32 principal coordinates: a bound that is small proves nothing.

    Args:
        one, other: ``(n, d)`` each; the i-th rows may depend on each other (Y and -Y), and are fitted or tested
            together: else a classifier that has seen y could recognise -y.
        seed: of the folds and the forest.

    Raises:
        ValueError: shapes differ, a value is not finite, or there are fewer than 10 samples.
    """
    if one.shape != other.shape or len(one) < 2 * _FOLDS:
        raise ValueError(f"samples of shapes {one.shape} and {other.shape}: take as many of each, 10 at least")
    features = _principal(np.concatenate([one, other]))
    label, pair = np.repeat([0, 1], len(one)), np.tile(np.arange(len(one)), 2)
    forest = RandomForestClassifier(_TREES, min_samples_leaf=_LEAF, random_state=seed % 2**32, n_jobs=1)
    linear = LogisticRegression(max_iter=1000)
    found = [_told_apart(model, features, label, pair, seed) for model in (linear, forest)]
    best = max(found, key=lambda leads: float(leads.mean()))
    error = float(best.std(ddof=1) / math.sqrt(len(best)))
    logistic, forests = (float(leads.mean()) for leads in found)
    return Variation(max(0.0, logistic, forests), error, logistic, forests, len(one))


def _principal(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Principal coordinates about 0, the centre of Y and -Y together; the first has size 1.

    They keep their proportions: standardised one by one, the last would be noise as large as the first.
    """
    if not np.isfinite(points).all():
        raise ValueError("the layer's outputs are not finite numbers: the model has diverged")
    values, vectors = np.linalg.eigh(points @ points.T)
    kept = np.argsort(values)[::-1][: min(_FEATURES, points.shape[1])]
    proportions = np.sqrt(np.maximum(values[kept], 0.0) / max(float(values[kept[0]]), _TINY))
    coordinates: NDArray[np.float64] = vectors[:, kept] * proportions * math.sqrt(len(points))
    return coordinates


def _told_apart(
    model: ClassifierMixin,
    features: NDArray[np.float64],
    label: NDArray[np.int64],
    pair: NDArray[np.int64],
    seed: int,
) -> NDArray[np.float64]:
    """Of each pair: 1 if both were told right, -1 if both wrong, 0 if the same was said of both."""
    shuffled = np.random.default_rng(seed).permutation(pair.max() + 1)[pair]
    with threadpool_limits(1, "blas"):
        said = cross_val_predict(model, features, label, groups=shuffled, cv=GroupKFold(_FOLDS))
    right = (said == label).reshape(2, -1)
    leads: NDArray[np.float64] = right.sum(0) - 1.0
    return leads
