"""Registers: the file's bytes, and its events in a file that is sound, chained and signed anew."""

from __future__ import annotations

import functools
import hashlib
import json
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedunlearn.deletion.events import (
    Acknowledged,
    Audited,
    Began,
    Done,
    Enrolled,
    Event,
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
    plain,
)
from fedunlearn.deletion.receipt import ReceiptProblem, issue
from fedunlearn.deletion.register import Head, Register, RegisterError, Row
from fedunlearn.deletion.signing import SigningKey, canonical
from fedunlearn.deletion.standing import standing
from fedunlearn.deletion.statement import Scope, Signed, Statement
from fedunlearn.deletion.verification import verify
from fuzzing.mutation import bytes_changed, json_changed
from fuzzing.target import Finding, Target, folder

__all__ = ["REGISTER_EVENTS", "REGISTER_FILE"]

_ID = "7" * 32
_AT = "2026-11-30T10:00:00+00:00"
_SERVER = SigningKey(Ed25519PrivateKey.from_private_bytes(bytes(range(32))))
_NEXT = SigningKey(Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33))))
_NODE = SigningKey(Ed25519PrivateKey.from_private_bytes(bytes(32)))
_FILE = "register.sqlite"


def _story() -> list[Event]:
    """Of each kind of event one at least."""
    clients, layer = {"a": _NODE.public.text}, ["conv1.weight"]
    filed = Signed.by(_NODE, Statement("1" * 32, str(Scope.of("instances")), None, "a reason", _AT, "here"))
    id, judgement = filed.statement.id, {"status": "nothing found", "sentence": "Nothing was found."}
    events: list[Event] = [
        Opened(clients, _SERVER.public.text, {"method": "NoT"}),
        Started({"most": 3}, {"torch": "2.14.0"}),
        RoundDone("train", 1, None, "m1", "checkpoints/m1", [], samples={"a": 3}, absent={"b": "silent"}),
        Filed(id, "a", filed.json),
        Acknowledged(id),
        Refused("3" * 32, None, "nobody knows this key"),
        Began(0, [id], {"name": "SCRUB"}, "m1", "checkpoints/m1", 91.5, {}, [], {"most": 3}),
        Instead(0, {"name": "NoT", "options": {"layers": ["conv1"]}}, "nobody answered"),
        RoundDone("unlearn", 0, 0, "n1", "checkpoints/n1", [layer], {"teacher": ["checkpoints/t", "d"]}),
        RoundDone("recover", 0, 0, "r1", "checkpoints/r1", [layer], samples={"a": 3}, validation=80.0),
        Fault("a", "failed", "it broke off", "recover", 1),
        Waited("recover", 1, "0 of 1 answered"),
        Recovered(0, "recovered"),
        Audited(0, {id: judgement}),
    ]
    now = standing((_AT, event) for event in events)
    receipt = issue(now, id, Head.by(_SERVER, _ID, len(events), _chained(events)[-1].hash), _SERVER, _AT)
    signature = _SERVER.sign("rotation", {"register": _ID, "key": _NEXT.public.text})
    return [*events, Done(id, receipt), Enrolled({**clients, "b": _NEXT.public.text}), _rotated(signature)]


def _rotated(signature: str) -> Rotated:
    return Rotated(_NEXT.public.text, signature)


def _chained(events: Sequence[Event]) -> list[Row]:
    rows: list[Row] = []
    for number, event in enumerate(events):
        rows.append(Row.of(number, _AT, event, rows[-1].hash if rows else _ID))
    return rows


@functools.cache
def _events() -> Sequence[bytes]:
    listed = [[event.kind, plain(event)] for event in _story()]
    return [json.dumps(part).encode() for part in (listed[:-2], listed[:7], [*listed[:-2], listed[-1]])]


@functools.cache
def _files() -> Sequence[bytes]:
    made = []
    for content in _events():
        with folder() as place:
            _write(place, json.loads(content))
            made.append((place / _FILE).read_bytes())
    return made


def _write(place: Path, listed: Any) -> None:
    """A register of these events, whatever they are, by whoever has the keys."""
    with Register.create(place, _SERVER, Opened({}, _SERVER.public.text, {})):
        pass
    rows: list[tuple[Any, ...]] = []
    previous, signer = _ID, _SERVER
    for number, entry in enumerate(listed if isinstance(listed, list) else [listed]):
        kind, body = entry if isinstance(entry, list) and len(entry) == 2 else ("round", entry)
        raw = canonical(body)
        row = Row(number, _AT, str(kind).encode("utf-8", "replace").decode(), raw, "")
        previous = _hash(row, previous)
        rows.append((number, _AT, row.kind, raw, previous))
        signer = _NEXT if kind == "rotated" else signer
    head = Head.by(signer, _ID, len(rows), previous)
    with closing(sqlite3.connect(place / _FILE)) as connection, connection:
        connection.execute("DELETE FROM events")
        connection.executemany("INSERT INTO events VALUES (?, ?, ?, ?, ?)", rows)
        told = (head.register, head.count, head.hash, head.key, head.signature)
        connection.execute("UPDATE head SET register = ?, count = ?, hash = ?, key = ?, signature = ?", told)


def _hash(row: Row, previous: str) -> str:
    """By the definition: SHA-256 of the canonical form of all five."""
    five = {"number": row.number, "at": row.at, "kind": row.kind, "previous": previous}
    text = canonical({**five, "body": None})
    return hashlib.sha256(text.replace(b'"body":null', b'"body":' + row.body, 1)).hexdigest()


def _look(place: Path) -> None:
    """All that is asked of a register whose key one has, and of one that somebody else has sent."""
    found = verify(place, [_SERVER.public])
    for problem in (*found.problems, *found.warnings):
        if not problem.isprintable() or len(problem) > 2000:
            raise Finding(f"a problem that cannot be printed as one line: {problem[:200]!r}")
    seen = Register.read(place).standing()
    for entry in seen.requests.values():
        try:
            issue(seen, entry.request, Head.by(_SERVER, _ID, 1, ""), _SERVER, _AT)
        except ReceiptProblem:
            continue


def _read_file(data: bytes) -> None:
    with folder() as place:
        (place / _FILE).write_bytes(data)
        _look(place)


def _read_events(data: bytes) -> None:
    try:
        listed = json.loads(data)
        canonical(listed)
    except (ValueError, RecursionError):
        return
    with folder() as place:
        _write(place, listed)
        _look(place)
        for key in (_SERVER, _NEXT):
            try:
                Register.open(place, key).close()
            except RegisterError:
                continue


REGISTER_FILE = Target("register-file", _read_file, (RegisterError,), _files, bytes_changed)
REGISTER_EVENTS = Target(
    "register-events",
    _read_events,
    (RegisterError,),
    _events,
    lambda data, random: json_changed(data, random, _events),
)
