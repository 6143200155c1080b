"""The paper's table of a run: each method's measures, its distance to Retrain, and its price."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from fedunlearn.evaluation.cost import Cost
from fedunlearn.evaluation.scores import Gap, Scores, average_gap
from fedunlearn.federation import Phase

__all__ = ["ORIGINAL", "Best", "Line", "Row", "Spread", "table"]

ORIGINAL = "Original"  # the model before the request


@dataclass(frozen=True)
class Spread:
    """A number over seeds.

    Attributes:
        mean: over seeds.
        sd: standard deviation of the sample (n - 1); 0 for a single seed.
        distance: of the mean from Retrain's mean, in the same unit, without a sign.
    """

    mean: float
    sd: float
    distance: float


@dataclass(frozen=True)
class Best:
    """The oracle's choice: where a method came closest to Retrain's final models, by their average gap.

    It needs those models, so it tells what a method could do, not what anybody who unlearns will get.
    """

    rounds: int
    gap: float


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


@dataclass(frozen=True)
class Line:
    """A method at the end of its rounds, over seeds.

    Attributes:
        method: its name; "Original": the model before the request.
        seeds: how many.
        retain, forget, test, mia, mia_efficacy: percent, see `Scores`.
        gap: to Retrain, percentage points.
        rounds: of recovery.
        bytes: sent both ways, parameters alone as the paper counts, mean over seeds.
        flops: at the clients, mean over seeds.
        seconds: wall time, mean over seeds.
        storage: bytes kept since before the request, mean over seeds.
        best: the oracle's choice; None for the references.
    """

    method: str
    seeds: int
    retain: Spread
    forget: Spread
    test: Spread
    mia: Spread
    mia_efficacy: Spread
    gap: Gap
    rounds: int
    bytes: int
    flops: int
    seconds: float
    storage: int
    best: Best | None


def table(rows: Iterable[Row], reference: str = "Retrain") -> list[Line]:
    """One line per method, in the order in which they came.

    Raises:
        ValueError: the reference is missing.
    """
    scored: dict[str, dict[int, dict[int, Row]]] = {}  # by method, rounds, seed
    for row in rows:
        if row.scores is not None:
            scored.setdefault(row.method, {}).setdefault(row.rounds, {})[row.seed] = row
    if reference not in scored:
        raise ValueError(f"there is no gap without {reference}")
    theirs = _scores(scored[reference][max(scored[reference])])
    return [_line(method, rounds, theirs, method in (ORIGINAL, reference)) for method, rounds in scored.items()]


def _line(method: str, rounds: dict[int, dict[int, Row]], theirs: Sequence[Scores], refers: bool) -> Line:
    bills = [sum(row.costs.values(), Cost()) for row in rounds[max(rounds)].values()]
    ours = _scores(rounds[max(rounds)])

    def spread(measure: str) -> Spread:
        values = [getattr(scores, measure) for scores in ours]
        distance = abs(fmean(values) - fmean(getattr(scores, measure) for scores in theirs))
        return Spread(fmean(values), stdev(values) if len(values) > 1 else 0.0, distance)

    gaps = {number: average_gap(_scores(models), theirs).of_means for number, models in rounds.items()}
    best = min(gaps, key=gaps.__getitem__)
    return Line(
        method=method,
        seeds=len(bills),
        retain=spread("retain"),
        forget=spread("forget"),
        test=spread("test"),
        mia=spread("mia"),
        mia_efficacy=spread("mia_efficacy"),
        gap=average_gap(ours, theirs),
        rounds=max(rounds),
        bytes=round(fmean(bill.traffic.down + bill.traffic.up for bill in bills)),
        flops=round(fmean(bill.flops for bill in bills)),
        seconds=fmean(bill.seconds for bill in bills),
        storage=round(fmean(bill.storage for bill in bills)),
        best=None if refers else Best(best, gaps[best]),
    )


def _scores(by_seed: dict[int, Row]) -> list[Scores]:
    return [row.scores for _, row in sorted(by_seed.items()) if row.scores is not None]
