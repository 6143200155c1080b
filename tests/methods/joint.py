"""Small federations, and spies around them, for the tests of methods."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Self, cast

import numpy as np
import torch
from numpy_twin_joint import Array, Held, labelled, sgd, weighted
from torch import Tensor, nn

from fedunlearn.backends.in_process import InProcess
from fedunlearn.backends.metered import Ledger, Metered
from fedunlearn.backends.wrapper import Wrapper
from fedunlearn.client import Client
from fedunlearn.federation import Batch, ClientContext, ClientId, Federation, Predicate, Program, Reply, Turn
from fedunlearn.programs import SGD, LocalTraining
from fedunlearn.requests import AnyOf, ForgetClass, ForgetClient
from fedunlearn.task import Method, Task
from fedunlearn.weights import Weights

# --- three numbers: by hand -----------------------------------------------------------------------------------------


class ThreeNumbers(nn.Module):
    """Scores (w x, 0) of x in R^3, w = 0 at first: at w x = 0 both classes have probability 1/2."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        score = x @ self.w
        return torch.stack([score, torch.zeros_like(score)], 1)


Sample = tuple[Sequence[float], int]


def by_hand(
    request: Predicate,
    samples: Mapping[ClientId, Sequence[Sample]],
    weights: Sequence[float] = (0, 0, 0),
    lr: float = 0.1,
) -> Task:
    """A task on `ThreeNumbers`: plain SGD, one step over all samples of a client."""
    clients = [
        Client.of(name, (torch.tensor([x for x, _ in own]).float(), torch.tensor([y for _, y in own])), validation=0)
        for name, own in samples.items()
    ]
    federation = InProcess(ThreeNumbers, clients, workers=1, device="cpu")
    start = Weights({"w": torch.tensor(weights).float()})
    return Task.of(federation, start, request, LocalTraining(SGD(lr, 0.0, 0.0)), federation.architecture)


def vector(weights: Weights) -> list[float]:
    """Rounded, and without the sign of zero."""
    return [round(value, 6) + 0.0 for value in weights.vector().tolist()]


# --- softmax regression in float64: against NumPy -------------------------------------------------------------------


LR, MOMENTUM, DECAY, STEPS = 0.1, 0.9, 0.01, 3
TRAINING = LocalTraining(SGD(LR, MOMENTUM, DECAY), epochs=STEPS, batch_size=100)  # full batches: order is nothing
REQUESTS: Mapping[str, Predicate] = {
    "client": ForgetClient("a"),
    "two clients": AnyOf((ForgetClient("a"), ForgetClient("c"))),
    "class": ForgetClass(2),
}


def linear(classes: int = 3) -> nn.Module:
    return nn.Linear(4, classes, dtype=torch.float64)


def holdings() -> dict[ClientId, Held]:
    """Four clients with 5, 7, 4 and 6 samples in R^4, of three classes, all of which each has."""
    rng = np.random.default_rng(0)
    sizes = {"a": 5, "b": 7, "c": 4, "d": 6}
    return {k: Held(rng.normal(size=(n, 4)), rng.permutation(np.arange(n) % 3)) for k, n in sizes.items()}


def federation_of(held: Mapping[ClientId, Held], classes: int = 3) -> InProcess:
    clients = [Client.of(k, (torch.from_numpy(h.x), torch.from_numpy(h.y)), validation=0) for k, h in held.items()]
    return InProcess(partial(linear, classes), clients, workers=1, device="cpu")


@dataclass(frozen=True)
class Twin:
    """A task, and the same in NumPy: the model, and what each client keeps and forgets."""

    task: Task
    theta: Array
    retained: Mapping[ClientId, Held]
    forgotten: Mapping[ClientId, Held]

    def fedavg(self, theta: Array) -> Array:
        """A round of all that stays."""
        return weighted((trained(theta, held), len(held)) for held in self.retained.values())


def trained(theta: Array, held: Held, lr: float = LR, classes: int = 3) -> Array:
    return sgd(theta, labelled(held, classes), lr, STEPS, MOMENTUM, DECAY)


def twin(request: Predicate, held: Mapping[ClientId, Held] | None = None, classes: int = 3) -> Twin:
    held = held or holdings()
    federation = federation_of(held, classes)
    weights = federation.architecture.fresh(1)
    goes = {k: request(k, torch.from_numpy(h.y)).numpy() for k, h in held.items()}
    return Twin(
        Task.of(federation, weights, request, TRAINING, federation.architecture, seed=2),
        weights.vector().numpy(),
        {k: h.where(~goes[k]) for k, h in held.items() if not goes[k].all()},
        {k: h.where(goes[k]) for k, h in held.items() if goes[k].any()},
    )


def same(weights: Weights, theta: Array) -> None:
    np.testing.assert_allclose(weights.vector().numpy(), theta, rtol=1e-10, atol=1e-12)


# --- spies ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Visit:
    """A client was asked: when, with which weights, what it read, what it answered."""

    turn: Turn
    client: ClientId
    sent: Weights
    read: tuple[Batch, ...]
    reply: Reply

    @property
    def x(self) -> set[tuple[float, ...]]:
        """The inputs it read."""
        return {tuple(row.flatten().tolist()) for batch in self.read for row in batch.x}


class Watched(Wrapper):
    """A federation whose clients are watched."""

    def __init__(self, inner: Federation, visits: list[Visit]) -> None:
        super().__init__(inner)
        self.visits = visits

    def around(self, inner: Federation) -> Self:
        return type(self)(inner, self.visits)

    def run(
        self, program: Program, weights: Weights, turn: Turn, clients: Sequence[ClientId] | None = None
    ) -> Iterator[tuple[ClientId, Reply]]:
        noting = _Noting(program, [])
        for client, reply in self.inner.run(noting, weights, turn, clients):
            self.visits.append(Visit(turn, client, weights, tuple(noting.read), reply))
            noting.read.clear()
            yield client, reply


def watched(task: Task) -> tuple[Task, list[Visit]]:
    visits: list[Visit] = []
    views = {name: Watched(getattr(task, name), visits) for name in ("everyone", "retained", "forgotten")}
    return replace(task, **views), visits  # type: ignore[arg-type]


@dataclass(frozen=True)
class _Noting:
    program: Program
    read: list[Batch]

    def __call__(self, context: ClientContext) -> Reply:
        return self.program(cast(ClientContext, _Noted(context, self.read)))


class _Noted:
    def __init__(self, context: ClientContext, read: list[Batch]) -> None:
        self._context, self._read = context, read

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def batches(self, *args: Any, **kwargs: Any) -> Iterator[Batch]:
        for batch in self._context.batches(*args, **kwargs):
            self._read.append(batch)
            yield batch


class Answering(Wrapper):
    """A federation whose clients answer with given models, whatever they are asked."""

    def __init__(self, inner: Federation, answers: Mapping[ClientId, Weights]) -> None:
        super().__init__(inner)
        self.answers = answers

    def around(self, inner: Federation) -> Self:
        return type(self)(inner, self.answers)

    def run(
        self, program: Program, weights: Weights, turn: Turn, clients: Sequence[ClientId] | None = None
    ) -> Iterator[tuple[ClientId, Reply]]:
        for client, reply in self.inner.run(program, weights, turn, clients):
            yield client, replace(reply, weights=self.answers[client])


def answering(task: Task, answers: Mapping[ClientId, Sequence[float]]) -> Task:
    """A task whose clients answer with these parameters."""
    models = {client: task.weights.with_vector(torch.tensor(given).float()) for client, given in answers.items()}
    views = {name: Answering(getattr(task, name), models) for name in ("everyone", "retained", "forgotten")}
    return replace(task, **views)  # type: ignore[arg-type]


def account(task: Task) -> tuple[Task, Ledger]:
    """A task whose unlearning step is counted."""
    ledger = Ledger()
    views = {name: Metered(getattr(task, name), ledger) for name in ("everyone", "retained", "forgotten")}
    return replace(task, **views), ledger  # type: ignore[arg-type]


def rounds(method: Method, task: Task) -> list[Weights]:
    """The models of the unlearning step."""
    return [done.after for done in method.unlearn(task)]
