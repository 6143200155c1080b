"""When to stop recovering: rules that are read off one run, each with what it would have cost.

A method cannot stop itself, and the run goes on to its last round whatever a rule says: so the rules can be
compared on the same rounds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from fedunlearn.evaluation.rows import Row
from fedunlearn.evaluation.scores import Scores, average_gap

__all__ = ["Choice", "Fixed", "Oracle", "Recovered", "StopRule"]


@dataclass(frozen=True)
class Choice:
    """Where a rule stops in one seed.

    Attributes:
        row: the model that it takes.
        met: whether its condition was met there; otherwise it is the last one.
    """

    row: Row
    met: bool


class StopRule(Protocol):
    """Chooses, of a method's scored rounds, the one to stop after."""

    @property
    def name(self) -> str:
        """In reports."""
        ...

    @property
    def checks(self) -> bool:
        """Whether it reads the validations, so that these are part of what it costs."""
        ...

    def choose(
        self, method: Mapping[int, Sequence[Row]], before: Mapping[int, Scores], retrain: Sequence[Scores]
    ) -> dict[int, Choice]:
        """A choice for each seed.

        Args:
            method: its scored rows in order, by seed.
            before: scores of the model before the request, by seed.
            retrain: scores of the final retrained models, in the order of the seeds.
        """
        ...


@dataclass(frozen=True)
class Fixed:
    """All rounds that the experiment says."""

    name = "fixed"
    checks = False

    def choose(
        self, method: Mapping[int, Sequence[Row]], before: Mapping[int, Scores], retrain: Sequence[Scores]
    ) -> dict[int, Choice]:
        """See `StopRule`."""
        return {seed: Choice(rows[-1], True) for seed, rows in method.items()}


@dataclass(frozen=True)
class Oracle:
    """The scored round with the smallest average gap to the final retrained models, one for all seeds.

    Of those before which anything was done at the clients: else it would often be not to unlearn at all.

    The paper does not state its stop rule; its Tables 1 and 4-8 fit this one, to which Figures 4-6 lead. It
    **needs the retrained models**: it tells what a method could do, and nobody who unlearns can use it.
    """

    name = "oracle"
    checks = False

    def choose(
        self, method: Mapping[int, Sequence[Row]], before: Mapping[int, Scores], retrain: Sequence[Scores]
    ) -> dict[int, Choice]:
        """See `StopRule`."""
        rounds = [rows for rows in zip(*method.values(), strict=True) if rows[0].bill().traffic.down]
        best = min(rounds, key=lambda rows: average_gap([row.scores for row in rows if row.scores], retrain).of_means)
        return {seed: Choice(row, True) for seed, row in zip(method, best, strict=True)}


@dataclass(frozen=True)
class Recovered:
    """Stop when the model is as good as before the request, and no longer getting better: no retrained model needed.

    It reads one number: accuracy on the validation samples that stay, at the clients that stay. It stops after the
    first scored round at which this is at most ``margin`` points below its value before the request, and has
    lain within ``flat`` points over the last ``window`` scored rounds. For a class that goes, validation samples
    of that class do not count, before the request neither: they are not among those that stay.

    It says when usefulness is back, and nothing about what was forgotten: fine-tuning, which has lost nothing,
    meets it at once. What was forgotten is for audits to say.

    Attributes:
        margin: percentage points; the sampling error of an accuracy near 90 % on 900 samples is one point.
        flat: percentage points between the highest and the lowest value in the window.
        window: scored rounds, 2 or more; the one to stop after is the last of them.
    """

    margin: float = 1.0
    flat: float = 1.0
    window: int = 3

    name = "recovered"
    checks = True

    def __post_init__(self) -> None:
        if not (self.margin >= 0 and self.flat >= 0):
            raise ValueError(f"margin and flat are points of accuracy, 0 or more, not {self.margin} and {self.flat}")
        if self.window < 2:
            raise ValueError(f"window must be 2 scored rounds or more, not {self.window}")

    def choose(
        self, method: Mapping[int, Sequence[Row]], before: Mapping[int, Scores], retrain: Sequence[Scores]
    ) -> dict[int, Choice]:
        """See `StopRule`."""
        return {seed: self._choice(rows, before[seed].validation) for seed, rows in method.items()}

    def _choice(self, rows: Sequence[Row], before: float | None) -> Choice:
        values = [row.scores.validation for row in rows if row.scores is not None]
        position = self.position(before, values)
        return Choice(rows[-1], False) if position is None else Choice(rows[position], True)

    def position(self, before: float | None, values: Sequence[float | None]) -> int | None:
        """Of the first of ``values`` to stop after; None if there is none, or nobody keeps validation samples."""
        for end in range(self.window, len(values) + 1):
            recent = [value for value in values[end - self.window : end] if value is not None]
            if before is None or len(recent) < self.window:
                continue
            if recent[-1] >= before - self.margin and max(recent) - min(recent) <= self.flat:
                return end - 1
        return None
