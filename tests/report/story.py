"""A service of deletion requests, made up: four hospitals, two unlearnings, a refusal and a fault.

Rounds and unlearnings have the numbers of a register, from 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from fedunlearn.deletion.events import (
    Acknowledged,
    Audited,
    Began,
    Done,
    Event,
    Fault,
    Filed,
    Opened,
    Phase,
    Recovered,
    Refused,
    Rotated,
    RoundDone,
    Waited,
)
from fedunlearn.deletion.register import Head

Events = list[tuple[str, Event]]

SERVER, NEXT = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIserver", "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAInext"
HOSPITALS = ("hospital-1", "hospital-2", "hospital-3", "hospital-4")
LIMITS = "It cannot say what another attacker finds."
WHOLE, CLASS, SINGLE = "a" * 32, "b" * 32, "c" * 32
METHOD = {"name": "NoT", "kind": "fedunlearn.methods.negation:NoT", "options": {"layers": ["conv1"]}}


HEAD = Head("0123456789abcdef0123456789abcdef", 41, "f" * 64, "SHA256:" + "k" * 43, "c2ln")


class Clock:
    """Ten seconds from one event to the next."""

    def __init__(self) -> None:
        self.now = datetime(2026, 11, 30, 18, 0, tzinfo=UTC)
        self.events: Events = []

    def add(self, *events: Event) -> None:
        for event in events:
            self.events.append((self.now.isoformat(timespec="seconds"), event))
            self.now += timedelta(seconds=10)


def filed(id: str, client: str | None, scope: str, reason: str, key: str = "ecdsa node", data: str = "here") -> Filed:
    said = {"id": id, "scope": scope, "client": None, "reason": reason, "filed": "2026-11-30T17:59:00+00:00"}
    return Filed(id, client, {"statement": {**said, "data": data}, "key": key, "signature": "c2ln"})


def done(
    phase: Phase,
    number: int,
    unlearning: int | None,
    validation: float | None,
    took: Sequence[str] = HOSPITALS,
    absent: Mapping[str, str] | None = None,
    negations: Sequence[list[str]] = (),
) -> RoundDone:
    model = f"{number:04d}{phase}{unlearning}"
    samples = {client: 200 + 10 * place for place, client in enumerate(took)}
    bills: Any = {"bytes_down": 1000 * len(took), "bytes_up": 500 * len(took), "forward": 800, "backward": 400}
    file = f"checkpoints/{model}"
    history = [list(names) for names in negations]
    bills |= {"seconds": 2.5, "validation": validation, "samples": samples, "absent": dict(absent or {})}
    return RoundDone(phase, number, unlearning, model, file, history, {}, **bills)


def receipt(id: str, status: str = "nothing found") -> dict[str, Any]:
    return {
        "audit": {"status": status, "sentence": "the audit's own"},
        "receipt": 1,
        "request": {"id": id, "scope": "client"},
        "statement": "What was done and measured.",
        "signature": "c2lnbmF0dXJl",
    }


def judgement(status: str, sentence: str) -> dict[str, Any]:
    return {"status": status, "sentence": sentence, "limits": LIMITS, "p": None, "clients": {}}


def told(client: str = "hospital-2", reason: str = "the study is over") -> Events:
    """Six rounds of training, two requests answered together, a third while recovery goes on, in recovery itself."""
    clock = Clock()
    about = {"method": METHOD, "training": {"rounds": 6, "lr": 0.05}, "network": "examples.net:Small", "seed": 0}
    clock.add(Opened(dict.fromkeys(HOSPITALS, "ecdsa-sha2-nistp384 AAAA"), SERVER, about))
    for number in range(6):
        absent = {"hospital-4": "silent"} if number == 3 else {}
        if absent:
            clock.add(Fault("hospital-4", "silent", "no answer within 600 s, asked twice", "train", number))
        took = [one for one in HOSPITALS if one not in absent]
        clock.add(done("train", number, None, 47.0 + 7 * number, took, absent))
    clock.add(filed(WHOLE, client, "client", reason), Acknowledged(WHOLE))
    clock.add(filed(CLASS, None, "class:3", "an error in the labels", SERVER), Acknowledged(CLASS))
    clock.add(Refused("d" * 32, None, "there is no client 'hospital-9' in this federation"))
    clock.add(Began(0, [WHOLE, CLASS], METHOD, "before", "checkpoints/train", 82.0, {}))
    stay = [one for one in HOSPITALS if one != "hospital-2"]
    conv1 = ["conv1.weight", "conv1.bias"]
    clock.add(done("unlearn", 0, 0, 21.5, (), negations=[conv1]))
    clock.add(done("recover", 0, 0, 60.0, stay, negations=[conv1]))
    clock.add(filed(SINGLE, "hospital-3", "instances", "consent was withdrawn", data="deleted"), Acknowledged(SINGLE))
    clock.add(
        done("recover", 1, 0, None, stay, negations=[conv1]), done("recover", 2, 0, 80.5, stay, negations=[conv1])
    )
    clock.add(Recovered(0, "recovered"), Audited(0, judgement("traces found", "One of 2 clients found traces.")))
    clock.add(Done(WHOLE, receipt(WHOLE, "traces found")), Done(CLASS, receipt(CLASS, "traces found")))
    clock.add(Rotated(NEXT, "c2ln"))
    clock.add(Began(1, [SINGLE], METHOD, "before", "checkpoints/recover", 80.5, {}, [conv1]))
    clock.add(done("unlearn", 0, 1, 18.0, (), negations=[conv1, conv1]))
    clock.add(done("recover", 0, 1, 55.0, stay, negations=[conv1, conv1]))
    clock.add(Waited("recover", 1, "1 of 3 clients answered, and 2 are needed"))
    return clock.events


def settled(events: Events) -> Events:
    """The same story to its end: recovery reached its limit, and nothing could be audited."""
    clock = Clock()
    clock.events, clock.now = list(events), datetime(2026, 12, 1, 9, 30, tzinfo=UTC)
    clock.add(Recovered(1, "limit"))
    clock.add(Audited(1, judgement("not audited", "Not audited: data already deleted.")))
    clock.add(Done(SINGLE, receipt(SINGLE, "not audited")))
    return clock.events


def long(requests: int, rounds: int, size: int) -> Iterator[tuple[str, Event]]:
    """A service of years: an unlearning for every request, and receipts of ``size`` characters or more."""
    clock, each = Clock(), rounds // requests
    clock.add(Opened(dict.fromkeys(HOSPITALS, "ecdsa-sha2-nistp384 AAAA"), SERVER, {"method": METHOD}))
    for number in range(requests):
        id = f"{number:032x}"
        for training in range(each // 2):
            clock.add(done("train", number * each // 2 + training, None, 80 + training % 3))
        clock.add(filed(id, HOSPITALS[number % 4], "client", "w" * 500), Acknowledged(id))
        clock.add(Began(number, [id], METHOD, "before", "checkpoints/train", 80.0, {}))
        for recovery in range(each - each // 2):
            clock.add(done("recover", recovery, number, 70 + recovery % 10, HOSPITALS[:2], {"hospital-4": "silent"}))
            clock.add(Fault("hospital-4", "silent", "no answer", "recover", recovery))
        clock.add(Recovered(number, "recovered"), Audited(number, judgement("nothing found", "Nothing was found.")))
        clock.add(Done(id, {**receipt(id), "rounds": "r" * size}))
        clock.add(Refused(id[:3], None, "no client"))
    yield from clock.events
