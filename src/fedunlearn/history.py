"""What a server may have kept of past rounds: some methods need it, NoT does not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from fedunlearn.federation import ClientId
from fedunlearn.weights import Weights

__all__ = ["History", "HistoryKind", "Kept"]

HistoryKind = Literal["norms", "sum", "last_local", "updates"]


@dataclass(frozen=True, eq=False)
class Kept:
    """What was kept of one round.

    Attributes:
        number: of the round.
        samples: behind each client's update.
        norms: Euclidean norm of each client's update, by tensor.
        updates: local minus global model; of the first kept round only, or of all with kind "updates".
    """

    number: int
    samples: Mapping[ClientId, int]
    norms: Mapping[ClientId, Mapping[str, float]]
    updates: Mapping[ClientId, Weights]


class History(Protocol):
    """What the server kept, by kind, read lazily."""

    @property
    def kinds(self) -> frozenset[HistoryKind]:
        """What was kept; "updates" serves "norms" too."""
        ...

    @property
    def initial(self) -> Weights:
        """The model before the first kept round."""
        ...

    @property
    def rounds(self) -> Sequence[Kept]:
        """The kept rounds, in order."""
        ...

    @property
    def sums(self) -> Mapping[ClientId, Weights]:
        """Sum over rounds of each client's share times its update."""
        ...

    @property
    def last(self) -> Mapping[ClientId, tuple[Weights, float]]:
        """Each client's last local model with its share in that round."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes of storage it takes."""
        ...
