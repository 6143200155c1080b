"""Attacks on membership with shadows: of two twins, which one was in training?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from fedunlearn.audits.certainty import ALIKE, Interval, auc, found_at, larger, mean, proportion, sign_flips, within
from fedunlearn.audits.lira import likelihood_ratios
from fedunlearn.audits.rmia import shares_beaten

__all__ = [
    "Attacked",
    "Compared",
    "Evidence",
    "Result",
    "Scorer",
    "beside_chance",
    "beside_retrain",
    "by_confidence",
    "by_likelihood",
    "by_population",
]

Scorer = Callable[["Evidence"], NDArray[np.float64]]
"""From the evidence to scores, ``(N + 1, 2 P)``: each model is attacked with all shadows but itself."""

_REDRAWN, _OFTEN = 999, 10  # tosses of all coins; chances that were as good, after which the rest need no toss


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

    @property
    def reference(self) -> NDArray[np.bool_]:
        """Which models are shadows, ``(N + 1,)``."""
        return np.arange(len(self.heads)) < len(self.heads) - 1

    def tossed(self, rng: np.random.Generator) -> Evidence:
        """The same models, had the shadows' coins fallen otherwise."""
        heads = rng.random(self.heads.shape) < 0.5
        return replace(self, heads=heads & self.reference[:, None])


def by_confidence(evidence: Evidence) -> NDArray[np.float64]:
    """The surer a model is of a sample, the likelier it has seen it: no shadow is looked at."""
    return evidence.signals[:, :, -1]


def by_likelihood(evidence: Evidence) -> NDArray[np.float64]:
    """`fedunlearn.audits.lira.lira`."""
    return likelihood_ratios(evidence.signals, evidence.member, evidence.reference)


def by_population(evidence: Evidence) -> NDArray[np.float64]:
    """`fedunlearn.audits.rmia.rmia`."""
    chances, population = expit(evidence.signals[:, :, -1]), expit(evidence.population)
    return shares_beaten(chances, evidence.member, population, evidence.reference)


@dataclass(frozen=True, eq=False)
class Attacked:
    """Scores of members and of their twins, ``(N + 1, P)`` each: one row a model, the audited one last."""

    members: NDArray[np.float64]
    others: NDArray[np.float64]

    @classmethod
    def of(cls, evidence: Evidence, scorer: Scorer) -> Attacked:
        """Attack each model."""
        own, twin = np.split(scorer(evidence), 2, 1)
        return cls(np.where(evidence.heads, twin, own), np.where(evidence.heads, own, twin))

    @property
    def areas(self) -> NDArray[np.float64]:
        """`auc` of each shadow, ``(N,)``."""
        return auc(self.members[:-1], self.others[:-1])

    @property
    def leads(self) -> NDArray[np.float64]:
        """By how much all members of a shadow together score above their twins, ``(N,)``."""
        leads: NDArray[np.float64] = (self.members - self.others)[:-1].sum(1)
        return leads

    def result(self) -> Result:
        """In numbers."""
        leads = self.leads
        wins = float(np.mean(np.sign(leads)) + 1) / 2
        here_members, here_others = self.members[-1], self.others[-1]
        return Result(
            sample=mean(self.areas, alike=ALIKE),
            client=proportion(wins, len(leads) / ALIKE),
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
        excess: by how much the area under the curve is larger; than by chance, where retrained models tell nothing.
        sample_p, client_p: how often chance alone would make the method's models look as bad, by sample and by client.
    """

    excess: Interval
    sample_p: float
    client_p: float


def beside_chance(evidence: Evidence, scorer: Scorer, seed: int = 0) -> Compared:
    """Hold a method against chance itself, where a retrained model can tell nothing.

    Had a model kept nothing of a sample, the coins would be independent of all that models say. So they are tossed
    again, up to 999 times, and the attack is repeated in full: an exact test, for any attack and any number of shadows.
    Once chance has been as good ten times, it is not tried further (Besag and Clifford, "Sequential Monte Carlo
    p-values", Biometrika 1991).

    Args:
        evidence: of the method's models.
        scorer: the attack.
        seed: of the coins.
    """
    found, rng = Attacked.of(evidence, scorer), np.random.default_rng(seed)
    area, lead = found.areas.mean(), found.leads.mean()
    as_good, p = np.zeros(2), np.full(2, np.nan)
    for toss in range(1, _REDRAWN + 1):
        chance = Attacked.of(evidence.tossed(rng), scorer)
        as_good += (chance.areas.mean() >= area, chance.leads.mean() >= lead)
        p = np.where(np.isnan(p) & (as_good >= _OFTEN), as_good / toss, p)
        if not np.isnan(p).any():
            break
    sample_p, client_p = np.where(np.isnan(p), (1 + as_good) / (1 + _REDRAWN), p)
    return Compared(mean(found.areas - 0.5, alike=ALIKE), float(sample_p), float(client_p))


def beside_retrain(method: Attacked, retrain: Attacked) -> Compared:
    """Hold a method against what is found of retrained models, where that is more than nothing."""
    areas, leads = method.areas - retrain.areas, method.leads - retrain.leads
    return Compared(mean(areas, alike=ALIKE), larger(areas, alike=ALIKE), larger(leads, alike=ALIKE))
