"""The register: what was promised is there, whatever happens; what does not fit is not entered."""

from __future__ import annotations

import hashlib
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from registers import KEY, MEMORY, NEXT, NODES, OPENED, key, rechained, steps, stored, written

from fedunlearn.deletion.events import Acknowledged, Done, Event, Fault, Opened, Rotated, Waited
from fedunlearn.deletion.register import LARGEST_EVENT, Register, RegisterError, reading
from fedunlearn.deletion.signing import SigningKey
from fedunlearn.deletion.standing import standing
from fedunlearn.deletion.verification import verify

WAITED = Waited("train", 1, "1 of 3 answered")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "register"


def test_a_new_register_says_whose_it_is(folder: Path) -> None:
    with Register.create(folder, KEY, OPENED) as register:
        (first,) = register.events()
        assert (first.number, first.event, first.hash) == (0, OPENED, register.head.hash)
        assert (register.head.count, register.head.key) == (1, KEY.public.fingerprint)
        assert len(bytes.fromhex(register.head.register)) == 16
        assert register.checkpoints == folder / "checkpoints"
        assert register.checkpoints.is_dir()
        assert folder.stat().st_mode & 0o077 == 0


def test_hashes_and_signatures_are_those_that_are_written_down(folder: Path) -> None:
    """By hand: a third party checks a register with SHA-256, Ed25519 and JSON alone."""
    with Register.create(folder, KEY, Opened({}, KEY.public.text, {})) as register:
        head = register.append(WAITED)
        first, second = register.events()
    text = (
        f'{{"at":"{second.at}","body":{{"number":1,"phase":"train","why":"1 of 3 answered"}},'
        f'"kind":"waited","number":1,"previous":"{first.hash}"}}'
    )
    assert second.hash == hashlib.sha256(text.encode()).hexdigest() == head.hash
    assert rechained(stored(folder), head.register) == stored(folder)
    said = {"register": head.register, "count": 2, "hash": head.hash, "key": KEY.public.fingerprint}
    assert KEY.public.verified("head", said, head.signature)
    assert not KEY.public.verified("receipt", said, head.signature)


@settings(max_examples=15)
@given(steps(0, 10))
def test_what_was_entered_is_read_again(story: list[str]) -> None:
    with tempfile.TemporaryDirectory(dir=MEMORY) as place:
        folder = Path(place) / "register"
        made = written(folder, story)
        seen = Register.read(made.folder)
        with Register.open(folder, KEY) as register:
            events = list(register.events())
            assert list(seen.events()) == events
            assert list(seen.events(2)) == list(register.events(2)) == events[2:]
            assert seen.standing() == register.standing() == standing((one.at, one.event) for one in events)
            assert seen.head == register.head
            assert list(register.events(len(events))) == []


def test_standing_is_kept_up_to_date_and_of_values_that_nobody_else_holds(folder: Path) -> None:
    about = {"rounds": 3}
    with Register.create(folder, KEY, replace(OPENED, about=about)) as register:
        register.append(WAITED)
        assert [event for _, event in register.standing().waits] == [WAITED]
        about["rounds"] = 4
        assert register.standing().opened is not None
        assert register.standing().opened.about == {"rounds": 3}


def test_events_are_those_of_when_they_were_asked_for(folder: Path) -> None:
    with Register.create(folder, KEY, OPENED) as register:
        register.append(WAITED)
        reading = register.events()
        seen = [next(reading)]
        register.append(WAITED)
        assert [one.number for one in (*seen, *reading)] == [0, 1]


def test_the_file_is_opened_as_a_register_needs(folder: Path) -> None:
    with Register.create(folder, KEY, OPENED) as register:
        asked = {name: register._connection.execute(f"PRAGMA {name}").fetchone()[0] for name in _SETTINGS}
        assert asked == _SETTINGS


_SETTINGS = {
    "journal_mode": "wal",
    "synchronous": 2,  # FULL
    "secure_delete": 1,
    "trusted_schema": 0,
    "cell_size_check": 1,
}


@pytest.mark.parametrize(
    ("event", "sentence"),
    [
        (Acknowledged("unknown"), r"event 2 \(acknowledged\) does not fit those before it"),
        (Done("unknown", {}), r"event 2 \(done\) does not fit those before it"),
        (OPENED, "'opened' cannot be appended: only `create`"),
        (Rotated("", ""), "'rotated' cannot be appended: only `create`, `enrol` and `rotate`"),
        (Fault("a", "failed", "x" * LARGEST_EVENT, "train", 1), r"of 167772\d\d bytes cannot be entered: the limit is"),
        (Waited("train", 1, float("nan")), "cannot be entered: Out of range"),  # type: ignore[arg-type]
        (Waited("train", 1, object()), "cannot be entered"),  # type: ignore[arg-type]
    ],
)
def test_all_events_are_entered_or_none(folder: Path, event: Event, sentence: str) -> None:
    with Register.create(folder, KEY, OPENED) as register:
        before = register.head
        with pytest.raises(RegisterError, match=sentence):
            register.append(WAITED, event)
        assert register.head == before
        assert register.standing().waits == []
        assert register.append() == before
        assert register.append(WAITED, WAITED).count == 3
    assert verify(folder, [KEY.public]).problems == []


def test_a_second_server_is_refused_and_told_of_the_first(folder: Path) -> None:
    first = Register.create(folder, KEY, OPENED)
    for again in (lambda: Register.open(folder, KEY), lambda: Register.create(folder, KEY, OPENED)):
        with pytest.raises(RegisterError, match=rf"is written by process {os.getpid()} on .+: end that one"):
            again()
    (folder / "register.holder.json").write_text("[]")
    with pytest.raises(RegisterError, match="is written by another process"):
        Register.open(folder, KEY)
    first.append(WAITED)
    first.close()
    with Register.open(folder, KEY) as register:
        assert register.head.count == 2


@pytest.mark.parametrize("how", ["gone", "empty"])
def test_where_a_register_was_lost_no_new_one_is_made(folder: Path, how: str) -> None:
    """It would know of no request, and the server would train on as if there had been none."""
    written(folder, ["node"])
    (folder / "checkpoints" / "00000003-model.safetensors").touch()
    (folder / "register.sqlite").unlink()
    if how == "empty":
        (folder / "register.sqlite").touch()
    with pytest.raises(RegisterError, match=r"holds models of a register, whose register.sqlite is gone or empty: put"):
        Register.create(folder, KEY, OPENED)


def test_a_register_is_created_once(folder: Path) -> None:
    written(folder, [])
    with pytest.raises(RegisterError, match=r"there is a register in .* already: open that one"):
        Register.create(folder, KEY, OPENED)
    with pytest.raises(RegisterError, match="names the public key of the server that signs it"):
        Register.create(folder / "other", key(), OPENED)
    with pytest.raises(RegisterError, match="there is no register in"):
        Register.open(folder / "other", KEY)
    with pytest.raises(RegisterError, match="there is no register in"):
        Register.read(folder / "other")
    assert not (folder / "other").exists()


@pytest.mark.parametrize("mode", [0o770, 0o702])
def test_a_folder_that_others_can_write_to_is_refused(folder: Path, mode: int) -> None:
    folder.mkdir()
    folder.chmod(mode)
    sentence = rf"others can write to the register, at {re.escape(str(folder))}: chmod go-w"
    with pytest.raises(RegisterError, match=sentence):
        Register.create(folder, KEY, OPENED)
    assert listed(folder) == []
    folder.chmod(0o755)  # who may read is not ours to say
    written(folder, ["wait"])
    folder.chmod(mode)
    with pytest.raises(RegisterError, match=sentence):
        Register.open(folder, KEY)


@pytest.mark.parametrize("name", ["register.sqlite", "checkpoints"])
def test_what_lies_in_a_folder_that_others_can_look_into_they_cannot_write_to(folder: Path, name: str) -> None:
    before = os.umask(0)  # which would let everybody write
    try:
        folder.mkdir(mode=0o755)
        written(folder, ["wait"])
    finally:
        os.umask(before)
    assert (folder / name).stat().st_mode & 0o022 == 0
    (folder / name).chmod(0o775)
    with pytest.raises(RegisterError, match=rf"others can write to the register, at .*{name}: chmod go-w .*{name}"):
        Register.open(folder, KEY)
    folder.chmod(0o700)  # and now nobody comes in
    Register.open(folder, KEY).close()


def test_a_reader_holds_no_append_up_for_long_and_what_was_promised_is_there(folder: Path) -> None:
    with Register.create(folder, KEY, OPENED) as register, reading(folder):
        began = time.monotonic()
        register.append(WAITED)
        assert time.monotonic() - began < 3  # SQLite alone would wait for five seconds
        assert (folder / "register.sqlite-wal").stat().st_size > 0
        assert Register.read(folder).head == register.head


def test_a_log_that_cannot_be_emptied_undoes_no_append(folder: Path) -> None:
    with Register.create(folder, KEY, OPENED) as register:
        register.append(WAITED, WAITED)
        left = register.events()
        next(left)  # this process reads, and SQLite raises
        assert register.append(WAITED) == Register.read(folder).head
        assert (folder / "register.sqlite-wal").stat().st_size > 0
        list(left)
        register.append(WAITED)
        assert (folder / "register.sqlite-wal").stat().st_size == 0


def test_a_key_is_a_servers_or_a_clients(folder: Path) -> None:
    with Register.create(folder, KEY, OPENED) as register:
        with pytest.raises(RegisterError, match="this is a client's key"):
            register.rotate(NODES["north"])
        register.rotate(NEXT)
        for server in (KEY, NEXT):
            with pytest.raises(RegisterError, match="the server's key stands on the list of clients"):
                register.enrol({**OPENED.clients, "east": server.public.text})
        assert register.head.count == 2


def test_a_server_that_was_killed_before_the_first_event_begins_again(folder: Path) -> None:
    folder.mkdir(mode=0o700)
    (folder / "register.sqlite").touch()
    with pytest.raises(RegisterError, match="is no register"):
        Register.open(folder, KEY)
    Register.create(folder, KEY, OPENED).close()
    assert verify(folder, [KEY.public]).problems == []


def test_another_key_than_the_one_in_force_is_refused(folder: Path) -> None:
    made = written(folder, ["node"])
    other = key()
    sentence = f"signed with the key {KEY.public.fingerprint}, and this one is {other.public.fingerprint}: give"
    with pytest.raises(RegisterError, match=re.escape(sentence)):
        Register.open(made.folder, other)
    Register.open(made.folder, KEY).close()


def test_a_key_is_followed_by_another(folder: Path) -> None:
    with Register.create(folder, KEY, OPENED) as register:
        with pytest.raises(RegisterError, match="with this key already"):
            register.rotate(KEY)
        head = register.rotate(NEXT)
        assert (head.count, head.key) == (2, NEXT.public.fingerprint)
        said = {"register": head.register, "key": NEXT.public.text}
        ((_, rotated),) = register.standing().rotations
        assert KEY.public.verified("rotation", said, rotated.signature)
        register.append(WAITED)
    with pytest.raises(RegisterError, match="give that one"):
        Register.open(folder, KEY)
    with Register.open(folder, NEXT) as register:
        register.rotate(KEY)
        register.append(WAITED)
    assert verify(folder, [NEXT.public]).problems == []


def listed(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_somebody_reads_while_the_server_writes(folder: Path) -> None:
    with Register.create(folder, KEY, OPENED) as register:
        register.append(WAITED)
        there = listed(folder)
        seen = Register.read(folder)
        register.append(WAITED)
        assert (seen.head.count, len(list(seen.events()))) == (2, 2)
        assert Register.read(folder).head == register.head
        assert verify(folder, [KEY.public]).problems == []
        assert listed(folder) == there


@pytest.mark.parametrize("gone", [[], ["-shm"]])
def test_somebody_reads_what_a_killed_server_left_and_makes_no_file(
    folder: Path, gone: list[str], tmp_path: Path
) -> None:
    with Register.create(folder, KEY, OPENED) as register:
        register.append(WAITED)
        left = tmp_path / "left"  # as it lies on the disk while the server has not closed it
        shutil.copytree(folder, left)
    for side in gone:
        (left / f"register.sqlite{side}").unlink()
    there = listed(left)
    assert "register.sqlite-wal" in there
    assert [one.event for one in Register.read(left).events()] == [OPENED, WAITED]
    assert verify(left, [KEY.public]).problems == []
    assert listed(left) == there
    with Register.open(left, KEY) as register:
        assert register.head.count == 2


def test_somebody_reads_what_a_server_has_closed_and_makes_no_file(folder: Path) -> None:
    made = written(folder, ["wait"])
    there = listed(folder)
    assert "register.sqlite-wal" not in there
    assert Register.read(made.folder).head.count == 2
    assert listed(folder) == there


def test_a_full_disk_is_one_sentence_and_nothing_is_half_entered(folder: Path) -> None:
    with Register.create(folder, KEY, OPENED) as register:
        connection = register._connection
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {pages}")
        before = register.head
        with pytest.raises(RegisterError, match=r"disk is full.*make room on the disk"):
            register.append(WAITED, Fault("a", "failed", "x" * 100_000, "train", 1))
        assert (register.head, register.standing().waits) == (before, [])
        connection.execute("PRAGMA max_page_count = 100000")
        register.append(WAITED)
    assert verify(folder, [KEY.public]).problems == []


def test_a_folder_that_cannot_be_written_is_one_sentence(folder: Path, tmp_path: Path) -> None:
    with Register.create(folder, KEY, OPENED) as register:
        register._connection.execute("PRAGMA query_only = ON")  # what SQLite says of a read-only file, also to root
        with pytest.raises(RegisterError, match=r"readonly database.*let this user write there"):
            register.append(WAITED)
    (tmp_path / "file").touch()
    with pytest.raises(RegisterError, match="let this user read and write there"):
        Register.create(tmp_path / "file", KEY, OPENED)


def test_another_program_that_holds_the_file_is_one_sentence(folder: Path) -> None:
    with Register.create(folder, KEY, OPENED) as register:
        register._connection.execute("PRAGMA busy_timeout = 1")
        other = sqlite3.connect(folder / "register.sqlite", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(RegisterError, match=r"is locked.*end that one"):
            register.append(WAITED)
        other.close()
        assert register.append(WAITED).count == 2


_WRITER = """
import sys
from pathlib import Path
from fedunlearn.deletion.events import Waited
from fedunlearn.deletion.register import Register
from fedunlearn.deletion.signing import SigningKey
folder, key = Path(sys.argv[1]), SigningKey.load(Path(sys.argv[2]))
with Register.open(folder, key) as register:
    while True:
        waited = Waited("train", register.head.count, "x" * 3000)
        head = register.append(*[waited] * (1 + register.head.count % 3))
        print(head.count, head.hash, flush=True)
"""


def test_nothing_that_was_promised_is_lost_when_the_server_is_killed(folder: Path, tmp_path: Path) -> None:
    """SIGKILL at twenty instants of one register's life, each start going on from what the last one left."""
    signing = SigningKey.make(tmp_path / "key")
    Register.create(folder, signing, replace(OPENED, key=signing.public.text)).close()
    command = [sys.executable, "-c", _WRITER, str(folder), str(tmp_path / "key")]
    draw = random.Random(8)
    promised = 0
    for _ in range(20):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            told = [writer.stdout.readline()]
            time.sleep(draw.uniform(0, 0.05))
            writer.send_signal(signal.SIGKILL)
            told += writer.stdout.readlines()
        count, hash = [line for line in told if line.endswith("\n")][-1].split()
        assert int(count) > promised, "it got no further"
        promised = int(count)
        seen = Register.read(folder)
        assert seen.entered[promised - 1].hash == hash
        assert verify(folder, [signing.public]).problems == []
    with Register.open(folder, signing) as register:
        assert register.head.count >= promised


@pytest.mark.parametrize("module", ["register", "verification", "signing", "statement", "standing", "events"])
def test_no_module_of_a_register_waits_for_torch(module: str) -> None:
    code = f"import sys, fedunlearn.deletion.{module}; print('torch' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "False"
