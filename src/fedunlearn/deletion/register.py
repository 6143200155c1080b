"""The register of a running federation: every event in order, none lost, each chained to the one before it.

A folder: ``register.sqlite``, and ``checkpoints`` that the server writes beside it. An event's hash is taken over the
event and the hash before it, so that no event can be changed, removed, inserted or moved without changing all later
hashes; the last of them, and how many there are, are signed by the server's key. Only the newest of these heads is
kept: whoever cuts off the end of a register and has not the key finds no signed head in it for what is left. So
SQLite's write-ahead log, which would keep all of them, is emptied into the file after each append.

An older head is there only in between: where a server was killed after an append and before the log was empty, or
while somebody read the file just then. The log then holds the events since it was empty last, and whoever cuts these
off has a whole register of a moment before; at most until the next append, the next start or the end. A copy of an
older day, too, is whole. Only a receipt of a later day shows that either is old (`fedunlearn.deletion.verification`).
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import socket
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, NoReturn, TypeVar

from filelock import FileLock, Timeout

from fedunlearn.amounts import brief
from fedunlearn.atomic import FileError, make_folder, read_json, write_json
from fedunlearn.deletion.events import Enrolled, Event, EventProblem, Opened, Rotated, event_of, plain
from fedunlearn.deletion.signing import KeyProblem, PublicKey, SigningKey, canonical
from fedunlearn.deletion.standing import Standing, fold, standing
from fedunlearn.deletion.statement import now

__all__ = [
    "LARGEST_EVENT",
    "Entered",
    "Head",
    "ReadOnly",
    "Register",
    "RegisterError",
    "Row",
    "reading",
    "rows",
    "server_key",
    "stored_head",
    "succeeded",
]

LARGEST_EVENT = 16 * 2**20
"""Bytes of one event; a receipt that lists who took part in very many rounds is the largest."""

_T = TypeVar("_T")
_LISTED = 10_000  # clients of one event, that join or leave: with ids and keys as long as they may be 12 MB
_FILE = "register.sqlite"
_LOCK = "register.lock"
_HOLDER = "register.holder.json"
_CHECKPOINTS = "checkpoints"
_PATIENCE = 5000  # milliseconds to wait for another program that writes
_READERS = 100  # likewise for those who read, before the log is left for the next time

_EVENTS = """CREATE TABLE events (
  number INTEGER PRIMARY KEY, at TEXT NOT NULL, kind TEXT NOT NULL, body BLOB NOT NULL, hash TEXT NOT NULL)"""
_HEAD = """CREATE TABLE head (
  register TEXT NOT NULL, count INTEGER NOT NULL, hash TEXT NOT NULL, key TEXT NOT NULL, signature TEXT NOT NULL)"""
_TABLES = [("events", _EVENTS), ("head", _HEAD)]

_ADVICE = {  # by a word of SQLite's own sentence
    "full": "make room on the disk, then start again",
    "readonly": "let this user write there",
    "locked": "another program has it open: end that one",
    "unable to open": "let this user read and write there",
    "malformed": "it is damaged: put a copy of the folder in its place",
    "not a database": "it is damaged: put a copy of the folder in its place",
}


class RegisterError(ValueError):
    """A register cannot be read or written; the sentence says what to do."""

    def __init__(self, sentence: str) -> None:
        super().__init__(brief(sentence))  # it quotes what is in the file


@dataclass(frozen=True)
class Head:
    """What the server signs after each event.

    Attributes:
        register: the register's id, 32 hexadecimal digits.
        count: how many events there are.
        hash: the last one's.
        key: fingerprint of the key that signs.
        signature: of all others (purpose "head").
    """

    register: str
    count: int
    hash: str
    key: str
    signature: str

    @classmethod
    def by(cls, key: SigningKey, register: str, count: int, hash: str) -> Head:
        """Sign a head."""
        unsigned = cls(register, count, hash, key.public.fingerprint, "")
        return replace(unsigned, signature=key.sign("head", unsigned._said))

    def signed_by(self, key: PublicKey) -> bool:
        """Whether it bears this key's signature."""
        return key.verified("head", self._said, self.signature)

    @property
    def _said(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name != "signature"}


@dataclass(frozen=True)
class Row:
    """An event as it lies in the file, of which nothing is certain: not even that a text is one."""

    number: int
    at: str
    kind: str
    body: bytes
    hash: str

    @classmethod
    def of(cls, number: int, at: str, event: Event, previous: str) -> Row:
        """Chain an event to the one before it.

        Raises:
            RegisterError: it is too large, or holds what JSON has no form for.
        """
        try:
            body = canonical(plain(event))
        except (ValueError, TypeError) as error:
            raise RegisterError(f"an event ({event.kind}) cannot be entered: {error}") from None
        if len(body) > LARGEST_EVENT:
            raise RegisterError(
                f"an event ({event.kind}) of {len(body)} bytes cannot be entered: the limit is {LARGEST_EVENT}"
            )
        return cls(number, at, event.kind, body, _chained(number, at, event.kind, body, previous))

    def follows(self, previous: str) -> bool:
        """Whether its hash is that of this event after one with the hash ``previous``."""
        texts = all(isinstance(text, str) for text in (self.at, self.kind, self.hash))
        if not texts or not isinstance(self.body, bytes):
            return False
        return self.hash == _chained(self.number, self.at, self.kind, self.body, previous)

    def event(self) -> Event:
        """Read it.

        Raises:
            RegisterError: it is none of the events that a register holds.
        """
        try:
            content = _JSON.decode(self.body.decode("utf-8", "surrogatepass"))
            if not isinstance(content, dict):
                raise EventProblem("it has no fields")
            return event_of(self.kind, content)
        except (ValueError, RecursionError, AttributeError) as error:
            raise RegisterError(f"event {self.number} cannot be read: {str(error)[:200]}") from None


@dataclass(frozen=True)
class Entered:
    """An event in the register: its number, from 0, when it was entered, and its hash."""

    number: int
    at: str
    event: Event
    hash: str


@dataclass(frozen=True)
class ReadOnly:
    """A register as it was at one moment, for whoever only looks.

    Attributes:
        folder: where it lies.
        head: as it was signed.
        entered: all events.
    """

    folder: Path
    head: Head
    entered: tuple[Entered, ...]

    @property
    def checkpoints(self) -> Path:
        """Where the models lie."""
        return self.folder / _CHECKPOINTS

    def events(self, since: int = 0) -> Iterator[Entered]:
        """Those from number ``since`` on, in order."""
        return iter(self.entered[since:])

    def standing(self) -> Standing:
        """Where everything stood.

        Raises:
            RegisterError: an event does not fit those before it.
        """
        return _folded(self.folder, self.entered)


class Register:
    """A register that one process writes; no second one can while it is open.

    What `append` has returned from is on the disk: it outlives a process that is killed and a machine that stops.
    """

    def __init__(self, folder: Path, key: SigningKey, connection: sqlite3.Connection, held: ExitStack) -> None:
        self._folder = folder
        self._key = key
        self._connection = connection
        self._held = held
        self._head, self._standing = self._loaded()

    @classmethod
    def create(cls, folder: Path, key: SigningKey, opened: Opened) -> Register:
        """Make a register, whose first event says whose it is; a long list of clients goes on in further events.

        Args:
            folder: where; made for this user's eyes only if it is not there, and nobody else may write to it.
            key: the server's.
            opened: the first event, with all clients; its key is the public half of ``key``.

        Raises:
            RegisterError: there is a register already, or models of one; the folder cannot be written to, or others
                can write to it too.
        """
        _require_server(key)
        if key.public.text in opened.clients.values():
            raise RegisterError("the server's key stands on the list of clients: each needs one of its own")
        if opened.key != key.public.text:
            raise RegisterError("the first event of a register names the public key of the server that signs it")
        listed = [dict(part) for part in _parts(opened.clients.items())]
        events: list[Event] = [replace(opened, clients=listed[0] if listed else {}), *map(Enrolled, listed[1:])]
        new = _rows_of(events, 0, register := secrets.token_hex(16))
        with ExitStack() as held:
            _require_new(folder)
            connection = _opened(folder, "rwc", held)
            with _told(folder), _whole(connection):
                if connection.execute("SELECT count(*) FROM sqlite_master").fetchone() != (0,):
                    raise RegisterError(f"there is a register in {folder} already: open that one, or name another")
                for _, table in _TABLES:
                    connection.execute(table)
                _write(connection, new, Head.by(key, register, len(new), new[-1].hash))
            _empty_log(connection)
            return cls(folder, key, connection, held.pop_all())

    @classmethod
    def open(cls, folder: Path, key: SigningKey) -> Register:
        """Open a register to go on writing it.

        Raises:
            RegisterError: there is none, another process writes it, others can write to it, it is damaged or was
                changed by somebody without the key, or ``key`` is not the one that signs it.
        """
        _require(folder)
        with ExitStack() as held:
            connection = _opened(folder, "rw", held)
            register = cls(folder, key, connection, held)
            _empty_log(connection)  # a server that was killed has not
            held.pop_all()
            return register

    @staticmethod
    def exists(folder: Path) -> bool:
        """Whether there is a register in a folder; not, where a process was killed before it had made one.

        Raises:
            RegisterError: there is something that cannot be read.
        """
        if not (folder / _FILE).exists():
            return False
        with _told(folder), closing(_connected(folder / _FILE, "rw")) as connection:
            return bool(connection.execute("SELECT count(*) FROM sqlite_master").fetchone() != (0,))

    @staticmethod
    def read(folder: Path) -> ReadOnly:
        """Look at a register, without its key, also while a server writes it; nothing in the folder is written.

        Raises:
            RegisterError: there is none, or it is damaged or was changed by somebody without the key.
        """
        with reading(folder) as connection:
            head, entered, _ = _checked(folder, connection)
        return ReadOnly(folder, head, tuple(entered))

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return self._folder

    @property
    def head(self) -> Head:
        """The newest."""
        return self._head

    @property
    def checkpoints(self) -> Path:
        """Where the models lie."""
        return self._folder / _CHECKPOINTS

    def standing(self) -> Standing:
        """Where everything stands; `append` keeps it up to date."""
        return self._standing

    def events(self, since: int = 0) -> Iterator[Entered]:
        """Those from number ``since`` on, in order, up to the newest of now.

        Raises:
            RegisterError: the file cannot be read.
        """
        count = self._head.count
        with _told(self._folder):
            for row in rows(self._connection, since):
                if row.number < count:
                    yield Entered(row.number, row.at, row.event(), row.hash)

    def append(self, *events: Event) -> Head:
        """Enter events: all of them, or none.

        Raises:
            RegisterError: one of them does not fit those before it, or is too large, or the disk does not take them.
        """
        for event in events:
            if isinstance(event, Opened | Enrolled | Rotated):
                raise RegisterError(f"{event.kind!r} cannot be appended: only `create`, `enrol` and `rotate` write it")
        return self._enter(events, self._key)

    def enrol(self, clients: Mapping[str, str]) -> Head:
        """Have another list of clients from here on, if it is another: what changes is entered, all of it or nothing.

        Args:
            clients: the public key of each, of all.

        Raises:
            RegisterError: this is a simulation's register, a key on the list was another client's or is or was the
                server's, or the disk does not take the event.
        """
        if clients == self._standing.clients:
            return self._head
        if not self._servers.isdisjoint(clients.values()):
            raise RegisterError("the server's key stands on the list of clients: each needs one of its own")
        before = self._standing.clients
        changed = [client for client, key in clients.items() if before.get(client) != key]
        changed += [client for client in before if client not in clients]
        changes = [
            Enrolled(
                {client: clients[client] for client in part if client in clients},
                [client for client in part if client not in clients],
            )
            for part in _parts(changed)
        ]
        return self._enter(changes, self._key)

    def rotate(self, new: SigningKey) -> Head:
        """Sign with another key from here on; the old one says that it is followed by this one.

        Raises:
            RegisterError: it is the same key, a client's or no Ed25519 key, or the disk does not take the event.
        """
        _require_server(new)
        if new.public.text in self._standing.holders:
            raise RegisterError("this is a client's key: make another with `fedunlearn keys new`")
        if new.public == self._key.public:
            raise RegisterError("the register is signed with this key already: make another with `fedunlearn keys new`")
        followed = {"register": self._head.register, "key": new.public.text}
        head = self._enter([Rotated(new.public.text, self._key.sign("rotation", followed))], new)
        self._key = new
        return head

    def close(self) -> None:
        """Let another process write it."""
        _empty_log(self._connection)
        self._held.close()

    def __enter__(self) -> Register:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _enter(self, events: Iterable[Event], signing: SigningKey) -> Head:
        new = _rows_of(events, self._head.count, self._head.hash)
        if not new:
            return self._head
        head = Head.by(signing, self._head.register, self._head.count + len(new), new[-1].hash)
        try:
            with _told(self._folder), _whole(self._connection):
                _write(self._connection, new, head)
                for row in new:  # as they will be read, and before they are there: what does not fit is not entered
                    _fold(self._standing, Entered(row.number, row.at, row.event(), row.hash))
        except BaseException:
            self._head, self._standing = self._loaded()  # some of them may have been folded in
            raise
        self._head = head
        _empty_log(self._connection)
        return head

    @property
    def _servers(self) -> set[str]:
        """All keys that sign it or have signed it."""
        opened = self._standing.opened
        assert opened is not None, "a register begins with the event that says whose it is"
        return {opened.key, *(rotated.key for _, rotated in self._standing.rotations)}

    def _loaded(self) -> tuple[Head, Standing]:
        with _told(self._folder):
            head, entered, force = _checked(self._folder, self._connection)
        if force != self._key.public:
            raise RegisterError(
                f"the register in {self._folder} is signed with the key {force.fingerprint}, and this one is "
                f"{self._key.public.fingerprint}: give that one; `fedunlearn keys rotate` changes it"
            )
        return head, _folded(self._folder, entered)


def _rows_of(events: Iterable[Event], first: int, previous: str) -> list[Row]:
    """Events chained to one another and to what is there, entered now."""
    new, at = list[Row](), now()
    for number, event in enumerate(events, first):
        new.append(Row.of(number, at, event, new[-1].hash if new else previous))
    return new


def _parts(listed: Iterable[_T]) -> list[list[_T]]:
    """In parts that one event each has room for."""
    left = iter(listed)
    return list(iter(lambda: list(islice(left, _LISTED)), []))


def _require_server(key: SigningKey) -> None:
    if key.public.of_node:
        raise RegisterError(
            "a server signs with an Ed25519 key, and this is a node's: make one with `fedunlearn keys new`"
        )


@contextmanager
def reading(folder: Path) -> Iterator[sqlite3.Connection]:
    """A register's file as it is at one moment, of which nothing is certain but that it has the right tables.

    Raises:
        RegisterError: there is none, or it cannot be read; also what SQLite raises in the body.
    """
    file = _require(folder)
    with _told(folder), ExitStack() as held:
        if not all(file.with_name(_FILE + side).exists() for side in ("-wal", "-shm")):
            # SQLite would make these files even to read. Where one is missing no server is at work: a copy is whole.
            scratch = Path(held.enter_context(TemporaryDirectory(prefix="fedunlearn-")))
            for there in (file, file.with_name(f"{_FILE}-wal")):
                if there.exists():
                    shutil.copyfile(there, scratch / there.name)
            file = scratch / _FILE
        connection = held.enter_context(closing(_connected(file, "ro")))
        connection.execute("BEGIN")
        _require_tables(folder, connection)
        yield connection


def rows(connection: sqlite3.Connection, since: int = -(2**63)) -> Iterator[Row]:
    """The events in a file as they are, by number."""
    found = connection.execute(
        "SELECT number, at, kind, body, hash FROM events WHERE number >= ? ORDER BY number", (since,)
    )
    return (Row(*values) for values in found)


def stored_head(connection: sqlite3.Connection) -> Head:
    """The head in a file as it is.

    Raises:
        RegisterError: there is none, or several.
    """
    found = connection.execute("SELECT register, count, hash, key, signature FROM head").fetchmany(2)
    if len(found) != 1 or [type(value) for value in found[0]] != [str, int, str, str, str]:
        raise RegisterError("it has no head")
    return Head(*found[0])


def succeeded(register: str, key: PublicKey, rotated: Rotated) -> PublicKey:
    """The key that signs the register with this id after ``key``.

    Raises:
        RegisterError: ``key`` has not signed that it is followed by that one, or that is no server's.
    """
    if not key.verified("rotation", {"register": register, "key": rotated.key}, rotated.signature):
        raise RegisterError(f"the key {key.fingerprint} has not signed which one follows it")
    return server_key(rotated.key)


def server_key(text: object) -> PublicKey:
    """Read the public key that an event gives a server.

    Raises:
        RegisterError: it is none, or none with which a server signs.
    """
    try:
        key = PublicKey.of(str(text))
    except KeyProblem as error:
        raise RegisterError(f"the key of the server: {error}") from None
    if key.of_node:
        raise RegisterError(f"the key of the server, {key.fingerprint}, is no Ed25519 key")
    return key


def _checked(folder: Path, connection: sqlite3.Connection) -> tuple[Head, list[Entered], PublicKey]:
    """Head, events and the key in force, where chain and head fit."""
    try:
        head = stored_head(connection)
        entered: list[Entered] = []
        force, previous = None, head.register
        for number, row in enumerate(rows(connection)):
            if row.number != number or not row.follows(previous):
                raise RegisterError(f"event {number} is not as it was entered")
            event, previous = row.event(), row.hash
            if isinstance(event, Opened):
                force = force or server_key(event.key)
            if isinstance(event, Rotated) and force is not None:
                force = succeeded(head.register, force, event)
            entered.append(Entered(number, row.at, event, row.hash))
        if (head.count, head.hash) != (len(entered), previous):
            raise RegisterError(f"its head speaks of {head.count} events, of which {len(entered)} are there")
        if force is None or not head.signed_by(force):
            raise RegisterError("its head is not signed by the server's key")
    except RegisterError as error:
        raise RegisterError(
            f"the register in {folder} is damaged or was changed: {error}; `fedunlearn requests verify {folder}` says "
            "what is wrong, then put a copy of the folder in its place"
        ) from None
    return head, entered, force


def _folded(folder: Path, entered: Iterable[Entered]) -> Standing:
    whole = standing(())
    for one in entered:
        _fold(whole, one)
    return whole


def _fold(whole: Standing, one: Entered) -> None:
    try:
        fold(whole, one.at, one.event)
    except EventProblem as error:
        raise RegisterError(f"event {one.number} ({one.event.kind}) does not fit those before it: {error}") from None
    except (LookupError, TypeError, ValueError, AttributeError):
        raise RegisterError(f"event {one.number} ({one.event.kind}) does not fit those before it") from None


def _chained(number: int, at: str, kind: str, body: bytes, previous: str) -> str:
    """SHA-256 of the canonical form of all five; the body is in that form already."""
    before = canonical({"at": at})[:-1] + b',"body":'
    after = canonical({"kind": kind, "number": number, "previous": previous})[1:]
    return hashlib.sha256(before + body + b"," + after).hexdigest()


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number")


_JSON = json.JSONDecoder(parse_constant=_no_number)


def _write(connection: sqlite3.Connection, new: Iterable[Row], head: Head) -> None:
    values = [(row.number, row.at, row.kind, row.body, row.hash) for row in new]
    connection.executemany("INSERT INTO events VALUES (?, ?, ?, ?, ?)", values)
    connection.execute("DELETE FROM head")
    connection.execute("INSERT INTO head VALUES (:register, :count, :hash, :key, :signature)", asdict(head))


def _require(folder: Path) -> Path:
    file = folder / _FILE
    if not file.is_file():
        raise RegisterError(f"there is no register in {folder}: name the folder that the server writes")
    return file


def _require_tables(folder: Path, connection: sqlite3.Connection) -> None:
    """Exactly ours: a view or a trigger in their place could do anything when it is read."""
    found = connection.execute("SELECT type, name, sql FROM sqlite_master ORDER BY name").fetchmany(len(_TABLES) + 1)
    if found != [("table", name, text) for name, text in _TABLES]:
        raise RegisterError(f"{folder / _FILE} is no register: put a copy of the folder in its place")


def _opened(folder: Path, mode: str, held: ExitStack) -> sqlite3.Connection:
    """Lock the folder and open the file to write; ``held`` ends both."""
    with _told(folder):
        make_folder(folder, 0o700)  # who asked for what, and why, is nobody else's business
        _require_own(folder)
        make_folder(folder / _CHECKPOINTS, 0o755)
        if mode == "rwc":
            (folder / _FILE).touch(mode=0o644)  # SQLite's own would be open to whom the umask lets write
        try:
            held.enter_context(FileLock(folder / _LOCK).acquire(timeout=0))
        except Timeout:
            raise RegisterError(f"the register in {folder} is written by {_holder(folder)}: end that one") from None
        write_json(folder / _HOLDER, {"pid": os.getpid(), "host": socket.gethostname()})
        connection = held.enter_context(closing(_connected(folder / _FILE, mode)))
        if connection.execute("PRAGMA journal_mode = WAL").fetchone() != ("wal",):
            raise RegisterError(
                f"{folder} is on a disk without shared memory (a network's): keep the register elsewhere"
            )
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA secure_delete = ON")  # the head before is not to be found in the file
        if mode == "rw":
            _require_tables(folder, connection)
        return connection


def _require_new(folder: Path) -> None:
    """That no register was lost here: a new one would know of none of its requests."""
    if not Register.exists(folder) and any((folder / _CHECKPOINTS).glob("*.safetensors")):
        raise RegisterError(
            f"{folder} holds models of a register, whose {_FILE} is gone or empty: put a copy of the folder in its "
            "place, or name another"
        )


def _require_own(folder: Path) -> None:
    """That nobody else can write to it; who may read it is the operator's business."""
    if os.name != "posix" or not folder.stat().st_mode & 0o077:  # nobody else comes in
        return
    for path in (folder, folder / _CHECKPOINTS, folder / _FILE):
        if path.exists() and path.stat().st_mode & 0o022:
            raise RegisterError(f"others can write to the register, at {path}: chmod go-w {path}")


def _empty_log(connection: sqlite3.Connection) -> None:
    """Bring all that is in the log into the file; where somebody is reading, the next time does it."""
    with suppress(sqlite3.Error):  # what was entered is safe in the log: a full disk is for the next append to tell
        connection.execute(f"PRAGMA busy_timeout = {_READERS}")
        try:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        finally:
            connection.execute(f"PRAGMA busy_timeout = {_PATIENCE}")


def _holder(folder: Path) -> str:
    try:
        known = read_json(folder / _HOLDER)
        return f"process {int(known['pid'])} on {str(known['host'])[:100]}"
    except (FileError, OSError, KeyError, TypeError, ValueError):
        return "another process"


def _connected(file: Path, mode: str) -> sqlite3.Connection:
    address = f"{file.absolute().as_uri()}?mode={mode}"
    connection = sqlite3.connect(address, _PATIENCE / 1000, uri=True, isolation_level=None)
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LARGEST_EVENT + 2**16)
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.execute("PRAGMA cell_size_check = ON")
    return connection


@contextmanager
def _whole(connection: sqlite3.Connection) -> Iterator[None]:
    """All that the body writes, or nothing."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


@contextmanager
def _told(folder: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        advice = next((text for word, text in _ADVICE.items() if word in str(error)), "see whether the disk is sound")
        raise RegisterError(f"the register in {folder} ({error}): {advice}") from None
    except UnicodeDecodeError:  # SQLite quotes what is in a damaged file
        raise RegisterError(f"the register in {folder} is damaged: put a copy of the folder in its place") from None
    except OSError as error:
        raise RegisterError(
            f"the register in {folder} ({error.strerror}): let this user read and write there"
        ) from None
