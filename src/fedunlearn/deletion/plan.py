"""What a server that trains and forgets does, and with whom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Protocol

from annotated_types import Ge, Gt, Le

from fedunlearn.backends.wire import encode
from fedunlearn.evaluation import stopping
from fedunlearn.federation import ClientId, Federation
from fedunlearn.methods.negation import NoT
from fedunlearn.programs import LocalTraining
from fedunlearn.task import Method

__all__ = ["Plan", "ServiceError", "Site"]


class ServiceError(RuntimeError):
    """The server cannot go on; the sentence says what to do, and started again it goes on where it was."""


class Site(Protocol):
    """The machines of a federation, as its server reaches them."""

    @property
    def federation(self) -> Federation:
        """All clients on the list, whether they are reached at the moment or not."""
        ...

    def exchange(self, answers: Mapping[ClientId, Sequence[Mapping[str, Any]]]) -> Mapping[ClientId, Sequence[Any]]:
        """Bring each client its answers, and come back with what it has filed; who was not reached is not in it."""
        ...

    def faults(self) -> Sequence[tuple[ClientId, str, str]]:
        """What went wrong since this was last asked: at which client (empty: none of ours), what, a sentence."""
        ...


@dataclass(frozen=True)
class Plan:
    """What a server does.

    Attributes:
        training: at the clients, of ordinary rounds.
        rounds: of ordinary training in all; a server that is started again may be given more.
        method: that answers requests. Where it cannot (it needs data that are deleted already), NoT does.
        stop: when recovery ends; it reads accuracy on the validation samples that stay, measured by the clients.
        most: rounds of recovery after which it ends in any case.
        recovery: at the clients, of recovery; None: as ``training``. Two local epochs halved the rounds, and so the
            bytes, on some networks (docs/performance.md, with fixed numbers of rounds).
        seed: of all randomness.
        participation: share of the clients that take part in a round.
        every: rounds between two looks for requests.
        scored: rounds between two measurements of accuracy.
        stay: seconds to wait for requests when there is nothing else to do; infinity: for ever.
        pause: seconds between two looks then, and before a round is tried again.
        tries: of a round for which too few clients answer.
    """

    training: LocalTraining
    rounds: Annotated[int, Ge(0)]
    method: Method = field(default_factory=NoT)
    stop: stopping.Recovered = field(default_factory=stopping.Recovered)
    most: Annotated[int, Ge(1)] = 60
    recovery: LocalTraining | None = None
    seed: int = 0
    participation: Annotated[float, Gt(0), Le(1)] = 1.0
    every: Annotated[int, Ge(1)] = 1
    scored: Annotated[int, Ge(1)] = 1
    stay: Annotated[float, Ge(0)] = 0.0
    pause: Annotated[float, Ge(0)] = 10.0
    tries: Annotated[int, Ge(1)] = 5

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise ValueError(f"{name} must be a whole number, {least} or more, not {value!r}")
        if not 0 < self.participation <= 1:
            raise ValueError(f"participation must be a share in (0, 1], not {self.participation!r}")
        if not (self.stay >= 0 and self.pause >= 0):
            raise ValueError(f"stay and pause are seconds, 0 or more, not {self.stay!r} and {self.pause!r}")

    @property
    def said(self) -> dict[str, Any]:
        """What decides the bits of an unlearning, besides its method, as registers and receipts say it."""
        decides = {
            "training": self.training,
            "stop": self.stop,
            "most": self.most,
            "participation": self.participation,
            "scored": self.scored,
        }
        if self.recovery is not None:
            decides["recovery"] = self.recovery
        return dict(zip(decides, encode(tuple(decides.values()))[0], strict=True))


_LEAST = {"rounds": 0, "most": 1, "every": 1, "scored": 1, "tries": 1}
