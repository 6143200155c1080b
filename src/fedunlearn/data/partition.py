"""How the training samples are dealt out to the clients of a simulated federation."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedunlearn.randomness import generator, stable_seed

__all__ = ["Dirichlet", "Iid"]

_REDRAWS = 1000


@dataclass(frozen=True)
class Iid:
    """Equal slices of shuffled samples; sizes differ by one at most. The paper's main setting (Table 1)."""

    def __call__(self, labels: Tensor, clients: int, seed: int) -> tuple[Tensor, ...]:
        """Deal out the samples.

        Args:
            labels: ``(N,)``, int64; only their number matters.
            clients: 1 .. N.
            seed: the same seed gives the same slices.

        Returns:
            For each client the indices of its samples, int64, ascending; each of 0 .. N-1 belongs to one
            client.

        Raises:
            ValueError: there are more clients than samples, or none.
        """
        _check(labels, clients)
        order = torch.randperm(len(labels), generator=generator("partition", seed))
        return tuple(part.sort().values for part in order.tensor_split(clients))


@dataclass(frozen=True)
class Dirichlet:
    """Slices of unequal sizes and mixtures: each class is shared out by a Dirichlet draw of its own.

    For every class c the clients' shares of its samples are p_c ~ Dir(alpha, ..., alpha), independently
    (Yurochkin et al., "Bayesian nonparametric federated learning of neural networks", ICML 2019). Hsu et al.
    (2019) draw the other way round, a mixture of classes for each client, all clients being equally large.
    The paper's non-IID tables have 10 clients and alpha = 0.1 (there called beta; supplement, Table 4); which
    of the two ways it draws, and whether clients have a least size, it does not say.

    Attributes:
        alpha: concentration, positive; towards 0 each class goes to one client, towards infinity all clients
            get equal shares.
        minimum: the least number of samples of a client; all shares are redrawn until everybody has so many.
    """

    alpha: float
    minimum: int = 10

    def __post_init__(self) -> None:
        if not (0 < self.alpha < math.inf):
            raise ValueError(f"alpha must be positive and finite, not {self.alpha}")
        if self.minimum < 0:
            raise ValueError(f"the minimum of samples per client must be 0 or more, not {self.minimum}")

    def __call__(self, labels: Tensor, clients: int, seed: int) -> tuple[Tensor, ...]:
        """Deal out the samples.

        Args:
            labels: class of each sample, ``(N,)``, int64.
            clients: 1 .. N.
            seed: the same seed gives the same slices.

        Returns:
            For each client the indices of its samples, int64, ascending; each of 0 .. N-1 belongs to one
            client.

        Raises:
            ValueError: there are more clients than samples, or none; or the clients cannot all have
                ``minimum`` samples, or did not in 1000 draws.
        """
        _check(labels, clients)
        if clients * self.minimum > len(labels):
            raise ValueError(
                f"{len(labels)} samples cannot give each of {clients} clients {self.minimum}: "
                "lower the minimum or the number of clients"
            )
        class_sizes = torch.unique(labels, return_counts=True)[1].numpy()
        bounds = self._bounds(class_sizes, clients, np.random.default_rng(stable_seed("shares", seed)))
        # Shuffled, then sorted by class with ties left in shuffled order: each class is one random run.
        shuffled = torch.randperm(len(labels), generator=generator("partition", seed))
        by_class = torch.split(shuffled[labels[shuffled].argsort(stable=True)], class_sizes.tolist())
        parts = [members.tensor_split(bound[:-1]) for members, bound in zip(by_class, bounds, strict=True)]
        return tuple(torch.cat(pieces).sort().values for pieces in zip(*parts, strict=True))

    def _bounds(self, class_sizes: NDArray[np.int64], clients: int, rng: np.random.Generator) -> list[list[int]]:
        """Where, in each class, every client's share ends: ``(classes, clients)``."""
        for _ in range(_REDRAWS):
            shares = rng.dirichlet(np.full(clients, self.alpha), len(class_sizes))
            bounds = np.rint(shares.cumsum(axis=1) * class_sizes[:, None]).astype(int)
            if np.diff(bounds, axis=1, prepend=0).sum(axis=0).min() >= self.minimum:
                ends: list[list[int]] = bounds.tolist()
                return ends
        raise ValueError(
            f"in each of {_REDRAWS} draws a client had fewer than {self.minimum} of the samples: "
            f"raise alpha (now {self.alpha}), or lower the minimum or the number of clients (now {clients})"
        )


def _check(labels: Tensor, clients: int) -> None:
    if not 1 <= clients <= len(labels):
        raise ValueError(f"{len(labels)} samples can be dealt to 1 .. {len(labels)} clients, not to {clients}")
