"""The words of federated work: who is asked, to do what, with which weights, and what comes back.

Nothing here executes anything. A `Program` says what one client does, a `Federation` says on whom it is done;
how (in this process, in several, on Flower across machines) is the business of ``fedunlearn.backends``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Generator, Tensor, nn

from fedunlearn.randomness import stable_seed
from fedunlearn.weights import Weights

__all__ = [
    "Batch",
    "Choose",
    "ClientContext",
    "ClientError",
    "ClientId",
    "Federation",
    "Forgotten",
    "Loss",
    "Part",
    "Phase",
    "Predicate",
    "Program",
    "Reply",
    "Retained",
    "TooFewClients",
    "Traffic",
    "Turn",
    "Work",
    "require_id",
]

ClientId = str
Phase = Literal["train", "unlearn", "recover", "evaluate"]
Part = Literal["train", "validation", "all"]


def require_id(id: object) -> None:
    """Refuse what is no client's id: the number 1 would silently never equal the id "1".

    Raises:
        TypeError: it is no string.
    """
    if not isinstance(id, str):
        raise TypeError(f"a client's id is a string: write {str(id)!r}, not {id!r}")


@dataclass(frozen=True)
class Turn:
    """When something happens: all randomness at a client is drawn per (turn, client).

    So neither the order of clients, nor the number of workers, nor the backend, nor resuming changes a bit.

    Attributes:
        seed: of the whole run.
        phase: what the round belongs to.
        number: of the round within the phase, from 0; schedules and partial participation read it.
        step: which of several runs within one round, for methods that have several.
    """

    seed: int
    phase: Phase
    number: int
    step: str = ""

    def seed_for(self, client: ClientId, purpose: str) -> int:
        """The seed of what ``client`` draws for ``purpose`` in this turn."""
        return stable_seed(self.seed, self.phase, self.number, self.step, client, purpose)


@dataclass(frozen=True, eq=False)
class Batch:
    """Samples on the device that computes: ``x (n, ...)``, ``y (n,)`` int64, ``forget (n,)`` bool."""

    x: Tensor
    y: Tensor
    forget: Tensor


class Choose(Protocol):
    """Which of a client's samples a program reads, by their forget flags; a frozen dataclass, so that it travels."""

    def __call__(self, forget: Tensor) -> Tensor:
        """Flags ``(n,)`` bool of the samples that there are to choose from, to a choice ``(n,)`` bool.

        These are the samples in the view and in the part (training, validation) that are read, in the client's order.
        """
        ...


@dataclass(frozen=True)
class Retained:
    """The samples that stay."""

    def __call__(self, forget: Tensor) -> Tensor:
        """See `Choose`."""
        return ~forget


@dataclass(frozen=True)
class Forgotten:
    """The samples that go."""

    def __call__(self, forget: Tensor) -> Tensor:
        """See `Choose`."""
        return forget


class ClientContext(Protocol):
    """What a program finds at a client.

    Call the networks as a whole, ``model(x)``: what passes through them is counted. For the features of an
    inner layer, hook that layer.
    """

    @property
    def model(self) -> nn.Module:
        """A network that holds the weights that were sent, the program's to change."""
        ...

    @property
    def turn(self) -> Turn:
        """When this is."""
        ...

    @property
    def rng(self) -> Generator:
        """For the program's own draws (CPU)."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the networks and the batches are."""
        ...

    def frozen(self, weights: Weights | None = None) -> nn.Module:
        """A second network in eval mode without gradients, a teacher; ``None``: with the weights that were sent."""
        ...

    def fresh(self, seed: int) -> nn.Module:
        """A newly initialised network, frozen likewise."""
        ...

    def batches(
        self, epoch: int, size: int, *, of: Choose | None = None, part: Part = "train", train: bool = True
    ) -> Iterator[Batch]:
        """The client's samples in batches of ``size``, chosen (``of``) before they are batched.

        ``train``: in an order drawn for this turn and ``epoch``, augmented; otherwise in their own order, as at
        test time. A last batch of one sample is merged into the one before it (BatchNorm cannot train on one).
        """
        ...

    def samples(self, of: Choose | None = None, part: Part = "train") -> int:
        """How many samples `batches` would give in one epoch."""
        ...


@dataclass(frozen=True)
class Work:
    """Sample passes through networks, counted where they happen.

    FLOPs are ``forward * C_forward + backward * C_backward`` with a network's cost per sample.
    """

    forward: int = 0
    backward: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(self.forward + other.forward, self.backward + other.backward)

    def __mul__(self, times: int) -> Work:
        return Work(self.forward * times, self.backward * times)


@dataclass(frozen=True)
class Traffic:
    """What passes between server and clients, and through networks.

    Attributes:
        down, up: bytes of parameters, as the paper counts: from the server and to it.
        down_all, up_all: bytes really sent: with buffers and values per sample.
        work: sample passes through networks.
    """

    down: int = 0
    up: int = 0
    down_all: int = 0
    up_all: int = 0
    work: Work = field(default_factory=Work)

    @property
    def both_ways(self) -> int:
        """Bytes of parameters, down and up: the paper's communication cost."""
        return self.down + self.up

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(
            self.down + other.down,
            self.up + other.up,
            self.down_all + other.down_all,
            self.up_all + other.up_all,
            self.work + other.work,
        )

    def __mul__(self, times: int) -> Traffic:
        return Traffic(
            self.down * times, self.up * times, self.down_all * times, self.up_all * times, self.work * times
        )


@dataclass(frozen=True, eq=False)
class Reply:
    """What a client sends back.

    Attributes:
        weights: the model it arrived at, if any.
        samples: training samples behind it: its share in an average.
        metrics: numbers by name.
        extra: further models by name.
        values: numbers per sample by name, each ``(n,)``, for audits.
        work: set by whoever executes the program, never by the program.
    """

    weights: Weights | None = None
    samples: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    extra: Mapping[str, Weights] = field(default_factory=dict)
    values: Mapping[str, Tensor] = field(default_factory=dict)
    work: Work = field(default_factory=Work)


class Program(Protocol):
    """What one client does: a frozen dataclass that travels as its name and its fields."""

    def __call__(self, context: ClientContext) -> Reply:
        """Run at a client."""
        ...


class Loss(Protocol):
    """How a batch is scored: called once at the client (to build teachers there), returns the cost of a batch."""

    def __call__(self, context: ClientContext) -> Callable[[nn.Module, Batch], Tensor]:
        """Build ``(model, batch) -> scalar``."""
        ...


class Predicate(Protocol):
    """Which samples are meant: a frozen dataclass that travels.

    It sees the labels of **all** samples of a client, in both parts and on a view of a view too, so that an
    index always means the same sample.
    """

    def __call__(self, client: ClientId, labels: Tensor) -> Tensor:
        """Labels ``(n,)`` int64 to membership ``(n,)`` bool."""
        ...


class ClientError(RuntimeError):
    """The user's code failed at a client; the original error is its cause, the client stands in its text."""


class TooFewClients(RuntimeError):
    """Fewer clients answered than a round needs; it can be tried again."""


class Federation(Protocol):
    """Clients that hold data, reached only by sending weights and reading replies."""

    @property
    def clients(self) -> tuple[ClientId, ...]:
        """Who has a training sample here, in the federation's order."""
        ...

    def run(
        self, program: Program, weights: Weights, turn: Turn, clients: Sequence[ClientId] | None = None
    ) -> Iterator[tuple[ClientId, Reply]]:
        """Run ``program`` at ``clients`` (``None``: whoever takes part in this turn), replies in client order.

        A client that cannot be reached is left out. The reader folds and forgets each reply and may stop early.

        Raises:
            ClientError: the program failed at a client.
            KeyError: a named client is not here.
        """
        ...

    def where(self, keeps: Predicate) -> Federation:
        """A view: the same clients with only the samples that ``keeps`` means; clients it empties vanish."""
        ...

    def marking(self, request: Predicate) -> Federation:
        """A view: all samples, with those that ``request`` means flagged in ``Batch.forget``."""
        ...
