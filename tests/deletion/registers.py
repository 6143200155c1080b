"""Registers for tests: made of random but honest events, and changed by hand."""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import strategies as st

from fedunlearn.deletion.events import (
    Acknowledged,
    Audited,
    Began,
    Done,
    Fault,
    Filed,
    Instead,
    Opened,
    Recovered,
    Refused,
    RoundDone,
    Started,
    Waited,
)
from fedunlearn.deletion.receipt import issue
from fedunlearn.deletion.register import Register
from fedunlearn.deletion.signing import SigningKey, canonical, sha256
from fedunlearn.deletion.statement import Scope, Signed, Statement, now

__all__ = [
    "KEY",
    "MEMORY",
    "NEXT",
    "NODES",
    "OPENED",
    "STEPS",
    "Written",
    "altered",
    "key",
    "rechained",
    "steps",
    "stored",
    "written",
]


def key() -> SigningKey:
    return SigningKey(Ed25519PrivateKey.generate())


MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
"""Where hundreds of registers are written whose durability is not tried."""

KEY, NEXT = key(), key()
NODES = {"north": key(), "south": key()}
OPENED = Opened({name: node.public.text for name, node in NODES.items()}, KEY.public.text, {"method": "NoT"})

Step = str


def steps(fewest: int = 1, most: int = 6) -> st.SearchStrategy[list[Step]]:
    """What happens after a register was opened, each a few events."""
    return st.lists(
        st.sampled_from(
            ["start", "enrol", "round", "node", "operator", "stranger", "another", "fault", "wait", "answer", "instead"]
        ),
        min_size=fewest,
        max_size=most,
    )


@dataclass
class Written:
    """A register that was written, and what its server handed out."""

    folder: Path
    receipts: list[dict[str, Any]]

    def copied(self, place: Path) -> Path:
        shutil.copytree(self.folder, place)
        return place


def written(folder: Path, story: Sequence[Step], register: Register | None = None) -> Written:
    """Write what an honest server would, and let go of it."""
    receipts: list[dict[str, Any]] = []
    with register or Register.create(folder, KEY, OPENED) as open_:
        for step in story:
            STEPS[step](open_, receipts)
    return Written(folder, receipts)


def _filed(register: Register, client: str | None, signed: Signed) -> None:
    register.append(Filed(signed.statement.id, client, signed.json))
    register.append(Acknowledged(signed.statement.id))


def _round(register: Register, receipts: list[dict[str, Any]]) -> None:
    number = register.standing().trained
    register.append(
        RoundDone("train", number, None, sha256(number), f"checkpoints/{number}", [], samples={"north": 3, "süd": 4})
    )


def _node(register: Register, receipts: list[dict[str, Any]]) -> None:
    client = secrets.choice(list(NODES))
    _filed(register, client, Signed.by(NODES[client], Statement.make(Scope("instances"), "they asked for it")))


def _operator(register: Register, receipts: list[dict[str, Any]]) -> None:
    _filed(register, None, Signed.by(KEY, Statement.make(Scope("class", 3), "a mistake")))
    _filed(register, "south", Signed.by(KEY, Statement.make(Scope("client"), "has left", client="south")))


def _start(register: Register, receipts: list[dict[str, Any]]) -> None:
    register.append(Started({"most": len(register.standing().started)}, {"torch": "2.14.0"}))


def _enrol(register: Register, receipts: list[dict[str, Any]]) -> None:
    """A guest joins with a new key, or leaves."""
    clients = dict(register.standing().clients)
    if clients.pop("guest", None) is None:
        clients["guest"] = key().public.text
    register.enrol(clients)


def _another(register: Register, receipts: list[dict[str, Any]]) -> None:
    """A request is refused that another node has signed."""
    signed = Signed.by(key(), Statement.make(Scope("client"), "not mine"))
    register.append(Refused(signed.statement.id, "north", "it must be signed with north's own key", signed.json))


def _answer(register: Register, receipts: list[dict[str, Any]], instead: bool = False) -> None:
    waiting = [entry.request for entry in register.standing().waiting]
    if not waiting:
        return
    number, started = len(register.standing().unlearnings), register.standing().started
    plan = started[-1][1].plan if started else {}
    register.append(
        Began(number, waiting, {"name": "SCRUB"}, sha256("before"), "checkpoints/b", 90.5, {}, [], plan),
        RoundDone("unlearn", 0, number, sha256("m"), "checkpoints/m", [], {"teacher": ["checkpoints/t", sha256("t")]}),
    )
    if instead:
        register.append(Instead(number, {"name": "NoT"}, "nobody answered"))
    register.append(RoundDone("unlearn", 0, number, sha256("negated"), "checkpoints/u", [["conv1.weight"]]))
    register.append(RoundDone("recover", 0, number, sha256("again"), "checkpoints/r", [["conv1.weight"]]))
    judgement = {"status": "nothing found", "sentence": "Nothing was found."}
    register.append(Recovered(number, "recovered"), Audited(number, judgement))
    for request in waiting:
        receipt = issue(register.standing(), request, register.head, KEY, now())
        register.append(Done(request, receipt))
        receipts.append(receipt)


STEPS: dict[Step, Callable[[Register, list[dict[str, Any]]], None]] = {
    "round": _round,
    "node": _node,
    "operator": _operator,
    "answer": _answer,
    "instead": lambda register, receipts: _answer(register, receipts, instead=True),
    "start": _start,
    "enrol": _enrol,
    "another": _another,
    "stranger": lambda register, receipts: _ignore(register.append(Refused("", None, "nobody knows this key"))),
    "fault": lambda register, receipts: _ignore(register.append(Fault("north", "failed", "\ud800 'x'", "train", 1))),
    "wait": lambda register, receipts: _ignore(register.append(Waited("train", 1, "1 of 3 answered"))),
}


def _ignore(value: object) -> None:
    """What a step returns nobody wants."""


def stored(folder: Path) -> list[tuple[Any, ...]]:
    """All rows: number, time, kind, body, hash."""
    with closing(sqlite3.connect(folder / "register.sqlite")) as connection:
        return connection.execute("SELECT * FROM events ORDER BY number").fetchall()


def altered(folder: Path, events: Sequence[tuple[Any, ...]] | None = None, **head: Any) -> None:
    """Write other rows, and other values of the head, as somebody with an editor for SQLite could."""
    with closing(sqlite3.connect(folder / "register.sqlite")) as connection, connection:
        if events is not None:
            connection.execute("DELETE FROM events")
            connection.executemany("INSERT INTO events VALUES (?, ?, ?, ?, ?)", events)
        for name, value in head.items():
            connection.execute(f"UPDATE head SET {name} = ?", (value,))


def rechained(events: Sequence[tuple[Any, ...]], register: str) -> list[tuple[Any, ...]]:
    """Numbers and hashes anew, by the definition: SHA-256 of the canonical form of all five."""
    made, previous = [], register
    for number, (_, at, kind, body, _) in enumerate(events):
        five = {"number": number, "at": at, "kind": kind, "body": json.loads(body), "previous": previous}
        previous = hashlib.sha256(canonical(five)).hexdigest()
        made.append((number, at, kind, body, previous))
    return made
