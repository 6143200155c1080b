"""A life of a small server, its hospitals and their requests, which may be cut short and goes on where it was."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from deletion.hospitals import PLAN, Hospitals
from fedunlearn.deletion import receipt
from fedunlearn.deletion.register import Register
from fedunlearn.deletion.service import Service
from fedunlearn.deletion.verification import verify
from fedunlearn.weights import Weights

THREE = ("north", "east", "west")
SHORT = replace(PLAN, rounds=1, most=2)


def file_what_is_due(hospitals: Hospitals, server: Service) -> None:
    """East asks after the first round, west in the recovery that this leads to; the outbox knows what it has filed."""
    rounds = [done for _, done in server._standing.rounds]
    if rounds:
        hospitals.files("east", hospitals.instances("east", [0, 3, 5]))
    if any(done.phase == "recover" for done in rounds):
        hospitals.files("west", "client")


def live(folder: Path) -> Weights:
    """One life of the server, which knows nothing but the folders: it ends because all is done, or it is killed."""
    hospitals = Hospitals(folder, names=THREE)
    try:
        server = hospitals.service(SHORT)
        file_what_is_due(hospitals, server)
        while server.step():
            file_what_is_due(hospitals, server)
        return server.weights
    finally:
        if hospitals.book is not None:
            hospitals.book.close()  # as the system does for a process that has died


def trace(hospitals: Hospitals) -> list[tuple[str, int, str]]:
    return [(done.phase, done.number, done.model) for _, done in Register.read(hospitals.register).standing().rounds]


def require_all_is_well(hospitals: Hospitals, point: str) -> None:
    read, key = Register.read(hospitals.register), hospitals.keys["server"].public
    standing = read.standing()
    assert [entry.state for entry in standing.requests.values()] == ["done", "done"], point
    receipts = [entry.receipt for entry in standing.requests.values() if entry.receipt is not None]
    assert [receipt.verify(one, key) for one in receipts] == [[], []], point
    answers = [posted.answer for name in ("east", "west") for posted in hospitals.outbox(name).entries()]
    assert [answer.receipt if answer else None for answer in answers] == receipts, point
    assert verify(hospitals.register, [key], receipts).problems == [], point
    assert standing.last is not None
    assert [path.name for path in read.checkpoints.iterdir()] == [standing.last.checkpoint], point
