"""Softmax regression, SGD and federated averaging in NumPy, gradients by hand: what methods are compared with.

A model is one vector: ``weight (C, d)`` row by row, then ``bias (C,)``, as `Weights.vector` of a linear layer has it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Gradient = Callable[[Array], Array]


@dataclass(frozen=True)
class Held:
    """Samples ``x (n, d)`` with classes ``y (n,)``."""

    x: Array
    y: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.y)

    def where(self, mask: NDArray[np.bool_]) -> Held:
        return Held(self.x[mask], self.y[mask])


def scores(theta: Array, x: Array) -> Array:
    classes = len(theta) // (x.shape[1] + 1)
    weight, bias = theta[:-classes].reshape(classes, -1), theta[-classes:]
    return x @ weight.T + bias


def softmax(z: Array) -> Array:
    raised = np.exp(z - z.max(1, keepdims=True))
    return raised / raised.sum(1, keepdims=True)


def one_hot(y: NDArray[np.int64], classes: int) -> Array:
    return np.eye(classes)[y]


def back(x: Array, at_scores: Array) -> Array:
    """The gradient at the parameters of a mean over samples, whose gradients at the scores are ``(n, C)``."""
    return np.concatenate([(at_scores.T @ x).reshape(-1), at_scores.sum(0)]) / len(x)


def cross_entropy(x: Array, target: Array) -> Gradient:
    """Of cross-entropy to rows of probabilities: softmax - target."""
    return lambda theta: back(x, softmax(scores(theta, x)) - target)


def labelled(held: Held, classes: int = 3) -> Gradient:
    return cross_entropy(held.x, one_hot(held.y, classes))


def sgd(
    theta: Array, gradient: Gradient, lr: float, steps: int = 1, momentum: float = 0.0, decay: float = 0.0
) -> Array:
    """Full-batch steps: v <- momentum v + (g + decay theta), theta <- theta - lr v."""
    velocity = np.zeros_like(theta)
    for _ in range(steps):
        velocity = momentum * velocity + gradient(theta) + decay * theta
        theta = theta - lr * velocity
    return theta


def weighted(models: Iterable[tuple[Array, float]]) -> Array:
    """The mean of models by their shares."""
    pairs = list(models)
    total = sum(share for _, share in pairs)
    return np.sum([model * (share / total) for model, share in pairs], axis=0)
