"""Rounds: federated averaging, once and for ever."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count, islice

from fedunlearn.federation import ClientId, Federation, Phase, Program, Turn
from fedunlearn.weights import Average, Weights

__all__ = ["Round", "aggregate", "fedavg", "fold", "train"]


@dataclass(frozen=True, eq=False)
class Round:
    """What a round leaves behind: all that going on from here needs.

    Attributes:
        number: within its phase, from 0.
        after: the global model after it.
        carry: further models that a method takes along, by name.
    """

    number: int
    after: Weights
    carry: Mapping[str, Weights] = field(default_factory=dict)


def aggregate(
    federation: Federation,
    weights: Weights,
    program: Program,
    turn: Turn,
    clients: Sequence[ClientId] | None = None,
) -> Weights:
    """One round of FedAvg: the mean of the clients' models, weighted by their samples (McMahan et al. 2017).

    Raises:
        ValueError: no client replied with a training sample.
    """
    mean = Average(like=weights)
    fold(mean, federation, weights, program, turn, clients)
    return mean.result()


def fold(
    mean: Average,
    federation: Federation,
    weights: Weights,
    program: Program,
    turn: Turn,
    clients: Sequence[ClientId] | None = None,
) -> None:
    """Fold the clients' models into a mean, by their samples; a round may be made up of several such parts.

    Raises:
        ValueError: a client replied without weights, or with those of another architecture.
    """
    for _, reply in federation.run(program, weights, turn, clients):
        if reply.weights is None:
            raise ValueError(f"{type(program).__name__} answers without weights: there is nothing to average")
        mean.add(reply.weights, reply.samples)


def fedavg(
    federation: Federation, weights: Weights, program: Program, seed: int, phase: Phase, start: int = 0
) -> Iterator[Round]:
    """Rounds of FedAvg without end, the first numbered ``start``: the reader decides when to stop."""
    for number in count(start):
        weights = aggregate(federation, weights, program, Turn(seed, phase, number))
        yield Round(number, weights)


def train(federation: Federation, weights: Weights, program: Program, rounds: int, seed: int = 0) -> Weights:
    """The global model after ``rounds`` ordinary rounds from ``weights``."""
    if not isinstance(weights, Weights):
        raise TypeError(f"train starts from Weights, such as Weights.of(model), not from {type(weights).__name__}")
    if rounds < 0:
        raise ValueError(f"rounds must not be negative: {rounds}")
    for done in islice(fedavg(federation, weights, program, seed, "train"), rounds):
        weights = done.after
    return weights
