"""What a method cannot do without, what a server has to offer, and how large everything is: capabilities as data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from fedunlearn.federation import ClientId, Traffic, Work
from fedunlearn.history import HistoryKind
from fedunlearn.programs import LocalTraining

__all__ = ["Circumstances", "Needs", "NeedsError", "Size"]


class NeedsError(ValueError):
    """A method cannot run on a task; the sentence says what it lacks and what to do."""


@dataclass(frozen=True)
class Circumstances:
    """What a server that is asked to forget finds.

    Attributes:
        history: kinds that were kept of the training that led to the model; "updates" serves "norms".
        target_online: whether all who hold what is to be forgotten can still be reached.
        retain_online: whether anybody stays.
        proxy: whether the server holds data of its own.
        single_updates: whether it sees single updates; secure aggregation hides them.
        whole_clients: whether whole clients are to be forgotten, and nothing else.
    """

    history: frozenset[HistoryKind] = frozenset()
    target_online: bool = True
    retain_online: bool = True
    proxy: bool = False
    single_updates: bool = True
    whole_clients: bool = True


@dataclass(frozen=True)
class Needs:
    """What a method cannot do without in its unlearning step: its row of the capability matrix.

    Attributes:
        history: kind of history that the server must have kept.
        forget_data: what is read of the data to be forgotten.
        target_online: whether those who leave must take part.
        retain_online: whether those who stay must take part.
        proxy: whether the server must hold data of its own.
        per_client_updates: whether the server must see single updates (which secure aggregation hides).
        whole_clients: whether only whole clients can be forgotten.
    """

    history: HistoryKind | None = None
    forget_data: Literal["none", "inputs", "labelled"] = "none"
    target_online: bool = False
    retain_online: bool = False
    proxy: bool = False
    per_client_updates: bool = False
    whole_clients: bool = False

    def lacking(self, found: Circumstances) -> tuple[str, ...]:
        """What is missing, each with what to do; nothing, where a method can run."""
        missing = []
        kinds = found.history | ({"norms"} if "updates" in found.history else set())
        if self.history is not None and self.history not in kinds:
            missing.append(f"a history of kind {self.history!r}: record it while training")
        if self.forget_data != "none" and not found.target_online:
            missing.append("the data to be forgotten, whose holder has left: choose a method that does without")
        elif self.target_online and not found.target_online:
            missing.append("the leaving client, which is gone: choose a method that does without")
        if self.retain_online and not found.retain_online:
            missing.append("clients that stay: nobody is left, so drop the model instead")
        if self.proxy and not found.proxy:
            missing.append("proxy data at the server: give the task a proxy federation (in an experiment: data.proxy)")
        if self.per_client_updates and not found.single_updates:
            missing.append("single updates, which secure aggregation hides: choose a method that does without")
        if self.whole_clients and not found.whole_clients:
            missing.append("a request for whole clients: it cannot forget a part of a client")
        return tuple(missing)

    def require(self, found: Circumstances, who: str) -> None:
        """Make sure, before anything runs, that nothing is missing that ``who`` needs.

        Joint methods would otherwise silently become fine-tuning when the target has left.

        Raises:
            NeedsError: something is missing; the sentence names all of it and what to do.
        """
        if missing := self.lacking(found):
            raise NeedsError(f"{who} needs " + "; and ".join(missing))


@dataclass(frozen=True)
class Size:
    """How large a task is: all that a method's price depends on.

    Attributes:
        message: bytes of the model's parameters.
        buffers: bytes of its buffers.
        tensors: that its parameters are.
        training: the ordinary local training.
        retained: training samples of each client that stay.
        forgotten: training samples of each client that are to go.
        proxy: samples that the server holds.
        clients: of the first training, those who have left included.
        rounds: of the first training of which norms were kept.
    """

    message: int
    buffers: int
    tensors: int
    training: LocalTraining
    retained: Mapping[ClientId, int]
    forgotten: Mapping[ClientId, int] = field(default_factory=dict)
    proxy: int = 0
    clients: int = 0
    rounds: int = 0

    @property
    def everyone(self) -> Mapping[ClientId, int]:
        """All training samples of each client."""
        clients = [*self.retained, *(client for client in self.forgotten if client not in self.retained)]
        return {client: self.retained.get(client, 0) + self.forgotten.get(client, 0) for client in clients}

    def sent(self, clients: int, work: Work | None = None, *, down: int = 1, up: int = 1) -> Traffic:
        """What it is to exchange so many models with so many clients, who do this work together."""
        models, whole = (clients * down, clients * up), self.message + self.buffers
        return Traffic(
            models[0] * self.message, models[1] * self.message, models[0] * whole, models[1] * whole, work or Work()
        )

    def trained(self, samples: Iterable[int], training: LocalTraining | None = None) -> Work:
        """The passes of clients with so many samples each, who train."""
        passes = sum(map((training or self.training).passes, samples))
        return Work(passes, passes)

    def round(self, samples: Mapping[ClientId, int] | None = None, training: LocalTraining | None = None) -> Traffic:
        """A round of FedAvg: of those who stay, and ordinary training, unless said otherwise."""
        samples = self.retained if samples is None else samples
        return self.sent(len(samples), self.trained(samples.values(), training))
