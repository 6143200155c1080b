"""Partial participation: a share of the clients takes part in each round."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Sequence
from typing import Self

from fedunlearn.backends.wrapper import Wrapper
from fedunlearn.federation import ClientId, Federation, Program, Reply, Turn
from fedunlearn.randomness import stable_seeds
from fedunlearn.weights import Weights

__all__ = ["Sampled"]


class Sampled(Wrapper):
    """A federation around another in which ``ceil(fraction * clients)`` take part in each round.

    They are those with the lowest hash of (seed, phase, number, client): a client's rank depends on no other
    client, so the views of one federation choose alike. Who is asked by name always takes part.
    """

    def __init__(self, inner: Federation, fraction: float) -> None:
        if not 0 < fraction <= 1:
            raise ValueError(f"the participating share must be in (0, 1], not {fraction}")
        super().__init__(inner)
        self.fraction = fraction

    def around(self, inner: Federation) -> Self:
        """See `Wrapper.around`."""
        return type(self)(inner, self.fraction)

    def run(
        self, program: Program, weights: Weights, turn: Turn, clients: Sequence[ClientId] | None = None
    ) -> Iterator[tuple[ClientId, Reply]]:
        """See `Federation.run`."""
        return self.inner.run(program, weights, turn, self._drawn(turn) if clients is None else clients)

    def _drawn(self, turn: Turn) -> tuple[ClientId, ...]:
        # The steps of one round are taken by the same clients, so ``turn.step`` is left out. This is all that a round
        # does for clients that take no part in it: `Turn.seed_for` each would be three times as slow.
        every = self.clients
        ranks = stable_seeds((turn.seed, turn.phase, turn.number, ""), every, ("takes part",))
        count = math.ceil(round(self.fraction * len(every), 9))
        lowest = heapq.nsmallest(count, zip(ranks, range(len(every)), strict=True))
        return tuple(every[at] for _, at in lowest)
