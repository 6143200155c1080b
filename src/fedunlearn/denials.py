"""What a server lacks, as federations and programs around others: the contract's ways to deny a method what it needs.

A method that does not declare a need comes out the same when it is denied; one that declares it must not.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from fedunlearn.backends.wrapper import Wrapper
from fedunlearn.federation import Batch, Choose, ClientContext, ClientId, Federation, Part, Phase, Program, Reply, Turn
from fedunlearn.randomness import generator
from fedunlearn.weights import Weights

__all__ = ["Asked", "Counting", "Denied", "Everything", "Masked", "Nobody", "Watched", "WithoutLabels"]


@dataclass(frozen=True)
class Nobody:
    """A predicate that means no sample."""

    def __call__(self, client: ClientId, labels: Tensor) -> Tensor:
        """See `Predicate`."""
        return torch.zeros(labels.shape, dtype=torch.bool)


@dataclass(frozen=True)
class Everything:
    """A predicate that means every sample."""

    def __call__(self, client: ClientId, labels: Tensor) -> Tensor:
        """See `Predicate`."""
        return torch.ones(labels.shape, dtype=torch.bool)


class Denied(Wrapper):
    """A federation that must not be asked."""

    def run(
        self, program: Program, weights: Weights, turn: Turn, clients: Sequence[ClientId] | None = None
    ) -> Iterator[tuple[ClientId, Reply]]:
        """See `Federation.run`."""
        raise AssertionError("the unlearning step asks clients that it does not declare a need for")


class Watched(Wrapper):
    """A federation of which is noted who answered in which phase and round."""

    def __init__(self, inner: Federation, seen: list[tuple[Phase, int, ClientId]]) -> None:
        super().__init__(inner)
        self.seen = seen

    def around(self, inner: Federation) -> Self:
        """See `Wrapper.around`."""
        return type(self)(inner, self.seen)

    def run(
        self, program: Program, weights: Weights, turn: Turn, clients: Sequence[ClientId] | None = None
    ) -> Iterator[tuple[ClientId, Reply]]:
        """See `Federation.run`."""
        for client, reply in self.inner.run(program, weights, turn, clients):
            self.seen.append((turn.phase, turn.number, client))
            yield client, reply


class Masked(Wrapper):
    """Secure aggregation's view of replies: models hidden by noise that cancels in the mean over samples.

    Metrics and values per sample are no part of a secure sum, so they are not there at all.
    """

    def run(
        self, program: Program, weights: Weights, turn: Turn, clients: Sequence[ClientId] | None = None
    ) -> Iterator[tuple[ClientId, Reply]]:
        """See `Federation.run`."""
        replies = list(self.inner.run(program, weights, turn, clients))
        for at, (client, reply) in enumerate(replies):
            reply = replace(reply, metrics={}, values={})
            if reply.samples and len(replies) > 1:
                mask = partial(self._masked, at=at, clients=len(replies), samples=reply.samples)
                model = mask(reply.weights) if reply.weights is not None else None
                reply = replace(reply, weights=model, extra={n: mask(w) for n, w in reply.extra.items()})
            yield client, reply

    def _masked(self, weights: Weights, at: int, clients: int, samples: int) -> Weights:
        return weights + (self._noise(weights, at) - self._noise(weights, (at + 1) % clients)) * (1 / samples)

    def _noise(self, like: Weights, number: int) -> Weights:
        rng = generator("mask", number)
        return like.map(lambda tensor: torch.randn(tensor.shape, generator=rng))


class Asked(Wrapper):
    """A federation whose clients are asked for a program around each program."""

    def __init__(self, inner: Federation, ask: Callable[[Program], Program]) -> None:
        super().__init__(inner)
        self.ask = ask

    def around(self, inner: Federation) -> Self:
        """See `Wrapper.around`."""
        return type(self)(inner, self.ask)

    def run(
        self, program: Program, weights: Weights, turn: Turn, clients: Sequence[ClientId] | None = None
    ) -> Iterator[tuple[ClientId, Reply]]:
        """See `Federation.run`."""
        return self.inner.run(self.ask(program), weights, turn, clients)


class _Around:
    """A client's context around another."""

    def __init__(self, context: ClientContext) -> None:
        self._context = context

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)


@dataclass(frozen=True)
class WithoutLabels:
    """A program that is shown class 0 for every sample to be forgotten: for all, or for those that are flagged."""

    program: Program
    all_go: bool

    def __call__(self, context: ClientContext) -> Reply:
        """See `Program`."""
        return self.program(cast(ClientContext, _Unlabelled(context, self.all_go)))


@dataclass(frozen=True)
class Counting:
    """A program whose networks are counted."""

    program: Program

    def __call__(self, context: ClientContext) -> Reply:
        """See `Program`."""
        return self.program(cast(ClientContext, _Counted(context)))


class _Counted(_Around):
    def __init__(self, context: ClientContext) -> None:
        super().__init__(context)
        self._others: weakref.WeakSet[nn.Module] = weakref.WeakSet()

    def frozen(self, weights: Weights | None = None) -> nn.Module:
        return self._one_more(self._context.frozen(weights))

    def fresh(self, seed: int) -> nn.Module:
        return self._one_more(self._context.fresh(seed))

    def _one_more(self, network: nn.Module) -> nn.Module:
        self._others.add(network)
        if len(self._others) > 2:
            raise MemoryError(f"a client holds {1 + len(self._others)} networks")
        return network


class _Unlabelled(_Around):
    def __init__(self, context: ClientContext, all_go: bool) -> None:
        super().__init__(context)
        self._all_go = all_go

    def batches(
        self, epoch: int, size: int, *, of: Choose | None = None, part: Part = "train", train: bool = True
    ) -> Iterator[Batch]:
        for batch in self._context.batches(epoch, size, of=of, part=part, train=train):
            goes = batch.forget | self._all_go
            yield Batch(batch.x, torch.where(goes, 0, batch.y), batch.forget)
