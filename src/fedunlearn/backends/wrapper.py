"""Federations around federations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Self

from fedunlearn.federation import ClientId, Federation, Predicate, Program, Reply, Turn
from fedunlearn.weights import Weights

__all__ = ["Wrapper"]


class Wrapper:
    """A federation around another, which passes everything on; so do its views.

    A subclass says what is different about `run`, and, if it is made from more than the inner federation, how
    one like itself is put around a view (`around`).
    """

    def __init__(self, inner: Federation) -> None:
        self.inner = inner

    def around(self, inner: Federation) -> Self:
        """One like this around another federation."""
        return type(self)(inner)

    @property
    def clients(self) -> tuple[ClientId, ...]:
        """See `Federation.clients`."""
        return self.inner.clients

    def run(
        self, program: Program, weights: Weights, turn: Turn, clients: Sequence[ClientId] | None = None
    ) -> Iterator[tuple[ClientId, Reply]]:
        """See `Federation.run`."""
        return self.inner.run(program, weights, turn, clients)

    def where(self, keeps: Predicate) -> Self:
        """See `Federation.where`."""
        return self.around(self.inner.where(keeps))

    def marking(self, request: Predicate) -> Self:
        """See `Federation.marking`."""
        return self.around(self.inner.marking(request))
