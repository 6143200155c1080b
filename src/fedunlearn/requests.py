"""What is asked to be forgotten: one predicate over samples, so client-, class- and instance-wise need no branches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cached_property
from typing import Annotated, Any, TypeVar

import torch
from annotated_types import Gt, Lt
from torch import Tensor

from fedunlearn.federation import ClientId, Predicate, require_id
from fedunlearn.randomness import generator

__all__ = [
    "AnyOf",
    "AskedFor",
    "ForgetClass",
    "ForgetClient",
    "ForgetInstances",
    "ForgetShare",
    "Rest",
    "held",
    "resolved",
    "wholly",
]

_T = TypeVar("_T")


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
    """Several requests at once: a client is asked about those alone that may mean any of its samples."""

    requests: tuple[Predicate, ...]

    def __call__(self, client: ClientId, labels: Tensor) -> Tensor:
        """See `Predicate`."""
        meant = torch.zeros(labels.shape, dtype=torch.bool)
        for request in self.concerning(client):
            meant |= request(client, labels)
        return meant

    def concerning(self, client: ClientId) -> list[Predicate]:
        """Those that may mean samples of ``client``, in order: not those that are plainly about others."""
        anybody, alone = self._about
        return [self.requests[number] for number in sorted((*anybody, *alone.get(client, ())))]

    @cached_property
    def _about(self) -> tuple[list[int], dict[ClientId, list[int]]]:
        """Positions of requests that may be about anybody, and of those about single clients, by client."""
        anybody: list[int] = []
        alone: dict[ClientId, list[int]] = {}
        for number, request in enumerate(self.requests):
            if isinstance(request, ForgetClient | AskedFor):
                alone.setdefault(request.client, []).append(number)
            elif isinstance(request, ForgetInstances):
                for client in request.instances:
                    alone.setdefault(client, []).append(number)
            else:
                anybody.append(number)
        return anybody, alone


@dataclass(frozen=True)
class Rest:
    """Everything but what a request means."""

    request: Predicate

    def __call__(self, client: ClientId, labels: Tensor) -> Tensor:
        """See `Predicate`."""
        return ~self.request(client, labels)


@dataclass(frozen=True)
class AskedFor:
    """What a client has asked to be forgotten, in so many words as a server may know: who asked, and which request.

    Of any other client it means nothing. Which samples of its own it means only the client can say: its side puts the
    answer in this one's place (`resolved`) before anything is computed.

    Attributes:
        client: who asked.
        request: the request's id.
    """

    client: ClientId
    request: str

    def __post_init__(self) -> None:
        require_id(self.client)

    def __call__(self, client: ClientId, labels: Tensor) -> Tensor:
        """See `Predicate`.

        Raises:
            ValueError: it is asked of the client's own samples.
        """
        if client == self.client:
            raise ValueError(
                f"which samples request {self.request!r} means only client {client} can say: "
                "run it on a federation whose clients keep an outbox"
            )
        return torch.zeros(labels.shape, dtype=torch.bool)


def wholly(predicate: Predicate, client: ClientId) -> bool | None:
    """Whether a predicate plainly means all samples of a client (True) or none (False); None: its labels decide."""
    if isinstance(predicate, ForgetClient):
        return predicate.client == client
    if isinstance(predicate, AskedFor):
        return None if predicate.client == client else False
    if isinstance(predicate, ForgetInstances):
        return None if predicate.instances.get(client) else False
    if isinstance(predicate, Rest):
        meant = wholly(predicate.request, client)
        return None if meant is None else not meant
    if isinstance(predicate, AnyOf):
        each = [wholly(request, client) for request in predicate.concerning(client)]
        return True if True in each else None if None in each else False
    return None


def held(keeps: Iterable[Predicate], client: ClientId) -> bool | None:
    """Whether predicates, each of which must mean a sample, plainly leave all of a client's (True) or none (False)."""
    left = [wholly(predicate, client) for predicate in keeps]
    return False if False in left else None if None in left else True


def resolved(value: _T, client: ClientId, known: Callable[[str], Predicate]) -> _T:
    """A predicate, or whatever holds predicates, with each `AskedFor` of a client replaced by what it means.

    Args:
        value: a predicate, a view or the like: frozen dataclasses and tuples, nested in any way.
        client: whose; what others have asked for stays as it is, for it means none of this client's samples.
        known: from a request's id to what it means; what it raises is raised.
    """

    def walk(item: Any) -> Any:
        if isinstance(item, AskedFor):
            return known(item.request) if item.client == client else item
        if isinstance(item, tuple):
            parts = tuple(walk(part) for part in item)
            return parts if any(a is not b for a, b in zip(parts, item, strict=True)) else item
        if is_dataclass(item) and not isinstance(item, type):
            held = {field.name: getattr(item, field.name) for field in fields(item) if field.init}
            changed = {name: walk(part) for name, part in held.items()}
            return replace(item, **changed) if any(changed[n] is not held[n] for n in held) else item
        return item

    answer: _T = walk(value)
    return answer
