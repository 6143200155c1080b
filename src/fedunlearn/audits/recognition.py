"""The audit at the client: does a model know what was to be forgotten better, or worse, than samples that it never saw?

In a running federation there is no retrained model and there are no shadows, and the server sees no sample. So each
client that still has what was to be forgotten compares it with samples of its own that nobody trained on: `Recognition`
is the program, `recognised` the comparison, and `judged` what the server makes of the answers.
"""

from __future__ import annotations

from collections.abc import Mapping
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

_BLOCK = 2**20  # ranks that are shuffled at once, so that memory does not grow with the client's data
_CERTAIN = 8.0  # standard deviations, beyond which an area is 1
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
        p_known: how often chance alone gives an area as large.
        p_shunned: how often chance alone gives an area as small.
        accuracy_members, accuracy_unseen: shares, in [0, 1], that the model puts into the right class.
        pairs: of a member and an unseen sample of the same class.
        error: standard deviation of ``area`` by chance, in [0, 0.5].
        least_p: the smallest p-value that so few samples and so many draws can give.
    """

    forgotten: int
    members: int = 0
    unseen: int = 0
    area: float = 0.5
    p_known: float = 1.0
    p_shunned: float = 1.0
    accuracy_members: float = 0.0
    accuracy_unseen: float = 0.0
    pairs: int = 0
    error: float = 0.0
    least_p: float = 1.0

    @classmethod
    def of(cls, metrics: Mapping[str, Any]) -> Recognised:
        """From a client's reply, which may hold anything.

        Raises:
            ValueError: a number is missing or impossible.
        """
        counts = {name: int(_number(metrics, name, 2**53, whole=True)) for name in _COUNTS}
        shares = {name: float(_number(metrics, name, largest)) for name, largest in _SHARES.items()}
        found = cls(**counts, **shares)  # type: ignore[arg-type]
        some = min(found.members, found.unseen, found.pairs) > 0
        if (
            found.members > found.forgotten
            or found.pairs > found.members * found.unseen
            or (min(found.error, found.least_p) <= 0 if some else found != cls(found.forgotten))
        ):
            raise ValueError(f"a client's numbers contradict each other ({found}): leave it out as not audited")
        return found

    def smallest_area(self, tests: int = 1) -> float | None:
        """The smallest area that would be found at level 5 % with a power of 80 %.

        Where the confidences of a class are normal, on whatever scale, and members' lie higher by d standard deviations
        in every class, the area is Phi(d / sqrt 2), and each class's statistic of Mann and Whitney has a known
        variance, by the chances that a member is above two unseen samples, or two members above one (`_spread`).
        The test finds an area that lies above 0.5 by the level's quantile times the standard error by chance, plus the
        power's quantile times the standard error at that area. By symmetry 1 minus it is the largest that would be
        found where members lie lower.

        Args:
            tests: among which this is one: each has its share of the level, as the surest has by Holm's adjustment.

        Returns:
            In (0.5, 1]; None: not even an area of 1 would be found.
        """
        if self.least_p > LEVEL / tests or not self.pairs:
            return None
        threshold = float(stats.norm.isf(LEVEL / tests)) * self.error

        def lead(shift: float) -> float:
            return float(special.ndtr(shift)) - 0.5 - threshold - float(stats.norm.ppf(POWER)) * self._spread(shift)

        if lead(_CERTAIN) <= 0:
            return None
        shift = float(optimize.brentq(lead, 0.0, _CERTAIN))
        return float(special.ndtr(shift))

    def _spread(self, shift: float) -> float:
        """Standard deviation of the area where it is Phi(shift), from `pairs` and `error` alone.

        Of m members and u unseen samples of a class the statistic's variance is mu (A(1 - A) + (m + u - 2)(Q - A^2)),
        with Q the chance that one sample of either side lies beyond two of the other. By chance, where A = 1/2 and
        Q = 1/3, that is mu (m + u + 1) / 12, so the sum of mu (m + u + 1) over classes is 12 (pairs * error)^2.
        """
        area = float(special.ndtr(shift))
        beyond = area - 2 * float(special.owens_t(shift, 3**-0.5))  # both of two normals that are correlated by 1/2
        triples = 12 * (self.pairs * self.error) ** 2 - 3 * self.pairs
        variance = self.pairs * area * (1 - area) + max(triples, 0.0) * max(beyond - area**2, 0.0)
        return float(np.sqrt(variance)) / self.pairs


_COUNTS = ("forgotten", "members", "unseen", "pairs")
_SHARES = {"area": 1.0, "p_known": 1.0, "p_shunned": 1.0, "accuracy_members": 1.0, "accuracy_unseen": 1.0,
           "error": 0.5, "least_p": 1.0}  # fmt: skip


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
    who is drawn again within each class, `DRAWS` times, an exact test without any assumption on the confidences.

    Args:
        forgotten: of training samples that were to be forgotten.
        unseen: of samples that nobody trained on.
        seed: of the draws.
    """
    classes = np.intersect1d(forgotten.labels, unseen.labels)
    if not len(classes):
        return Recognised(len(forgotten.labels))
    rng = np.random.default_rng(seed)
    pairs, wins, variance, arrangements = 0, 0.0, 0.0, 1.0
    chance = np.zeros(DRAWS)
    for label in classes:
        ours = forgotten.confidence[forgotten.labels == label]
        theirs = unseen.confidence[unseen.labels == label]
        m, u = len(ours), len(theirs)
        # Of ranks less their least sum: counts of wins, whole or half, which floats add without rounding.
        ranks, least = stats.rankdata(np.concatenate([ours, theirs])), m * (m + 1) / 2
        wins += float(ranks[:m].sum()) - least
        chance += _drawn(ranks, m, rng) - least
        pairs += m * u
        variance += m * u * (m + u + 1) / 12
        arrangements = min(arrangements * float(special.comb(m + u, m)), 1.0 + DRAWS)
    members, others = np.isin(forgotten.labels, classes), np.isin(unseen.labels, classes)
    return Recognised(
        forgotten=len(forgotten.labels),
        members=int(members.sum()),
        unseen=int(others.sum()),
        area=wins / pairs,
        p_known=float(1 + (chance >= wins).sum()) / (1 + DRAWS),
        p_shunned=float(1 + (chance <= wins).sum()) / (1 + DRAWS),
        accuracy_members=float(forgotten.correct[members].mean()),
        accuracy_unseen=float(unseen.correct[others].mean()),
        pairs=pairs,
        error=float(np.sqrt(variance)) / pairs,
        least_p=1 / arrangements,
    )


def _drawn(ranks: NDArray[np.float64], members: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Sums of the ranks of as many members, drawn `DRAWS` times."""
    rows = max(1, _BLOCK // len(ranks))
    sums = [
        rng.permuted(np.tile(ranks, (min(rows, DRAWS - done), 1)), axis=1)[:, :members].sum(1)
        for done in range(0, DRAWS, rows)
    ]
    return np.concatenate(sums)


@dataclass(frozen=True)
class Finding:
    """Of one client.

    Attributes:
        status: as of a `Judgement`.
        reason: the rest of a sentence that says at which client.
        before, after: what the client measured of the model from before the request, and of the new one.
        p_known, p_shunned: of the new model, adjusted (Holm) for all clients and both directions; None: no test.
        p_known_before: of the model from before, adjusted likewise.
        smallest_area: that would have been found in so many tests; None: not even 1.
    """

    status: Status
    reason: str
    before: Recognised | None = None
    after: Recognised | None = None
    p_known: float | None = None
    p_shunned: float | None = None
    p_known_before: float | None = None
    smallest_area: float | None = None


@dataclass(frozen=True)
class Judgement:
    """What the clients' answers come to; `dataclasses.asdict` gives what JSON can hold.

    Attributes:
        status: "traces found": at some client the new model is surer, or less sure, of what was to be forgotten than of
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
    smallest = after.smallest_area(tests) if p_after else None
    known, shunned = p_after or (None, None)
    found = _status(before, after, p_before, p_after, smallest)
    return Finding(*found, before, after, known, shunned, p_before[0] if p_before else None, smallest)


def _status(
    before: Recognised | None,
    after: Recognised,
    p_before: tuple[float, float] | None,
    p_after: tuple[float, float] | None,
    smallest: float | None,
) -> tuple[Status, str]:
    """Of one client, and why."""
    if p_after and p_after[0] <= LEVEL:
        return "traces found", (
            "the model is surer of the samples that were to be forgotten than of unseen ones of their classes "
            f"(area {after.area:.3f}, by chance 0.5; p {tell_p(p_after[0])})"
        )
    if p_after and p_after[1] <= LEVEL:
        return "traces found", (
            "the model is less sure of the samples that were to be forgotten than of unseen ones of their classes, "
            f"which tells them apart too (area {after.area:.3f}, by chance 0.5; p {tell_p(p_after[1])})"
        )
    if not after.members:
        return "cannot tell", "there is no unseen sample of the classes that were to be forgotten"
    if smallest is None:
        return "cannot tell", "there are so few samples, for so many tests, that nothing could have been found"
    if before is None or p_before is None:
        return "cannot tell", "nothing is known of the model from before"
    if p_before[0] > LEVEL:
        return "cannot tell", (
            "the same test does not find the samples in the model from before, which was trained on them "
            f"(area {before.area:.3f}, p {tell_p(p_before[0])}), so that to find nothing in the new one means little"
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
    if status != "traces found" and areas:
        said.append(
            f"With a probability of {POWER:.0%} the test would have found an area of {max(areas):.3f} or more, or "
            f"{1 - max(areas):.3f} or less (by chance 0.5); what lies between may have gone unnoticed."
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
    return (
        f"the model is neither surer nor less sure of {sum(new.members for new in news)} samples that were to be "
        f"forgotten than of {sum(new.unseen for new in news)} unseen ones of their classes (area {_range(news)}), and "
        f"the same test finds them in the model from before ({_range(olds)})"
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


def _range(answers: list[Recognised]) -> str:
    low, high = (f"{end(one.area for one in answers):.3f}" for end in (min, max))
    return low if low == high else f"{low} to {high}"


def _number(metrics: Mapping[str, Any], name: str, largest: float, *, whole: bool = False) -> float:
    value = metrics.get(name)
    if isinstance(value, int | float) and 0 <= value <= largest and not (whole and value % 1):
        return value
    raise ValueError(
        f"a client's {name} must be a {'whole ' if whole else ''}number from 0 to {largest:g}, "
        "and is not: leave it out as not audited"
    )
