from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import struct
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stories import NODES, SERVER
from typer.testing import CliRunner

from fedunlearn.commands.requests import requests
from fedunlearn.deletion import outbox as module
from fedunlearn.deletion.outbox import Answer, Bound, Meant, OtherData, Outbox, OutboxError, desk
from fedunlearn.deletion.signing import SigningKey
from fedunlearn.deletion.statement import RequestProblem, Signed

KEY = NODES["a"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture
def outbox(tmp_path: Path) -> Outbox:
    return Outbox(tmp_path / "box")


@pytest.fixture
def listed(tmp_path: Path) -> Callable[[str | bytes], str]:
    """A scope of the samples that a file of this content names."""

    def scope(content: str | bytes) -> str:
        path = tmp_path / "list"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return f"instances:{path}"

    return scope


def answer(request: str, state: str, why: str = "", receipt: Any = None) -> dict[str, Any]:
    return {"request": request, "state": state, "why": why, "receipt": receipt}


def state(outbox: Outbox) -> str:
    (posted,) = outbox.entries()
    return posted.state


@pytest.mark.parametrize("scope", ["client", "class:3"])
def test_a_request_is_signed_and_sent(outbox: Outbox, scope: str) -> None:
    filing = outbox.file(scope, "we leave", KEY)
    assert not filing.again
    (sent,) = outbox.exchange([])
    said = Signed.of(sent).statement
    assert (said.id, said.scope, said.client, said.reason, said.data) == (filing.id, scope, None, "we leave", "here")
    assert sent["key"] == KEY.public.text
    assert outbox.meant(filing.id) == Meant(scope, ())
    assert state(outbox) == "not sent"


@pytest.mark.parametrize(
    "content", ["12\n7\n\n 1000000 \r\n", "[1000000, 7,\n 12]", "\ufeff7\n12\n1000000", " [7,12,1000000]"]
)
def test_which_samples_are_meant_stays_in_the_folder(
    outbox: Outbox, listed: Callable[[str | bytes], str], content: str
) -> None:
    scope = listed(content)
    filing = outbox.file(scope, "r", KEY)
    assert outbox.meant(filing.id) == Meant("instances", (7, 12, 1000000))
    (sent,) = outbox.exchange([])
    assert Signed.of(sent).statement.scope == "instances"
    assert not re.search(r"(?<![0-9a-zA-Z])1000000(?![0-9a-zA-Z])", json.dumps(sent))
    assert str(outbox.folder) not in json.dumps(sent)


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX's")
def test_nobody_else_can_look(outbox: Outbox, listed: Callable[[str | bytes], str]) -> None:
    filing = outbox.file(listed("1"), "r", KEY)
    assert stat.S_IMODE(outbox.folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((outbox.folder / f"{filing.id}.instances.json").stat().st_mode) == 0o600
    outbox.folder.chmod(0o750)
    with pytest.raises(OutboxError, match=r"others can look into the outbox .*: chmod 700"):
        outbox.file("client", "r", KEY)
    assert len(outbox.exchange([])) == 1  # what was filed is asked for all the same


def test_of_deleted_samples_none_is_left_to_be_meant(outbox: Outbox, listed: Callable[[str | bytes], str]) -> None:
    filing = outbox.file(listed("4\n5"), "r", KEY, deleted=True)
    assert Signed.of(outbox.exchange([])[0]).statement.data == "deleted"
    assert outbox.meant(filing.id) == Meant("instances", ())
    assert outbox.file(listed("5\n4"), "r", KEY, deleted=True).id == filing.id


def test_twice_the_same_is_once(outbox: Outbox, listed: Callable[[str | bytes], str]) -> None:
    first = outbox.file(listed("1\n2"), "r", KEY)
    again = outbox.file(listed("[2, 1]"), "in other words", KEY)
    assert (again.id, again.again) == (first.id, True)
    others = [
        outbox.file(listed("1\n3"), "r", KEY),
        outbox.file(listed("1"), "r", KEY),
        outbox.file("class:1", "r", KEY),
        outbox.file("class:2", "r", KEY),
        outbox.file("client", "r", KEY),
        outbox.file("client", "r", NODES["b"]),  # a new key: what the old one signed may be refused
        outbox.file("client", "r", KEY, client="c"),
    ]
    assert not any(other.again for other in others)
    assert len({first.id, *(other.id for other in others)}) == len(outbox.entries()) == 8


def test_one_that_was_refused_can_be_filed_anew_and_one_that_is_done_not(outbox: Outbox) -> None:
    first = outbox.file("client", "r", KEY)
    outbox.exchange([answer(first.id, "refused", "not on the list")])
    second = outbox.file("client", "r", KEY)
    assert second.id != first.id
    outbox.exchange([answer(second.id, "done", receipt={})])
    assert outbox.file("client", "r", KEY).id == second.id


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "names no sample"),
        ("\n \n", "names no sample"),
        ("[]", "names no sample"),
        ("1\n\n-2\n", "list, line 3: '-2' is no whole number from 0, of 15 digits at most"),
        ("1\n2.0", "list, line 2: '2.0' is no whole number"),
        ("1 2", "list, line 1: '1 2' is no whole number"),
        ("index\n1", "list, line 1: 'index' is no whole number"),
        ("³", "list, line 1: '³' is no whole number"),
        ("1" * 16, "of 15 digits at most"),
        ("4\n5\n4", "list, line 3: sample 4 was named before; name each once"),
        ("[4, 5, 4]", "list, entry 3: sample 4 was named before"),
        ("[4, true]", "list, entry 2: 'True' is no whole number"),
        ("[4, 5.0]", "list, entry 2: '5.0' is no whole number"),
        ("[4, -1]", "list, entry 2: '-1' is no whole number"),
        ('["4"]|[]', "is no JSON: Extra data: line 1 column 6"),
        ("[4, null]", "list, entry 2: 'None' is no whole number"),
        ("[4,\n5,]", "list is no JSON: .*line 2 column"),
        ("[" * 1_000_000, "list is no JSON"),
        (b"\xff\xfe\x00", "list is no text"),
    ],
)
def test_lists_that_are_wrong(
    outbox: Outbox, listed: Callable[[str | bytes], str], content: str | bytes, says: str
) -> None:
    with pytest.raises(OutboxError, match=says):
        outbox.file(listed(content), "r", KEY)
    assert not outbox.folder.exists()


def test_lists_that_are_too_long(
    outbox: Outbox, listed: Callable[[str | bytes], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_INSTANCES", 3)
    assert outbox.meant(outbox.file(listed("[1, 2, 3]"), "r", KEY).id).instances == (1, 2, 3)
    with pytest.raises(OutboxError, match="names more than 3 samples: file several requests"):
        outbox.file(listed("1\n2\n3\n4"), "r", KEY)
    monkeypatch.setattr(module, "_LONGEST_LIST", 6)
    with pytest.raises(OutboxError, match="longer than 6 bytes"):
        outbox.file(listed("[1, 2, 3]"), "r", KEY)


@pytest.mark.parametrize(
    ("scope", "reason", "error", "says"),
    [
        ("instances", "r", OutboxError, "say which samples: instances:FILE"),
        ("instances:", "r", OutboxError, "say which samples: instances:FILE"),
        ("instances:/nowhere/list", "r", OutboxError, "/nowhere/list cannot be read: No such file or directory"),
        ("instances:\0", "r", OutboxError, "cannot be read: embedded null byte"),
        ("everything", "r", RequestProblem, "write client, class:3"),
        ("client", "two\nlines", RequestProblem, "a reason is one line"),
        ("client", "", OutboxError, "say why, in one line"),
        ("client", "  ", OutboxError, "say why, in one line"),
    ],
)
def test_requests_that_are_none(outbox: Outbox, scope: str, reason: str, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        outbox.file(scope, reason, KEY)
    assert not outbox.folder.exists()


def test_a_register_is_no_outbox(outbox: Outbox) -> None:
    outbox.folder.mkdir(0o700)
    (outbox.folder / "register.sqlite").touch()
    with pytest.raises(OutboxError, match="is a server's register, and no node's outbox: name another folder"):
        outbox.file("client", "r", KEY)
    assert [path.name for path in outbox.folder.iterdir()] == ["register.sqlite"]


def test_the_servers_answers_are_kept(outbox: Outbox) -> None:
    id = outbox.file("client", "r", KEY).id
    for name in ("filed", "acknowledged", "recovering", "unlearning", "verified"):  # a second unlearning can begin
        assert len(outbox.exchange([answer(id, name)])) == 1
        assert state(outbox) == name
    assert outbox.exchange([answer(id, "done", receipt={"receipt": 1})]) == []
    for late in (
        answer(id, "recovering"),
        answer(id, "refused", "too late"),
        answer(id, "done", receipt={"receipt": 2}),
    ):
        assert outbox.exchange([late]) == []
    (posted,) = outbox.entries()
    assert posted.answer == Answer(id, "done", "", {"receipt": 1})


@pytest.mark.parametrize(
    "content",
    [
        {},
        [],
        "done",
        answer("b" * 32, "done", receipt={}),
        answer("../../etc/passwd", "filed"),
        answer("ID", "everything"),
        answer("ID", ["done"]),  # type: ignore[arg-type]
        answer("ID", "done"),
        answer("ID", "filed", receipt={}),
        answer("ID", "refused", "x" * 2001),
        answer("ID", "refused", "\ud800"),
        answer("ID", "done", receipt={"a": float("nan")}),
        answer("ID", "done", receipt={"a": object()}),
        answer("ID", "done", receipt={"a": "x" * 9_000_000}),
        {**answer("ID", "filed"), "more": 1},
    ],
    ids=range(15),
)
def test_what_is_no_answer_is_left_alone(outbox: Outbox, content: Any) -> None:
    id = outbox.file("client", "r", KEY).id
    if isinstance(content, dict) and content.get("request") == "ID":
        content = {**content, "request": id}
    assert [sent["statement"]["id"] for sent in outbox.exchange([content, content])] == [id]
    assert state(outbox) == "not sent"
    assert not list(outbox.folder.glob("*answer*"))


@given(JSON | st.fixed_dictionaries(dict.fromkeys(("request", "state", "why", "receipt"), JSON)))
def test_whatever_comes_raises_nothing_else(content: Any) -> None:
    with pytest.raises(OutboxError):
        Answer.of(content)


@given(
    st.sampled_from(["filed", "unlearning", "done", "refused"]), st.text(max_size=20), st.dictionaries(st.text(), JSON)
)
def test_answers_travel_as_plain_values(name: Any, why: str, receipt: dict[str, Any]) -> None:
    said = Answer("a" * 32, name, why, receipt if name == "done" else None)
    assert Answer.of(said.json) == said


def test_nothing_is_made_by_looking(outbox: Outbox) -> None:
    assert outbox.entries() == outbox.exchange([answer("a" * 32, "filed")]) == []
    assert not outbox.folder.exists()


def test_the_oldest_first_and_no_more_than_fit(outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = []
    for number in range(4):
        monkeypatch.setattr(
            "fedunlearn.deletion.statement.now", lambda second=number: f"2026-01-01T00:00:0{second}+00:00"
        )
        ids.append(outbox.file(f"class:{number}", "r", KEY).id)
    monkeypatch.setattr(module, "MOST_AT_ONCE", 2)
    assert [sent["statement"]["id"] for sent in outbox.exchange([])] == ids[:2]
    outbox.exchange([answer(ids[0], "refused", "no")])
    assert [sent["statement"]["id"] for sent in outbox.exchange([])] == ids[1:3]
    assert [posted.signed.statement.id for posted in outbox.entries()] == ids


@pytest.mark.parametrize("id", ["b" * 32, "", "../x", "B" * 32, None, 7])
def test_an_unknown_request_means_nothing(outbox: Outbox, id: Any) -> None:
    outbox.file("client", "r", KEY)
    with pytest.raises(OutboxError, match="was not filed here"):
        outbox.meant(id)


@pytest.mark.parametrize("kind", ["", ".instances", ".answer"])
@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"{}", b"7", b"\xff", b"[" * 100_000, b" " * 70_000], ids=range(8))
def test_a_damaged_file_is_one_sentence_and_keeps_no_other_back(
    outbox: Outbox, listed: Callable[[str | bytes], str], kind: str, raw: bytes
) -> None:
    whole, hurt = outbox.file("client", "r", KEY), outbox.file(listed("1"), "r", KEY)
    outbox.exchange([answer(hurt.id, "filed")])
    path = outbox.folder / f"{hurt.id}{kind}.json"
    path.write_bytes(raw)
    with pytest.raises(OutboxError, match=path.name):
        outbox.meant(hurt.id) if kind != ".answer" else outbox.entries()
    sent = {sent["statement"]["id"] for sent in outbox.exchange([])}
    assert whole.id in sent
    if kind == ".answer":  # the server says it again
        outbox.exchange([answer(hurt.id, "acknowledged")])
        assert {posted.state for posted in outbox.entries()} == {"not sent", "acknowledged"}


def test_a_request_under_another_name_is_damaged(outbox: Outbox) -> None:
    id = outbox.file("client", "r", KEY).id
    (outbox.folder / f"{id}.json").rename(outbox.folder / f"{'c' * 32}.json")
    with pytest.raises(OutboxError, match=f"holds request {id}: move it away"):
        outbox.meant("c" * 32)


def test_a_changed_request_is_damaged(outbox: Outbox) -> None:
    path = outbox.folder / f"{outbox.file('class:3', 'r', KEY).id}.json"
    path.write_text(path.read_text().replace("class:3", "class:4"))
    with pytest.raises(OutboxError, match=r"is damaged .*does not bear the signature"):
        outbox.entries()


def test_a_folder_that_cannot_be_written(outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    outbox.file("client", "r", KEY)

    def denied(*_: object) -> None:  # by hand: root may write into any folder
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", denied)
    with pytest.raises(OutboxError, match="cannot be written: Permission denied"):
        outbox.file("class:1", "r", KEY)


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutboxError, match="cannot be made: "):
        Outbox(tmp_path / "file" / "box").file("client", "r", KEY)


def test_a_full_disk(outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    outbox.file("class:1", "r", KEY)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutboxError, match=r"cannot be (made|written): No space left on device"):
        outbox.file("client", "r", KEY)
    assert len(outbox.entries()) == 1


def test_a_short_file_takes_little_memory_whatever_it_may_hold(outbox: Outbox, tmp_path: Path) -> None:
    """The limits of some files are hundreds of megabytes, which are not set aside before there is anything to read."""
    (tmp_path / "places").write_text("3\n5\n")
    tracemalloc.start()
    try:
        outbox.file(f"instances:{tmp_path / 'places'}", "r", KEY)
        assert tracemalloc.get_traced_memory()[1] < 8e6
    finally:
        tracemalloc.stop()


def test_an_operators_desk(tmp_path: Path) -> None:
    filing = desk(tmp_path).file("client", "it has gone", SERVER, client="a")
    (sent,) = desk(tmp_path).exchange([])
    assert (sent["statement"]["id"], sent["statement"]["client"]) == (filing.id, "a")


# --- which data ---


def labels(*of: int) -> bytes:
    return struct.pack(f"<{len(of)}q", *of)


DATA = labels(0, 1, 2, 0, 1, 2, 0, 1, 2, 0)


def begun(outbox: Outbox, id: str) -> None:
    outbox.exchange([answer(id, "unlearning")])


@pytest.fixture
def filed(outbox: Outbox, tmp_path: Path) -> Callable[..., str]:
    """Files a request for samples at these places, with which the server has begun; its id."""

    def file(*places: int, deleted: bool = False, open: bool = False) -> str:
        (tmp_path / "list").write_text("\n".join(map(str, places)))
        id = outbox.file(f"instances:{tmp_path / 'list'}", "r", KEY, deleted=deleted).id
        if not open and not deleted:
            begun(outbox, id)
        return id

    return file


def test_the_first_data_are_those_that_places_are_of(outbox: Outbox, filed: Callable[..., str]) -> None:
    id = filed(3, 5)
    assert outbox.bound(id) is None
    assert outbox.places(id, DATA) == (3, 5)
    path = outbox.folder / f"{id}.data.json"
    assert outbox.bound(id) == Bound(10, hashlib.sha256(DATA).hexdigest())
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 or os.name != "posix"
    written = path.stat().st_mtime_ns
    assert outbox.places(id, DATA) == (3, 5)
    assert path.stat().st_mtime_ns == written  # nothing to write at every order
    assert "data" not in json.dumps([sent["statement"] for sent in outbox.exchange([])]).replace('"data": "here"', "")


@pytest.mark.parametrize(
    ("others", "says"),
    [
        (DATA[:24] + DATA[32:], "about 10 samples, and the data are 9$"),
        (DATA[8:] + DATA[:8], "about 10 samples, and the data are 10 with other labels"),
        (DATA[8:] + DATA[:24], "about 10 samples, and the data are 12 with other labels"),
        (b"", "the data are 0$"),
    ],
)
def test_other_data_are_refused_and_remembered_until_the_first_are_there_again(
    outbox: Outbox, filed: Callable[..., str], others: bytes, says: str
) -> None:
    id = filed(3, 5)
    outbox.places(id, DATA)
    first = outbox.bound(id)
    assert first is not None
    for _ in range(2):
        with pytest.raises(OtherData, match=says):
            outbox.places(id, others)
        assert outbox.bound(id) == replace(first, found=len(others) // 8)
    assert outbox.places(id, DATA) == (3, 5)
    assert outbox.bound(id) == first


def test_samples_that_come_behind_move_no_place_and_are_bound_as_well(
    outbox: Outbox, filed: Callable[..., str]
) -> None:
    id = filed(3, 5)
    outbox.places(id, DATA)
    more = DATA + labels(2, 2)
    assert outbox.places(id, more) == (3, 5)
    assert outbox.bound(id) == Bound(12, hashlib.sha256(more).hexdigest())
    with pytest.raises(OtherData):
        outbox.places(id, DATA)


def test_to_data_without_such_a_place_no_request_is_bound(outbox: Outbox, filed: Callable[..., str]) -> None:
    id = filed(10)
    with pytest.raises(OtherData, match="about samples up to place 10, and the data are 10"):
        outbox.places(id, DATA)
    assert outbox.bound(id) is None
    assert outbox.places(id, DATA + labels(1)) == (10,)


@pytest.mark.parametrize(("was", "now"), [("9", "8"), ("[", "[1, "), ("sha256", "sha255")])
def test_a_list_that_was_changed_means_no_other_samples(
    outbox: Outbox, filed: Callable[..., str], was: str, now: str
) -> None:
    id = filed(3, 9)
    path = outbox.folder / f"{id}.instances.json"
    path.write_text(path.read_text().replace(was, now, 1))
    with pytest.raises(OutboxError, match="is no list of samples, or was changed: restore it from a backup"):
        outbox.places(id, DATA)


def test_one_that_was_filed_as_deleted_is_bound_to_nothing(outbox: Outbox, filed: Callable[..., str]) -> None:
    id = filed(3, 50, deleted=True)
    assert outbox.places(id, DATA) == ()
    assert outbox.bound(id) is None


def test_of_samples_that_are_gone_no_place_is_left(outbox: Outbox, filed: Callable[..., str]) -> None:
    id = filed(3, 51234)
    before = outbox.folder / f"{id}.instances.json"
    with open(before, "rb") as old:
        assert outbox.gone(id) == []
        assert old.read().strip(b"\0") == b""  # what was there is written over
    assert outbox.meant(id) == Meant("instances", ())
    assert outbox.places(id, DATA) == ()
    assert outbox.bound(id) is None
    assert not any(b"51234" in path.read_bytes() for path in outbox.folder.iterdir())
    with pytest.raises(OutboxError, match="said to be gone before"):
        outbox.gone(id)
    assert filed(3, 51234) != id  # these places are of others now


def test_places_come_down_by_what_is_gone_below_them(outbox: Outbox, filed: Callable[..., str]) -> None:
    gone, other, partly, wholly = filed(2, 5), filed(0, 3, 9), filed(5, 6), filed(2)
    for id in (other, partly):
        outbox.places(id, DATA)
    with pytest.raises(OutboxError, match=r"2 other requests name samples by places .*--renumber"):
        outbox.gone(gone)
    assert outbox.places(other, DATA) == (0, 3, 9)  # nothing has changed
    assert set(outbox.gone(gone, renumber=True)) == {other, partly}
    assert [outbox.meant(id).instances for id in (gone, other, partly, wholly)] == [(), (0, 2, 7), (4,), ()]
    assert outbox.bound(other) == Bound(8, None)
    with pytest.raises(OtherData):  # not deleted yet
        outbox.places(other, DATA)
    left = labels(0, 1, 0, 1, 0, 1, 2, 0)
    assert outbox.places(other, left) == (0, 2, 7)
    assert outbox.bound(other) == Bound(8, hashlib.sha256(left).hexdigest())


PLACES = st.sets(st.integers(0, 30), min_size=1)


@given(PLACES, PLACES)
def test_renumbered_places_are_where_the_same_samples_are(deleted: set[int], named: set[int]) -> None:
    left = [sample for sample in range(31) if sample not in deleted]
    renumbered = module._renumbered(tuple(sorted(named)), tuple(sorted(deleted)))
    assert [left[place] for place in renumbered] == sorted(named - deleted)


def test_what_cannot_be_gone(outbox: Outbox, filed: Callable[..., str]) -> None:
    whole, open_one = outbox.file("client", "r", KEY).id, filed(1, open=True)
    with pytest.raises(OutboxError, match="names no single samples"):
        outbox.gone(whole)
    with pytest.raises(OutboxError, match="was not filed here"):
        outbox.gone("b" * 32)
    for name in ("filed", "acknowledged"):
        with pytest.raises(OutboxError, match=r"has not begun with request .*: file it anew with --deleted"):
            outbox.gone(open_one)
        outbox.exchange([answer(open_one, name)])
    anew = filed(1, deleted=True)
    assert anew != open_one
    assert outbox.gone(anew) == []
    assert outbox.meant(open_one).instances == ()


def test_one_that_was_refused_is_not_renumbered(outbox: Outbox, filed: Callable[..., str]) -> None:
    refused = filed(3, open=True)
    outbox.exchange([answer(refused, "refused", "no")])
    assert outbox.gone(filed(2)) == []
    assert outbox.meant(refused).instances == (3,)


def test_the_command_tells_what_was_renumbered_and_what_places_are_of(
    outbox: Outbox, filed: Callable[..., str]
) -> None:
    def told(*arguments: str) -> str:
        result = CliRunner().invoke(requests, arguments, catch_exceptions=False)
        assert result.exit_code == 0
        return result.output

    where, gone, other = str(outbox.folder), filed(2), filed(5)
    assert "places in" not in told("show", where, other)
    outbox.places(other, DATA)
    assert f"places in      10 samples, labels SHA-256 {hashlib.sha256(DATA).hexdigest()[:16]}...\n" in told(
        "show", where, other
    )
    with pytest.raises(OutboxError, match=r"1 other request names samples by places .*--renumber"):
        CliRunner().invoke(requests, ["gone", gone, "--outbox", where], catch_exceptions=False)
    assert told("gone", gone[:12], "--outbox", where, "--renumber") == (
        f"request {gone}: its samples are gone\nrequest {other}: renumbered\n"
    )
    assert "places in      9 samples, renumbered\n" in told("show", where, other)
    with pytest.raises(OtherData):
        outbox.places(other, DATA)
    assert "but found      10 samples, not those: no order is carried out" in told("show", where, other)


@pytest.mark.parametrize("writes", range(1, 12))
def test_killed_while_renumbering_it_is_all_done_or_nothing(
    outbox: Outbox, filed: Callable[..., str], monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    gone, one, two = filed(2), filed(5), filed(7)
    for id in (one, two):
        outbox.places(id, DATA)
    sync, left = os.fsync, [writes]

    def dying(descriptor: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", dying)
    with suppress(KeyboardInterrupt):
        outbox.gone(gone, renumber=True)
    monkeypatch.setattr(os, "fsync", sync)
    shorter = DATA[:16] + DATA[24:]
    if outbox.exchange([answer(gone, "unlearning")]) and outbox.meant(gone).instances:
        assert [outbox.places(id, DATA) for id in (gone, one, two)] == [(2,), (5,), (7,)]
        assert writes == 1
    else:
        assert [outbox.places(id, shorter) for id in (gone, one, two)] == [(), (4,), (6,)]
    assert not (outbox.folder / ".moving.json").exists()


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"samples": -1, "labels": null, "found": null}',
        '{"samples": true, "labels": null, "found": null}',
        '{"samples": 3, "labels": "x", "found": null}',
        '{"samples": 3, "labels": 3, "found": null}',
        '{"samples": 3, "labels": null, "found": "3"}',
        '{"samples": 3, "labels": null, "found": null, "more": 1}',
        " " * 2000,
    ],
)
def test_damaged_data_bind_no_request_anew(outbox: Outbox, filed: Callable[..., str], content: str) -> None:
    id = filed(3)
    (outbox.folder / f"{id}.data.json").write_text(content)
    with pytest.raises(OutboxError, match=r"data.json is damaged .*restore it from a backup"):
        outbox.places(id, DATA)


@pytest.mark.parametrize("content", ["[]", '{"x": 3}', '{"x": {"places": [1], "samples": null}}', "{", "[" * 100_000])
def test_a_damaged_renumbering_is_one_sentence(outbox: Outbox, filed: Callable[..., str], content: str) -> None:
    id = filed(3)
    (outbox.folder / ".moving.json").write_text(content)
    with pytest.raises(OutboxError, match=r"moving.json"):
        outbox.places(id, DATA)


FILES = """
import sys
from pathlib import Path
from fedunlearn.deletion.outbox import Outbox
from fedunlearn.deletion.signing import SigningKey
box, key = Outbox(Path(sys.argv[1])), SigningKey.load(Path(sys.argv[2]))
for number in range(10_000):
    Path(sys.argv[3]).write_text(str(number))
    print(box.file(f"instances:{sys.argv[3]}", "r", key).id, flush=True)
"""


def test_killed_at_any_instant_it_goes_on_and_loses_nothing(tmp_path: Path) -> None:
    SigningKey.make(tmp_path / "key", node=True)
    outbox, promised = Outbox(tmp_path / "box"), []
    for number in range(6):
        arguments = [str(outbox.folder), str(tmp_path / "key"), str(tmp_path / f"list{number}")]
        child = subprocess.Popen([sys.executable, "-c", FILES, *arguments], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        promised.append(child.stdout.readline().strip())  # it has begun
        time.sleep(0.013 * number)
        child.kill()
        promised += child.stdout.read().split()
        child.stdout.close()
        child.wait()
        there = {sent["statement"]["id"] for sent in outbox.exchange([])}  # another process reads
        assert set(promised) <= there
        for id in there:
            assert len(outbox.meant(id).instances) == 1
    assert not outbox.file("client", "r", KEY).again


def test_two_processes_file_the_same_once(tmp_path: Path) -> None:
    SigningKey.make(tmp_path / "key", node=True)
    code = FILES.replace("range(10_000)", "range(5)")
    arguments = [str(tmp_path / "box"), str(tmp_path / "key")]
    children = [
        subprocess.Popen(
            [sys.executable, "-c", code, *arguments, str(tmp_path / name)], stdout=subprocess.PIPE, text=True
        )
        for name in ("one", "two")
    ]
    one, two = (child.communicate()[0].split() for child in children)
    assert one == two
    assert len(Outbox(tmp_path / "box").entries()) == 5
