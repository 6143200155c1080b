"""What the server makes of the answers of an audit at the clients (`fedunlearn.audits.recognition`): a judgement of all
clients', with what such an audit cannot say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from fedunlearn.amounts import tell_p
from fedunlearn.audits.certainty import LEVEL, POWER, holm
from fedunlearn.audits.recognition import Recognised
from fedunlearn.federation import ClientId

__all__ = ["LIMITS", "Finding", "Judgement", "judged"]

LIMITS = (
    "This audit cannot say what a retrained model would have answered, for there is none, nor what a stronger attacker "
    "would find, with models of its own or beside the old one, which every client of the federation was sent. It "
    "compares samples with others of their class, so it does not see what is still known of a class as a whole; it "
    "takes the former for samples like the latter, so it mistakes what sets them apart otherwise, such as a wrong "
    "label, for a trace; and its numbers are the clients' own word."
)
"""What stands beside every judgement."""

Status = Literal["nothing found", "traces found", "cannot tell", "not audited"]

_NAMED = 3  # clients in a sentence; `Judgement.clients` has all


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
