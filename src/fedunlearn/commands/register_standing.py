"""Where a service stands, as its register knows: for an operator at a terminal, and for scripts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from fedunlearn.amounts import printable, tell_percent

if TYPE_CHECKING:
    from fedunlearn.deletion.events import RoundDone
    from fedunlearn.deletion.standing import Standing, Unlearning

__all__ = ["described", "tell_standing"]

_LISTED = 20  # of faults and waits, and of strangers: the newest
_ROUNDS = 5  # of which it is told who was absent: the newest
_PHASES = {"train": "training", "unlearn": "unlearning", "recover": "recovery"}


def described(standing: Standing) -> dict[str, Any]:
    """Plain values; rounds and unlearnings are numbered from 0, as in the register. Lists begin with the newest."""
    newest = standing.rounds[: -_ROUNDS - 1 : -1]
    strangers = [(at, fault) for at, fault in standing.faults if fault.what == "stranger"]
    return {
        "clients": sorted(standing.clients),
        "rounds": {
            "training": standing.trained,
            "all": len(standing.rounds),
            "last": _round(*standing.rounds[-1]) if standing.rounds else None,
        },
        "unlearning": None if standing.current is None else _under_way(standing.current),
        "waiting": [entry.request for entry in standing.waiting],
        "absent": [{**_place(done), "clients": dict(done.absent)} for _, done in newest if done.absent],
        "faults": _troubles(standing),
        "strangers": [{"at": at, "detail": fault.detail} for at, fault in strangers[: -_LISTED - 1 : -1]],
    }


def tell_standing(standing: Standing) -> str:
    """`described` in lines; rounds and unlearnings are counted from 1."""
    lines = [(name, text) for name, texts in _chapters(described(standing)) for name, text in _headed(name, texts)]
    return "\n".join(f"{printable(name):<15}{printable(text)}".rstrip() for name, text in lines)


def _round(at: str, done: RoundDone) -> dict[str, Any]:
    return {**_place(done), "at": at, "validation": done.validation}


def _place(done: RoundDone) -> dict[str, Any]:
    return {"phase": done.phase, "number": done.number, "unlearning": done.unlearning}


def _under_way(one: Unlearning) -> dict[str, Any]:
    if one.judgements is not None:
        state = "verified"
    else:
        recovering = one.recovered is not None or any(done.phase == "recover" for _, done in one.rounds)
        state = "recovering" if recovering else "unlearning"
    requests = list(one.began.requests)
    return {
        **{"unlearning": one.began.unlearning, "state": state, "since": one.at},
        **{"requests": requests, "rounds": len(one.rounds)},
    }


def _troubles(standing: Standing) -> list[dict[str, Any]]:
    """Faults and waits; strangers are told by themselves."""
    found: list[dict[str, Any]] = [
        {"at": at, "what": one.what, "client": one.client, "phase": one.phase, "number": one.number, "why": one.detail}
        for at, one in standing.faults
        if one.what != "stranger"
    ]
    found += [
        {"at": at, "what": "waited", "client": "", "phase": one.phase, "number": one.number, "why": one.why}
        for at, one in standing.waits
    ]
    return sorted(found, key=lambda one: str(one["at"]))[: -_LISTED - 1 : -1]


def _chapters(now: dict[str, Any]) -> Iterator[tuple[str, list[str]]]:
    rounds, current = now["rounds"], now["unlearning"]
    yield "rounds", [f"{rounds['training']} of training, {rounds['all'] - rounds['training']} of unlearnings"]
    if (last := rounds["last"]) is not None:
        yield "last", [f"{_named(last)}, {last['at']}; accuracy {tell_percent(last['validation'])}"]
    if current is None:
        yield "unlearning", ["none is under way"]
    else:
        told = f"{current['state']} since {current['since']}, {current['rounds']} rounds"
        yield "unlearning", [f"number {current['unlearning'] + 1}: {told}", *current["requests"]]
    yield "waiting", now["waiting"]
    yield "absent", [f"{_named(one)}: {_pairs(one['clients'])}" for one in now["absent"]]
    yield "faults", [f"{one['at']}  {_trouble(one)}" for one in now["faults"]]
    yield "strangers", [f"{one['at']}  {one['detail']}" for one in now["strangers"]]


def _headed(name: str, texts: list[str]) -> Iterator[tuple[str, str]]:
    yield name, texts[0] if texts else "none"
    for text in texts[1:]:
        yield "", text


def _named(place: dict[str, Any]) -> str:
    of = "" if place.get("unlearning") is None else f" of unlearning {place['unlearning'] + 1}"
    return f"{_PHASES.get(place['phase'], place['phase'])} round {place['number'] + 1}{of}"


def _trouble(one: dict[str, Any]) -> str:
    who = f"{one['client']}: " if one["client"] else ""
    return f"{_named(one)}: {who}{one['what']} ({one['why']})"


def _pairs(absent: dict[str, str]) -> str:
    return ", ".join(f"{client} ({why})" for client, why in absent.items())
