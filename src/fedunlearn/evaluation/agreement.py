"""Whether two orders of the same things agree, and whether a rule's order agrees with what came of things."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import permutations
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

__all__ = ["Agreement", "agreement", "kendall"]


@dataclass(frozen=True)
class Agreement:
    """Whether a rule orders layer sets as they turned out.

    Attributes:
        tau: Kendall's tau-b of the rule's order and of the outcomes', mean over networks; 1: the same.
        p: how often orders drawn at random have a tau as large or larger.
        regret: by how much the outcome of the rule's first choice is above the best one's, mean over networks; of
            several that it likes as well, the one that stands first.
    """

    tau: float
    p: float
    regret: float


def kendall(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Kendall's tau-b of two orders of the same things; None where one of them orders nothing."""
    both = _Network.of(one, other)
    return float(both.taus(np.arange(both.size)[None])[0]) if both.rule.any() and both.came.any() else None


def agreement(rules: Sequence[Sequence[float]], outcomes: Sequence[Sequence[float]], *, seed: int = 0) -> Agreement:
    """Hold a rule against outcomes.

    Args:
        rules: for each network the rule's score of each layer set, the smallest the best.
        outcomes: for each network what came of each set, such as an average gap, likewise.
        seed: of the random orders, where there are more than 50,000.

    Raises:
        ValueError: there is no network, one has fewer than two sets, or scores and outcomes differ in number or are no
            numbers.
    """
    if not rules or len(rules) != len(outcomes):
        raise ValueError("a rule is held against outcomes network by network: give both of each, of one at least")
    if any(len(rule) != len(came) or len(rule) < 2 for rule, came in zip(rules, outcomes, strict=True)):
        raise ValueError("an order needs two layer sets at least, each with a score and an outcome")
    if any(math.isnan(value) for values in (*rules, *outcomes) for value in values):
        raise ValueError("NaN has no place in an order: leave out layer sets without a score or an outcome")
    networks = [_Network.of(rule, came) for rule, came in zip(rules, outcomes, strict=True)]
    found = fmean(float(network.taus(np.arange(network.size)[None])[0]) for network in networks)
    taus = _taus_of_orders(networks, seed)
    regrets = [came[int(np.argmin(rule))] - min(came) for rule, came in zip(rules, outcomes, strict=True)]
    return Agreement(found, float((taus >= found - _ROUNDING).mean()), fmean(regrets))


@dataclass(frozen=True)
class _Network:
    """A rule's scores of one network's sets, and what came of them, pair by pair: -1, 0 or 1, ``(size, size)``."""

    rule: NDArray[np.int8]
    came: NDArray[np.int8]

    @classmethod
    def of(cls, rule: Sequence[float], came: Sequence[float]) -> _Network:
        return cls(_compared(np.asarray(rule, float)), _compared(np.asarray(came, float)))

    @property
    def size(self) -> int:
        return len(self.rule)

    def taus(self, orders: NDArray[np.int64]) -> NDArray[np.float64]:
        """Kendall's tau-b, ``(orders,)``, the scores put in other places, ``(orders, size)``; 0 where one side is tied.

        Its denominator is the same in all orders.
        """
        ordered = math.sqrt(np.count_nonzero(self.rule) * np.count_nonzero(self.came))
        placed = self.rule[orders[:, :, None], orders[:, None, :]]
        agreed: NDArray[np.float64] = (placed * self.came).sum((1, 2)) / (ordered or 1)
        return agreed


def _compared(values: NDArray[np.float64]) -> NDArray[np.int8]:
    """By comparison: a difference of infinite scores would be no number."""
    one, other = values[:, None], values[None, :]
    return (one > other).astype(np.int8) - (one < other).astype(np.int8)


def _taus_of_orders(networks: Sequence[_Network], seed: int) -> NDArray[np.float64]:
    """Mean tau of all orders of all networks' scores, where that can be done; else of some at random, and their own."""
    sizes = [network.size for network in networks]
    if math.prod(map(math.factorial, sizes)) <= _MOST_ORDERS:
        each = [network.taus(np.array(list(permutations(range(network.size))))) for network in networks]
        return reduce(lambda sums, taus: np.add.outer(sums, taus).ravel(), each) / len(networks)
    rng = np.random.default_rng(seed)
    drawn = [[np.arange(size) for size in sizes], *([rng.permutation(n) for n in sizes] for _ in range(_DRAWN_ORDERS))]
    each = [network.taus(np.array(orders)) for network, orders in zip(networks, zip(*drawn, strict=True), strict=True)]
    mean: NDArray[np.float64] = np.mean(each, 0)
    return mean


_MOST_ORDERS, _DRAWN_ORDERS, _ROUNDING = 50_000, 9_999, 1e-12
