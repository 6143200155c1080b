"""Whatever was done to a register after its server wrote it is found; what cannot be found is known."""

from __future__ import annotations

import json
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from registers import KEY, MEMORY, NEXT, NODES, OPENED, Written, altered, key, rechained, steps, stored, written

from fedunlearn.deletion.events import Acknowledged, Began, Done, Event, Filed, Rotated, Waited
from fedunlearn.deletion.register import Head, Register, RegisterError
from fedunlearn.deletion.signing import canonical
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


def test_receipts_are_held_against_those_in_the_register(tmp_path: Path) -> None:
    made = written(tmp_path / "register", ["node", "answer"])
    (receipt,) = made.receipts
    place = receipt["register"]

    def said(**changed: object) -> str:
        (problem,) = problems(made.folder, [{**receipt, **changed}])
        return problem

    assert problems(made.folder, [json.loads(json.dumps(receipt))]) == []
    assert "holds another one for the request" in said(audit={"status": "traces found"})
    assert "has none for the request" in said(request={"id": "f" * 32})
    assert "is of the register abc, and this is another" in said(register={**place, "id": "abc"})
    assert "names no place in a register" in said(register={**place, "count": True})
    assert "names no place in a register" in said(register=7)
    assert "names no place in a register" in problems(made.folder, [[]])[0]  # type: ignore[list-item]


@pytest.mark.parametrize("trusted", [KEY, NEXT])
def test_a_trusted_key_leads_to_the_one_that_follows_it_or_is_it(tmp_path: Path, trusted: Any) -> None:
    with Register.create(tmp_path / "register", KEY, OPENED) as register:
        register.rotate(NEXT)
        signed = Signed.by(KEY, Statement.make(Scope("class", 1), "filed before, entered after"))
        register.append(Filed(signed.statement.id, None, signed.json))
    assert verify(tmp_path / "register", [trusted.public]).problems == []
    assert verify(tmp_path / "register", [key().public, trusted.public]).problems == []
    assert "no key that is trusted" in verify(tmp_path / "register", [key().public]).problems[0]


def forced(folder: Path, *events: Event, signing: Any = KEY) -> list[str]:
    """What is found where a server with the key enters what no honest one would."""
    with Register.create(folder, KEY, OPENED) as register:
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
        ((replace(BEGAN, requests=None),), "event 1: a field holds what it cannot hold"),
        ((Rotated("no key", ""),), "event 1 (rotated): the key .* has not signed which one follows it"),
    ],
)
def test_what_no_honest_server_enters_is_found(tmp_path: Path, events: tuple[Event, ...], sentence: str) -> None:
    import re

    pattern = ".*".join(re.escape(part) for part in sentence.split(".*"))
    assert any(re.search(pattern, problem) for problem in forced(tmp_path / "register", *events))


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
