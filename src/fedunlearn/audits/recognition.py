"""The audit at the client: does a model know what was to be forgotten better, or worse, than samples that it never saw?

In a running federation there is no retrained model and there are no shadows, and the server sees no sample. So each
client that still has what was to be forgotten compares it with samples of its own that nobody trained on: `Recognition`
is the program, `recognised` the comparison, and `Recognised` the answer, of which the server makes a judgement
(`fedunlearn.audits.judgement`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import optimize, special, stats

from fedunlearn.audits.certainty import LEVEL, POWER
from fedunlearn.audits.signals import confidence
from fedunlearn.federation import Choose, ClientContext, Forgotten, Part, Reply

__all__ = ["DRAWS", "Recognised", "Recognition", "Said", "recognised"]

DRAWS = 9999
"""Of who of a class was a member; so no p-value is below 1 / 10,000."""

_ROUNDING = 1e-9  # of sums of losses, in standard errors
_BLOCK = 2**20  # ranks that are shuffled at once, so that memory does not grow with the client's data
_CERTAIN = 8.0  # standard deviations, beyond which an area is 1
_LARGEST = 1e7  # no gap is as large, for `confidence` lies within 1e6
_PARTS = 2  # area and gap
_POWER = float(stats.norm.ppf(POWER))


@dataclass(frozen=True, eq=False)
class Said:
    """What a model says of n samples.

    Attributes:
        confidence: `fedunlearn.audits.signals.confidence`, ``(n,)``.
        labels: their classes, ``(n,)``.
        correct: whether the model puts them there, ``(n,)``.
    """

    confidence: NDArray[np.float64]
    labels: NDArray[np.int64]
    correct: NDArray[np.bool_]


@dataclass(frozen=True)
class Recognised:
    """How well one model knows what was to be forgotten at one client, beside samples that it never saw.

    Only classes that occur on both sides are compared; where there is none, the numbers are those of chance, and the
    accuracies 0.

    Attributes:
        forgotten: training samples at the client that were to be forgotten.
        members: of these, how many were compared.
        unseen: samples that nobody trained on, and that they were compared with.
        area: probability that the model is surer of a member than of an unseen sample of the same class, ties counting
            half, over all such pairs; 0.5 by chance.
        gap: by how much the mean loss (cross-entropy) of members is lower than that of unseen samples of the same
            class, mean over classes, each with weight mu / (m + u) for m members and u unseen samples; 0 by chance.
        p_known: how often chance alone makes the model know the members as much better, by ``area`` or by ``gap``.
        p_shunned: how often chance alone makes it know them as much worse.
        accuracy_members, accuracy_unseen: shares, in [0, 1], that the model puts into the right class.
        pairs: of a member and an unseen sample of the same class.
        area_error, gap_error: standard deviations of ``area`` and ``gap`` by chance.
        least_p: the smallest p-value that so few samples and so many draws can give.
    """

    forgotten: int
    members: int = 0
    unseen: int = 0
    area: float = 0.5
    gap: float = 0.0
    p_known: float = 1.0
    p_shunned: float = 1.0
    accuracy_members: float = 0.0
    accuracy_unseen: float = 0.0
    pairs: int = 0
    area_error: float = 0.0
    gap_error: float = 0.0
    least_p: float = 1.0

    @classmethod
    def of(cls, metrics: Mapping[str, Any]) -> Recognised:
        """From a client's reply, which may hold anything.

        Raises:
            ValueError: a number is missing or impossible.
        """
        counts = {name: int(_number(metrics, name, 0, 2**53, whole=True)) for name in _COUNTS}
        rest = {name: float(_number(metrics, name, *ends)) for name, ends in _RANGES.items()}
        found = cls(**counts, **rest)  # type: ignore[arg-type]
        some = min(found.members, found.unseen, found.pairs) > 0
        if (
            found.members > found.forgotten
            or found.pairs > found.members * found.unseen
            or (min(found.area_error, found.least_p) <= 0 if some else found != cls(found.forgotten))
        ):
            raise ValueError(f"a client's numbers contradict each other ({found}): leave it out as not audited")
        return found

    def smallest_area(self, tests: int = 1) -> float | None:
        """The smallest area that would be found at level 5 % with a power of 80 %.

        Where the confidences of a class are normal, on whatever scale, and members' lie higher by d standard deviations
        in every class, the area is Phi(d / sqrt 2), and each class's statistic of Mann and Whitney has a known
        variance, by the chances that a member is above two unseen samples, or two members above one (`_spread`).
        The test finds an area that lies above 0.5 by the level's quantile times the standard error by chance, plus the
        power's quantile times the standard error at that area; of the level the area has one half, the gap the other.
        By symmetry 1 minus it is the largest that would be found where members lie lower. Below ten samples on either
        side the normal approximation promises a little too much.

        Args:
            tests: among which this is one: each has its share of the level, as the surest has by Holm's adjustment.

        Returns:
            In (0.5, 1]; None: not even an area of 1 would be found.
        """
        if self.least_p > LEVEL / tests or not self.pairs:
            return None
        threshold = _level(tests) * self.area_error

        def lead(shift: float) -> float:
            return float(special.ndtr(shift)) - 0.5 - threshold - _POWER * self._spread(shift)

        if lead(_CERTAIN) <= 0:
            return None
        shift = float(optimize.brentq(lead, 0.0, _CERTAIN))
        return float(special.ndtr(shift))

    def smallest_gap(self, tests: int = 1) -> float | None:
        """The smallest gap, likewise: as many standard errors as both quantiles are together; None: there can be none.

        The losses' spread is taken for the same whether there is a gap or not.
        """
        if self.least_p > LEVEL / tests or not self.gap_error:
            return None
        return (_level(tests) + _POWER) * self.gap_error

    def _spread(self, shift: float) -> float:
        """Standard deviation of the area where it is Phi(shift), from `pairs` and `area_error` alone.

        Of m members and u unseen samples of a class the statistic's variance is mu (A(1 - A) + (m + u - 2)(Q - A^2)),
        with Q the chance that one sample of either side lies beyond two of the other. By chance, where A = 1/2 and
        Q = 1/3, that is mu (m + u + 1) / 12, so the sum of mu (m + u + 1) over classes is 12 (pairs * area_error)^2.
        """
        area = float(special.ndtr(shift))
        beyond = area - 2 * float(special.owens_t(shift, 3**-0.5))  # both of two normals that are correlated by 1/2
        triples = 12 * (self.pairs * self.area_error) ** 2 - 3 * self.pairs
        variance = self.pairs * area * (1 - area) + max(triples, 0.0) * max(beyond - area**2, 0.0)
        return float(np.sqrt(variance)) / self.pairs


_COUNTS = ("forgotten", "members", "unseen", "pairs")
_RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("area", "p_known", "p_shunned", "accuracy_members", "accuracy_unseen", "least_p"), (0.0, 1.0)),
    "gap": (-_LARGEST, _LARGEST),
    "area_error": (0.0, 0.5),
    "gap_error": (0.0, _LARGEST),
}


def _level(tests: int) -> float:
    """Quantile of a part's share of the level, in standard errors."""
    return float(stats.norm.isf(LEVEL / tests / _PARTS))


@dataclass(frozen=True)
class Recognition:
    """Whether the weights that were sent know what was to be forgotten better, or worse, than what they never saw.

    A program: it runs where the data are, in a view that flags the request (`Federation.marking`). The flagged training
    samples are compared with all validation samples, flagged or not, for nobody trained on these. Answers with
    metrics alone, the fields of `Recognised`: no number of a single sample, no count by class.

    Attributes:
        batch_size: samples a forward pass.
    """

    batch_size: int = 500

    def __call__(self, context: ClientContext) -> Reply:
        """See `Recognition`.

        Raises:
            ValueError: a logit is NaN: the model has diverged.
        """
        forgotten, unseen = self._said(context, "train", Forgotten()), self._said(context, "validation", None)
        seed = int(torch.randint(2**62, (), generator=context.rng))
        found = recognised(forgotten, unseen, seed)
        return Reply(None, found.forgotten, asdict(found))

    def _said(self, context: ClientContext, part: Part, of: Choose | None) -> Said:
        model = context.model.eval()
        sure, labels, correct = [np.zeros(0)], [np.zeros(0, np.int64)], [np.zeros(0, np.bool_)]
        with torch.no_grad():
            for batch in context.batches(0, self.batch_size, of=of, part=part, train=False):
                scores, own = model(batch.x).cpu(), batch.y.cpu()
                sure.append(confidence(scores, own).numpy())
                labels.append(own.numpy())
                correct.append((scores.argmax(1) == own).numpy())
        return Said(np.concatenate(sure), np.concatenate(labels), np.concatenate(correct))


def recognised(forgotten: Said, unseen: Said, seed: int = 0) -> Recognised:
    """Compare, within classes, how sure a model is of what was to be forgotten and of what it never saw.

    Had the model nothing to do with the former, each sample of a class could as well be one of the latter: so who is
    who is drawn again within each class, `DRAWS` times, an exact test without any assumption on the confidences. It
    looks at the larger of area and gap, each in its standard errors: the ranks see where the model is a little surer of
    most, the losses where unseen samples alone are badly wrong, which is how networks that generalise remember.

    Args:
        forgotten: of training samples that were to be forgotten.
        unseen: of samples that nobody trained on.
        seed: of the draws.
    """
    classes = np.intersect1d(forgotten.labels, unseen.labels)
    if not len(classes):
        return Recognised(len(forgotten.labels))
    rng = np.random.default_rng(seed)
    strata = [
        _Stratum(forgotten.confidence[forgotten.labels == label], unseen.confidence[unseen.labels == label])
        for label in classes
    ]
    seen = np.sum([stratum.leads([np.arange(stratum.members)[None]]) for stratum in strata], axis=0)
    chance = np.sum([stratum.leads(stratum.drawn(rng)) for stratum in strata], axis=0)
    spread = np.sqrt(np.sum([stratum.variances for stratum in strata], axis=0))
    ours, theirs = (np.divide(leads, spread, out=np.zeros_like(leads), where=spread > 0) for leads in (seen, chance))
    pairs, weight = sum(s.members * s.unseen for s in strata), sum(s.weight for s in strata)
    members, others = np.isin(forgotten.labels, classes), np.isin(unseen.labels, classes)
    return Recognised(
        forgotten=len(forgotten.labels),
        members=int(members.sum()),
        unseen=int(others.sum()),
        area=0.5 + float(seen[0, 0]) / pairs,
        gap=float(seen[0, 1]) / weight,
        p_known=_share(theirs.max(1) >= ours.max() - _ROUNDING),
        p_shunned=_share(theirs.min(1) <= ours.min() + _ROUNDING),
        accuracy_members=float(forgotten.correct[members].mean()),
        accuracy_unseen=float(unseen.correct[others].mean()),
        pairs=pairs,
        area_error=float(spread[0]) / pairs,
        gap_error=float(spread[1]) / weight,
        least_p=1 / min(1.0 + DRAWS, math.prod(s.arrangements for s in strata)),
    )


class _Stratum:
    """The samples of one class: members first, then unseen ones."""

    def __init__(self, ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> None:
        both = np.concatenate([ours, theirs])
        self.members, self.unseen = len(ours), len(theirs)
        values = np.stack([stats.rankdata(both), -np.logaddexp(0.0, -both)], 1)  # ranks, and losses with their sign
        self.values = values - values.mean(0)  # so that any members' sums are 0 by chance

    @property
    def weight(self) -> float:
        return self.members * self.unseen / len(self.values)

    @property
    def variances(self) -> NDArray[np.float64]:
        """Of both leads by chance; of the ranks without regard to ties, as `Recognised.smallest_area` has it."""
        of_ranks = self.members * self.unseen * (len(self.values) + 1) / 12
        return np.array([of_ranks, self.weight * self.values[:, 1].var(ddof=1)])

    @property
    def arrangements(self) -> float:
        """In how many ways the members can be chosen; no more than count."""
        return min(1.0 + DRAWS, float(special.comb(len(self.values), self.members)))

    def drawn(self, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
        """Positions of as many members, `DRAWS` times, in blocks of draws."""
        samples = np.arange(len(self.values))
        rows = max(1, _BLOCK // len(samples))
        for done in range(0, DRAWS, rows):
            tiled = np.tile(samples, (min(rows, DRAWS - done), 1))
            yield rng.permuted(tiled, axis=1)[:, : self.members]

    def leads(self, drawn: Iterable[NDArray[np.int64]]) -> NDArray[np.float64]:
        """How far members at these positions lie above chance: in wins over unseen ones, and in weighted gaps."""
        return np.concatenate([self.values[positions].sum(1) for positions in drawn])


def _share(as_good: NDArray[np.bool_]) -> float:
    return float(1 + as_good.sum()) / (1 + DRAWS)


def _number(metrics: Mapping[str, Any], name: str, least: float, largest: float, *, whole: bool = False) -> float:
    value = metrics.get(name)
    if isinstance(value, int | float) and least <= value <= largest and not (whole and value % 1):
        return value
    raise ValueError(
        f"a client's {name} must be a {'whole ' if whole else ''}number from {least:g} to {largest:g}, "
        "and is not: leave it out as not audited"
    )
