"""Forgetting quality of the NeurIPS 2023 machine unlearning challenge: many unlearned models against many
retrained."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["FEWEST", "forgetting_quality", "privacy_loss"]

FEWEST = 64
"""Models of each kind: with 16 the score of models that differ in nothing and of models that do is about the same."""

_WIDTH, _BINS = 0.5, 13
_DELTA = 1e-6


def forgetting_quality(unlearned: NDArray[np.float64], retrained: NDArray[np.float64]) -> float:
    """How little attackers tell unlearned models from retrained ones, in (0, 1]; about 1 where they differ in nothing.

    F of the challenge's evaluation (Triantafillou et al., "Are we making progress in unlearning?", arXiv 2406.09073,
    section 4): the mean over samples of 2 / 2^n, n being the bin, of width 0.5 and counted from 1, of
    `privacy_loss`; the thirteenth is for all above and for infinity. The challenge multiplies it by the ratios of
    retain and of test accuracy to the retrained models', which here stand by themselves.

    Args:
        unlearned, retrained: signals of the models, ``(N, S)`` and ``(M, S)``: 64 models of each kind at least.

    Raises:
        ValueError: there are fewer, or shapes do not fit.
    """
    if unlearned.shape[1:] != retrained.shape[1:] or not unlearned.shape[1]:
        raise ValueError(f"{unlearned.shape} unlearned and {retrained.shape} retrained signals do not fit")
    if (count := min(len(unlearned), len(retrained))) < FEWEST:
        raise ValueError(
            f"forgetting quality of {count} models of a kind would say nothing: take {FEWEST} or more, that is "
            f"{2 * FEWEST} shadows"
        )
    losses = np.array([privacy_loss(a, b) for a, b in zip(unlearned.T, retrained.T, strict=True)])
    bins = np.minimum(np.floor(np.minimum(losses, _WIDTH * _BINS) / _WIDTH) + 1, _BINS)
    return float(np.mean(2.0 / 2.0**bins))


def privacy_loss(unlearned: NDArray[np.float64], retrained: NDArray[np.float64]) -> float:
    """Epsilon of one sample: how surely the best threshold tells the two kinds of models apart, 0 to infinity.

    The largest over attackers of max(log((1 - d - FPR) / FNR), log((1 - d - FNR) / FPR)), d = 1e-6 as in the
    community's code. Attackers are the best thresholds, in either direction, of every second model, measured on the
    others. One that makes no error is infinitely sure; one of whose errors only one kind happens tells nothing that so
    few models could confirm, and is left out.
    """
    found = [0.0]
    for threshold, sign in _thresholds(unlearned[::2], retrained[::2]):
        misses = float(np.mean(sign * unlearned[1::2] <= sign * threshold))
        alarms = float(np.mean(sign * retrained[1::2] > sign * threshold))
        if misses == 0 and alarms == 0:
            return float("inf")
        if misses > 0 and alarms > 0:
            sure = max((1 - _DELTA - alarms) / misses, (1 - _DELTA - misses) / alarms)
            found.append(float(np.log(max(sure, 1.0))))
    return max(found)


def _thresholds(unlearned: NDArray[np.float64], retrained: NDArray[np.float64]) -> list[tuple[float, int]]:
    """The best single threshold, in each direction; of several that are as good the median, whatever the sign is."""
    values = np.unique(np.concatenate([unlearned, retrained]))
    cuts = (values[1:] + values[:-1]) / 2
    if not len(cuts):
        return []
    lead = ((unlearned[:, None] > cuts).mean(0) - (retrained[:, None] > cuts).mean(0)).round(12)
    return [(float(np.median(cuts[lead == best])), sign) for best, sign in ((lead.max(), 1), (lead.min(), -1))]
