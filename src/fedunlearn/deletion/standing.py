"""Where everything stands: the register's events, folded. The server goes on from it, people read it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from fedunlearn.deletion.events import (
    Acknowledged,
    Audited,
    Began,
    Done,
    Event,
    Fault,
    Filed,
    Opened,
    Recovered,
    Refused,
    Rotated,
    RoundDone,
    Waited,
)

__all__ = ["Entry", "Standing", "State", "Unlearning", "standing"]

State = Literal["filed", "acknowledged", "unlearning", "recovering", "verified", "done", "refused"]


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
        unlearning: number of the one that answers it.
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
        """Note that it is in a state now."""
        self.state = state
        self.times.setdefault(state, at)


@dataclass
class Unlearning:
    """One unlearning, of one request or several.

    Attributes:
        began: with what; ``at`` when.
        rounds: its own and recovery's, in order, each with the time when it was over.
        recovered: why recovery ended; None: it has not.
        judgement: of the audit; None: there was none yet.
        done: whether every request has its receipt.
    """

    began: Began
    at: str
    rounds: list[tuple[str, RoundDone]] = field(default_factory=list)
    recovered: Recovered | None = None
    judgement: dict[str, Any] | None = None
    done: bool = False


@dataclass
class Standing:
    """All of it.

    Attributes:
        opened: whose register it is; None: it is empty.
        requests: by id, in the order in which they came.
        refused: those that came to nothing, also ones without an id.
        rounds: all, in order, each with the time when it was over.
        unlearnings: in order.
        faults, waits, rotations: in order, with times.
    """

    opened: Opened | None = None
    requests: dict[str, Entry] = field(default_factory=dict)
    refused: list[tuple[str, Refused]] = field(default_factory=list)
    rounds: list[tuple[str, RoundDone]] = field(default_factory=list)
    unlearnings: list[Unlearning] = field(default_factory=list)
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
        _fold(now, at, event)
    return now


def _fold(now: Standing, at: str, event: Event) -> None:
    match event:
        case Opened():
            now.opened = event
        case Filed():
            said = event.signed["statement"]
            entry = Entry(event.request, event.client, key=event.signed["key"], signature=event.signed["signature"])
            for name in ("scope", "reason", "filed", "data"):
                setattr(entry, name, said[name])
            entry.into("filed", at)
            now.requests[event.request] = entry
        case Refused():
            now.refused.append((at, event))
            if event.request in now.requests:
                now.requests[event.request].why = event.why
                now.requests[event.request].into("refused", at)
        case Acknowledged():
            if now.requests[event.request].state == "filed":
                now.requests[event.request].into("acknowledged", at)
            else:  # told later, when its unlearning had begun
                now.requests[event.request].times.setdefault("acknowledged", at)
        case Began():
            now.unlearnings.append(Unlearning(event, at))
            _each(now, event.unlearning, "unlearning", at)
        case RoundDone():
            now.rounds.append((at, event))
            if event.unlearning is not None:
                now.unlearnings[event.unlearning].rounds.append((at, event))
                if event.phase == "recover":
                    _each(now, event.unlearning, "recovering", at)
        case Recovered():
            now.unlearnings[event.unlearning].recovered = event
        case Audited():
            now.unlearnings[event.unlearning].judgement = dict(event.judgement)
            _each(now, event.unlearning, "verified", at)
        case Done():
            entry = now.requests[event.request]
            entry.receipt = dict(event.receipt)
            entry.into("done", at)
            if entry.unlearning is not None:
                one = now.unlearnings[entry.unlearning]
                one.done = all(now.requests[id].state == "done" for id in one.began.requests)
        case Fault():
            now.faults.append((at, event))
        case Waited():
            now.waits.append((at, event))
        case Rotated():
            now.rotations.append((at, event))


def _each(now: Standing, unlearning: int, state: State, at: str) -> None:
    for id in now.unlearnings[unlearning].began.requests:
        now.requests[id].unlearning = unlearning
        now.requests[id].into(state, at)
