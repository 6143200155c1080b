"""Federated learning in NumPy, in float64, which the methods are compared with; and the same federation in torch.

A model is a dictionary of arrays: "head.weight" (c, d) and "head.bias" (c,) of a softmax regression. Every step is a
full batch, so that no order of samples can matter. The upper part imports nothing of the package; samples and softmax
are those of `numpy_twin_joint`, whose model is one vector.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy_twin_joint import Array, Held, one_hot, softmax
from torch import Tensor, nn

from fedunlearn.backends.in_process import InProcess
from fedunlearn.backends.recorded import Recorder
from fedunlearn.backends.wrapper import Wrapper
from fedunlearn.client import Client
from fedunlearn.federation import ClientContext, ClientId, Federation, Predicate, Program, Reply, Turn
from fedunlearn.history import History, HistoryKind
from fedunlearn.programs import SGD, LocalTraining
from fedunlearn.task import Task
from fedunlearn.weights import Weights

Model = Mapping[str, Array]

LR, MOMENTUM, EPOCHS, ROUNDS = 0.5, 0.9, 4, 4


def scores(model: Model, x: Array) -> Array:
    return x @ model["head.weight"].T + model["head.bias"]


def loss(model: Model, shard: Held) -> float:
    """Mean cross-entropy."""
    probabilities = softmax(scores(model, shard.x))
    return float(-np.log(probabilities[np.arange(len(shard.y)), shard.y]).mean())


def slope(model: Model, x: Array, error: Array) -> Model:
    """Of the parameters, from that of the scores: (n, c), already divided by n where the loss is a mean."""
    return {"head.weight": error.T @ x, "head.bias": error.sum(0)}


def gradient(model: Model, shard: Held) -> Model:
    """Of the mean cross-entropy: probabilities minus labels."""
    error = softmax(scores(model, shard.x)) - one_hot(shard.y, len(model["head.bias"]))
    return slope(model, shard.x, error / len(shard.y))


def plus(model: Model, other: Model, factor: float = 1.0) -> Model:
    return {name: array + factor * other[name] for name, array in model.items()}


def zeros(model: Model) -> Model:
    return {name: np.zeros_like(array) for name, array in model.items()}


def squared_distance(model: Model, other: Model) -> float:
    return float(sum(((array - other[name]) ** 2).sum() for name, array in model.items()))


def trained(model: Model, shard: Held, steps: int, lr: float = LR, momentum: float = MOMENTUM) -> Model:
    """Gradient descent with torch's momentum: v <- m v + g; w <- w - lr v."""
    velocity = zeros(model)
    for _ in range(steps):
        velocity = plus(gradient(model, shard), velocity, momentum)
        model = plus(model, velocity, -lr)
    return model


def mean(models: Sequence[tuple[Model, float]]) -> Model:
    total = sum(share for _, share in models)
    result = zeros(models[0][0])
    for model, share in models:
        result = plus(result, model, share / total)
    return result


@dataclass(frozen=True, eq=False)
class Trajectory:
    """A first training: the model before each round and after the last, and what each client sent in each."""

    models: Sequence[Model]
    local: Sequence[Mapping[ClientId, Model]]

    def update(self, number: int, client: ClientId) -> Model:
        return plus(self.local[number][client], self.models[number], -1)


def fedavg(model: Model, shards: Mapping[ClientId, Held], rounds: int = ROUNDS) -> Trajectory:
    models, local = [model], []
    for _ in range(rounds):
        local.append({client: trained(models[-1], shard, EPOCHS) for client, shard in shards.items()})
        models.append(mean([(sent, len(shards[client].y)) for client, sent in local[-1].items()]))
    return Trajectory(models, local)


def three_clients() -> dict[ClientId, Held]:
    """Clients "a", "b", "c" with 4, 6 and 9 samples in two dimensions, of three classes, each with its own skew."""
    rng = np.random.default_rng(3)
    return {
        client: Held(rng.normal(at, 1, (n, 2)), rng.choice(3, n, p=np.roll([0.6, 0.3, 0.1], at)))
        for at, (client, n) in enumerate({"a": 4, "b": 6, "c": 9}.items())
    }


def start() -> Model:
    rng = np.random.default_rng(4)
    return {"head.weight": rng.normal(0, 1, (3, 2)), "head.bias": rng.normal(0, 1, 3)}


# --- the same in torch ----------------------------------------------------------------------------------------------


class Regression(nn.Module):
    """Softmax regression in float64."""

    def __init__(self, inputs: int = 2, classes: int = 3) -> None:
        super().__init__()
        self.head = nn.Linear(inputs, classes, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(x)
        return found


TRAINING = LocalTraining(SGD(LR, MOMENTUM, 0.0), epochs=EPOCHS, batch_size=1000)


def weights_of(model: Model) -> Weights:
    return Weights({name: torch.tensor(array) for name, array in model.items()})


def distance(found: Weights, expected: Model) -> float:
    """The largest by which a parameter is off."""
    assert found.parameters.keys() == expected.keys()
    return max(float(np.abs(tensor.numpy() - expected[name]).max()) for name, tensor in found.parameters.items())


def federation(shards: Mapping[ClientId, Held]) -> InProcess:
    clients = [Client.of(client, (shard.x, shard.y), validation=0) for client, shard in shards.items()]
    return InProcess(Regression, clients, workers=1, device="cpu")


def recorded(
    folder: Path,
    kind: HistoryKind,
    replies: Sequence[Mapping[ClientId, tuple[Weights, int]]],
    models: Sequence[Weights],
) -> History:
    """The history of a training in which each client of a round answered with a model and its number of samples."""
    recorder = Recorder(folder, {kind}, sorted({client for sent in replies for client in sent}))
    for number, sent in enumerate(replies):
        recorder.begin(number, models[number])
        for client, (weights, samples) in sent.items():
            recorder.take(number, models[number], client, Reply(weights, samples))
        recorder.commit(number, models[number])
    return recorder.finish(models[-1])


@dataclass(frozen=True, eq=False)
class Twin:
    """A first training in NumPy, and the history that a server would have kept of it."""

    trajectory: Trajectory
    history: History

    @classmethod
    def of(cls, folder: Path, kind: HistoryKind, rounds: int = ROUNDS) -> Twin:
        """Of `three_clients`."""
        shards = three_clients()
        trajectory = fedavg(start(), shards, rounds)
        replies = [
            {client: (weights_of(model), len(shards[client].y)) for client, model in local.items()}
            for local in trajectory.local
        ]
        return cls(trajectory, recorded(folder, kind, replies, [weights_of(model) for model in trajectory.models]))

    def task(self, request: Predicate, proxy: Federation | None = None) -> Task:
        """The request on the model that this training ended with."""
        clients, weights = federation(three_clients()), weights_of(self.trajectory.models[-1])
        return Task.of(clients, weights, request, TRAINING, clients.architecture, history=self.history, proxy=proxy)


class Overheard(Wrapper):
    """A federation whose replies are kept, each with its turn and the program that it answers."""

    def __init__(self, inner: Federation, heard: list[tuple[Turn, Program, ClientId, Reply]]) -> None:
        super().__init__(inner)
        self.heard = heard

    def around(self, inner: Federation) -> Self:
        return type(self)(inner, self.heard)

    def run(
        self, program: Program, weights: Weights, turn: Turn, clients: Sequence[ClientId] | None = None
    ) -> Iterator[tuple[ClientId, Reply]]:
        for client, reply in self.inner.run(program, weights, turn, clients):
            self.heard.append((turn, program, client, reply))
            yield client, reply


@dataclass(frozen=True)
class Noting:
    """A program that notes the frozen and fresh networks that a client is given for it."""

    program: Program
    given: list[nn.Module]

    def __call__(self, context: ClientContext) -> Reply:
        noting = copy.copy(context)
        noting.frozen = self._noted(context.frozen)  # type: ignore[method-assign]
        return self.program(noting)

    def _noted(self, give: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        def given(*arguments: object) -> nn.Module:
            self.given.append(give(*arguments))
            return self.given[-1]

        return given
