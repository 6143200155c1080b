"""The attacks with shadows: what each attacker knows, and what came of trying them on all methods' models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from fedunlearn.audits.certainty import curve
from fedunlearn.audits.forgetting import FEWEST as FEWEST_FOR_QUALITY
from fedunlearn.audits.forgetting import forgetting_quality
from fedunlearn.audits.membership import (
    Attacked,
    Compared,
    Evidence,
    Result,
    Scorer,
    beside_chance,
    beside_retrain,
    by_confidence,
    by_likelihood,
    by_population,
)
from fedunlearn.evaluation.rows import ORIGINAL
from fedunlearn.evaluation.table import REFERENCE
from fedunlearn.shadows import Model, Moment, Readings

__all__ = ["ATTACKS", "TESTS", "Attack", "Kind", "evidence_of", "quality_of", "tried"]

_BINS, _WIDEST = 40, 10.0  # of the scores' histograms


@dataclass(frozen=True)
class Kind:
    """A kind of attack on membership.

    Attributes:
        name: of the attack.
        knowledge: of the attacker, in words.
        versions: of the model that it holds; "before" is the model before the request.
        scorer: from what the models say to a score each sample.
        forget: whether it is about what was to be forgotten; else about what stays.
        final: whether it is about the models that methods end with.
        blind: whether a retrained model can tell nothing by construction, so that methods are held against chance
            itself.
    """

    name: str
    knowledge: str
    versions: tuple[Moment | str, ...]
    scorer: Scorer
    forget: bool = True
    final: bool = True
    blind: bool = True

    @property
    def judged(self) -> bool:
        """Whether a method's verdict rests on it."""
        return self.forget and self.final


_DATA = "has the model after unlearning and the data that it asks about"
_SHADOWS = "can train federations of its own on data of the same kind, by the same method"

ATTACKS = (
    Kind("Confidence", f"{_DATA}, and nothing else", ("last",), by_confidence),
    Kind("RMIA", f"{_DATA}; {_SHADOWS}, and looks at those without the sample alone", ("last",), by_population),
    Kind("U-LiRA", f"{_DATA}; {_SHADOWS}, with the sample and without", ("last",), by_likelihood),
    Kind(
        "Sign turned back",
        f"{_DATA}; {_SHADOWS}; and knows which layers were negated",
        ("last", "turned back"),
        by_likelihood,
    ),
    Kind(
        "Before and after",
        f"{_DATA}; {_SHADOWS}; and holds the model from before the request, as every client of the federation does",
        ("before", "last"),
        by_likelihood,
        blind=False,
    ),
    Kind(
        "First message",
        f"has the model that the first round of recovery begins with, as every client that stays does; {_SHADOWS}",
        ("unlearned",),
        by_likelihood,
        final=False,
    ),
    Kind(
        "LiRA on those who stay",
        f"{_DATA}, which stay in training; {_SHADOWS}, with the sample and without",
        ("last",),
        by_likelihood,
        forget=False,
        blind=False,
    ),
)
"""The attacks with shadows, from the one that knows least."""

TESTS = sum(2 if kind.blind else 1 for kind in ATTACKS if kind.judged)
"""On which a method's verdict rests: about samples, and, where retrained models tell nothing, about all together."""


@dataclass(frozen=True)
class Attack:
    """What came of an attack.

    Attributes:
        name, knowledge, forget, judged, blind: see `Kind`.
        results: by method; "Original" is the model before the request.
        beside: by method, compared with retrained models.
        curves: by method, see `fedunlearn.audits.certainty.curve`, over all shadows.
        histograms: by method, of the scores of members and of their twins, between -10 and 10 in 40 bins, the first
            and the last with what lies beyond; of likelihood ratios alone.
    """

    name: str
    knowledge: str
    forget: bool
    judged: bool
    blind: bool
    results: Mapping[str, Result]
    beside: Mapping[str, Compared]
    curves: Mapping[str, tuple[tuple[float, float], ...]]
    histograms: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]


def tried(
    kind: Kind, methods: Sequence[str], forget: NDArray[np.bool_], readings: Sequence[Readings], here: Readings
) -> Attack:
    """Try an attack on the models of all methods, of the run and of its shadows.

    Args:
        kind: of attack.
        methods: whose models, Retrain among them; the model before the request is attacked too, where that makes sense.
        forget: which of the targets were to be forgotten, ``(P,)``.
        readings: of the shadows.
        here: of the run itself.
    """
    which = forget if kind.forget else ~forget
    evidence = {
        method: evidence_of(versions, which, readings, here)
        for method in (ORIGINAL, *methods)
        if which.any() and (versions := _versions(kind, method, here))
    }
    attacked = {method: Attacked.of(found, kind.scorer) for method, found in evidence.items()}
    compared = [method for method in attacked if method not in (ORIGINAL, REFERENCE)]
    return Attack(
        kind.name,
        kind.knowledge,
        kind.forget,
        kind.judged,
        kind.blind,
        {method: found.result() for method, found in attacked.items()},
        {
            method: beside_chance(evidence[method], kind.scorer)
            if kind.blind
            else beside_retrain(attacked[method], attacked[REFERENCE])
            for method in compared
        },
        {method: tuple(curve(found.members[:-1], found.others[:-1])) for method, found in attacked.items()},
        {
            method: (_counts(found.members[:-1]), _counts(found.others[:-1]))
            for method, found in attacked.items()
            if kind.scorer is by_likelihood
        },
    )


def _versions(kind: Kind, method: str, here: Readings) -> tuple[Model, ...]:
    """The versions of a method's model that the attacker holds; none where there are no such."""
    if method == ORIGINAL and kind.versions != ("last",):
        return ()
    if method == REFERENCE and "turned back" in kind.versions:  # it has nothing to be turned back
        versions: tuple[Model, ...] = (Model(REFERENCE, "last"),)
    else:
        versions = tuple(
            Model(ORIGINAL, "last") if moment == "before" else Model(method, cast(Moment, moment))
            for moment in kind.versions
        )
    return versions if all(version in here.models for version in versions) else ()


def evidence_of(
    versions: Sequence[Model], which: NDArray[np.bool_], readings: Sequence[Readings], here: Readings
) -> Evidence:
    """What the shadows and, last, the run say of some targets, by the versions of a model that an attacker holds."""
    rows = [[one.models[version] for version in versions] for one in (*readings, here)]
    signals = [[np.concatenate([model.own[which], model.twin[which]]) for model in row] for row in rows]
    return Evidence(
        np.stack([np.stack(row, -1) for row in signals]),
        np.stack([one.heads[which] for one in (*readings, here)]),
        np.stack([row[-1].population for row in rows]),
    )


def quality_of(methods: Sequence[str], forget: NDArray[np.bool_], readings: Sequence[Readings]) -> dict[str, float]:
    """Forgetting quality by method, of the samples that enough shadows have seen; nothing where these are too few."""
    held = np.stack([~one.heads[forget] for one in readings])
    both = np.minimum(held.sum(0), (~held).sum(0))
    models = int(np.median(both))  # half of the samples have so many that held them, and so many that did not
    if models < FEWEST_FOR_QUALITY:
        return {}
    chosen = both >= models

    def signals(method: str, which: NDArray[np.bool_]) -> NDArray[np.float64]:
        said = np.stack([one.models[Model(method, "last")].own[forget] for one in readings])[:, chosen]
        return np.stack([column[rows][:models] for column, rows in zip(said.T, which[:, chosen].T, strict=True)], 1)

    retrained = signals(REFERENCE, ~held)  # of other shadows than those that are compared with them
    return {method: forgetting_quality(signals(method, held), retrained) for method in methods}


def _counts(scores: NDArray[np.float64]) -> tuple[int, ...]:
    edges = np.linspace(-_WIDEST, _WIDEST, _BINS + 1)
    return tuple(np.histogram(np.clip(scores, -_WIDEST, _WIDEST), edges)[0].tolist())
