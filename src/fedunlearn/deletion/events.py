"""What a register holds: one dataclass for each kind of event, and plain values for each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from typing import Any, ClassVar, Literal, TypeAlias, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError

__all__ = [
    "ENDED",
    "KINDS",
    "Acknowledged",
    "Audited",
    "Began",
    "Done",
    "Enrolled",
    "Event",
    "EventProblem",
    "Fault",
    "Filed",
    "Instead",
    "Opened",
    "Recovered",
    "Refused",
    "Rotated",
    "RoundDone",
    "Started",
    "Waited",
    "event_of",
    "plain",
    "tell_method",
]

Phase = Literal["train", "unlearn", "recover"]


class EventProblem(ValueError):
    """An event is none of those that a register holds."""


@dataclass(frozen=True)
class Opened:
    """The first event: whose register this is.

    Attributes:
        clients: each client's public key; empty in a simulation.
        key: the server's public key.
        about: what must be the same whenever the server starts again: network, initial model, seed.
    """

    kind: ClassVar = "opened"
    clients: Mapping[str, str]
    key: str
    about: Mapping[str, Any]


@dataclass(frozen=True)
class Enrolled:
    """The list of clients changes: of a list of a million it says what is new, and nothing of the others.

    Attributes:
        clients: the public key of each client that joins, or has a new one.
        left: clients that leave the list.
    """

    kind: ClassVar = "enrolled"
    clients: Mapping[str, str]
    left: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Started:
    """A server started, to do this from here on.

    Attributes:
        plan: training, stop rule and the like, as `fedunlearn.deletion.plan.Plan.said` tells them.
        software: versions of this package and of those that decide bits.
    """

    kind: ClassVar = "started"
    plan: Mapping[str, Any]
    software: Mapping[str, str]


@dataclass(frozen=True)
class Filed:
    """A request was entered.

    Attributes:
        request: its id.
        client: whom it is about; None: a class, whoever holds it.
        signed: as it came (`fedunlearn.deletion.statement.Signed.json`).
    """

    kind: ClassVar = "filed"
    request: str
    client: str | None
    signed: Mapping[str, Any]


@dataclass(frozen=True)
class Refused:
    """A request was not entered, or not carried out.

    Attributes:
        request: its id as it was given; empty where there was none.
        client: who filed it; None: the operator.
        why: a sentence.
        signed: as it came, if it could be read.
    """

    kind: ClassVar = "refused"
    request: str
    client: str | None
    why: str
    signed: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Acknowledged:
    """Whoever filed a request has been told that it was entered."""

    kind: ClassVar = "acknowledged"
    request: str


@dataclass(frozen=True)
class Instead:
    """An unlearning begins again, by another method: the one that it began with cannot be gone on with.

    Attributes:
        unlearning: its number.
        method: as in `Began`.
        why: a sentence.
    """

    kind: ClassVar = "instead"
    unlearning: int
    method: Mapping[str, Any]
    why: str


@dataclass(frozen=True)
class RoundDone:
    """A round is over, and its model on the disk.

    Attributes:
        phase: "train", "unlearn" (the method's own rounds, the negation being the first) or "recover".
        number: within its phase; training rounds go on counting after an unlearning.
        unlearning: which one it belongs to; None: training.
        model: BLAKE2b-256 of the model after it (`fedunlearn.weights.Weights.digest`).
        checkpoint: the model's file, in the register's folder.
        negations: its sign history.
        carried: further models that the method takes along, by name: file and BLAKE2b-256 of each.
        samples: of each client that took part.
        absent: why each client that was asked did not.
        bytes_down, bytes_up: sent to clients and by them, for the measurement of accuracy too.
        forward, backward: samples on their way through networks, likewise.
        seconds: that it took, without the measurement.
        validation: accuracy in percent on validation samples that stay, at the clients; None where nobody was asked.
    """

    kind: ClassVar = "round"
    phase: Phase
    number: int
    unlearning: int | None
    model: str
    checkpoint: str
    negations: list[list[str]]
    carried: Mapping[str, list[str]] = field(default_factory=dict)
    samples: Mapping[str, int] = field(default_factory=dict)
    absent: Mapping[str, str] = field(default_factory=dict)
    bytes_down: int = 0
    bytes_up: int = 0
    forward: int = 0
    backward: int = 0
    seconds: float = 0.0
    validation: float | None = None


@dataclass(frozen=True)
class Began:
    """An unlearning began: from here on nothing of these requests is trained on.

    Attributes:
        unlearning: its number, from 0.
        requests: that it answers, ids.
        method: name and hyper-parameters.
        before: BLAKE2b-256 of the model that it begins with, and ``checkpoint`` its file.
        validation: accuracy in percent of that model on validation samples that stay: what recovery is held against.
        audit: of that model; ``concerned``: by request id, the clients that it concerns; ``found``: by client, what
            each that answered measured, as `fedunlearn.audits.recognition.Recognised` has it. What a client is to
            forget by several requests of an unlearning it measures together.
        negations: that model's sign history.
        plan: as in `Started`: what the unlearning must be gone on with.
    """

    kind: ClassVar = "began"
    unlearning: int
    requests: list[str]
    method: Mapping[str, Any]
    before: str
    checkpoint: str
    validation: float | None
    audit: Mapping[str, Any]
    negations: list[list[str]] = field(default_factory=list)
    plan: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Recovered:
    """Recovery has ended.

    Attributes:
        why: "recovered": the stop rule was met; "limit": it was not, in as many rounds as were allowed; "nobody": no
            client stays to recover with; where none stayed from the beginning, the model is a new one.
    """

    kind: ClassVar = "recovered"
    unlearning: int
    why: Literal["recovered", "limit", "nobody"]


ENDED: Mapping[str, str] = {
    "recovered": "the stop rule was met",
    "limit": "at the limit of rounds, before the stop rule was met",
    "nobody": "nobody stays to recover with",  # whether the model is a new one the method says
}
"""Why recovery ended, in words."""


@dataclass(frozen=True)
class Audited:
    """The audit of an unlearning.

    Attributes:
        unlearning: its number.
        judgements: of each request, by id, what `fedunlearn.audits.judgement.judged` makes, as plain values, of the
            clients that this request concerns.
    """

    kind: ClassVar = "audited"
    unlearning: int
    judgements: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Done:
    """A receipt was issued; it stands here in full."""

    kind: ClassVar = "done"
    request: str
    receipt: Mapping[str, Any]


@dataclass(frozen=True)
class Fault:
    """Something went wrong, and the server went on.

    Attributes:
        client: at whom; empty: a node that is none of the clients.
        what: "silent", "failed", "not finite", "misshapen", "stale", "malformed", "too large", "stranger".
        detail: a sentence.
        phase, number: of the round.
    """

    kind: ClassVar = "fault"
    client: str
    what: str
    detail: str
    phase: str
    number: int


@dataclass(frozen=True)
class Waited:
    """Too few clients answered for a round; it was tried again."""

    kind: ClassVar = "waited"
    phase: str
    number: int
    why: str


@dataclass(frozen=True)
class Rotated:
    """The server signs with another key from here on.

    Attributes:
        key: the new public key.
        signature: the old key's, of ``{"register": ID, "key": NEW}`` (purpose "rotation").
    """

    kind: ClassVar = "rotated"
    key: str
    signature: str


Event: TypeAlias = (
    Opened
    | Enrolled
    | Started
    | Filed
    | Instead
    | Refused
    | Acknowledged
    | Began
    | RoundDone
    | Recovered
    | Audited
    | Done
    | Fault
    | Waited
    | Rotated
)

KINDS: Mapping[str, type[Event]] = {kind.kind: kind for kind in get_args(Event)}


def tell_method(method: Mapping[str, Any]) -> str:
    """A method as `Began` has it, in a line: ``NoT(again="other", layers=First)``."""
    if not method:
        return "not known"
    options = method.get("options")
    told = (f"{name}={_told(value)}" for name, value in (options.items() if isinstance(options, Mapping) else ()))
    return f"{method.get('name')}({', '.join(told)})"


def _told(value: Any) -> str:
    if isinstance(value, dict) and "type" in value:  # as programs are written on the wire
        return str(value["type"]).rpartition(":")[2]
    return json.dumps(value, ensure_ascii=False)


def plain(event: Event) -> dict[str, Any]:
    """The event's fields, as JSON knows them."""
    return asdict(event)


def event_of(kind: str, body: Mapping[str, Any]) -> Event:
    """`plain`'s inverse.

    Raises:
        EventProblem: there is no such kind, or it has other fields, or values of other types.
    """
    if kind not in KINDS or body.keys() != {f.name for f in fields(KINDS[kind])}:
        named = ", ".join(sorted(body))[:200]  # whoever wrote the file chose them
        raise EventProblem(f"an event of the kind {kind[:40]!r} with the fields {named} is none of ours")
    for name, type_ in _types(kind).items():
        try:
            type_.validate_python(body[name], strict=True)
        except ValidationError as error:
            # A half of a surrogate pair, which nobody can print, is a text all the same.
            if wrong := [each["msg"] for each in error.errors() if each["type"] != "string_unicode"]:
                raise EventProblem(f"the {name} of an event of the kind {kind!r}: {wrong[0]}") from None
    return KINDS[kind](**body)


@cache
def _types(kind: str) -> Mapping[str, TypeAdapter[Any]]:
    """Of an event's fields."""
    hints = get_type_hints(KINDS[kind])
    return {each.name: TypeAdapter(hints[each.name]) for each in fields(KINDS[kind])}
