"""A server's work for one request does not grow with all clients or all requests: counted, not timed."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, derive_private_key, generate_private_key
from registers import KEY
from scale import TRAINING
from scale_register import FIRST, Answering, Small, public_keys
from scale_register import Site as Answered

from fedunlearn.architecture import Architecture
from fedunlearn.deletion import register as registers_of
from fedunlearn.deletion import service as service_of
from fedunlearn.deletion import statement
from fedunlearn.deletion.events import Began, Done, Enrolled, EventProblem, Filed, Opened, Refused
from fedunlearn.deletion.plan import Plan
from fedunlearn.deletion.reception import Reception
from fedunlearn.deletion.register import Register
from fedunlearn.deletion.service import Service
from fedunlearn.deletion.signing import SigningKey
from fedunlearn.deletion.standing import standing
from fedunlearn.deletion.statement import Scope, Signed, Statement
from fedunlearn.deletion.verification import verify

CLIENTS = {str(number): SigningKey(generate_private_key(SECP384R1())) for number in range(8)}
ROSTER = {name: key.public.text for name, key in CLIENTS.items()}


def created(folder: Path, roster: Mapping[str, str] = ROSTER) -> Register:
    return Register.create(folder / "register", KEY, Opened(dict(roster), KEY.public.text, {}))


def test_a_list_that_is_too_long_for_an_event_goes_on_in_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registers_of, "_LISTED", 3)
    with created(tmp_path) as register:
        said = [entered.event for entered in register.events()]
        assert [type(event) for event in said] == [Opened, Enrolled, Enrolled]
        assert [len(event.clients) for event in said if isinstance(event, Opened | Enrolled)] == [3, 3, 2]
        assert register.standing().clients == ROSTER
        register.enrol({"0": ROSTER["0"]})
        left = [entered.event.left for entered in register.events(3) if isinstance(entered.event, Enrolled)]
        assert left == [["1", "2", "3"], ["4", "5", "6"], ["7"]]
        assert register.standing().clients == {"0": ROSTER["0"]}
        assert register.standing().enrolled == ROSTER.keys()
        register.enrol(ROSTER)
    assert Register.read(tmp_path / "register").standing().clients == ROSTER
    assert verify(tmp_path / "register", [KEY.public]).problems == []


def test_who_joins_and_who_leaves_share_the_room_of_an_event(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registers_of, "_LISTED", 3)
    with created(tmp_path, {name: ROSTER[name] for name in "0123"}) as register:
        since = register.head.count
        register.enrol({name: ROSTER[name] for name in "4567"})
        changes = [entered.event for entered in register.events(since) if isinstance(entered.event, Enrolled)]
        assert [(list(event.clients), event.left) for event in changes] == [
            (["4", "5", "6"], []),
            (["7"], ["0", "1"]),
            ([], ["2", "3"]),
        ]
        assert register.standing().clients == {name: ROSTER[name] for name in "4567"}


def test_only_what_changes_on_a_list_is_entered(tmp_path: Path) -> None:
    with created(tmp_path, {name: ROSTER[name] for name in "0123456"}) as register:
        other = SigningKey(generate_private_key(SECP384R1())).public.text
        register.enrol({**{name: ROSTER[name] for name in "134567"}, "2": other})
        (changed,) = (entered.event for entered in register.events(1))
        assert changed == Enrolled({"7": ROSTER["7"], "2": other}, ["0"])
        before = register.head
        assert register.enrol(dict(reversed(register.standing().clients.items()))) == before


def test_who_leaves_must_have_been_there() -> None:
    opened = Opened({"a": "key"}, "server", {})
    with pytest.raises(LookupError):
        standing([("", opened), ("", Enrolled({}, ["b"]))])


def test_a_request_is_answered_by_one_unlearning() -> None:
    signed = Signed.by(KEY, Statement.make(Scope("class", 1), "x"))
    filed = Filed(signed.statement.id, None, signed.json)
    began = [Began(number, [signed.statement.id], {}, "", "", None, {}) for number in (0, 1)]
    with pytest.raises(EventProblem, match=f"request {signed.statement.id} is answered by an unlearning already"):
        standing([("", filed), ("", began[0]), ("", began[1])])


def test_receipts_of_one_unlearning_hold_its_rounds_once() -> None:
    each = [Signed.by(key, Statement.make(Scope("client"), "x")) for key in CLIENTS.values()]
    ids = [signed.statement.id for signed in each]
    rounds = [{"took part": {"1": 2}}, {"took part": {"1": 2}}, {"took part": {"1": 3}}]
    done = [Done(id, {"request": id, "rounds": [told]}) for id, told in zip(ids, rounds, strict=False)]
    filed = [Filed(signed.statement.id, None, signed.json) for signed in each]
    now = standing([("", event) for event in (*filed, Began(0, ids, {}, "", "", None, {}), *done)])
    receipts = [now.requests[id].receipt or {} for id in ids[:3]]
    assert receipts == [event.receipt for event in done]
    assert receipts[0]["rounds"] is receipts[1]["rounds"]


def test_more_requests_than_an_audit_has_room_for_are_answered_one_part_after_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_of, "_TOGETHER", 2)
    architecture = Architecture(Small)
    plan = Plan(TRAINING, rounds=1, most=2, pause=0.0)
    about = Service.about(plan, architecture.fresh(0))
    filed = {name: signed_by(name) for name in "024"}
    with Register.create(tmp_path / "register", KEY, Opened(ROSTER, KEY.public.text, about)) as register:
        Service(Answered(Answering(tuple(ROSTER)), dict(filed)), register, KEY, architecture, plan).run()
        now = register.standing()
        each = [content["statement"]["id"] for content in filed.values()]
        assert [one.began.requests for one in now.unlearnings] == [each[:2], each[2:]]
        assert [now.requests[id].state for id in each] == ["done"] * 3
    assert verify(tmp_path / "register", [KEY.public]).problems == []


class Site:
    """Clients that bring what they have filed at every look."""

    def __init__(self, filed: Mapping[str, Sequence[Any]]) -> None:
        self.federation: Any = type("Nobody", (), {"clients": tuple(ROSTER)})()
        self.filed = filed

    def exchange(self, answers: Mapping[str, Any]) -> Mapping[str, Sequence[Any]]:
        return self.filed

    def faults(self) -> list[tuple[str, str, str]]:
        return []


def signed_by(name: str, **content: Any) -> dict[str, Any]:
    return Signed.by(CLIENTS[name], Statement.make(Scope("client"), "please")).json | content


def test_a_signature_is_verified_once_however_often_a_request_is_brought(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = signed_by("3")
    verified: list[str] = []
    plain = statement.PublicKey.verified
    monkeypatch.setattr(
        statement.PublicKey, "verified", lambda self, *said: verified.append(said[0]) or plain(self, *said)
    )
    with created(tmp_path) as register:
        site = Site({"3": [content]})
        reception = Reception(site, register, KEY)
        for _ in range(4):
            reception.look()
        assert verified.count("request") == 1
        assert list(register.standing().requests) == [content["statement"]["id"]]
        # One letter of the statement is another, under the same signature: it is looked at, and refused.
        site.filed = {"3": [{**content, "statement": {**content["statement"], "reason": "pleasE"}}]}
        reception.look()
        assert verified.count("request") == 3  # once to enter it, once to write it down
        assert "does not bear the signature" in register.standing().refused[-1][1].why


def test_the_benchmarks_keys_are_those_of_their_numbers() -> None:
    """Also where a block of them ends."""
    expected = [SigningKey(derive_private_key(FIRST + number, SECP384R1())).public.text for number in range(7)]
    assert list(public_keys(7, block=3)) == expected


def test_where_everything_stands_knows_requests_and_refusals_by_client() -> None:
    each = {name: Signed.by(key, Statement.make(Scope("client"), "x")) for name, key in CLIENTS.items()}
    filed = [Filed(signed.statement.id, name, signed.json) for name, signed in each.items()]
    turned = [Refused(secrets.token_hex(16), name, "no") for name in "001"]
    now = standing([("", Opened(ROSTER, KEY.public.text, {})), *(("", event) for event in (*filed, *turned))])
    assert {name: [one.request for one in found] for name, found in now.concerning.items()} == {
        name: [signed.statement.id] for name, signed in each.items()
    }
    assert now.refusals == {"0": turned[:2], "1": turned[2:]}
    assert now.turned_down == {one.request: one for one in turned}
