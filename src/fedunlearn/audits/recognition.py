"""The audit at the client: does a model know what was to be forgotten better, or worse, than samples that it never saw?

In a running federation there is no retrained model and there are no shadows, and the server sees no sample. So each
client that still has what was to be forgotten compares it with samples of its own that nobody trained on: `Recognition`
is the program, `compared` the comparison, which stays at the client, and `Recognised` the answer, of which the server
makes a judgement (`fedunlearn.audits.judgement`). The answer is of many samples or of none, and its numbers are coarse,
so that it tells of no single one.
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

__all__ = ["DRAWS", "FEWEST", "Comparison", "Recognised", "Recognition", "Said", "compared"]

DRAWS = 9999
"""Of who of a class was a member; so no p-value is below 1 / 10,000."""

FEWEST = 20
"""Samples that must have been forgotten, and as many against as many compared, for anything to be measured: of fewer an
accuracy is next to a sample's own, and the test would find the plainest of memories only."""

_STEPS = (0.01, 0.02, 0.05, 0.1, 0.2)  # to which numbers are rounded
_ALIKE = 3  # samples that a step is worth
_CAP = 4.6  # of a loss: below 1 % no chance counts as less, so that no single sample makes the gap
_ROUNDING = 1e-9  # of sums of losses, in standard errors
_BLOCK = 2**20  # ranks that are shuffled at once, so that memory does not grow with the client's data
_CERTAIN = 8.0  # standard deviations, beyond which an area is 1
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
    """How well one model knows what was to be forgotten at one client, beside samples that it never saw: what is sent.

    Shares and the gap are multiples of a step, 0.01 to 0.2, that is worth about three of the samples compared; p-values
    are rounded up to two figures, what would be found up to two decimals. Where there are too few samples to tell of
    them without telling of single ones, only ``forgotten`` says anything.

    Attributes:
        forgotten: training samples at the client that were to be forgotten.
        compared: share of these that could be, for there are unseen samples of their classes; 0: there were too few.
        area: probability that the model is surer of such a sample than of an unseen one of the same class, ties
            counting half, mean over classes, each with weight mu / (m + u + 1) for m samples and u unseen ones; 0.5 by
            chance.
        gap: by how much their mean loss (cross-entropy, at most 4.6 a sample) is lower than that of unseen samples of
            the same class, mean over classes, each with weight mu / (m + u); 0 by chance.
        p_known: how often chance alone makes the model know the samples as much better, by ``area`` or by ``gap``.
        p_shunned: how often chance alone makes it know them as much worse.
        accuracy_members, accuracy_unseen: share, in [0, 1], of the samples compared and of unseen ones that the model
            puts into the right class, mean over classes with the weights of ``gap``.
        smallest_area: that would be found (`Comparison.smallest_area`), in (0.5, 1]; None: not even an area of 1.
        smallest_gap: likewise, over 0; None: there can be none.
    """

    forgotten: int
    compared: float = 0.0
    area: float = 0.5
    gap: float = 0.0
    p_known: float = 1.0
    p_shunned: float = 1.0
    accuracy_members: float = 0.0
    accuracy_unseen: float = 0.0
    smallest_area: float | None = None
    smallest_gap: float | None = None

    @classmethod
    def of(cls, metrics: Mapping[str, Any]) -> Recognised:
        """From a client's reply, which may hold anything.

        Raises:
            ValueError: a number is missing or impossible.
        """
        forgotten = int(_number(metrics, "forgotten", 0, 2**53, whole=True))
        rest = {name: float(_number(metrics, name, *ends)) for name, ends in _RANGES.items()}
        rest |= {name: float(_number(metrics, name, *ends)) for name, ends in _POWERS.items() if name in metrics}
        found = cls(forgotten, **rest)
        if found != cls(forgotten) and not (found.compared and forgotten >= FEWEST):
            raise ValueError(f"a client's numbers contradict each other ({found}): leave it out as not audited")
        return found

    @property
    def metrics(self) -> dict[str, float]:
        """By name, without those that are None."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Comparison:
    """What a client finds, in full; it stays there. Only classes that occur on both sides are compared.

    Attributes:
        forgotten, area, gap, p_known, p_shunned, accuracy_members, accuracy_unseen: as in `Recognised`, unrounded.
        counts: of each class, how many samples that were to be forgotten were compared with how many unseen ones.
        gap_error: standard deviation of ``gap`` by chance.
    """

    forgotten: int
    counts: tuple[tuple[int, int], ...] = ()
    area: float = 0.5
    gap: float = 0.0
    p_known: float = 1.0
    p_shunned: float = 1.0
    accuracy_members: float = 0.0
    accuracy_unseen: float = 0.0
    gap_error: float = 0.0

    @property
    def weight(self) -> float:
        """Of all classes; no sample that was to be forgotten changes it by more than 1, whatever its class."""
        return sum(m * u / (m + u) for m, u in self.counts)

    @property
    def area_error(self) -> float:
        """Standard deviation of the area by chance, without regard to ties."""
        return self._spread(0.0)

    @property
    def least_p(self) -> float:
        """The smallest p-value that so few samples and so many draws can give."""
        ways = (min(1.0 + DRAWS, float(special.comb(m + u, m))) for m, u in self.counts)
        return 1 / min(1.0 + DRAWS, math.prod(ways))

    def told(self, tests: int = 1) -> Recognised:
        """What of it may be told to others: nothing of few samples, and of many in steps.

        Args:
            tests: as for `smallest_area`.
        """
        if self.forgotten < FEWEST or self.weight < FEWEST / 2:  # 20 against 20 have a weight of 10
            return Recognised(self.forgotten)
        step = next((one for one in _STEPS if one >= _ALIKE / 2 / self.weight), _STEPS[-1])
        area, gap = self.smallest_area(tests), self.smallest_gap(tests)
        return Recognised(
            self.forgotten,
            compared=max(step, _rounded(sum(m for m, _ in self.counts) / self.forgotten, step)),
            area=_rounded(self.area, step),
            gap=_rounded(self.gap, step),
            p_known=_two_figures(self.p_known),
            p_shunned=_two_figures(self.p_shunned),
            accuracy_members=_rounded(self.accuracy_members, step),
            accuracy_unseen=_rounded(self.accuracy_unseen, step),
            smallest_area=None if area is None else _up(area, 2),
            smallest_gap=None if gap is None else _up(gap, 2),
        )

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
        if self.least_p > LEVEL / tests:
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
        """Standard deviation of the area where it is Phi(shift).

        Of m members and u unseen samples of a class the statistic's variance is mu (A(1 - A) + (m + u - 2)(Q - A^2)),
        with Q the chance that one sample of either side lies beyond two of the other. By chance, where A = 1/2 and
        Q = 1/3, that is mu (m + u + 1) / 12.
        """
        area = float(special.ndtr(shift))
        beyond = area - 2 * float(special.owens_t(shift, 3**-0.5))  # both of two normals that are correlated by 1/2
        once, twice = area * (1 - area), max(beyond - area**2, 0.0)
        variance = sum(m * u * (once + (m + u - 2) * twice) / (m + u + 1) ** 2 for m, u in self.counts)
        return math.sqrt(variance) / sum(m * u / (m + u + 1) for m, u in self.counts)


_RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("compared", "area", "p_known", "p_shunned", "accuracy_members", "accuracy_unseen"), (0.0, 1.0)),
    "gap": (-_CAP, _CAP),
}
_POWERS = {"smallest_area": (0.5, 1.0), "smallest_gap": (0.0, 100.0)}


def _level(tests: int) -> float:
    """Quantile of a part's share of the level, in standard errors."""
    return float(stats.norm.isf(LEVEL / tests / _PARTS))


@dataclass(frozen=True)
class Recognition:
    """Whether the weights that were sent know what was to be forgotten better, or worse, than what they never saw.

    A program: it runs where the data are, in a view that flags the request (`Federation.marking`). The flagged training
    samples are compared with all validation samples, flagged or not, for nobody trained on these. Answers with
    metrics alone, the fields of `Recognised`: no number of a single sample or of few, no count by class.

    Attributes:
        batch_size: samples a forward pass.
        tests: that will be made of the answers together: two for each client.
    """

    batch_size: int = 500
    tests: int = 2

    def __call__(self, context: ClientContext) -> Reply:
        """See `Recognition`.

        Raises:
            ValueError: a logit is NaN: the model has diverged.
        """
        forgotten, unseen = self._said(context, "train", Forgotten()), self._said(context, "validation", None)
        seed = int(torch.randint(2**62, (), generator=context.rng))
        found = compared(forgotten, unseen, seed).told(self.tests)
        return Reply(None, found.forgotten, found.metrics)

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


def compared(forgotten: Said, unseen: Said, seed: int = 0) -> Comparison:
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
        return Comparison(len(forgotten.labels))
    rng = np.random.default_rng(seed)
    strata = [
        _Stratum(forgotten.confidence[forgotten.labels == label], unseen.confidence[unseen.labels == label])
        for label in classes
    ]
    seen = np.sum([stratum.leads([np.arange(stratum.members)[None]]) for stratum in strata], axis=0)
    chance = np.sum([stratum.leads(stratum.drawn(rng)) for stratum in strata], axis=0)
    spread = np.sqrt(np.sum([stratum.variances for stratum in strata], axis=0))
    ours, theirs = (np.divide(leads, spread, out=np.zeros_like(leads), where=spread > 0) for leads in (seen, chance))
    weights = np.array([s.weights for s in strata])
    of_ranks, of_losses = weights.sum(0)
    right = [[one.correct[one.labels == label].mean() for label in classes] for one in (forgotten, unseen)]
    accuracies = np.average(right, axis=1, weights=weights[:, 1])
    return Comparison(
        forgotten=len(forgotten.labels),
        counts=tuple((s.members, s.unseen) for s in strata),
        area=0.5 + float(seen[0, 0] / of_ranks),
        gap=float(seen[0, 1] / of_losses),
        p_known=_share(theirs.max(1) >= ours.max() - _ROUNDING),
        p_shunned=_share(theirs.min(1) <= ours.min() + _ROUNDING),
        accuracy_members=float(accuracies[0]),
        accuracy_unseen=float(accuracies[1]),
        gap_error=float(spread[1] / of_losses),
    )


class _Stratum:
    """The samples of one class: members first, then unseen ones."""

    def __init__(self, ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> None:
        both = np.concatenate([ours, theirs])
        self.members, self.unseen = len(ours), len(theirs)
        # Of the ranks each class has the weight of van Elteren's test, so that no sample has much of the whole.
        ranks = stats.rankdata(both) / (len(both) + 1)
        values = np.stack([ranks, -_loss(both)], 1)  # losses with their sign
        self.values = values - values.mean(0)  # so that any members' sums are 0 by chance

    @property
    def weights(self) -> tuple[float, float]:
        """In the area and in the gap."""
        pairs, samples = self.members * self.unseen, len(self.values)
        return pairs / (samples + 1), pairs / samples

    @property
    def variances(self) -> NDArray[np.float64]:
        """Of both leads by chance; of the ranks without regard to ties, as `Comparison.area_error` has it."""
        of_ranks, of_losses = self.weights
        return np.array([of_ranks / 12, of_losses * self.values[:, 1].var(ddof=1)])

    def drawn(self, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
        """Positions of as many members, `DRAWS` times, in blocks of draws."""
        samples = np.arange(len(self.values))
        rows = max(1, _BLOCK // len(samples))
        for done in range(0, DRAWS, rows):
            tiled = np.tile(samples, (min(rows, DRAWS - done), 1))
            yield rng.permuted(tiled, axis=1)[:, : self.members]

    def leads(self, drawn: Iterable[NDArray[np.int64]]) -> NDArray[np.float64]:
        """How far members at these positions lie above chance: in weighted wins, and in weighted gaps."""
        return np.concatenate([self.values[positions].sum(1) for positions in drawn])


def _loss(confidence: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.minimum(np.logaddexp(0.0, -confidence), _CAP)


def _rounded(value: float, step: float) -> float:
    return round(round(value / step) * step, 2) + 0.0  # no -0.0


def _up(value: float, decimals: int) -> float:
    """Rounded up; what is as good as round stays so."""
    unit = 10.0**decimals
    return round(math.ceil(round(value * unit, 6)) / unit, decimals)


def _two_figures(p: float) -> float:
    """Rounded up, for what is called significant must be so."""
    return _up(p, 1 - math.floor(math.log10(p)))


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
