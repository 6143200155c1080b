"""What is asked to be forgotten: one predicate over samples, so client-, class- and instance-wise need no branches."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Gt, Lt
from torch import Tensor

from fedunlearn.federation import ClientId, Predicate, require_id
from fedunlearn.randomness import generator

__all__ = ["AnyOf", "ForgetClass", "ForgetClient", "ForgetInstances", "ForgetShare", "Rest"]


@dataclass(frozen=True)
class ForgetClient:
    """All samples of one client."""

    client: ClientId

    def __post_init__(self) -> None:
        require_id(self.client)

    def __call__(self, client: ClientId, labels: Tensor) -> Tensor:
        """See `Predicate`."""
        return torch.full(labels.shape, client == self.client)


@dataclass(frozen=True)
class ForgetClass:
    """All samples of one class, wherever they are."""

    label: int

    def __call__(self, client: ClientId, labels: Tensor) -> Tensor:
        """See `Predicate`."""
        return labels == self.label


@dataclass(frozen=True)
class ForgetInstances:
    """Single samples, by their positions among all samples of their client (training and validation alike)."""

    instances: Mapping[ClientId, tuple[int, ...]]

    def __post_init__(self) -> None:
        for client in self.instances:
            require_id(client)

    def __call__(self, client: ClientId, labels: Tensor) -> Tensor:
        """See `Predicate`.

        Raises:
            IndexError: the client has no such sample.
        """
        meant = torch.zeros(labels.shape, dtype=torch.bool)
        for position in self.instances.get(client, ()):
            if not 0 <= position < len(labels):
                raise IndexError(
                    f"client {client} has samples 0 to {len(labels) - 1}, but {position} is to be forgotten"
                )
            meant[position] = True
        return meant


@dataclass(frozen=True)
class ForgetShare:
    """Single samples of every client, drawn at random: so large a share of each client's, rounded down.

    The paper's instance-wise setting takes 10 % (supplement, Table 6).

    Attributes:
        share: in (0, 1).
        seed: of the draw, which depends on the client's name and number of samples, and on nothing else.
    """

    share: Annotated[float, Gt(0), Lt(1)]
    seed: int = 0

    def __call__(self, client: ClientId, labels: Tensor) -> Tensor:
        """See `Predicate`."""
        drawn = torch.randperm(len(labels), generator=generator(self.seed, client, "share"))
        meant = torch.zeros(labels.shape, dtype=torch.bool)
        meant[drawn[: math.floor(round(self.share * len(labels), 9))]] = True
        return meant


@dataclass(frozen=True)
class AnyOf:
    """Several requests at once."""

    requests: tuple[Predicate, ...]

    def __call__(self, client: ClientId, labels: Tensor) -> Tensor:
        """See `Predicate`."""
        meant = torch.zeros(labels.shape, dtype=torch.bool)
        for request in self.requests:
            meant |= request(client, labels)
        return meant


@dataclass(frozen=True)
class Rest:
    """Everything but what a request means."""

    request: Predicate

    def __call__(self, client: ClientId, labels: Tensor) -> Tensor:
        """See `Predicate`."""
        return ~self.request(client, labels)
