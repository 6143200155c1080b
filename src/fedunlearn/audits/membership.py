"""Attacks on membership with shadows: of two twins, which one was in training?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit
from scipy.stats import binomtest, ttest_1samp

from fedunlearn.audits.certainty import Interval, auc, found_at, mean, proportion, sign_flips, within
from fedunlearn.audits.lira import lira
from fedunlearn.audits.rmia import rmia

__all__ = ["Attacked", "Compared", "Evidence", "Result", "by_confidence", "by_likelihood", "by_population", "compared"]

Scorer = Callable[["Evidence", NDArray[np.int64], int], NDArray[np.float64]]
"""From the evidence, the positions of the reference models and that of the audited one to a score each sample."""

_FEWEST = 2  # references, without which there is no likelihood ratio


@dataclass(frozen=True, eq=False)
class Evidence:
    """What N + 1 models say of P targets and of the twin of each: N shadows, and last the model that is audited.

    Attributes:
        signals: `fedunlearn.audits.signals.confidence`, or several such of the versions of a model that the attacker
            has: ``(N + 1, 2 P, d)``; targets first, then their twins in the same order.
        heads: whether a target's twin was in training, and not the target, ``(N + 1, P)``; of the audited model: of
            none.
        population: the last of the versions on Z samples that no model has seen, ``(N + 1, Z)``.
    """

    signals: NDArray[np.float64]
    heads: NDArray[np.bool_]
    population: NDArray[np.float64]

    @property
    def member(self) -> NDArray[np.bool_]:
        """Which model has seen which sample, ``(N + 1, 2 P)``."""
        return np.concatenate([~self.heads, self.heads], 1)


def by_confidence(evidence: Evidence, references: NDArray[np.int64], audited: int) -> NDArray[np.float64]:
    """The surer a model is of a sample, the likelier it has seen it: no shadow is looked at."""
    return evidence.signals[audited, :, -1]


def by_likelihood(evidence: Evidence, references: NDArray[np.int64], audited: int) -> NDArray[np.float64]:
    """`fedunlearn.audits.lira.lira`."""
    return lira(evidence.signals[references], evidence.member[references], evidence.signals[audited])


def by_population(evidence: Evidence, references: NDArray[np.int64], audited: int) -> NDArray[np.float64]:
    """`fedunlearn.audits.rmia.rmia`."""
    chances, population = expit(evidence.signals[:, :, -1]), expit(evidence.population)
    return rmia(
        chances[references],
        evidence.member[references],
        chances[audited],
        population[references],
        population[audited],
    )


@dataclass(frozen=True, eq=False)
class Attacked:
    """Scores of members and of their twins, a row of P a model, the audited one last: ``(N + 1, P)`` each.

    `in_turn` there are two rows less.
    """

    members: NDArray[np.float64]
    others: NDArray[np.float64]

    @classmethod
    def of(cls, evidence: Evidence, scorer: Scorer) -> Attacked:
        """Attack each model with all shadows but itself: as much as is to be had, and what an attack is measured by.

        Of any two shadows each is a reference for the other, and whether they help is the same coins' doing. So where
        nothing can be found, the areas of shadows scatter together: their mean has up to twice the variance that it
        would have if they were independent. For p-values there is `in_turn`.
        """
        models = len(evidence.heads)
        every = np.arange(models - 1)
        return cls._attacked(evidence, scorer, {model: every[every != model] for model in range(models)})

    @classmethod
    def in_turn(cls, evidence: Evidence, scorer: Scorer) -> Attacked:
        """Attack each shadow with those before it alone, from the third on, and the audited model with all.

        Whatever the earlier shadows have shown, which of two twins the next one holds is a new coin. So where nothing
        can be found, wins are independent tosses, as exact tests take them to be; the attacks are weaker for it.
        """
        models = len(evidence.heads)
        return cls._attacked(evidence, scorer, {model: np.arange(model) for model in range(_FEWEST, models)})

    @classmethod
    def _attacked(cls, evidence: Evidence, scorer: Scorer, references: Mapping[int, NDArray[np.int64]]) -> Attacked:
        targets = evidence.heads.shape[1]
        found = np.stack([scorer(evidence, others, model) for model, others in references.items()])
        heads, own, twin = evidence.heads[list(references)], found[:, :targets], found[:, targets:]
        return cls(np.where(heads, twin, own), np.where(heads, own, twin))

    @property
    def areas(self) -> NDArray[np.float64]:
        """`auc` of each shadow."""
        return np.array([auc(a, b) for a, b in zip(self.members[:-1], self.others[:-1], strict=True)])

    @property
    def leads(self) -> NDArray[np.float64]:
        """By how much all members of a shadow together score above their twins."""
        leads: NDArray[np.float64] = (self.members - self.others)[:-1].sum(1)
        return leads

    def result(self) -> Result:
        """In numbers."""
        leads = self.leads
        wins = int(np.sum(leads > 0)) + int(np.sum(leads == 0)) // 2
        here_members, here_others = self.members[-1], self.others[-1]
        return Result(
            sample=mean(self.areas),
            client=proportion(wins, len(leads)),
            found_at={
                rate: found
                for rate in (0.01, 0.001)
                if (found := found_at(self.members[:-1], self.others[:-1], rate)) is not None
            },
            here=within(here_members, here_others),
            here_p=sign_flips(here_members - here_others),
        )


@dataclass(frozen=True)
class Result:
    """How an attack does on a kind of model.

    Attributes:
        sample: area under the curve, members against twins, mean over the shadows; by chance 0.5.
        client: share of the shadows in which the attacker, shown all members together and all twins together, takes
            the right ones for those in training; by chance 0.5.
        found_at: share of the members that are found at a rate of false positives; where there are enough negatives.
        here: area under the curve on the run's own model.
        here_p: how often chance alone would have told the run's own model's members as well from their twins.
    """

    sample: Interval
    client: Interval
    found_at: dict[float, Interval]
    here: Interval
    here_p: float


@dataclass(frozen=True)
class Compared:
    """An attack on a method's models beside the same attack on retrained ones, shadow by shadow.

    Attributes:
        excess: by how much the area under the curve is larger.
        sample_p, client_p: how often chance alone would make the method's models look as bad, by sample and by client.
    """

    excess: Interval
    sample_p: float
    client_p: float


def compared(method: Attacked, retrain: Attacked, *, blind: bool) -> Compared:
    """Compare with retrained models.

    Args:
        method, retrain: the same attack on either, in the same shadows, `Attacked.in_turn`.
        blind: whether a retrained model can tell nothing by construction, so that the method is held against chance
            itself; where the attacker holds the old model too, it is held against what is found of retrained ones.
    """
    ours, theirs = method.areas, retrain.areas
    baseline = np.full_like(ours, 0.5) if blind else theirs
    won, lost = method.leads > 0, retrain.leads > 0
    trials, wins = (len(won), int(won.sum())) if blind else (int((won != lost).sum()), int((won & ~lost).sum()))
    return Compared(
        mean(ours - theirs),
        _larger(ours - baseline),
        float(binomtest(wins, trials, alternative="greater").pvalue) if trials else 1.0,
    )


def _larger(differences: NDArray[np.float64]) -> float:
    """One-sided p-value of a mean above 0."""
    differences = differences.round(12)  # else equal ones, as 0.8 - 0.7 and 0.7 - 0.6 are, would differ
    if np.ptp(differences) == 0:  # Student's statistic is not defined
        return 1.0 if differences[0] <= 0 else 0.5 ** len(differences)
    return float(ttest_1samp(differences, 0.0, alternative="greater").pvalue)
