"""The audit at the client: does a model know what was to be forgotten better, or worse, than samples that it never saw?

In a running federation there is no retrained model and there are no shadows, and the server sees no sample. So each
client that still has what was to be forgotten compares it with samples of its own that nobody trained on: `Recognition`
is the program, `recognised` the comparison, and `judged` what the server makes of the answers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import optimize, special, stats

from fedunlearn.amounts import tell_p
from fedunlearn.audits.certainty import LEVEL, POWER, holm
from fedunlearn.audits.signals import confidence
from fedunlearn.federation import Choose, ClientContext, ClientId, Forgotten, Part, Reply

__all__ = ["DRAWS", "LIMITS", "Finding", "Judgement", "Recognised", "Recognition", "Said", "judged", "recognised"]

DRAWS = 9999
"""Of who of a class was a member; so no p-value is below 1 / 10,000."""

LIMITS = (
    "This audit cannot say what a retrained model would have answered, for there is none, nor what a stronger attacker "
    "would find, with models of its own or beside the old one, which every client of the federation was sent. It "
    "compares samples with others of their class, so it does not see what is still known of a class as a whole; it "
    "takes the former for samples like the latter, so it mistakes what sets them apart otherwise, such as a wrong "
    "label, for a trace; and its numbers are the clients' own word."
)
"""What stands beside every judgement."""

Status = Literal["nothing found", "traces found", "cannot tell", "not audited"]

_ROUNDING = 1e-9  # of sums of losses, in standard errors
_BLOCK = 2**20  # ranks that are shuffled at once, so that memory does not grow with the client's data
_CERTAIN = 8.0  # standard deviations, beyond which an area is 1
_LARGEST = 1e7  # no gap is as large, for `confidence` lies within 1e6
_PARTS = 2  # area and gap
_POWER = float(stats.norm.ppf(POWER))
_NAMED = 3  # clients in a sentence; `Judgement.clients` has all


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


@dataclass(frozen=True)
class Finding:
    """Of one client.

    Attributes:
        status: as of a `Judgement`.
        reason: the rest of a sentence that says at which client.
        before, after: what the client measured of the model from before the request, and of the new one.
        p_known, p_shunned: of the new model, adjusted (Holm) for all clients and both directions; None: no test.
        p_known_before: of the model from before, adjusted likewise.
        smallest_area, smallest_gap: that would have been found in so many tests; None: not even an area of 1.
    """

    status: Status
    reason: str
    before: Recognised | None = None
    after: Recognised | None = None
    p_known: float | None = None
    p_shunned: float | None = None
    p_known_before: float | None = None
    smallest_area: float | None = None
    smallest_gap: float | None = None


@dataclass(frozen=True)
class Judgement:
    """What the clients' answers come to; `dataclasses.asdict` gives what JSON can hold.

    Attributes:
        status: "traces found": at some client the new model knows what was to be forgotten better, or worse, than
            unseen samples; "cannot tell": not so, but at some client that would mean nothing, for the same test does
            not find the samples in the model that was trained on them, or has too few; "nothing found": the test finds
            them in the old model at every client that answered, and in the new one at none; "not audited": no client
            answered that still has such samples.
        sentence: what was found, with the smallest area that would have been, and who was not audited.
        limits: what no such audit can say, `LIMITS`.
        p: the smallest p-value for the new model, adjusted for all clients and both directions; None: no test.
        clients: what was found at each.
    """

    status: Status
    sentence: str
    limits: str
    p: float | None
    clients: dict[ClientId, Finding]


def judged(
    before: Mapping[ClientId, Recognised], after: Mapping[ClientId, Recognised], missing: Mapping[ClientId, str]
) -> Judgement:
    """What the answers of all clients that had something to be forgotten come to.

    Args:
        before: of the model from before the request, which was trained on the samples.
        after: of the new model. Clients without such samples count in neither.
        missing: clients that were not audited, and why, as in "data already deleted"; who had samples before and is
            neither here nor in ``after`` did not answer.
    """
    then = {client: one for client, one in before.items() if one.forgotten}
    now = {client: one for client, one in after.items() if one.forgotten}
    p_then, p_now = _adjusted(then), _adjusted(now)
    clients = {
        client: _finding(then.get(client), now[client], p_then.get(client), p_now.get(client), 2 * len(p_now))
        for client in now
    }
    for client in dict.fromkeys((*missing, *then)):
        if client not in now:
            lost = "it has none of the samples any more" if client in after else "it did not answer"
            clients[client] = Finding("not audited", missing.get(client, lost), then.get(client))
    status: Status = next(
        (one for one in _WORST_FIRST if any(found.status == one for found in clients.values())), "not audited"
    )
    return Judgement(
        status, _sentence(status, clients), LIMITS, min((min(p) for p in p_now.values()), default=None), clients
    )


_WORST_FIRST: tuple[Status, ...] = ("traces found", "cannot tell", "nothing found", "not audited")


def _adjusted(answers: Mapping[ClientId, Recognised]) -> dict[ClientId, tuple[float, float]]:
    """Holm's over all clients and both directions, `p_known` and `p_shunned`.

    A test that could come to 5 % whatever it saw is none, and must not cost the others of their level; that depends on
    counts alone, so it chooses nothing.
    """
    able = [client for client, one in answers.items() if one.least_p <= LEVEL]
    adjusted = holm([p for client in able for p in (answers[client].p_known, answers[client].p_shunned)])
    return {client: (adjusted[2 * i], adjusted[2 * i + 1]) for i, client in enumerate(able)}


def _finding(
    before: Recognised | None,
    after: Recognised,
    p_before: tuple[float, float] | None,
    p_after: tuple[float, float] | None,
    tests: int,
) -> Finding:
    area, gap = (after.smallest_area(tests), after.smallest_gap(tests)) if p_after else (None, None)
    known, shunned = p_after or (None, None)
    found = _status(before, after, p_before, p_after, blind=area is None)
    return Finding(*found, before, after, known, shunned, p_before[0] if p_before else None, area, gap)


def _status(
    before: Recognised | None,
    after: Recognised,
    p_before: tuple[float, float] | None,
    p_after: tuple[float, float] | None,
    *,
    blind: bool,
) -> tuple[Status, str]:
    """Of one client, and why."""
    if p_after and p_after[0] <= LEVEL:
        return "traces found", (
            "the model knows the samples that were to be forgotten better than unseen ones of their classes "
            f"({_measured([after])}; p {tell_p(p_after[0])})"
        )
    if p_after and p_after[1] <= LEVEL:
        return "traces found", (
            "the model knows the samples that were to be forgotten worse than unseen ones of their classes, "
            f"which tells them apart too ({_measured([after])}; p {tell_p(p_after[1])})"
        )
    if not after.members:
        return "cannot tell", "there is no unseen sample of the classes that were to be forgotten"
    if blind:
        return "cannot tell", "there are so few samples, for so many tests, that nothing could have been found"
    if before is None or p_before is None:
        return "cannot tell", "nothing is known of the model from before"
    if p_before[0] > LEVEL:
        return "cannot tell", (
            "the same test does not find the samples in the model from before, which was trained on them "
            f"({_measured([before])}; p {tell_p(p_before[0])}), so that to find nothing in the new one means little"
        )
    return "nothing found", "the same test finds the samples in the model from before"


def _sentence(status: Status, clients: Mapping[ClientId, Finding]) -> str:
    """Beginning with the status, and at which clients and why; then the power, and who was not audited."""
    missing = _by_reason(clients, "not audited")
    gone = "; ".join(f"{why}, at {_clients(names)}" for why, names in missing.items())
    if status == "not audited":
        only = next(iter(missing), "no client had such samples")
        return f"Not audited: {gone if len(missing) > 1 else only}."
    said = [f"{status.capitalize()}: {_nothing(clients) if status == 'nothing found' else _told(clients, status)}."]
    areas = [found.smallest_area for found in clients.values() if found.smallest_area is not None]
    gaps = [found.smallest_gap for found in clients.values() if found.smallest_gap is not None]
    gap = f", or a gap of {max(gaps):.3f} either way" if gaps else ""
    if status != "traces found" and areas:
        said.append(
            f"With a probability of {POWER:.0%} the test would have found an area of {max(areas):.3f} or more, or "
            f"{1 - max(areas):.3f} or less (by chance 0.5){gap}; less may have gone unnoticed."
        )
    if gone:
        said.append(f"Not audited: {gone}.")
    return " ".join(said)


def _told(clients: Mapping[ClientId, Finding], status: Status) -> str:
    reasons = list(_by_reason(clients, status).items())
    told = [f"at {_clients(names)} {why}" for why, names in reasons[:_NAMED]]
    if rest := sum(len(names) for _, names in reasons[_NAMED:]):
        told.append(f"and likewise at {rest} more")
    return "; ".join(told)


def _nothing(clients: Mapping[ClientId, Finding]) -> str:
    news = [found.after for found in clients.values() if found.after]
    olds = [found.before for found in clients.values() if found.after and found.before]
    members, unseen = sum(new.members for new in news), sum(new.unseen for new in news)
    return (
        f"the model knows {members} samples that were to be forgotten neither better nor worse than {unseen} unseen "
        f"ones of their classes ({_measured(news)}), and the same test finds them in the model from before "
        f"({_measured(olds)})"
    )


def _by_reason(clients: Mapping[ClientId, Finding], status: Status) -> dict[str, list[ClientId]]:
    found: dict[str, list[ClientId]] = {}
    for client, finding in clients.items():
        if finding.status == status:
            found.setdefault(finding.reason, []).append(client)
    return found


def _clients(names: list[ClientId]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"client{'s' if len(names) > 1 else ''} {', '.join(names[:_NAMED])}{more}"


def _measured(answers: list[Recognised]) -> str:
    area, gap = (_range([getattr(one, name) for one in answers]) for name in ("area", "gap"))
    return f"area {area}, gap in the loss {gap}"


def _range(values: list[float]) -> str:
    low, high = f"{min(values):.3f}", f"{max(values):.3f}"
    return low if low == high else f"{low} to {high}"


def _number(metrics: Mapping[str, Any], name: str, least: float, largest: float, *, whole: bool = False) -> float:
    value = metrics.get(name)
    if isinstance(value, int | float) and least <= value <= largest and not (whole and value % 1):
        return value
    raise ValueError(
        f"a client's {name} must be a {'whole ' if whole else ''}number from {least:g} to {largest:g}, "
        "and is not: leave it out as not audited"
    )
