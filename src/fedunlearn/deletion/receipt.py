"""What whoever asked gets in the end: what was done and measured, signed, to be checked without the server.

A receipt is plain values. Its first field is the audit's; the signature is over the canonical form of all the others.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from fedunlearn.amounts import printable, scaled, tell_bytes, tell_percent
from fedunlearn.atomic import write_json
from fedunlearn.deletion.events import ENDED, RoundDone, tell_method
from fedunlearn.deletion.register import Head
from fedunlearn.deletion.signing import KeyProblem, PublicKey, SigningKey, canonical
from fedunlearn.deletion.standing import Entry, Standing, State, Unlearning

__all__ = ["CLAIM", "LONGEST", "STATUSES", "ReceiptProblem", "issue", "read", "tell", "verify", "write"]

CLAIM = (
    "This receipt says what the server did and what was measured, and that neither was changed since it was signed. "
    "It does not say that nothing of the data can be recovered by any means: whoever kept an older model still has "
    "what that one knows, and an audit finds only what it looks for, with the power that it states."
)
"""What a receipt claims, and what it does not; it stands in each."""

STATUSES = ("nothing found", "traces found", "cannot tell", "not audited")
"""Of an audit."""

LONGEST = 4_194_304
"""Bytes of a receipt's canonical form."""

_FORMAT = 1
_LONGEST_FILE = 4 * LONGEST  # indented
_LARGEST = 2**63 - 1  # of a number
_ORDER = (
    *("audit", "receipt", "request", "times", "answered", "recovery", "rounds", "costs", "register", "server"),
    *("issued", "statement", "signature"),
)


class ReceiptProblem(ValueError):
    """There is no receipt to be read, or none to be issued; the sentence says what to do."""


def issue(standing: Standing, request: str, head: Head, key: SigningKey, at: str) -> dict[str, Any]:
    """A receipt for a request that was answered and audited.

    Args:
        standing: of the register.
        request: its id.
        head: of the register, as it is now.
        key: the server's.
        at: the time, in UTC.

    Raises:
        ReceiptProblem: there is no such request, nothing is known yet that a receipt could say, or it is too long.
    """
    entry = standing.requests.get(request)
    if entry is None or entry.unlearning is None or entry.state != "verified":
        raise ReceiptProblem(f"request {request} is not verified: a receipt is issued after the audit")
    one = standing.unlearnings[entry.unlearning]
    judgement = (one.judgements or {}).get(request)
    if judgement is None or one.recovered is None:
        raise ReceiptProblem(f"request {request}: recovery and audit come before its receipt")
    try:
        asked = _request(entry, standing)
    except KeyProblem as error:
        raise ReceiptProblem(f"request {request}: the key that it is signed with: {error}") from None
    public = key.public
    content: dict[str, Any] = {
        "audit": {"status": judgement.get("status"), "sentence": judgement.get("sentence"), **judgement},
        "receipt": _FORMAT,
        "request": asked,
        "times": dict(entry.times),
        "answered": _answered(one),
        "recovery": _recovery(one),
        "rounds": [_round(done) for _, done in one.rounds],
        "costs": _costs(one),
        "register": {"id": head.register, "count": head.count, "hash": head.hash},
        "server": {"key": public.text, "fingerprint": public.fingerprint},
        "issued": at,
        "statement": CLAIM,
    }
    content = json.loads(json.dumps(content))  # as it will be read: lists, no tuples
    content["signature"] = key.sign("receipt", content)
    if problems := verify(content, public):
        raise ReceiptProblem(f"request {request}: no receipt can be made of what the register holds: {problems[0]}")
    return content


def verify(content: Any, key: PublicKey) -> list[str]:
    """What is wrong with a receipt, offline; nothing, if it is as the holder of the key has signed it.

    Args:
        content: what `read` gives, or any plain values.
        key: the server's public key, from a source that is trusted.
    """
    problem = _misshapen(content)
    if problem is not None:
        return [problem]
    server = content["server"]
    try:
        named = PublicKey.of(server["key"])
    except KeyProblem:
        return ["the receipt names no public key of a server: it was changed"]
    problems = []
    if named != key:
        problems.append(
            f"the receipt was issued with the key {named.fingerprint}, and you gave {key.fingerprint}: if the server's "
            "key was rotated, give the one that was in force then; else the receipt is not this server's"
        )
    elif server["key"] != named.text or server["fingerprint"] != named.fingerprint:
        problems.append("the fingerprint in the receipt is not its key's: the receipt was changed")
    elif not key.verified("receipt", _signed_part(content), content["signature"]):
        problems.append("the signature does not fit: the receipt was changed after it was signed, get it again")
    return problems


def read(path: Path) -> Any:
    """A receipt's file, as plain values that nobody has checked yet.

    Raises:
        ReceiptProblem: it cannot be read, is too long, or no JSON.
    """
    try:
        with open(path, "rb") as file:
            raw = file.read(_LONGEST_FILE + 1)
    except OSError as error:
        raise ReceiptProblem(f"{path} cannot be read: {error.strerror or error}") from None
    if len(raw) > _LONGEST_FILE:
        raise ReceiptProblem(f"{path} is longer than any receipt, {tell_bytes(_LONGEST_FILE)}")
    try:
        return json.loads(raw, object_pairs_hook=_once, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise ReceiptProblem(f"{path} is no JSON ({error}): if it was cut off on its way, get it again") from None


def write(content: Mapping[str, Any], path: Path) -> None:
    """Write a receipt, the audit first, whatever order a register has kept it in."""
    write_json(path, {name: content[name] for name in _ORDER if name in content})


def tell(content: Any) -> str:
    """A receipt in lines for people, who count from 1; whether it is right only `verify` knows.

    Raises:
        ReceiptProblem: it is none.
    """
    problem = _misshapen(content)
    if problem is not None:
        raise ReceiptProblem(problem)
    lines = [f"{printable(name):<16}{printable(text)}".rstrip() for name, text in _lines(content)]
    return "\n".join(lines)


def _request(entry: Entry, standing: Standing) -> dict[str, Any]:
    return {
        "id": entry.request,
        "scope": entry.scope,
        "client": entry.client,
        "reason": entry.reason,
        "filed": entry.filed,
        "data": entry.data,
        "key": PublicKey.of(entry.key).fingerprint,
        "signature": entry.signature,
        "known by": "key" if standing.holders else "simulation",  # where nodes are believed who they are
    }


def _answered(one: Unlearning) -> dict[str, Any]:
    return {
        "unlearning": one.began.unlearning,
        "others": len(one.began.requests) - 1,  # not which: they are other people's
        "method": dict(one.began.method),
        "plan": dict(one.began.plan),
        "layers": one.negated,
        "signs": {"before": one.began.negations, "after": one.negations},
        "weights": {
            "before": one.began.before,
            "after each own round": [done.model for done in one.own],
            "after recovery": one.rounds[-1][1].model if one.rounds else one.began.before,
        },
    }


def _recovery(one: Unlearning) -> dict[str, Any]:
    assert one.recovered is not None  # `issue` has seen to it
    return {
        "rounds": len(one.recovery),
        "ended": one.recovered.why,
        "validation": {
            "before": one.began.validation,
            "after": one.rounds[-1][1].validation if one.rounds else one.began.validation,
        },
    }


def _round(done: RoundDone) -> dict[str, Any]:
    return {
        "phase": done.phase,
        "number": done.number,
        "took part": dict(done.samples),
        "absent": {client: why.partition(":")[0] for client, why in done.absent.items()},  # no node's own words
        "model": done.model,
    }


def _costs(one: Unlearning) -> dict[str, Any]:
    costs = one.costs
    return {
        "bytes": {"down": costs.bytes_down, "up": costs.bytes_up},
        "samples": {"forward": costs.forward, "backward": costs.backward},
        "seconds": costs.seconds,
    }


def _signed_part(content: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in content.items() if name != "signature"}


@dataclass(frozen=True)
class _Each:
    """A table of any names, all of whose values have one shape."""

    shape: Any


@dataclass(frozen=True)
class _OneOf:
    """One of several shapes or values."""

    choices: tuple[Any, ...]


_COUNT = int
_SIGNS = [[str]]
_MAYBE_PERCENT = _OneOf((float, None))
_SHAPE = {
    "audit": dict,
    "receipt": int,
    "request": {
        **dict.fromkeys(("id", "scope", "reason", "filed", "key", "signature"), str),
        "client": _OneOf((str, None)),
        "data": _OneOf(("here", "deleted")),
        "known by": _OneOf(("key", "simulation")),
    },
    "times": _Each(str),
    "answered": {
        "unlearning": _COUNT,
        "others": _COUNT,
        "method": dict,
        "plan": dict,
        "layers": _SIGNS,
        "signs": {"before": _SIGNS, "after": _SIGNS},
        "weights": {"before": str, "after each own round": [str], "after recovery": str},
    },
    "recovery": {
        "rounds": _COUNT,
        "ended": _OneOf(tuple(ENDED)),
        "validation": {"before": _MAYBE_PERCENT, "after": _MAYBE_PERCENT},
    },
    "rounds": [
        {
            "phase": _OneOf(("unlearn", "recover")),
            "number": _COUNT,
            "took part": _Each(_COUNT),
            "absent": _Each(str),
            "model": str,
        }
    ],
    "costs": {
        "bytes": {"down": _COUNT, "up": _COUNT},
        "samples": {"forward": _COUNT, "backward": _COUNT},
        "seconds": float,
    },
    "register": {"id": str, "count": _COUNT, "hash": str},
    "server": {"key": str, "fingerprint": str},
    **dict.fromkeys(("issued", "statement", "signature"), str),
}


def _misshapen(content: Any) -> str | None:
    """Why it is no receipt; None: it is one, signed or not."""
    if not isinstance(content, dict) or "receipt" not in content:
        return "this is no receipt: get one with `fedunlearn requests export`"
    if content["receipt"] != _FORMAT:
        return f"the receipt has another format than {_FORMAT}, which this version reads: use a newer fedunlearn"
    try:
        if len(canonical(content)) > LONGEST:
            return f"the receipt is longer than {tell_bytes(LONGEST)}"
    except (ValueError, TypeError, RecursionError):
        return "the receipt holds what JSON has no form for: it was changed"
    where = _unfit(content, _SHAPE, "")
    if where is None and not (
        content["audit"].get("status") in STATUSES and isinstance(content["audit"].get("sentence"), str)
    ):
        where = "audit"
    return None if where is None else f"the receipt is not as a server makes it, at {where}: it was changed"


def _unfit(value: Any, shape: Any, where: str) -> str | None:
    """Where a value is not of its shape; None: nowhere."""
    match shape:
        case dict():
            if not isinstance(value, dict) or value.keys() != shape.keys():
                return where or "its fields"
            parts = [(value[name], shape[name], name) for name in shape]
        case _Each():
            if not isinstance(value, dict):
                return where
            parts = [(part, shape.shape, str(name)) for name, part in value.items()]
        case list():
            if not isinstance(value, list):
                return where
            parts = [(part, shape[0], str(number)) for number, part in enumerate(value, 1)]
        case _OneOf():
            return None if any(_unfit(value, choice, where) is None for choice in shape.choices) else where
        case type():
            fits = type(value) in ((int, float) if shape is float else (shape,))  # True is an int, and no count
            if fits and isinstance(value, int | float):
                fits = 0 <= value <= _LARGEST
            return None if fits else where
        case _:
            return None if type(value) is type(shape) and value == shape else where
    for part, of, name in parts:
        inner = f"{where}, {name[:40]!r}" if where else repr(name[:40])
        if (found := _unfit(part, of, inner)) is not None:
            return found
    return None


_SIMULATED = {"key": "", "simulation": ", in a simulation, whose nodes are believed who they are"}


def _lines(content: Mapping[str, Any]) -> list[tuple[str, str]]:
    request, answered, recovery = content["request"], content["answered"], content["recovery"]
    costs, register, weights = content["costs"], content["register"], content["answered"]["weights"]
    whom = "whoever holds it" if request["client"] is None else f"client {request['client']}"
    others = f", together with {answered['others']} more" if answered["others"] else ""
    before, after = (tell_percent(recovery["validation"][name]) for name in ("before", "after"))
    took = {client for done in content["rounds"] for client in done["took part"]}
    absent = sum(len(done["absent"]) for done in content["rounds"])
    return [
        ("Audit", content["audit"]["status"]),
        ("", content["audit"]["sentence"]),
        *(("", told) for told in _accuracies(content["audit"].get("clients"))),
        ("Request", f"{request['id']}: {request['scope']}, {whom}; data {request['data']}"),
        ("Reason", request["reason"] or "none given"),
        ("Filed", f"{request['filed']}, with the key {request['key']}{_SIMULATED[request['known by']]}"),
        *((f"  {state}", content["times"][state]) for state in get_args(State) if state in content["times"]),
        ("Answered", f"unlearning {answered['unlearning'] + 1}{others}, by {tell_method(answered['method'])}"),
        ("Negated", _layers(answered["layers"])),
        ("  before", _layers(answered["signs"]["before"])),
        ("  after", _layers(answered["signs"]["after"])),
        ("Weights", f"{weights['before']} before"),
        *(("", f"{model} after unlearning round {n}") for n, model in enumerate(weights["after each own round"], 1)),
        ("", f"{weights['after recovery']} after recovery"),
        ("Recovery", f"{recovery['rounds']} rounds, ended: {ENDED[recovery['ended']]}"),
        ("Validation", f"{before} before, {after} after"),
        ("Took part", f"{len(took)} clients in {len(content['rounds'])} rounds, {absent} absences"),
        ("Costs", _priced(costs)),
        ("Register", f"{register['id']}, {register['count']} events, {register['hash']}"),
        ("Server", content["server"]["fingerprint"]),
        ("Issued", content["issued"]),
        ("It claims", content["statement"]),
    ]


def _accuracies(clients: Any) -> Iterator[str]:
    """How often a model was right about what was to be forgotten; of whatever stands there, what can be read."""
    for client, found in clients.items() if isinstance(clients, dict) else ():
        try:
            old, new = found["before"], found["after"]
            if not old["compared"] or not new["compared"]:
                continue
            right = f"{100 * old['accuracy_members']:.0f} % before, {100 * new['accuracy_members']:.0f} % after"
            unseen = f"about unseen ones {100 * new['accuracy_unseen']:.0f} % after"
            yield f"{new['forgotten']} samples of client {client}: right about {right}; {unseen}"
        except (KeyError, TypeError, ValueError):
            continue


def _priced(costs: Mapping[str, Any]) -> str:
    down, up = (tell_bytes(costs["bytes"][way]) for way in ("down", "up"))
    passes = " and ".join("".join(scaled(costs["samples"][way])) + f" {way}" for way in ("forward", "backward"))
    return f"{down} to clients, {up} from them; samples {passes}; {costs['seconds']:.1f} s"


def _layers(negations: list[list[str]]) -> str:
    return "; then ".join(", ".join(names) for names in negations) or "nothing"


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError("a name stands there twice")  # readers differ in which of them they take
    return content


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is no number")
