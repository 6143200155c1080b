"""The paper's table of a run: each method's measures, its distance to Retrain, and its price."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev

from fedunlearn.evaluation.rows import ORIGINAL, Row, curves
from fedunlearn.evaluation.scores import Gap, Scores, average_gap
from fedunlearn.evaluation.stopping import Choice, Fixed, StopRule

__all__ = ["REFERENCE", "Line", "Spread", "table"]

REFERENCE = "Retrain"


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
class Line:
    """A method where a stop rule stops it, over seeds; the references are always taken at their end.

    Attributes:
        method: its name; "Original": the model before the request.
        seeds: how many.
        met: in how many of them the rule's condition was met; in the others the last round was taken.
        retain, forget, test, mia: percent, see `Scores`.
        mia_efficacy: percent; None where it was not scored, as before the last round.
        attack: percent, see `Scores`; None where there is no backdoor.
        gap: to Retrain, percentage points.
        rounds: of recovery, mean over seeds.
        bytes: sent both ways, parameters alone as the paper counts, mean over seeds.
        flops: at the clients, mean over seeds.
        seconds: wall time, mean over seeds.
        storage: bytes kept since before the request, mean over seeds.
    """

    method: str
    seeds: int
    met: int
    retain: Spread
    forget: Spread
    test: Spread
    mia: Spread
    mia_efficacy: Spread | None
    attack: Spread | None
    gap: Gap
    rounds: float
    bytes: int
    flops: int
    seconds: float
    storage: int


def table(rows: Iterable[Row], rule: StopRule | None = None, *, request: int | None = None) -> list[Line]:
    """One line per method, in the order in which they came.

    Args:
        rows: of a run; of all methods the same seeds.
        rule: where to stop; None: after all rounds.
        request: held against this one alone of several requests that followed one another; None: against all.

    Raises:
        ValueError: Retrain is missing.
    """
    rule = rule or Fixed()
    if request is not None:
        rows = (replace(row, scores=row.scores.of(request)) for row in rows if row.scores is not None)
    found = curves(rows)
    if REFERENCE not in found:
        raise ValueError(f"there is no gap without {REFERENCE}")
    retrain = _scores(Fixed().choose(found[REFERENCE], {}, ()))
    before = {seed: rows[-1].scores for seed, rows in found.get(ORIGINAL, {}).items() if rows[-1].scores is not None}
    lines = []
    for method, seeds in found.items():
        refers = method in (ORIGINAL, REFERENCE)
        chosen = (Fixed() if refers else rule).choose(seeds, before, retrain)
        lines.append(_line(method, chosen, retrain, checks=rule.checks and not refers))
    return lines


def _line(method: str, chosen: dict[int, Choice], retrain: Sequence[Scores], *, checks: bool) -> Line:
    rows = [choice.row for choice in chosen.values()]
    bills = [row.bill(checks=checks) for row in rows]
    ours = _scores(chosen)

    def measured(measure: str) -> Spread:
        values = [getattr(scores, measure) for scores in ours]
        distance = abs(fmean(values) - fmean(getattr(scores, measure) for scores in retrain))
        return Spread(fmean(values), stdev(values) if len(values) > 1 else 0.0, distance)

    def measured_everywhere(measure: str) -> Spread | None:
        everywhere = all(getattr(scores, measure) is not None for scores in (*ours, *retrain))
        return measured(measure) if everywhere else None

    return Line(
        method=method,
        seeds=len(rows),
        met=sum(choice.met for choice in chosen.values()),
        retain=measured("retain"),
        forget=measured("forget"),
        test=measured("test"),
        mia=measured("mia"),
        mia_efficacy=measured_everywhere("mia_efficacy"),
        attack=measured_everywhere("attack"),
        gap=average_gap(ours, retrain),
        rounds=fmean(row.rounds for row in rows),
        bytes=round(fmean(bill.traffic.down + bill.traffic.up for bill in bills)),
        flops=round(fmean(bill.flops for bill in bills)),
        seconds=fmean(bill.seconds for bill in bills),
        storage=round(fmean(bill.storage for bill in bills)),
    )


def _scores(chosen: dict[int, Choice]) -> list[Scores]:
    return [choice.row.scores for _, choice in sorted(chosen.items()) if choice.row.scores is not None]
