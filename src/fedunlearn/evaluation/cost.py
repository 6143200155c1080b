"""What a method costs, by phase: traffic, operations, time, and storage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fedunlearn.backends.metered import Ledger
from fedunlearn.evaluation.flops import SampleFlops
from fedunlearn.federation import Phase, Traffic

__all__ = ["Account", "Cost"]


@dataclass(frozen=True)
class Cost:
    """A price.

    Attributes:
        traffic: bytes sent, and sample passes.
        flops: at the clients; a multiplication with its addition counts as two. What the server computes on
            weights (negation, averages) is not counted: it is less by orders of magnitude.
        seconds: wall time, without scoring.
        storage: bytes that had to be kept since before the request.
    """

    traffic: Traffic = field(default_factory=Traffic)
    flops: int = 0
    seconds: float = 0.0
    storage: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.traffic + other.traffic,
            self.flops + other.flops,
            self.seconds + other.seconds,
            max(self.storage, other.storage),
        )


class Account:
    """A method's bill as it grows: run the method on federations metered by ``ledger``, and add the time it takes.

    Args:
        network: operations a sample.
        storage: bytes kept since before the request.
        paid: an account's costs to go on from, as `costs` gave them.
    """

    def __init__(self, network: SampleFlops, storage: int = 0, paid: Mapping[Phase, Cost] | None = None) -> None:
        self.ledger = Ledger()
        self._network, self._storage = network, storage
        self._seconds: dict[Phase, float] = {}
        for phase, cost in (paid or {}).items():
            self.ledger.phases[phase] += cost.traffic
            self.add(phase, cost.seconds)

    def add(self, phase: Phase, seconds: float) -> None:
        """Take in time."""
        self._seconds[phase] = self._seconds.get(phase, 0.0) + seconds

    def costs(self) -> Mapping[Phase, Cost]:
        """What each phase has cost so far. Scoring is nobody's cost, but for validations, in phase "evaluate"."""
        found: dict[Phase, Cost] = {}
        for phase in dict.fromkeys([*self._seconds, *self.ledger.phases]):  # whatever a method calls its traffic
            seconds = self._seconds.get(phase, 0.0)
            traffic = self.ledger.phases.get(phase, Traffic())
            found[phase] = Cost(traffic, self._network.of(traffic.work), seconds, self._storage)
        return found
