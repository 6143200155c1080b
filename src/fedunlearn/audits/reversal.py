"""Negation reversal: whoever knows which layer was negated can turn its sign back."""

from __future__ import annotations

from torch import nn

from fedunlearn.negation import negate
from fedunlearn.weights import Weights

__all__ = ["turned_back"]


def turned_back(weights: Weights, like: nn.Module | None = None) -> Weights:
    """The weights with the sign of all that was ever negated turned back, by their own sign history.

    Of a model that was negated and not trained since it is the model before the negation, bit for bit where no
    BatchNorm follows: who has the negated model has the old one.

    Args:
        weights: with their history (`Weights.negations`).
        like: a module of their architecture, which says where BatchNorms follow; see `fedunlearn.negate`.

    Raises:
        ValueError: nothing was negated.
    """
    if not weights.negations:
        raise ValueError("these weights have no sign history: nothing in them was negated")
    for parts in reversed(weights.negations):
        weights = negate(weights, parts, like=like)
    return weights
