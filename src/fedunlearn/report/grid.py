"""What a diagnosis of the theory finds beside what the paper prints of it: rows and columns of numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from fedunlearn.report.block import Block

__all__ = ["Entry", "Grid", "GridRow"]


@dataclass(frozen=True)
class Entry:
    """A number, the paper's and ours.

    Attributes:
        published: the paper's, or the range that it prints; None where it prints none.
        ours: one a seed; None where it is not defined.
    """

    published: float | tuple[float, float] | None
    ours: tuple[float | None, ...]

    @property
    def mean(self) -> float | None:
        """Of ours, over the seeds at which it is defined."""
        known = [value for value in self.ours if value is not None]
        return fmean(known) if known else None

    @property
    def sd(self) -> float | None:
        """Standard deviation of ours over seeds; None with fewer than two."""
        known = [value for value in self.ours if value is not None]
        return stdev(known) if len(known) > 1 else None


@dataclass(frozen=True)
class GridRow:
    """A row of a `Grid`: what it is of, and an entry for each column."""

    label: str
    entries: tuple[Entry, ...]


@dataclass(frozen=True, kw_only=True)
class Grid(Block):
    """A diagnosis beside the paper's.

    Attributes:
        quantity: what is told: a bound, similarities, a spectrum.
        columns: what each number of a row is of.
        rows: in the paper's order, those that it does not have behind them.
        says: what came of it, in sentences.
    """

    quantity: str
    columns: tuple[str, ...]
    rows: tuple[GridRow, ...]
    says: tuple[str, ...]

    def doubts(self) -> Iterator[str]:
        """Nothing: a diagnosis says itself what cannot be trusted."""
        return iter(())

    def sentences(self) -> Iterator[str]:
        """What came of the comparison."""
        yield from self.says
        yield from self.incomplete

    def summary(self) -> dict[str, Any]:
        """What a script would want of it."""
        return {**dataclasses.asdict(self), "scale": self.scale}
