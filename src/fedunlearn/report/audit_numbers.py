"""What an audit's page tells in numbers: of the models that were examined, means over seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from fedunlearn.auditing import Audit
from fedunlearn.audits.relearning import Relearned
from fedunlearn.evaluation.rows import ORIGINAL
from fedunlearn.evaluation.table import REFERENCE
from fedunlearn.examination import AGAIN, Facts, Probed, TurnedBack

__all__ = [
    "LOW_AGAIN",
    "Mean",
    "Soon",
    "Standing",
    "Turned",
    "examined_of",
    "probes_of",
    "relearnt",
    "shown_of",
    "standings",
    "turned_of",
]

LOW_AGAIN = 1.1
"""Times the loss before the request: samples whose loss is so low again have been learnt again."""


@dataclass(frozen=True)
class Mean:
    """Of a fact, over seeds: the mean, the least and the largest."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Mean:
        """Of one value at least."""
        return cls(fmean(values), min(values), max(values))


@dataclass(frozen=True)
class Standing:
    """Where a model stands: its accuracies, and how far it is from Retrain; see `fedunlearn.examination.Facts`."""

    own: Mean
    twins: Mean
    population: Mean
    disagreement_own: Mean
    disagreement_population: Mean
    distance: Mean


@dataclass(frozen=True)
class Soon:
    """How soon a model learns samples, over seeds and repeats.

    Attributes:
        steps: mean of the steps until the loss is low, of those that got there; None where none did.
        reached, tried: how many got there, of how many.
        ratio: of the steps to Retrain's; None where either did not always get there, or Retrain needs none.
        area: mean accuracy over the steps, in [0, 1]; see `Relearned.area`.
    """

    steps: float | None
    reached: int
    tried: int
    ratio: float | None
    area: float


@dataclass(frozen=True)
class Turned:
    """A method's models with their negations turned back.

    Attributes:
        as_before, seeds: in how many of the seeds this is, right after the negation, the old model bit for bit.
        own, twins, population: accuracy after recovery, turned back; in [0, 1].
    """

    as_before: int
    seeds: int
    own: Mean
    twins: Mean
    population: Mean


def shown_of(audit: Audit, found: Mapping[str, Any]) -> list[str]:
    """The models of which something was found, Retrain first: it is what the others are measured by."""
    return [name for name in dict.fromkeys((REFERENCE, ORIGINAL, *audit.methods)) if name in found]


def examined_of(audit: Audit) -> list[str]:
    """The models that were examined in every seed, in the same order; that retrained again left out."""
    first, *others = [one.models for one in audit.examined]
    return shown_of(audit, {name: None for name in first if all(name in models for models in others)})


def standings(audit: Audit) -> dict[str, Standing]:
    """By model; the last retrained again, as far from Retrain as two retrained models are from one another."""

    def mean(name: str, value_of: Callable[[Facts], float]) -> Mean:
        return Mean.of([value_of(one.models[name]) for one in audit.examined])

    return {
        name: Standing(
            own=mean(name, lambda facts: facts.own),
            twins=mean(name, lambda facts: facts.twins),
            population=mean(name, lambda facts: facts.population),
            disagreement_own=mean(name, lambda facts: facts.disagreement["own"]),
            disagreement_population=mean(name, lambda facts: facts.disagreement["population"]),
            distance=mean(name, lambda facts: facts.distance),
        )
        for name in (*examined_of(audit), AGAIN)
    }


def relearnt(audit: Audit, side: Callable[[Facts], Sequence[Relearned]]) -> dict[str, Soon]:
    """How soon each model learns samples: until their loss is `LOW_AGAIN` times that of the forgotten samples before
    the request, whichever samples it learns.

    Args:
        audit: of whose models.
        side: which samples' curves.
    """
    steps: dict[str, list[int | None]] = {}
    areas: dict[str, list[float]] = {}
    for one in audit.examined:
        low = LOW_AGAIN * one.models[ORIGINAL].relearned[0].losses[0]  # at step 0, alike in all repeats
        for name in (*examined_of(audit), AGAIN):
            for curve in side(one.models[name]):
                steps.setdefault(name, []).append(curve.steps_to(low))
                areas.setdefault(name, []).append(curve.area)
    known = {name: [count for count in counts if count is not None] for name, counts in steps.items()}

    def always(name: str) -> float | None:
        return fmean(known[name]) if len(known[name]) == len(steps[name]) else None

    theirs = always(REFERENCE)
    return {
        name: Soon(
            fmean(known[name]) if known[name] else None,
            len(known[name]),
            len(steps[name]),
            ours / theirs if (ours := always(name)) is not None and theirs else None,
            fmean(areas[name]),
        )
        for name in steps
    }


def probes_of(audit: Audit) -> Iterator[tuple[str, Mapping[str, Mapping[str, Mean]]]]:
    """Layer by layer as the input flows: its name, and by model what its probes find, by name of the number."""
    read: dict[str, Callable[[Probed], float]] = {
        "membership": lambda one: one.membership,
        "own": lambda one: one.own,
        "twins": lambda one: one.twins,
    }
    for at, first in enumerate(audit.examined[0].models[REFERENCE].probes):
        found = {name: [one.models[name].probes[at] for one in audit.examined] for name in (*examined_of(audit), AGAIN)}
        yield (
            first.layer,
            {name: {what: Mean.of(list(map(of, seeds))) for what, of in read.items()} for name, seeds in found.items()},
        )


def turned_of(audit: Audit) -> dict[str, Turned]:
    """By method, of those that have negated."""
    backs: dict[str, list[TurnedBack]] = {}
    for name in examined_of(audit):
        if found := [back for one in audit.examined if (back := one.models[name].turned_back)]:
            backs[name] = found
    return {
        name: Turned(
            sum(back.as_before for back in found),
            len(found),
            Mean.of([back.own for back in found]),
            Mean.of([back.twins for back in found]),
            Mean.of([back.population for back in found]),
        )
        for name, found in backs.items()
    }
