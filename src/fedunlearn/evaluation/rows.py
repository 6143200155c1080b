"""What a run writes down of every round."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from fedunlearn.evaluation.cost import Cost
from fedunlearn.evaluation.scores import Scores
from fedunlearn.federation import Phase

__all__ = ["ORIGINAL", "Curves", "Row", "curves"]

ORIGINAL = "Original"  # the model before the request


@dataclass(frozen=True)
class Row:
    """A model on its way: after how many rounds, at what cost so far, and how good.

    Attributes:
        seed: of the run.
        method: that it is of; "Original": the model before the request.
        phase: that it is in.
        rounds: of the first training, or of recovery, done so far.
        costs: so far, by phase: of the method alone, or of the first training.
        scores: where the model was scored.
    """

    seed: int
    method: str
    phase: Phase
    rounds: int
    costs: Mapping[Phase, Cost]
    scores: Scores | None

    def bill(self, *, checks: bool = False) -> Cost:
        """All that it took to get here; with ``checks``, also what the validations cost that a stop rule reads."""
        return sum((cost for phase, cost in self.costs.items() if checks or phase != "evaluate"), Cost())


Curves = Mapping[str, Mapping[int, Sequence[Row]]]
"""The scored rows, by method and seed, in the order of their rounds."""


def curves(rows: Iterable[Row]) -> Curves:
    """The scored rows in order, methods as they came first."""
    found: dict[str, dict[int, list[Row]]] = {}
    for row in rows:
        if row.scores is not None:
            found.setdefault(row.method, {}).setdefault(row.seed, []).append(row)
    return {method: dict(sorted(seeds.items())) for method, seeds in found.items()}
