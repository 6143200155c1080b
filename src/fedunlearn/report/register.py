"""The operator's page: how a service that answers deletion requests stands, from its register."""

from __future__ import annotations

import base64
import html
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, get_args

from markupsafe import Markup

from fedunlearn.amounts import scaled, tell_bytes
from fedunlearn.deletion.events import ENDED, Fault, RoundDone, Waited, tell_method
from fedunlearn.deletion.register import Head
from fedunlearn.deletion.standing import Entry, Standing, State, Unlearning
from fedunlearn.report.register_figures import moments, quality
from fedunlearn.report.rendering import render

__all__ = ["register_page"]

_PHASES = {"train": "training round", "unlearn": "unlearning round", "recover": "recovery round"}
_REQUESTS, _UNLEARNINGS, _LISTED = 500, 200, 200  # that a page has room for; of everything else the last
_RECEIPTS = 1_000_000  # bytes of all receipts on the page; the register has them all
_ASKERS, _NUMBERS = 12, 12  # moments below the figure, unlearnings in a sentence
_RECENT = 5  # rounds whose faults are told first
_TEXT, _SHORT = 1000, 8  # characters of what somebody has written; of an id or a digest
UNKNOWN = "not known"


@dataclass(frozen=True)
class _Step:
    """A state on a request's way, and when it was reached, in UTC; empty: it was not."""

    state: str
    date: str
    time: str


@dataclass(frozen=True)
class _Request:
    """A line of the table, and where its receipt is; ``anchor`` is unique on the page."""

    anchor: str
    entry: Entry
    operator: bool
    steps: list[_Step]
    receipt: bool


@dataclass(frozen=True)
class _Receipt:
    """For reading, and for keeping as a file."""

    anchor: str
    entry: Entry
    text: Markup
    link: str


@dataclass(frozen=True)
class _Unlearning:
    """A tile; ``number`` is from 1."""

    number: int
    look: str
    status: str
    sentence: str
    entries: list[Entry]
    facts: list[tuple[str, str]]


@dataclass(frozen=True)
class _Trouble:
    """A fault or a wait."""

    at: str
    what: str
    who: str
    round: str
    detail: str


@dataclass(frozen=True)
class _Listed:
    """The newest of something, and how many there are in all."""

    shown: list[Any]
    count: int

    @classmethod
    def of(cls, newest_first: Iterable[Any], count: int, most: int = _LISTED) -> _Listed:
        return cls(list(islice(newest_first, most)), count)


def register_page(standing: Standing, head: Head) -> str:
    """The page's HTML, which needs no network and no script.

    Unlearnings and rounds are counted from 1, as people do, though the register numbers them from 0.
    It is below 3 MB: of a long service it shows the newest, and says how much there is besides.

    Args:
        standing: all that the register holds.
        head: where it ends.
    """
    anchors = {id: f"request-{number}" for number, id in enumerate(standing.requests, 1)}
    receipts = list(_receipts(standing, anchors))
    text = render(
        "register.html",
        filters={"cut": _cut, "short": _short, "time": _time, "percent": _percent, "phase": _phase},
        title="Deletion requests",
        standing=standing,
        head=head,
        stands=_stands(standing),
        attention=list(_attention(standing)),
        requests=_Listed.of(_requests(standing, anchors, receipts), len(standing.requests), _REQUESTS),
        refused=_Listed.of(reversed(standing.refused), len(standing.refused)),
        picture_of_quality=quality(standing) if standing.rounds else None,
        askers=_Listed.of(_askers(standing), len(standing.unlearnings), _ASKERS),
        rounds=_Listed.of(reversed(list(enumerate(standing.rounds, 1))), len(standing.rounds)),
        unlearnings=_Listed.of(map(_tile_of(standing), _newest(standing)), len(standing.unlearnings), _UNLEARNINGS),
        limits=next((one.judgement.get("limits", "") for _, one in _newest(standing) if one.judgement), ""),
        receipts=_Listed(receipts, sum(entry.receipt is not None for entry in standing.requests.values())),
        troubles=_Listed.of(_troubles(standing), len(standing.faults) + len(standing.waits)),
        about=[(name, _plain(value)) for name, value in _about(standing).items()],
        unknown=UNKNOWN,
    )
    return text.encode("utf-8", "replace").decode()  # half a surrogate pair can stand in JSON, and in no file


def _newest(standing: Standing) -> Iterator[tuple[int, Unlearning]]:
    """Each with its number, from 1."""
    return reversed(list(enumerate(standing.unlearnings, 1)))


def _stands(standing: Standing) -> str:
    """In a sentence."""
    if standing.opened is None:
        return "This register is empty: no server has begun to write in it."
    states = Counter(entry.state for entry in standing.requests.values())
    waiting = states["filed"] + states["acknowledged"]
    under_way = states.total() - waiting - states["done"] - states["refused"]
    parts = {"answered": states["done"], "being answered": under_way, "waiting": waiting, "refused": states["refused"]}
    counts = ", ".join(f"{count} {what}" for what, count in parts.items() if count)
    requests = f"{_counted(states.total(), 'request')}: {counts}" if states else "No request was entered yet"
    if not standing.rounds:
        return f"{requests}; {_under_way(standing)}; no round is over yet."
    at, last = standing.rounds[-1]
    told = f"the last round, {len(standing.rounds):,} ({_phase(last)}), was over at {_time(at)} UTC"
    return f"{requests}; {_under_way(standing)}; {told}."


def _under_way(standing: Standing) -> str:
    current = standing.current
    if current is None:
        return "no unlearning is under way"
    rounds = len(current.recovery)
    stage = f"recovering ({_counted(rounds, 'round')} so far)" if rounds else "at its own rounds"
    if current.recovered is not None:
        stage = "recovered and to be audited"
    if current.judgement is not None:
        stage = "audited, and receipts are to be issued"
    return f"unlearning {current.began.unlearning + 1} is {stage}"


def _attention(standing: Standing) -> Iterator[str]:
    """What the operator should look at first, the worst before the rest."""
    judged = {
        "traces found": "The audit found traces of what was to be forgotten",
        "cannot tell": "No audit could tell",
    }
    for status, sentence in {**judged, "not audited": "No audit could be made"}.items():
        yield from _in_unlearnings(sentence, (n for n, one in _newest(standing) if _status(one) == status))
    at_limit = (n for n, one in _newest(standing) if one.recovered and one.recovered.why == "limit")
    yield from _in_unlearnings(f"Recovery ended {ENDED['limit']}", at_limit)
    since = standing.rounds[-1][0] if standing.rounds else ""
    waits = [wait for at, wait in standing.waits if at > since]
    if waits:
        yield f"Too few clients answered since the last round, {_counted(len(waits), 'time')}: {_cut(waits[-1].why)}."
    since = standing.rounds[-1 - _RECENT][0] if len(standing.rounds) > _RECENT else ""
    faults = Counter((fault.client, fault.what) for at, fault in standing.faults if at > since)
    if faults:
        told = [f"{_who(client)}: {_cut(what)} ({count})" for (client, what), count in faults.most_common(_RECENT)]
        others = f" and {len(faults) - _RECENT} more" if len(faults) > _RECENT else ""
        recent = _counted(min(_RECENT, len(standing.rounds)), "round")
        over = f"In the last {recent} and since" if standing.rounds else "Before the first round"
        yield f"{over}, {_counted(faults.total(), 'fault')}: {', '.join(told)}{others}."


def _in_unlearnings(sentence: str, numbers: Iterable[int]) -> Iterator[str]:
    which = list(map(str, numbers))
    if which:
        more = f" and {len(which) - _NUMBERS} earlier" if len(which) > _NUMBERS else ""
        yield f"{sentence}: unlearning{'s' if len(which) > 1 else ''} {', '.join(which[:_NUMBERS])}{more}."


def _requests(standing: Standing, anchors: Mapping[str, str], receipts: Sequence[_Receipt]) -> Iterator[_Request]:
    """Those that are not settled first, then the newest."""
    newest = list(reversed(standing.requests.values()))
    there = {receipt.anchor for receipt in receipts}
    servers = {standing.opened.key if standing.opened else "", *(rotated.key for _, rotated in standing.rotations)}
    for entry in sorted(newest, key=lambda entry: entry.settled):
        anchor = anchors[entry.request]
        yield _Request(anchor, entry, entry.key in servers, _steps(entry), anchor in there)


def _steps(entry: Entry) -> list[_Step]:
    """All states but refusal, where it was not refused; else those that it came to."""
    states = [s for s in get_args(State) if (s in entry.times if entry.state == "refused" else s != "refused")]
    steps, before = [], ""
    for state in states:
        date, _, time = _time(entry.times.get(state, "")).partition(" ")
        steps.append(_Step(state, date if date != before else "", time))
        before = date or before
    return steps


def _receipts(standing: Standing, anchors: Mapping[str, str]) -> Iterator[_Receipt]:
    """The newest, as many as there is room for."""
    room = _RECEIPTS
    for entry in sorted(standing.requests.values(), key=lambda entry: entry.times.get("done", ""), reverse=True):
        if entry.receipt is None:
            continue
        first = {"audit": entry.receipt["audit"]} if "audit" in entry.receipt else {}  # a register sorts names
        text = html.escape(json.dumps(first | entry.receipt, indent=1, ensure_ascii=False), quote=False)
        file = base64.b64encode(json.dumps(entry.receipt).encode()).decode()
        room -= len(text.encode("utf-8", "replace")) + len(file)
        if room < 0:
            return
        yield _Receipt(anchors[entry.request], entry, Markup(text), f"data:application/json;base64,{file}")  # escaped


def _askers(standing: Standing) -> Iterator[tuple[int, int, Unlearning, list[Entry]]]:
    """Number from 1, rounds before it, and whose requests an unlearning answers."""
    before = moments(standing)
    for number, one in _newest(standing):
        yield number, before[number - 1], one, _answered(standing, one)


def _tile_of(standing: Standing) -> Callable[[tuple[int, Unlearning]], _Unlearning]:
    before = moments(standing)

    def tile(numbered: tuple[int, Unlearning]) -> _Unlearning:
        number, one = numbered
        costs, recovery = one.costs, one.recovery
        facts = [
            ("Began", f"{_time(one.at)} UTC, after {_counted(before[number - 1], 'round')}"),
            ("Method", tell_method(one.began.method)),
            ("Layers negated", _negated(one)),
            ("Accuracy before", _percent(one.began.validation)),
            ("Accuracy after", _percent(_last_known(recovery))),
            ("Recovery", f"{_counted(len(recovery), 'round')}; {_end(one)}"),
            ("Sent", f"{tell_bytes(costs.bytes_down)} down, {tell_bytes(costs.bytes_up)} up"),
            ("Passes", f"{_amount(costs.forward)} samples forward, {_amount(costs.backward)} backward"),
            ("Time", f"{costs.seconds:,.1f} s in rounds"),
        ]
        status = _status(one)
        judgement = one.judgement or {}
        sentence = judgement.get("sentence", UNKNOWN) if one.judgement else "The audit comes after recovery."
        return _Unlearning(number, _LOOKS.get(status, "unknown"), status, sentence, _answered(standing, one), facts)

    return tile


_LOOKS = {"traces found": "found", "nothing found": "not-found"}


def _answered(standing: Standing, one: Unlearning) -> list[Entry]:
    return [standing.requests[id] for id in one.began.requests if id in standing.requests]


def _status(one: Unlearning) -> str:
    """Of its audit."""
    return str(one.judgement.get("status", UNKNOWN)) if one.judgement else "not audited yet"


def _last_known(rounds: Sequence[RoundDone]) -> float | None:
    return next((done.validation for done in reversed(rounds) if done.validation is not None), None)


def _end(one: Unlearning) -> str:
    return ENDED.get(one.recovered.why, one.recovered.why) if one.recovered else "it has not ended"


def _negated(one: Unlearning) -> str:
    return "; ".join(", ".join(names) for names in one.negated) or "none" if one.rounds else UNKNOWN


def _amount(number: int) -> str:
    return f"{number:,}" if number < 100_000 else " ".join(scaled(number))


def _troubles(standing: Standing) -> Iterator[_Trouble]:
    """Faults and waits, newest first."""
    both: list[tuple[str, Fault | Waited]] = sorted([*standing.faults, *standing.waits], key=lambda of: of[0])
    for at, one in reversed(both):
        where = f"{_PHASES[one.phase]} {one.number + 1}" if one.phase in _PHASES else "between rounds"
        if isinstance(one, Fault):
            yield _Trouble(at, one.what, _who(one.client), where, one.detail)
        else:
            yield _Trouble(at, "waited", "too few clients", where, one.why)


def _who(client: str | None) -> str:
    return _cut(client) if client else "an unknown node"


def _phase(done: RoundDone) -> str:
    """Which round of its phase it was, and of which unlearning."""
    of = "" if done.unlearning is None else f" of unlearning {done.unlearning + 1}"
    return f"{_PHASES[done.phase]} {done.number + 1}{of}"


def _percent(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.1f} %"


def _time(at: str) -> str:
    """As people write it; what zone it is in stands beside it."""
    return at.removesuffix("+00:00").replace("T", " ", 1)


def _about(standing: Standing) -> dict[str, Any]:
    """What the server said of itself, the last time that it started."""
    said = dict(standing.opened.about) if standing.opened else {}
    if standing.started:
        _, last = standing.started[-1]
        said |= {**last.plan, "software": last.software}
    return said


def _plain(value: Any) -> str:
    return _cut(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _cut(text: object) -> str:
    told = str(text)
    return told if len(told) <= _TEXT else f"{told[:_TEXT]}…"


def _short(id: str) -> str:
    return id if len(id) <= _SHORT + 1 else f"{id[:_SHORT]}…"


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"
