"""What a federation costs, counted where it happens: no method counts for itself."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Self

from fedunlearn.backends.sampled import Sampled
from fedunlearn.backends.wire import weights_in
from fedunlearn.backends.wrapper import Wrapper
from fedunlearn.federation import ClientId, Federation, Phase, Program, Reply, Turn, Work
from fedunlearn.weights import Weights

__all__ = ["Ledger", "Metered", "Traffic"]


@dataclass(frozen=True)
class Traffic:
    """What passed between server and clients, and through networks at the clients.

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

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(
            self.down + other.down,
            self.up + other.up,
            self.down_all + other.down_all,
            self.up_all + other.up_all,
            self.work + other.work,
        )


@dataclass
class Ledger:
    """The account, by phase."""

    phases: dict[Phase, Traffic] = field(default_factory=lambda: defaultdict(Traffic))


class Metered(Wrapper):
    """A federation around another that keeps its account; views share it.

    Put it next to the backend: a wrapper outside it that picks clients is then counted for what it picks.
    Weights in a program's fields count each time the program is sent.
    """

    def __init__(self, inner: Federation, ledger: Ledger) -> None:
        if isinstance(inner, Sampled):
            raise TypeError("put Sampled around Metered: who is not drawn would be counted as asked in vain")
        super().__init__(inner)
        self.ledger = ledger

    def around(self, inner: Federation) -> Self:
        """See `Wrapper.around`."""
        return type(self)(inner, self.ledger)

    def run(
        self, program: Program, weights: Weights, turn: Turn, clients: Sequence[ClientId] | None = None
    ) -> Iterator[tuple[ClientId, Reply]]:
        """See `Federation.run`."""
        sent = [weights, *weights_in(program)]
        down = Traffic(down=sum(w.parameter_bytes for w in sent), down_all=sum(w.nbytes for w in sent))
        silent = set(self.clients if clients is None else clients)
        phases = self.ledger.phases
        for client, reply in self.inner.run(program, weights, turn, clients):
            silent.discard(client)
            came = [*([reply.weights] if reply.weights is not None else []), *reply.extra.values()]
            values = sum(value.nbytes for value in reply.values.values())
            up = Traffic(
                up=sum(w.parameter_bytes for w in came),
                up_all=sum(w.nbytes for w in came) + values,
                work=reply.work,
            )
            phases[turn.phase] += down + up
            yield client, reply
        for _ in silent:  # asked in vain
            phases[turn.phase] += down
