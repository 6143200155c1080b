"""What a federation costs, counted where it happens: no method counts for itself."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Self

from fedunlearn.backends.sampled import Sampled
from fedunlearn.backends.wire import weights_in
from fedunlearn.backends.wrapper import Wrapper
from fedunlearn.federation import ClientId, Federation, Phase, Program, Reply, Traffic, Turn
from fedunlearn.weights import Weights

__all__ = ["Ledger", "Metered"]


@dataclass
class Ledger:
    """The account, by phase."""

    phases: dict[Phase, Traffic] = field(default_factory=lambda: defaultdict(Traffic))


class Metered(Wrapper):
    """A federation around another that keeps its account; views share it.

    Put it next to the backend: a wrapper outside it that picks clients is then counted for what it picks.
    Weights in a program's fields count each time the program is sent. Where ``wire`` is false, server and clients are
    on one machine (proxy data at the server): passes are counted, bytes are not.
    """

    def __init__(self, inner: Federation, ledger: Ledger, *, wire: bool = True) -> None:
        if isinstance(inner, Sampled):
            raise TypeError("put Sampled around Metered: who is not drawn would be counted as asked in vain")
        super().__init__(inner)
        self.ledger, self.wire = ledger, wire

    def around(self, inner: Federation) -> Self:
        """See `Wrapper.around`."""
        return type(self)(inner, self.ledger, wire=self.wire)

    def run(
        self, program: Program, weights: Weights, turn: Turn, clients: Sequence[ClientId] | None = None
    ) -> Iterator[tuple[ClientId, Reply]]:
        """See `Federation.run`."""
        phases = self.ledger.phases
        if not self.wire:
            for client, reply in self.inner.run(program, weights, turn, clients):
                phases[turn.phase] += Traffic(work=reply.work)
                yield client, reply
            return
        sent = [weights, *weights_in(program)]
        down = Traffic(down=sum(w.parameter_bytes for w in sent), down_all=sum(w.nbytes for w in sent))
        silent = set(self.clients if clients is None else clients)
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
