"""Whatever was done to a register after its server wrote it is found; what cannot be found is known."""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
import struct
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from copy import deepcopy
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, generate_private_key
from hypothesis import given, settings
from hypothesis import strategies as st
from registers import KEY, MEMORY, NEXT, NODES, OPENED, STEPS, Written, altered, key, rechained, steps, stored, written

from fedunlearn.deletion import register as module
from fedunlearn.deletion.events import (
    Acknowledged,
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
    Waited,
)
from fedunlearn.deletion.register import Head, Register, RegisterError, reading
from fedunlearn.deletion.signing import SigningKey, canonical
from fedunlearn.deletion.statement import Scope, Signed, Statement
from fedunlearn.deletion.verification import MOST_PROBLEMS, verify

several = settings(max_examples=30)


@contextmanager
def a_register(story: list[str]) -> Iterator[tuple[Written, Path]]:
    """A register, and an untouched copy to change."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as place:
        made = written(Path(place) / "register", ["wait", *story])
        yield made, made.copied(Path(place) / "changed")


def problems(folder: Path, receipts: list[dict[str, Any]] | None = None) -> list[str]:
    return verify(folder, [KEY.public], receipts or []).problems


def refuses_to_open(folder: Path) -> bool:
    try:
        Register.open(folder, KEY).close()
    except RegisterError:
        return True
    return False


@several
@given(steps(0))
def test_what_an_honest_server_writes_passes(story: list[str]) -> None:
    with a_register(story) as (made, _):
        found = verify(made.folder, [KEY.public], made.receipts)
        assert (found.problems, found.warnings) == ([], [] if made.receipts else found.warnings)
        assert found.events == len(stored(made.folder))
        assert found.head == Register.read(made.folder).head


@several
@given(steps(), st.data())
def test_any_changed_byte_of_an_event_is_found(story: list[str], data: st.DataObject) -> None:
    with a_register(story) as (_, changed):
        rows = [list(row) for row in stored(changed)]
        number = data.draw(st.integers(0, len(rows) - 1))
        column = data.draw(st.sampled_from([1, 2, 3, 4]))
        raw = rows[number][column] if column == 3 else rows[number][column].encode()
        place = data.draw(st.integers(0, len(raw) - 1))
        other = data.draw(st.integers(0, 127).filter(lambda byte: byte != raw[place]))
        raw = raw[:place] + bytes([other]) + raw[place + 1 :]
        rows[number][column] = raw if column == 3 else raw.decode()
        altered(changed, [tuple(row) for row in rows])
        assert any(f"event {number} " in problem for problem in problems(changed))
        assert refuses_to_open(changed)


@several
@given(steps(), st.data())
def test_a_removed_event_is_found(story: list[str], data: st.DataObject) -> None:
    with a_register(story) as (_, changed):
        rows = stored(changed)
        number = data.draw(st.integers(0, len(rows) - 2))
        left = rows[:number] + rows[number + 1 :]
        altered(changed, left, count=data.draw(st.sampled_from([len(rows), len(left)])))
        assert f"event {number} is missing, removed from before event {number + 1}" in problems(changed)[0]
        assert refuses_to_open(changed)
        altered(changed, [(i, *row[1:]) for i, row in enumerate(left)])  # and the numbers made to fit
        assert problems(changed)[0].startswith(f"event {number} was changed, inserted or moved")
        assert refuses_to_open(changed)


@several
@given(steps(), st.data())
def test_two_events_that_changed_places_are_found(story: list[str], data: st.DataObject) -> None:
    with a_register(story) as (_, changed):
        rows = stored(changed)
        one, other = sorted(data.draw(st.sets(st.integers(0, len(rows) - 1), min_size=2, max_size=2)))
        rows[one], rows[other] = (one, *rows[other][1:]), (other, *rows[one][1:])
        altered(changed, rows)
        assert any(problem.startswith(f"event {one} was changed, inserted or moved") for problem in problems(changed))
        assert refuses_to_open(changed)


@several
@given(steps(), st.data())
def test_an_inserted_event_is_found(story: list[str], data: st.DataObject) -> None:
    with a_register(story) as (_, changed):
        rows = stored(changed)
        number = data.draw(st.integers(-1, len(rows)))
        new = (number, rows[0][1], "waited", canonical(asdict(Waited("train", 1, "x"))), "0" * 64)
        if number == -1:  # which nobody who counts from 0 would see
            altered(changed, [new, *rows])
        else:
            altered(changed, [*rows[:number], new, *((row[0] + 1, *row[1:]) for row in rows[number:])])
        assert problems(changed)[0].startswith(f"event {number} was ")
        assert refuses_to_open(changed)


@several
@given(steps(), st.data())
def test_a_cut_off_end_is_found(story: list[str], data: st.DataObject) -> None:
    with a_register(story) as (_, changed):
        rows = stored(changed)
        left = data.draw(st.integers(1, len(rows) - 1))
        altered(changed, rows[:left])
        assert f"the head speaks of {len(rows)} events, and the register has {left}" in problems(changed)[0]
        assert refuses_to_open(changed)
        altered(changed, count=left, hash=rows[left - 1][4])  # as good as anybody without the key can
        assert problems(changed)[0].startswith(f"the head is not signed by the server's key {KEY.public.fingerprint}")
        assert refuses_to_open(changed)


def cuts(folder: Path) -> Iterator[Path]:
    """Copies of a register that is being written: its log cut at each commit, and without its log."""
    log = folder / "register.sqlite-wal"
    raw = log.read_bytes() if log.exists() else b""
    (page,) = struct.unpack(">I", raw[8:12]) if raw else (0,)
    ends = range(32 + page + 24, len(raw) + 1, page + 24)  # a frame's head says after how many pages a commit ends
    commits = [end for end in ends if struct.unpack_from(">I", raw, end - page - 20) != (0,)]
    for number, end in enumerate([0, *commits]):
        copy = folder.with_name(f"cut {number}")
        shutil.copytree(folder, copy)
        (copy / "register.sqlite-shm").unlink(missing_ok=True)
        (copy / "register.sqlite-wal").write_bytes(raw[:end])
        if not end:
            (copy / "register.sqlite-wal").unlink()
        yield copy
        shutil.rmtree(copy)


def heads(folder: Path) -> list[int]:
    """Of how many events a signed head is anywhere in the files; Ed25519 gives the same signature each time."""
    rows, register = stored(folder), Register.read(folder).head.register
    raw = b"".join(path.read_bytes() for path in sorted(folder.glob("register.sqlite*")))
    signatures = {count: Head.by(KEY, register, count, row[4]).signature for count, row in enumerate(rows, 1)}
    return [count for count, signature in signatures.items() if signature.encode() in raw]


@settings(max_examples=15)
@given(steps())
def test_the_log_has_no_older_head_to_cut_back_to(story: list[str]) -> None:
    """While the server runs, after each thing that happens."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as place:
        folder = Path(place) / "register"
        with Register.create(folder, KEY, OPENED) as register:
            for step in story:
                STEPS[step](register, [])
                for cut in cuts(folder):
                    assert problems(cut) == []
                    assert Register.read(cut).head == register.head
                assert heads(folder) == [register.head.count]
        assert heads(folder) == [register.head.count]


@settings(max_examples=15)
@given(steps(), st.integers(1, 4))
def test_what_a_reader_holds_back_or_a_kill_leaves_can_be_cut_off_until_the_log_is_empty(
    story: list[str], more: int
) -> None:
    """What remains possible, as it is written down: back to when the log was empty last, and no further."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as place, pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_READERS", 1)
        folder, killed = Path(place) / "register", Path(place) / "killed"
        written(folder, story)
        register = Register.open(folder, KEY)
        before = register.head.count
        with reading(folder):
            for _ in range(more):
                register.append(Waited("train", 1, "x"))
            found = [(problems(cut), Register.read(cut).head.count) for cut in cuts(folder)]
            assert found == [([], count) for count in range(before, before + more + 1)]
            shutil.copytree(folder, killed)
        register.append(Waited("train", 1, "x"))
        assert heads(folder) == [before + more + 1]
        register.close()
        with Register.open(killed, KEY) as again:  # a server that was killed before the log was empty
            assert again.head.count == before + more
            assert heads(killed) == [before + more]
            assert {Register.read(cut).head.count for cut in cuts(killed)} == {before + more}


def test_a_register_that_is_closed_keeps_one_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where each append was held back."""
    with Register.create(tmp_path / "register", KEY, OPENED) as register, monkeypatch.context() as patch:
        patch.setattr(module, "_empty_log", lambda connection: None)
        for _ in range(3):
            register.append(Waited("train", 1, "x"))
        assert heads(tmp_path / "register") == [1, 2, 3, 4]
    assert heads(tmp_path / "register") == [4]


def test_a_register_without_events_is_found(tmp_path: Path) -> None:
    made = written(tmp_path / "register", ["round"])
    altered(made.folder, [], count=0, hash=Register.read(made.folder).head.register)
    assert "no event says whose register this is" in problems(made.folder)[0]
    assert refuses_to_open(made.folder)


@several
@given(steps(), st.data())
def test_a_chain_made_anew_is_found(story: list[str], data: st.DataObject) -> None:
    with a_register(story) as (_, changed):
        rows, head = stored(changed), Register.read(changed).head
        number = data.draw(st.integers(1, len(rows) - 1))
        rows[number] = (number, "2000-01-01T00:00:00+00:00", *rows[number][2:])
        anew = rechained(rows, head.register)
        altered(changed, anew)
        assert any("the head names another hash for event" in problem for problem in problems(changed))
        altered(changed, hash=anew[-1][4])
        assert any(problem.startswith("the head is not signed") for problem in problems(changed))
        thief = key()  # who signs with another key, and says that it is the server's
        forged = Head.by(thief, head.register, head.count, anew[-1][4])
        altered(changed, **asdict(forged))
        assert any(problem.startswith("the head is not signed") for problem in problems(changed))
        assert refuses_to_open(changed)


def test_a_register_written_anew_with_another_key_is_found_by_who_knows_the_right_one(tmp_path: Path) -> None:
    thief = key()
    with Register.create(tmp_path / "forged", thief, replace(OPENED, key=thief.public.text)) as register:
        register.append(Waited("train", 1, "x"))
    assert "no key that is trusted" in problems(tmp_path / "forged")[0]
    found = verify(tmp_path / "forged")
    assert found.problems == []  # and by nobody else
    assert f"the register's own ({thief.public.fingerprint}) was believed" in found.warnings[0]


@several
@given(steps(1, 4), steps(1, 4))
def test_a_copy_of_an_older_day_is_found_with_a_receipt_of_a_later_one_and_not_without(
    before: list[str], after: list[str]
) -> None:
    with a_register(before) as (made, old):
        later = written(made.folder, [*after, "node", "answer"], Register.open(made.folder, KEY)).receipts[-1:]
        assert problems(made.folder, later) == []
        assert "this is a copy of an older day" in problems(old, later)[0]
        assert problems(old) == []
        assert "no receipt was given" in verify(old, [KEY.public]).warnings[0]


@several
@given(steps(0, 3), steps(1, 3), steps(1, 3))
def test_a_history_that_was_gone_on_with_from_an_older_day_is_found_with_a_receipt(
    before: list[str], after: list[str], instead: list[str]
) -> None:
    """With the server's key, and as many events as one likes."""
    with a_register(before) as (made, old):
        later = written(made.folder, [*after, "node", "answer"], Register.open(made.folder, KEY)).receipts[-1:]
        written(old, ["wait", *instead, *["wait"] * len(stored(made.folder))], Register.open(old, KEY))
        assert "had another hash when it was issued" in problems(old, later)[0]
        assert problems(old) == []


def resigned(receipt: dict[str, Any], by: SigningKey, **changed: Any) -> dict[str, Any]:
    """Another receipt, with a signature."""
    server = {"key": by.public.text, "fingerprint": by.public.fingerprint}
    content = deepcopy({**receipt, "server": server, **changed})
    del content["signature"]
    return {**content, "signature": by.sign("receipt", content)}


def test_receipts_are_held_against_those_in_the_register(tmp_path: Path) -> None:
    made = written(tmp_path / "register", ["node", "answer"])
    (receipt,) = made.receipts
    place, request = receipt["register"], receipt["request"]

    def said(**changed: object) -> str:
        (problem,) = problems(made.folder, [resigned(receipt, KEY, **changed)])
        return problem

    assert problems(made.folder, [json.loads(json.dumps(receipt))]) == []
    assert "holds another one for the request" in said(audit={"status": "traces found", "sentence": "Some."})
    assert "has none for the request" in said(request={**request, "id": "f" * 32})
    assert "is of the register abc, and this is another" in said(register={**place, "id": "abc"})
    assert "names no place in a register" in said(register={**place, "count": 0})
    assert "this is a copy of an older day" in said(register={**place, "count": 999})


def test_a_receipt_that_no_key_of_the_register_has_signed_accuses_nobody(tmp_path: Path) -> None:
    made = written(tmp_path / "register", ["node", "answer"])
    (receipt,) = made.receipts
    later = {**receipt["register"], "count": 999}
    foreign = "receipt 1 is not signed by a key that is trusted or that this register was signed with: not taken into"
    named = f"receipt 1 is not signed by the key {KEY.public.fingerprint} that it names (the "
    for forged, sentence in [
        ({"request": receipt["request"], "register": later}, foreign),  # somebody's JSON
        ([], foreign),
        ({"server": {"key": [KEY.public.text]}}, foreign),
        (resigned(receipt, key(), register=later), foreign),
        ({**receipt, "register": later}, named),
        ({**resigned(receipt, key(), register=later), "server": receipt["server"]}, named),
    ]:
        for keys in ([KEY.public], []):
            found = verify(made.folder, keys, [forged])  # type: ignore[list-item]
            assert found.problems == []
            assert any(warning.startswith(sentence) for warning in found.warnings)
            assert any("no receipt was given that counts" in warning for warning in found.warnings)
        assert verify(made.folder, [KEY.public], [forged, receipt]).warnings == [  # type: ignore[list-item]
            warning for warning in found.warnings if warning.startswith("receipt 1")
        ]
    assert "copy of an older day" in problems(made.folder, [resigned(receipt, KEY, register=later)])[0]


def test_a_receipt_counts_that_a_key_from_before_or_a_trusted_one_from_later_has_signed(tmp_path: Path) -> None:
    made = written(tmp_path / "register", ["node", "answer"])
    old = made.copied(tmp_path / "old")
    with Register.open(made.folder, KEY) as register:
        register.rotate(NEXT)
    assert verify(made.folder, [NEXT.public], made.receipts).warnings == []
    later = resigned(made.receipts[0], NEXT, register={**made.receipts[0]["register"], "count": 999})
    assert "copy of an older day" in verify(old, [KEY.public, NEXT.public], [later]).problems[0]
    assert "not taken into account" in verify(old, [KEY.public], [later]).warnings[0]


def test_a_simulations_register_is_said_to_be_one(tmp_path: Path) -> None:
    with Register.create(tmp_path / "register", KEY, replace(OPENED, clients={})) as register:
        stranger = Signed.by(key(), Statement.make(Scope("client"), "please"))
        register.append(Filed(stranger.statement.id, "0", stranger.json))
    found = verify(tmp_path / "register", [KEY.public])
    assert found.problems == []
    assert found.warnings[0].startswith("it is of a simulation: its clients are known by no key")
    with Register.create(tmp_path / "deployed", KEY, OPENED) as register:
        register.enrol({})  # whoever has left is still known by a key
    assert not any("simulation" in warning for warning in verify(tmp_path / "deployed", [KEY.public]).warnings)


@pytest.mark.parametrize("trusted", [KEY, NEXT])
def test_a_trusted_key_leads_to_the_one_that_follows_it_or_is_it(tmp_path: Path, trusted: Any) -> None:
    with Register.create(tmp_path / "register", KEY, OPENED) as register:
        register.rotate(NEXT)
        signed = Signed.by(KEY, Statement.make(Scope("class", 1), "filed before, entered after"))
        register.append(Filed(signed.statement.id, None, signed.json))
    assert verify(tmp_path / "register", [trusted.public]).problems == []
    assert verify(tmp_path / "register", [key().public, trusted.public]).problems == []
    assert "no key that is trusted" in verify(tmp_path / "register", [key().public]).problems[0]


def forced(folder: Path, *events: Event, signing: Any = KEY, opened: Opened = OPENED) -> list[str]:
    """What is found where a server with the key enters what no honest one would."""
    with Register.create(folder, KEY, opened) as register:
        head = register.head
    rows = stored(folder)
    rows += [(0, rows[0][1], event.kind, canonical(asdict(event)), "") for event in events]
    anew = rechained(rows, head.register)
    altered(folder, anew, **asdict(Head.by(signing, head.register, len(anew), anew[-1][4])))
    return problems(folder)


def test_a_key_follows_another_only_if_that_one_says_so(tmp_path: Path) -> None:
    thief = key()
    itself = thief.sign("rotation", {"register": "any", "key": thief.public.text})
    first, second = forced(tmp_path / "a", Rotated(thief.public.text, itself), signing=thief)
    assert first.startswith(f"event 1 (rotated): the key {KEY.public.fingerprint} has not signed which one follows it")
    assert second.startswith("the head is not signed by")


A = Signed.by(NODES["north"], Statement.make(Scope("client"), "please"))
ID = A.statement.id
CLASS = Signed.by(KEY, Statement.make(Scope("class", 1), "please"))
OTHERS = Signed.by(NODES["north"], Statement.make(Scope("client"), "please", client="south"))
SINGLE = Signed.by(KEY, Statement.make(Scope("instances"), "please"))
FILED = Filed(ID, "north", A.json)
BEGAN = Began(0, [ID], {}, "", "", None, {})
OWN, RECOVERY = RoundDone("unlearn", 0, 0, "", "", []), RoundDone("recover", 0, 0, "", "", [])
INSTEAD = Instead(0, {"name": "NoT"}, "nobody answered")
LISTED = {name: node.public.text for name, node in NODES.items()}
P384 = SigningKey(generate_private_key(SECP384R1())).public.text


@pytest.mark.parametrize(
    ("events", "sentence"),
    [
        ((OPENED,), "event 1 (opened): a register is opened by its first event, and by that alone"),
        ((Filed(ID, "south", A.json),), "event 1 (filed): the key .* may not file it"),
        ((Filed(ID, "nobody", A.json),), "may not file it"),
        ((Filed(ID, None, A.json),), "may not file it"),
        ((Filed(OTHERS.statement.id, "south", OTHERS.json),), "may not file it"),
        ((Filed(OTHERS.statement.id, "north", OTHERS.json),), "may not file it"),
        ((Filed(CLASS.statement.id, "north", CLASS.json),), "may not file it"),
        ((Filed(SINGLE.statement.id, None, SINGLE.json),), "may not file it"),
        ((Filed("0" * 32, "north", A.json),), "its filer signed another id"),
        ((Filed(ID, "north", replace(A, signature="").json),), "it is not what its filer signed: request"),
        ((FILED, FILED), "event 2 (filed): the request .* was entered before"),
        ((BEGAN,), "event 1 (began): the request .* was not entered before"),
        ((FILED, BEGAN, replace(BEGAN, unlearning=1)), "event 3 (began): .* is answered by another unlearning already"),
        ((FILED, Done(ID, {})), "event 2 (done): no unlearning has answered the request"),
        ((FILED, BEGAN, Done(ID, {})), "event 3 (done): its receipt is of another request than"),
        ((FILED, BEGAN, Done(ID, {"request": {"id": ID}})), "event 3 (done): its receipt: it names no place"),
        ((Acknowledged("0" * 32),), "event 1 (acknowledged): it does not fit those before it"),
        ((Enrolled({"north": LISTED["south"]}),), "event 1 (enrolled): the key of the client north is or was south's"),
        ((Enrolled({"south": LISTED["south"]}), Enrolled({"new": LISTED["north"]})), "client new is or was north's"),
        ((Enrolled({**LISTED, "east": P384, "west": P384}),), "the key of the client west is or was east's"),
        ((Enrolled({**LISTED, "east": KEY.public.text}),), "server's key stands on the list of clients, as east's"),
        ((Enrolled({"north": "none"}),), "event 1 (enrolled): the key of the client north is none"),
        ((Enrolled({"north": 7}),), "event 1 cannot be read: the clients of an event of the kind 'enrolled'"),
        ((Enrolled([]),), "event 1 cannot be read: the clients of an event"),
        ((INSTEAD,), "event 1 (instead): the unlearning 0 has not begun"),
        ((FILED, BEGAN, replace(INSTEAD, unlearning=-1)), "event 3 (instead): the unlearning -1 has not begun"),
        ((FILED, BEGAN, replace(INSTEAD, unlearning=[])), "event 3 cannot be read: the unlearning of an event"),
        ((FILED, BEGAN, OWN, RECOVERY, INSTEAD), "event 5 (instead): the unlearning 0 has come to its recovery"),
        ((FILED, BEGAN, Recovered(0, "nobody"), INSTEAD), "event 4 (instead): the unlearning 0 has come to its recov"),
        ((FILED, BEGAN, RECOVERY, OWN), "event 4 (round): the unlearning 0 was over, or had come to its recovery"),
        ((FILED, BEGAN, Recovered(0, "limit"), RECOVERY), "event 4 (round): the unlearning 0 was over"),
        ((replace(OWN, unlearning=None),), "event 1 (round): a round is of training, or of an unlearning"),
        ((replace(OWN, carried={"teacher": "file"}),), "event 1 cannot be read: the carried of an event"),
        ((replace(OWN, carried={"teacher": ["file", 7]}),), "event 1 cannot be read: the carried of an"),
        ((replace(OWN, carried={"teacher": ["file"]}),), "event 1 (round): a model that the method takes along is"),
        ((replace(OWN, carried=None),), "event 1 cannot be read: the carried of an event"),
        ((Started({"most": 2}, {}), FILED, BEGAN), "event 3 (began): it began with another plan than the server had"),
        ((Refused("0" * 32, "north", "no", A.json),), "event 1 (refused): its filer signed another id"),
        ((Refused(ID, "north", "no", replace(A, signature="").json),), "(refused): it is not what its filer signed"),
        ((Refused(ID, "north", "no", 7),), "event 1 cannot be read: the signed of an event"),
        ((Refused(ID, "north", "no", {}),), "event 1 (refused): it is not what its filer signed"),
        ((replace(BEGAN, requests=None),), "event 1 cannot be read: the requests of an event"),
        ((Rotated("no key", ""),), "event 1 (rotated): the key .* has not signed which one follows it"),
    ],
)
def test_what_no_honest_server_enters_is_found(tmp_path: Path, events: tuple[Event, ...], sentence: str) -> None:
    pattern = ".*".join(re.escape(part) for part in sentence.split(".*"))
    assert any(re.search(pattern, problem) for problem in forced(tmp_path / "register", *events))


def test_a_list_of_clients_in_a_simulation_is_found(tmp_path: Path) -> None:
    found = forced(tmp_path / "a", Enrolled(LISTED), opened=replace(OPENED, clients={}))
    assert found[0] == "event 1 (enrolled): the register of a simulation has no list of clients"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [(P384, "the key of the server, SHA256:.*, is no Ed25519 key"), ("none", "the key of the server: this is no publ")],
)
def test_a_server_whose_key_is_no_servers_is_found(tmp_path: Path, text: str, sentence: str) -> None:
    made = written(tmp_path / "opened", ["wait"])
    rows, head = stored(made.folder), Register.read(made.folder).head
    body = canonical(asdict(replace(OPENED, key=text)))
    anew = rechained([(*rows[0][:3], body, ""), rows[1]], head.register)
    altered(made.folder, anew, **asdict(Head.by(KEY, head.register, 2, anew[-1][4])))
    assert re.match(rf"event 0 \(opened\): {sentence}", problems(made.folder)[0])
    assert refuses_to_open(made.folder)


@pytest.mark.parametrize("text", [P384, LISTED["north"], KEY.public.text], ids=["of a node", "of a client", "the same"])
def test_a_server_may_change_to_no_clients_key_and_none_of_another_kind(tmp_path: Path, text: str) -> None:
    """Signed by the one before, as only the server could."""
    made = written(tmp_path / "register", [])
    rows, head = stored(made.folder), Register.read(made.folder).head
    rotated = Rotated(text, KEY.sign("rotation", {"register": head.register, "key": text}))
    anew = rechained([*rows, (1, rows[0][1], "rotated", canonical(asdict(rotated)), "")], head.register)
    signing = NODES["north"] if text == LISTED["north"] else KEY
    altered(made.folder, anew, **asdict(Head.by(signing, head.register, 2, anew[-1][4])))
    said = {
        P384: ["is no Ed25519 key: the register is not to be trusted from here on"],
        LISTED["north"]: ["(rotated): the server's new key is or was the client north's"],
        KEY.public.text: [],
    }[text]
    found = problems(made.folder)
    assert len(found) == len(said)
    assert all(sentence in problem for sentence, problem in zip(said, found, strict=True))


def test_a_servers_key_on_its_first_list_is_found(tmp_path: Path) -> None:
    made = written(tmp_path / "register", [])
    rows, head = stored(made.folder), Register.read(made.folder).head
    body = canonical(asdict(replace(OPENED, clients={**LISTED, "east": KEY.public.text})))
    anew = rechained([(*rows[0][:3], body, "")], head.register)
    altered(made.folder, anew, **asdict(Head.by(KEY, head.register, 1, anew[-1][4])))
    assert problems(made.folder) == ["event 0 (opened): the server's key stands on the list of clients, as east's"]


def test_an_event_of_nothing_but_problems_is_not_read_to_its_end(tmp_path: Path) -> None:
    found = forced(tmp_path / "a", Enrolled({str(number): "none" for number in range(10 * MOST_PROBLEMS)}))
    assert len(found) == MOST_PROBLEMS + 1


def test_a_request_that_its_filer_may_file_passes(tmp_path: Path) -> None:
    assert forced(tmp_path / "a", FILED, Filed(CLASS.statement.id, None, CLASS.json)) == []


@pytest.mark.parametrize(
    ("kind", "body", "sentence"),
    [
        ("pickled", b"{}", "an event of the kind 'pickled' with the fields  is none of ours"),
        ("waited", b"[]", "event 1 cannot be read: it has no fields"),
        ("waited", b"\x80\x04.", "event 1 cannot be read"),
        ("waited", b"[" * 100_000, "event 1 cannot be read"),
        ("waited", b'{"phase":"train","number":NaN,"why":""}', "event 1 cannot be read: NaN is no number"),
        ("waited", None, "NOT NULL"),
        (b"waited", b"{}", "event 1 was changed"),
        ("waited", "text", "event 1 cannot be read"),
    ],
)
def test_a_body_that_is_none_is_one_sentence(tmp_path: Path, kind: Any, body: Any, sentence: str) -> None:
    made = written(tmp_path / "register", ["round", "wait"])
    rows = stored(made.folder)
    rows[1] = (1, rows[1][1], kind, body, rows[1][4])
    if body is None:
        with pytest.raises(sqlite3.IntegrityError, match=sentence):
            altered(made.folder, rows)
        return
    altered(made.folder, rows)
    assert any(sentence in problem for problem in problems(made.folder))
    assert refuses_to_open(made.folder)


def test_a_file_of_nothing_but_problems_is_not_read_to_its_end(tmp_path: Path) -> None:
    made = written(tmp_path / "register", ["wait"])
    altered(made.folder, [(i, "", "x", b"{}", "") for i in range(10 * MOST_PROBLEMS)])
    found = problems(made.folder)
    assert MOST_PROBLEMS < len(found) < MOST_PROBLEMS + 5
    assert found[-1].startswith("there is more, which was not looked at")


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE more (a)",
        "CREATE TRIGGER t AFTER INSERT ON events BEGIN DELETE FROM head; END",
        "DROP TABLE head",
        "DROP TABLE events; CREATE VIEW events AS WITH RECURSIVE r(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM r) "
        "SELECT n AS number, '' AS at, '' AS kind, x'' AS body, '' AS hash FROM r",
    ],
)
def test_a_file_with_other_tables_is_not_read(tmp_path: Path, statement: str) -> None:
    made = written(tmp_path / "register", ["wait"])
    with closing(sqlite3.connect(made.folder / "register.sqlite")) as connection:
        connection.executescript(statement)
    assert "is no register" in problems(made.folder)[0]
    assert refuses_to_open(made.folder)


@pytest.mark.parametrize("head", [{"count": "many"}, {"signature": b"\x00"}, {"hash": b"\x00"}])
def test_a_head_that_is_none_is_one_sentence(tmp_path: Path, head: dict[str, Any]) -> None:
    made = written(tmp_path / "register", ["wait"])
    altered(made.folder, **head)
    assert problems(made.folder) == ["it has no head"]
    assert refuses_to_open(made.folder)


@settings(max_examples=300)
@given(st.data())
def test_no_flipped_byte_of_the_file_raises_or_changes_an_event_unnoticed(whole: Written, data: st.DataObject) -> None:
    raw = bytearray((whole.folder / "register.sqlite").read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        raw = raw[: data.draw(st.integers(0, len(raw)))]
    with tempfile.TemporaryDirectory(dir=MEMORY) as place:
        folder = Path(place)
        (folder / "register.sqlite").write_bytes(raw)
        found = verify(folder, [KEY.public], whole.receipts)
        if not found.problems:
            assert list(Register.read(folder).events()) == list(Register.read(whole.folder).events())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Written:
    made = written(tmp_path_factory.mktemp("whole") / "register", ["round", "node", "fault", "answer", "wait"])
    with closing(sqlite3.connect(made.folder / "register.sqlite")) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return made


def test_a_file_of_which_sqlite_cannot_even_say_what_is_wrong_is_one_sentence(whole: Written, tmp_path: Path) -> None:
    raw = (whole.folder / "register.sqlite").read_bytes()
    table = raw.index(b"eventsevents")  # the schema's row: a table's name, twice
    (tmp_path / "register.sqlite").write_bytes(raw[:table] + b"event\xfeevent\xfe" + raw[table + 12 :])
    assert "is damaged" in problems(tmp_path)[0]
    assert refuses_to_open(tmp_path)


def test_a_folder_without_a_register_is_one_sentence(tmp_path: Path) -> None:
    assert problems(tmp_path)[0].startswith(f"there is no register in {tmp_path}")
    (tmp_path / "register.sqlite").write_bytes(b"")
    assert "is no register" in problems(tmp_path)[0]
    (tmp_path / "register.sqlite").write_bytes(b"no database, but long enough to be taken for one" * 100)
    assert "is damaged" in problems(tmp_path)[0]
