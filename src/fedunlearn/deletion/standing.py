"""Where everything stands: the register's events, folded. The server goes on from it, people read it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from fedunlearn.deletion.events import (
    Acknowledged,
    Audited,
    Began,
    Done,
    Enrolled,
    Event,
    EventProblem,
    Fault,
    Filed,
    Instead,
    Opened,
    Recovered,
    Refused,
    Rotated,
    RoundDone,
    Started,
    Waited,
)

__all__ = ["Costs", "Entry", "Standing", "State", "Unlearning", "fold", "standing"]

State = Literal["filed", "acknowledged", "unlearning", "recovering", "verified", "done", "refused"]

_RANK = {state: rank for rank, state in enumerate(get_args(State))}


@dataclass
class Entry:
    """A request.

    Attributes:
        request: its id.
        client: whom it is about; None: a class, whoever holds it.
        scope, reason, filed, data: as in `fedunlearn.deletion.statement.Statement`; empty where it was refused unread.
        key, signature: public key and signature of whoever filed it.
        state: filed (entered), acknowledged (and its filer told), unlearning, recovering, verified (audited, or found
            that nothing can be audited), done (a receipt was issued), refused.
        times: when it came into each state, as the server's clock said.
        unlearning: number of the one that answers it, from 0.
        why: it was refused.
        receipt: in full.
    """

    request: str
    client: str | None
    scope: str = ""
    reason: str = ""
    filed: str = ""
    data: str = "here"
    key: str = ""
    signature: str = ""
    state: State = "filed"
    times: dict[str, str] = field(default_factory=dict)
    unlearning: int | None = None
    why: str = ""
    receipt: dict[str, Any] | None = None

    def into(self, state: State, at: str) -> None:
        """Note that it came into a state; it never goes back, and nothing comes after done and refused."""
        if not self.settled and _RANK[state] > _RANK[self.state]:
            self.state = state
        self.times.setdefault(state, at)  # its filer may be told only when its unlearning has begun

    @property
    def settled(self) -> bool:
        """Whether nothing more becomes of it."""
        return self.state in ("done", "refused")


@dataclass(frozen=True)
class Costs:
    """Of several rounds together; each as in `fedunlearn.deletion.events.RoundDone`."""

    bytes_down: int
    bytes_up: int
    forward: int
    backward: int
    seconds: float


@dataclass
class Unlearning:
    """One unlearning, of one request or several.

    Attributes:
        began: with what; ``at`` when.
        rounds: its own and recovery's, in order, each with the time when it was over.
        recovered: why recovery ended; None: it has not.
        judgements: of the audit, by request id; None: there was none yet.
        told: its rounds, as its receipts tell them.
        open: ids of requests that have no receipt yet and were not refused.
        done: whether every request has its receipt, or was refused after all.
    """

    began: Began
    at: str
    rounds: list[tuple[str, RoundDone]] = field(default_factory=list)
    recovered: Recovered | None = None
    judgements: dict[str, dict[str, Any]] | None = None
    told: list[Any] = field(default_factory=list)
    open: set[str] = field(default_factory=set)
    done: bool = False

    @property
    def own(self) -> list[RoundDone]:
        """The method's own rounds, the negation being the first."""
        return [done for _, done in self.rounds if done.phase == "unlearn"]

    @property
    def recovery(self) -> list[RoundDone]:
        """The rounds of its recovery."""
        return [done for _, done in self.rounds if done.phase == "recover"]

    @property
    def negations(self) -> list[list[str]]:
        """The model's sign history after the method's own rounds: recovery hands it on as it is."""
        return self.own[-1].negations if self.own else self.began.negations

    @property
    def negated(self) -> list[list[str]]:
        """What its own rounds added to that history; a new model has none of the old one's."""
        before, after = self.began.negations, self.negations
        return after[len(before) :] if after[: len(before)] == before else after

    @property
    def costs(self) -> Costs:
        """Of all its rounds."""
        rounds = [done for _, done in self.rounds]
        return Costs(
            sum(done.bytes_down for done in rounds),
            sum(done.bytes_up for done in rounds),
            sum(done.forward for done in rounds),
            sum(done.backward for done in rounds),
            sum(done.seconds for done in rounds),
        )


@dataclass
class Standing:
    """All of it.

    Attributes:
        opened: whose register it is; None: it is empty.
        clients: the public key of each client on the list; empty in a simulation.
        holders: of each key that has ever been on it the client: a client can change its key, a key never its client.
        enrolled: all clients that have ever been on the list.
        requests: by id, in the order in which they came.
        concerning: the same, by the client whom they are about; None: a class, whoever holds it.
        refused: those that came to nothing, also ones without an id.
        refusals: the same, by the client who filed them; None: the operator.
        turned_down: the last refusal of each id.
        rounds: all, in order, each with the time when it was over.
        unlearnings: in order.
        started, faults, waits, rotations: in order, with times.
    """

    opened: Opened | None = None
    clients: dict[str, str] = field(default_factory=dict)
    holders: dict[str, str] = field(default_factory=dict)
    enrolled: set[str] = field(default_factory=set)
    requests: dict[str, Entry] = field(default_factory=dict)
    concerning: dict[str | None, list[Entry]] = field(default_factory=dict)
    refused: list[tuple[str, Refused]] = field(default_factory=list)
    refusals: dict[str | None, list[Refused]] = field(default_factory=dict)
    turned_down: dict[str, Refused] = field(default_factory=dict)
    rounds: list[tuple[str, RoundDone]] = field(default_factory=list)
    unlearnings: list[Unlearning] = field(default_factory=list)
    started: list[tuple[str, Started]] = field(default_factory=list)
    faults: list[tuple[str, Fault]] = field(default_factory=list)
    waits: list[tuple[str, Waited]] = field(default_factory=list)
    rotations: list[tuple[str, Rotated]] = field(default_factory=list)

    @property
    def waiting(self) -> list[Entry]:
        """Requests that no unlearning has begun to answer."""
        return [entry for entry in self.requests.values() if entry.state in ("filed", "acknowledged")]

    @property
    def current(self) -> Unlearning | None:
        """The unlearning that is under way."""
        return next((one for one in self.unlearnings if not one.done), None)

    @property
    def trained(self) -> int:
        """Training rounds that are over."""
        return sum(done.phase == "train" for _, done in self.rounds)

    @property
    def last(self) -> RoundDone | None:
        """The round whose model is the newest."""
        return self.rounds[-1][1] if self.rounds else None


def standing(events: Iterable[tuple[str, Event]]) -> Standing:
    """Fold events, each with its time, in the register's order."""
    now = Standing()
    for at, event in events:
        fold(now, at, event)
    return now


def fold(now: Standing, at: str, event: Event) -> None:
    """Add one event, the next in order, to where everything stands.

    Raises:
        LookupError: it speaks of a request that nothing was said of before; ``now`` may be spoiled.
        EventProblem: likewise of an unlearning, or it files or begins what was there already.
    """
    match event:
        case Opened():
            now.opened = event
            _enrol(now, event.clients, ())
        case Enrolled():
            if not now.holders:
                raise EventProblem("the register of a simulation has no list of clients")
            _enrol(now, event.clients, event.left)
        case Started():
            now.started.append((at, event))
        case Filed():
            if event.request in now.requests:
                raise EventProblem(f"request {event.request} is filed twice")
            said = event.signed["statement"]
            entry = Entry(event.request, event.client, key=event.signed["key"], signature=event.signed["signature"])
            for name in ("scope", "reason", "filed", "data"):
                setattr(entry, name, said[name])
            entry.into("filed", at)
            now.requests[event.request] = entry
            now.concerning.setdefault(event.client, []).append(entry)
        case Refused():
            now.refused.append((at, event))
            now.refusals.setdefault(event.client, []).append(event)
            now.turned_down[event.request] = event
            entered = now.requests.get(event.request)
            if entered is not None and not entered.settled:
                entered.why = event.why
                _settle(now, entered, "refused", at)
        case Acknowledged():
            now.requests[event.request].into("acknowledged", at)
        case Began():
            if event.unlearning != len(now.unlearnings):
                raise EventProblem(f"unlearning {event.unlearning} begins where {len(now.unlearnings)} is the next")
            for id in event.requests:
                if now.requests[id].unlearning is not None:
                    raise EventProblem(f"request {id} is answered by an unlearning already")
            unsettled = {id for id in event.requests if not now.requests[id].settled}
            now.unlearnings.append(Unlearning(event, at, open=unsettled))
            _each(now, event.unlearning, "unlearning", at)
        case Instead():
            one = _unlearning(now, event.unlearning)
            one.began, one.rounds = replace(one.began, method=event.method), []
        case RoundDone():
            now.rounds.append((at, event))
            if event.unlearning is not None:
                _unlearning(now, event.unlearning).rounds.append((at, event))
                if event.phase == "recover":
                    _each(now, event.unlearning, "recovering", at)
        case Recovered():
            _unlearning(now, event.unlearning).recovered = event
        case Audited():
            _unlearning(now, event.unlearning).judgements = {id: dict(one) for id, one in event.judgements.items()}
            _each(now, event.unlearning, "verified", at)
        case Done():
            answered = now.requests[event.request]
            if not answered.settled:
                answered.receipt = _sharing(now, answered, event.receipt)
                _settle(now, answered, "done", at)
        case Fault():
            now.faults.append((at, event))
        case Waited():
            now.waits.append((at, event))
        case Rotated():
            now.rotations.append((at, event))


def _enrol(now: Standing, clients: Mapping[str, str], left: Sequence[str]) -> None:
    for client, key in clients.items():
        if (known := now.holders.get(key, client)) != client:
            # What was forgotten is known by the client's name: under another it would be trained on again.
            raise EventProblem(f"the key of {client} has been {known}'s: leave it that name on the list")
    now.clients |= clients
    now.holders |= {key: client for client, key in clients.items()}
    now.enrolled |= clients.keys()
    for client in left:
        del now.clients[client]


def _unlearning(now: Standing, number: int) -> Unlearning:
    if not 0 <= number < len(now.unlearnings):  # -1 would be the last one
        raise EventProblem(f"unlearning {number} has not begun")
    return now.unlearnings[number]


def _each(now: Standing, unlearning: int, state: State, at: str) -> None:
    for id in now.unlearnings[unlearning].began.requests:
        now.requests[id].unlearning = unlearning
        if not now.requests[id].settled:
            now.requests[id].into(state, at)


def _sharing(now: Standing, entry: Entry, receipt: Mapping[str, Any]) -> dict[str, Any]:
    """A receipt whose rounds are those of the others of its unlearning: they are nearly all of it, and ten thousand
    requests may be answered at once."""
    rounds = receipt.get("rounds")
    if entry.unlearning is None or not isinstance(rounds, list):
        return dict(receipt)
    one = now.unlearnings[entry.unlearning]
    if one.told != rounds:
        one.told = rounds
    return {**receipt, "rounds": one.told}


def _settle(now: Standing, entry: Entry, state: Literal["done", "refused"], at: str) -> None:
    """Close a request, and its unlearning with the last of them."""
    entry.into(state, at)
    if entry.unlearning is not None:
        one = now.unlearnings[entry.unlearning]
        one.open.discard(entry.request)
        one.done = not one.open
