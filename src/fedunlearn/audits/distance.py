"""How far a model's predictions are from a retrained model's."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import ks_2samp

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
    return float(ks_2samp(one, other).statistic)
