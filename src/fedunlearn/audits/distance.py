"""How far a model's predictions are from a retrained model's."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["disagreement", "kolmogorov_smirnov"]


def disagreement(one: NDArray[np.int64], other: NDArray[np.int64]) -> float:
    """Share of the samples that two models put into different classes, in [0, 1].

    Args:
        one, other: predicted classes, ``(n,)`` each, of the same samples.

    Raises:
        ValueError: there is no sample, or not the same number.
    """
    if one.shape != other.shape or not one.size:
        raise ValueError(f"predictions of shapes {one.shape} and {other.shape} cannot be compared")
    return float(np.mean(one != other))


def kolmogorov_smirnov(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Largest difference of two empirical distribution functions, in [0, 1].

    Of losses it is the same as of `fedunlearn.audits.signals.confidence`: either falls as the other rises.

    Raises:
        ValueError: there is no value.
    """
    if not (one.size and other.size):
        raise ValueError(f"{one.size} and {other.size} values cannot be compared: take one of each at least")
    places = np.concatenate([one, other])
    shares = [np.searchsorted(np.sort(values), places, side="right") / values.size for values in (one, other)]
    return float(np.abs(shares[0] - shares[1]).max())
