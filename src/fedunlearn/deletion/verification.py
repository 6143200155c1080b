"""Whether a register is what its server wrote: for whoever has the folder, and knows the server's public key.

Without the server's key nothing in a register can be changed, removed, inserted or reordered unnoticed. Nor can its end
be cut off, but for one thing: where SQLite's log (``register.sqlite-wal``) is not empty, the events in it can be. It is
empty after each append, unless somebody read just then or the server was killed in that instant; then it holds what was
entered since it was empty last. A copy of an older day is whole. Both show only beside a receipt of a later moment.
Whoever has the server's key can write another history and sign it: only receipts that were handed out before tell
against it. Models in ``checkpoints`` are not looked at.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from fedunlearn.amounts import brief
from fedunlearn.deletion.events import (
    Began,
    Done,
    Enrolled,
    Event,
    Filed,
    Instead,
    Opened,
    Recovered,
    Refused,
    Rotated,
    RoundDone,
    Started,
)
from fedunlearn.deletion.receipt import verify as receipt_problems
from fedunlearn.deletion.register import Head, RegisterError, Row, reading, rows, server_key, stored_head, succeeded
from fedunlearn.deletion.signing import KeyProblem, PublicKey, canonical
from fedunlearn.deletion.standing import Standing, fold
from fedunlearn.deletion.statement import RequestProblem, Scope, Signed

__all__ = ["MOST_PROBLEMS", "Verification", "verify"]

MOST_PROBLEMS = 100
"""A register with more of them is not read further."""

_COPY = "put a copy of the folder in its place"
_SHOWN = 80  # characters of what somebody else has written


@dataclass(frozen=True)
class Verification:
    """What was found.

    Attributes:
        problems: a sentence for each; none: the register is what its server wrote.
        warnings: what could not be told.
        events: how many there are.
        head: what the server has signed last; None: nothing that could be read.
    """

    problems: list[str]
    warnings: list[str]
    events: int
    head: Head | None


def verify(folder: Path, keys: Sequence[PublicKey] = (), receipts: Sequence[Mapping[str, Any]] = ()) -> Verification:
    """Look for whatever was changed in a register after its server wrote it; also while the server writes on.

    Args:
        folder: of the register.
        keys: the server's public keys, from a source that is trusted; the newest says most, since whoever got hold of
            one that was rotated away can still sign with it. Without any, the register's own first key is taken.
        receipts: that the server handed out, as plain values. One counts only if it is signed by one of ``keys`` or a
            key that the register was ever signed with; any other is a warning.

    Returns:
        What was found; nothing is raised, whatever the folder holds.
    """
    try:
        with reading(folder) as connection:
            looking = _Looking(stored_head(connection))
            for row in rows(connection):
                looking.at(row)
                if len(looking.problems) >= MOST_PROBLEMS:
                    looking.problems.append(f"there is more, which was not looked at: {_COPY}")
                    return looking.found([])
    except RegisterError as error:
        return Verification([str(error)], [], 0, None)
    looking.end(keys)
    warnings = [] if keys else [looking.untrusted]
    if looking.servers and not looking.holders:
        warnings.append("it is of a simulation: its clients are known by no key, and anybody could have filed")
    counted = 0
    for number, receipt in enumerate(receipts, 1):
        if doubt := looking.doubt(receipt, keys):
            warnings.append(f"receipt {number} {doubt}: not taken into account")
        else:
            looking.problems += looking.against(f"receipt {number}", receipt)
            counted += 1
    if not counted:
        which = "no receipt was given that counts" if receipts else "no receipt was given"
        warnings.append(f"{which}: a copy of an older day would look the same; give a recent one")
    return looking.found(warnings)


@dataclass
class _Looking:
    """A register, read event by event.

    Attributes:
        head: as it stands in the file.
        problems: so far.
        hashes: of the events so far, by number.
        last: number of the last event.
        servers: the server's keys, in the order in which they signed.
        clients: the list of clients in force, with their keys.
        holders: the client of each key that was ever on it; none in a simulation.
        filed: ids of requests that were entered.
        begun: ids of requests that an unlearning has begun to answer.
        plan: what the server said last that it does.
        phases: of each unlearning, how far it has come.
        receipts: those that were issued, by the request's id.
        standing: None: an event did not fit those before it.
    """

    head: Head
    problems: list[str] = field(default_factory=list)
    hashes: dict[int, str] = field(default_factory=dict)
    last: int = -1
    servers: list[PublicKey] = field(default_factory=list)
    clients: dict[str, str] = field(default_factory=dict)
    holders: dict[str, str] = field(default_factory=dict)
    filed: set[str] = field(default_factory=set)
    begun: set[str] = field(default_factory=set)
    plan: Mapping[str, Any] | None = None
    phases: dict[int, str] = field(default_factory=dict)
    receipts: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    standing: Standing | None = field(default_factory=Standing)

    def at(self, row: Row) -> None:
        """Look at the next event."""
        if row.number < 0:
            self.problems.append(f"event {row.number} was inserted: events are numbered from 0; {_COPY}")
            return
        self._chain(row)
        self.hashes[row.number], self.last = str(row.hash), row.number
        try:
            event = row.event()
            for problem in islice(self._wrong(row, event), MOST_PROBLEMS):
                self.problems.append(f"event {row.number} ({event.kind}): {problem}")
        except RegisterError as error:
            self.problems.append(f"{error}: ask whoever runs the server for the register as it was written")
        except (TypeError, ValueError, AttributeError):  # a number where there should be a list, and the like
            self.problems.append(f"event {row.number}: a field holds what it cannot hold; {_COPY}")

    def _chain(self, row: Row) -> None:
        first, end = self.last + 1, row.number - 1
        if first <= end:
            missing = f"event {first} is" if first == end else f"events {first} to {end} are"
            self.problems.append(f"{missing} missing, removed from before event {row.number}; {_COPY}")
        elif not row.follows(self.hashes.get(end, "") if row.number else self.head.register):
            self.problems.append(
                f"event {row.number} was changed, inserted or moved: its hash does not follow from the one before it; "
                f"{_COPY}"
            )

    def end(self, keys: Sequence[PublicKey]) -> None:
        """Hold the head against what was read, and its key against those that are trusted."""
        count = len(self.hashes)
        if self.head.count != count:
            self.problems.append(
                f"the head speaks of {self.head.count} events, and the register has {count}: events were cut off or "
                f"added; {_COPY}"
            )
        elif self.hashes.get(count - 1, self.head.register) != self.head.hash:
            self.problems.append(
                f"the head names another hash for event {count - 1} than it has: it was changed; {_COPY}"
            )
        if not self.servers:
            self.problems.append(f"no event says whose register this is; {_COPY}")
        elif not self.head.signed_by(self.servers[-1]):
            self.problems.append(
                f"the head is not signed by the server's key {self.servers[-1].fingerprint}: somebody without the key "
                f"has written the register; {_COPY}"
            )
        if keys and not set(keys) & set(self.servers):
            ours = ", ".join(key.fingerprint for key in keys)
            self.problems.append(
                f"no key that is trusted ({ours}) has signed the register or leads to the one that has "
                f"({self.head.key[:_SHOWN]}): it is another server's, or was written anew"
            )

    def doubt(self, receipt: object, keys: Sequence[PublicKey]) -> str | None:
        """Why a receipt proves nothing; None: whoever signs this register has signed it."""
        known = {key.text: key for key in (*keys, *self.servers)}
        signer = known.get(str(_value(receipt, "server", "key")))
        if signer is None:
            return "is not signed by a key that is trusted or that this register was signed with"
        found = receipt_problems(receipt, signer)
        return f"is not signed by the key {signer.fingerprint} that it names ({found[0]})" if found else None

    def against(self, name: str, receipt: object) -> Iterator[str]:
        """What a receipt says that the register does not."""
        misplaced = self._misplaced(receipt, len(self.hashes))
        request = str(_value(receipt, "request", "id"))
        if misplaced:
            yield f"{name}: {misplaced}"
        elif request not in self.receipts:
            yield f"{name}: the register has none for the request {request[:_SHOWN]}: ask whoever runs the server"
        elif not _same(self.receipts[request], receipt):
            yield (
                f"{name}: the register holds another one for the request {request}: see with `fedunlearn receipt "
                "verify` whether this one is genuine"
            )

    def found(self, warnings: list[str]) -> Verification:
        told = [brief(problem) for problem in self.problems]  # names that somebody else has chosen stand in them
        return Verification(told, warnings, len(self.hashes), self.head)

    @property
    def untrusted(self) -> str:
        first = self.servers[0].fingerprint if self.servers else "none"
        return (
            f"no public key was given, and the register's own ({first}) was believed: anybody can write one with "
            "a key of their own; give the server's with --key"
        )

    def _misplaced(self, receipt: object, events: int) -> str | None:
        """What is wrong with the place that a receipt names, in a register of so many events."""
        id, count, hash = (_value(receipt, "register", name) for name in ("id", "count", "hash"))
        if not isinstance(id, str) or type(count) is not int or not isinstance(hash, str) or count < 1:
            return "it names no place in a register: it is no receipt of this package"
        if id != self.head.register:
            return f"it is of the register {id[:_SHOWN]}, and this is another: name that one's folder"
        if count > events:
            return (
                f"it was issued when the register had {count} events, and there are {events}: this is a copy of an "
                "older day, or its end was cut off; look for a later copy"
            )
        if self.hashes.get(count - 1) != hash:
            return (
                f"event {count - 1} had another hash when it was issued: the register was written anew from there or "
                "before; look for a copy of that day"
            )
        return None

    def _wrong(self, row: Row, event: Event) -> Iterator[str]:
        """What an honest server would not have entered here."""
        if (row.number == 0) != isinstance(event, Opened):
            yield "a register is opened by its first event, and by that alone"
        match event:
            case Opened():
                yield from self._open(event)
            case Enrolled():
                yield from self._enrolled(event)
            case Started():
                self.plan = event.plan
            case Rotated():
                yield from self._rotate(event)
            case Filed():
                yield from self._filed(event)
            case Began():
                yield from self._began(event)
            case Instead():
                yield from self._instead(event)
            case RoundDone():
                yield from self._round(event)
            case Recovered():
                self.phases[event.unlearning] = "recovered"
            case Refused():
                yield from self._refused(event)
            case Done():
                yield from self._done(row.number, event)
        if self.standing is not None:
            try:
                fold(self.standing, row.at, event)
            except (LookupError, TypeError, ValueError, AttributeError):
                self.standing = None
                yield "it does not fit those before it"

    def _open(self, event: Opened) -> Iterator[str]:
        if self.servers:
            return
        try:
            self.servers.append(server_key(event.key))
        except RegisterError as error:
            yield f"{error}: the register is not to be trusted"
        yield from self._listed(event.clients)

    def _enrolled(self, event: Enrolled) -> Iterator[str]:
        if not self.holders:
            yield "the register of a simulation has no list of clients"
        for client in event.left:
            if self.clients.pop(client, None) is None:
                yield f"the client {client[:_SHOWN]} leaves a list that it is not on"
        yield from self._listed(event.clients)
        if not self.clients:
            yield "the list of clients is empty"

    def _listed(self, clients: Mapping[str, str]) -> Iterator[str]:
        self.clients |= clients
        servers = {key.text for key in self.servers}
        for client, text in clients.items():
            try:
                key = PublicKey.of(str(text)).text
            except KeyProblem:
                yield f"the key of the client {client[:_SHOWN]} is none"
                continue
            if key in servers:
                yield f"the server's key stands on the list of clients, as {client[:_SHOWN]}'s"
            if (holder := self.holders.setdefault(key, client)) != client:
                yield f"the key of the client {client[:_SHOWN]} is or was {holder[:_SHOWN]}'s"

    def _rotate(self, event: Rotated) -> Iterator[str]:
        if not self.servers:
            return
        try:
            self.servers.append(succeeded(self.head.register, self.servers[-1], event))
        except RegisterError as error:
            yield f"{error}: the register is not to be trusted from here on"
            return
        if self.servers[-1].text in self.holders:
            yield f"the server's new key is or was the client {self.holders[self.servers[-1].text][:_SHOWN]}'s"

    def _filed(self, event: Filed) -> Iterator[str]:
        if event.request in self.filed:
            yield f"the request {event.request[:_SHOWN]} was entered before"
        self.filed.add(event.request)
        try:
            signed = Signed.of(event.signed)
        except RequestProblem as error:
            yield f"it is not what its filer signed: {error}"
            return
        if signed.statement.id != event.request:
            yield f"its filer signed another id, {signed.statement.id}"
        if not self._entitled(event, signed):
            yield (
                f"the key {PublicKey(signed.key).fingerprint} may not file it: it is neither the client's nor the "
                "server's, or asks for another client"
            )

    def _entitled(self, event: Filed, signed: Signed) -> bool:
        if not self.holders:
            return True  # a simulation, whose nodes are not known by keys
        if signed.key in {key.text for key in self.servers}:
            alone = Scope.of(signed.statement.scope).kind == "instances"  # which its holder alone can name
            return signed.statement.client == event.client and not alone
        if event.client is None or signed.statement.client not in (None, event.client):
            return False
        return _same_key(self.clients.get(event.client), signed.key)

    def _began(self, event: Began) -> Iterator[str]:
        for request in event.requests:
            if request not in self.filed:
                yield f"the request {request[:_SHOWN]} was not entered before"
            if request in self.begun:
                yield f"the request {request[:_SHOWN]} is answered by another unlearning already"
            self.begun.add(request)

        if self.plan is not None and not _same(event.plan, self.plan):
            yield "it began with another plan than the server had started with"
        self.phases.setdefault(event.unlearning, "unlearn")

    def _instead(self, event: Instead) -> Iterator[str]:
        match self.phases.get(event.unlearning):
            case None:
                yield f"the unlearning {str(event.unlearning)[:_SHOWN]} has not begun"
            case "unlearn":
                pass
            case _:
                yield f"the unlearning {event.unlearning} has come to its recovery, and cannot begin again"

    def _round(self, event: RoundDone) -> Iterator[str]:
        if not all(_file_and_digest(carried) for carried in event.carried.values()):
            yield "a model that the method takes along is not told by its file and its digest"
        if (event.phase == "train") != (event.unlearning is None):
            yield "a round is of training, or of an unlearning"
        if event.unlearning is None:
            return
        before = self.phases.get(event.unlearning)
        if before == "recovered" or (before == "recover" and event.phase == "unlearn"):
            yield f"the unlearning {event.unlearning} was over, or had come to its recovery"
        elif before is not None:
            self.phases[event.unlearning] = event.phase

    def _refused(self, event: Refused) -> Iterator[str]:
        if event.signed is None:
            return
        try:
            signed = Signed.of(event.signed)
        except RequestProblem as error:
            yield f"it is not what its filer signed: {error}"
            return
        if event.request not in ("", signed.statement.id):
            yield f"its filer signed another id, {signed.statement.id}"

    def _done(self, number: int, event: Done) -> Iterator[str]:
        if event.request not in self.begun:
            yield f"no unlearning has answered the request {event.request[:_SHOWN]}"
        if event.request in self.receipts:
            yield f"the request {event.request[:_SHOWN]} had its receipt before"
        if _value(event.receipt, "request", "id") != event.request:
            yield f"its receipt is of another request than {event.request[:_SHOWN]}"
        if misplaced := self._misplaced(event.receipt, number):
            yield f"its receipt: {misplaced}"
        self.receipts[event.request] = event.receipt


def _same_key(text: object, other: str) -> bool:
    try:
        return PublicKey.of(str(text)).text == other
    except KeyProblem:
        return False


def _file_and_digest(carried: object) -> bool:
    return isinstance(carried, list) and len(carried) == 2 and all(isinstance(text, str) for text in carried)


def _same(one: object, other: object) -> bool:
    """Whether they are the same in JSON, where 1 is neither True nor 1.0."""
    try:
        return canonical(one) == canonical(other)
    except (ValueError, TypeError, RecursionError):
        return False


def _value(table: object, *names: str) -> object:
    """What stands in a table of tables; None where it does not."""
    for name in names:
        table = table.get(name) if isinstance(table, Mapping) else None
    return table
