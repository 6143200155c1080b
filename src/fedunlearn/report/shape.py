"""The paper's results beside ours, in shape: gaps, ranks, prices as shares of training anew, and whether orders agree.

A run on another data set, another network and another scale has other numbers. What can be compared is the shape: which
methods come close to Retrain, in which order, and at what part of its price.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from math import sqrt
from statistics import fmean
from typing import Any

from fedunlearn.evaluation.agreement import kendall
from fedunlearn.evaluation.published import Printed, published
from fedunlearn.evaluation.rows import ORIGINAL, curves
from fedunlearn.evaluation.scores import MEASURES, average_gap
from fedunlearn.evaluation.stopping import Oracle
from fedunlearn.evaluation.table import REFERENCE, Line
from fedunlearn.report.block import Block, about
from fedunlearn.report.report import Report

__all__ = ["Order", "Pair", "Result", "Shape", "shape_of"]

FINE_TUNING = "FT"
LEAST_GAP = 5.0  # percentage points of fine-tuning's gap: with less there is hardly anything to forget
LEAST_ATTACK = 90.0  # percent of attacks that succeed before unlearning: with less there is no backdoor to remove
_READ_OFF = 0.1  # percentage points: as close as a gap can be read off a figure


@dataclass(frozen=True)
class Result:
    """How a method did, and what it took.

    Attributes:
        measures: retain, forget, test and MIA in percent, each mean and standard deviation; empty for what was read
            off a figure.
        gap: average gap to Retrain, percentage points, between means.
        spread: standard deviation of the gap, from those of the measures and of Retrain's, as if these were
            independent of one another; of what was read off a figure how well that can be done. None where a single
            seed has none.
        rounds: of recovery, mean over seeds; None where nobody says.
        bytes, flops: as shares of Retrain's; None where they are not known or Retrain sends nothing.
    """

    measures: Mapping[str, tuple[float, float]]
    gap: float
    spread: float | None
    rounds: float | None
    bytes: float | None
    flops: float | None


@dataclass(frozen=True)
class Pair:
    """One of the paper's methods, and ours for it.

    Attributes:
        method: the paper's name; ours where the paper has no such method.
        label: our name; None where we have none, or it came to no end.
        published: what the paper says; of a curve, at its best round. None where it says nothing.
        last: a curve's gap at its last round.
        fixed: ours after all rounds.
        oracle: ours at the scored round closest to Retrain, the paper's way as far as can be told.
        published_curve, curve: bytes as shares of Retrain's, and gaps; of figures.
    """

    method: str
    label: str | None
    published: Result | None
    last: float | None
    fixed: Result | None
    oracle: Result | None
    published_curve: tuple[tuple[float, float], ...] = ()
    curve: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class Order:
    """The order of the methods that both have, the closest to Retrain first.

    Attributes:
        where: of our gaps.
        ranks: the paper's rank and ours, by method; equal gaps share the better rank.
        tau: Kendall's, from -1 (reversed) to 1 (the same); None where there are fewer than two methods, or one order
            has all at the same place.
        reversed: the paper's closer method and its farther one, where ours are the other way round and both
            differences are larger than the spreads of the two methods together. None where spreads are not known.
    """

    where: str
    ranks: Mapping[str, tuple[int, int]]
    tau: float | None
    reversed: tuple[tuple[str, str], ...] | None


@dataclass(frozen=True, kw_only=True)
class Shape(Block):
    """A block of scores, or a figure of gaps, beside the run that reproduces it.

    Attributes:
        pairs: in the paper's order, those that the paper does not have behind them.
        before: gap of the model before the request.
        fine_tuning: gap of fine-tuning (FT) after all rounds; None where it is not in the experiment.
        attack: percent of the attacks that succeed on it; None where nothing is attacked.
    """

    pairs: tuple[Pair, ...]
    before: float
    fine_tuning: float | None
    attack: float | None

    @property
    def orders(self) -> tuple[Order, Order]:
        """After all rounds, and at the oracle's; the paper's is of a curve's last round, and of its best."""
        after, oracle = [], []
        for pair in self.pairs:
            if pair.method != REFERENCE and pair.published and pair.fixed and pair.oracle:
                last = pair.published.gap if pair.last is None else pair.last
                after.append(_Both(pair.method, replace(pair.published, gap=last), pair.fixed))
                oracle.append(_Both(pair.method, pair.published, pair.oracle))
        return _order("after all rounds", after), _order("at the oracle's round", oracle)

    def doubts(self) -> Iterator[str]:
        """Why this setting could not tell a method that forgets from one that does not; nothing where it can."""
        if self.fine_tuning is None:
            yield "This setting cannot tell whether anything had to be forgotten: fine-tuning (FT) is not in it."
        elif self.fine_tuning < LEAST_GAP:
            yield (
                f"This setting cannot tell the methods apart: fine-tuning ends {self.fine_tuning:.2f} points from "
                f"Retrain, less than {LEAST_GAP:g}, so there is hardly anything to forget."
            )
        if self.attack is not None and self.attack < LEAST_ATTACK:
            yield (
                f"This setting cannot tell who removes the backdoor: before unlearning {self.attack:.0f} % of the "
                f"attacks succeed, less than {LEAST_ATTACK:g} %."
            )

    def sentences(self) -> Iterator[str]:
        """What came of the comparison."""
        yield from self.doubts()
        for order in self.orders:
            if order.tau is None:
                yield f"{_sentence(order.where)} there is no order to compare: {_methods(len(order.ranks))} in common."
                continue
            said = f"{_sentence(order.where)} Kendall's tau of the two orders is {order.tau:+.2f} over "
            said += f"{_methods(len(order.ranks))}"
            if order.reversed is None:
                yield f"{said}; one seed has no spread, so that no pair can be called reversed."
            elif order.reversed:
                pairs = "; ".join(f"{closer} before {farther}" for closer, farther in order.reversed)
                yield f"{said}; in the paper, but not here, by more than both spreads: {pairs}."
            else:
                yield f"{said}; no pair is reversed by more than both spreads."
        yield from self.incomplete

    def summary(self) -> dict[str, Any]:
        """What a script would want of it."""
        orders = [dataclasses.asdict(order) for order in self.orders]
        return {**dataclasses.asdict(self), "scale": self.scale, "orders": orders, "says": list(self.sentences())}


def shape_of(report: Report, experiment: str, drawn: str | None = None) -> Shape:
    """A run beside what the paper published of it.

    Args:
        report: of the run, whose experiment says with ``published`` what it stands beside.
        experiment: its name, with the scale before it.
        drawn: a figure that shows some methods of that block; it is then what the run stands beside.
    """
    name = drawn or str(report.experiment["published"])
    block = published(name)
    after, oracle = ({line.method: line for line in lines} for lines in (report.table(), report.table(Oracle())))
    retrain = after[REFERENCE]
    sources: list[tuple[str | None, Printed | None]] = [(report.counterpart(row.method), row) for row in block.rows]
    if drawn is None:
        known = {REFERENCE, ORIGINAL, *(label for label, _ in sources)}
        sources += [(label, None) for label in after if label not in known]
    pairs = []
    for label, row in sources:
        there = label if label in after else None  # else it is not in the experiment, or came to no end
        pairs.append(
            Pair(
                method=row.method if row else str(label),
                label=there,
                published=_printed(row, block.rows) if row else None,
                last=row.last if row else None,
                fixed=_measured(after[there], retrain) if there else None,
                oracle=_measured(oracle[there], retrain) if there else None,
                published_curve=row.curve if row else (),
                curve=_curve(report, there, retrain.bytes) if there and block.drawn else (),
            )
        )
    original = [rows[-1].scores for rows in curves(report.compared)[ORIGINAL].values()]
    attacks = [scores.attack for scores in original if scores is not None and scores.attack is not None]
    return Shape(
        **about(report, experiment),
        published=name,
        artefact=block.title,
        paper=f"{block.dataset}, {block.model}",
        pairs=tuple(pairs),
        before=after[ORIGINAL].gap.of_means,
        fine_tuning=after[FINE_TUNING].gap.of_means if FINE_TUNING in after else None,
        attack=fmean(attacks) if attacks else None,
    )


@dataclass(frozen=True)
class _Both:
    """A method that both have."""

    method: str
    paper: Result
    ours: Result


def _order(where: str, common: Sequence[_Both]) -> Order:
    theirs, ours = [one.paper.gap for one in common], [one.ours.gap for one in common]
    ranks = {one.method: (_rank(one.paper.gap, theirs), _rank(one.ours.gap, ours)) for one in common}
    known = all(one.paper.spread is not None and one.ours.spread is not None for one in common)
    turned = tuple(_reversed(common)) if known else None
    return Order(where, ranks, kendall(theirs, ours), turned)


def _reversed(common: Sequence[_Both]) -> Iterator[tuple[str, str]]:
    for closer, farther in combinations(sorted(common, key=lambda one: one.paper.gap), 2):
        if _apart(closer.paper, farther.paper) and _apart(farther.ours, closer.ours):
            yield closer.method, farther.method


def _apart(closer: Result, farther: Result) -> bool:
    """Whether one is closer by more than both spreads."""
    return farther.gap - closer.gap > (closer.spread or 0.0) + (farther.spread or 0.0)


def _printed(row: Printed, rows: Sequence[Printed]) -> Result:
    retrain = next((other for other in rows if other.method == REFERENCE), None)
    measures = {name: getattr(row, name) for name in MEASURES if getattr(row, name) is not None}
    spread = _READ_OFF
    if retrain is not None:
        spread = _gap_spread([measures[name][1] for name in MEASURES], [getattr(retrain, m)[1] for m in MEASURES])
    return Result(measures, row.gap, spread, None, row.bytes, row.flops)


def _measured(line: Line, retrain: Line) -> Result:
    measures = {name: (getattr(line, name).mean, getattr(line, name).sd) for name in MEASURES}
    spread = None
    if line.seeds > 1:
        spread = _gap_spread([sd for _, sd in measures.values()], [getattr(retrain, name).sd for name in MEASURES])
    shares = [
        own / whole if whole else None for own, whole in ((line.bytes, retrain.bytes), (line.flops, retrain.flops))
    ]
    return Result(measures, line.gap.of_means, spread, line.rounds, *shares)


def _gap_spread(own: Sequence[float], retrain: Sequence[float]) -> float:
    """Of the mean over the measures of |own mean - Retrain's mean|."""
    return sqrt(sum(sd**2 for sd in (*own, *retrain))) / len(own)


def _curve(report: Report, label: str, whole: int) -> tuple[tuple[float, float], ...]:
    by_method = curves(report.compared)
    retrain = [rows[-1].scores for rows in by_method[REFERENCE].values() if rows[-1].scores]
    points = []
    for rows in zip(*by_method[label].values(), strict=True):
        sent = fmean(row.bill().traffic.both_ways for row in rows)
        if sent:  # what is free has no place on a logarithmic axis
            points.append((sent / whole, average_gap([row.scores for row in rows if row.scores], retrain).of_means))
    return tuple(points)


def _rank(gap: float, gaps: Sequence[float]) -> int:
    return 1 + sum(other < gap for other in gaps)


def _sentence(where: str) -> str:
    return f"{where[0].upper()}{where[1:]},"


def _methods(number: int) -> str:
    return f"{number} method{'s' * (number != 1)}"
