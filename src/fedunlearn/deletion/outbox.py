"""A folder in which whoever asks keeps their requests, what only they know of them, and the server's answers.

Of a request ``ID`` it holds ``ID.json``, signed, which is sent; ``ID.instances.json``, which samples are meant, which
never leaves the folder, and ``ID.data.json``, in which data, nor does it; and ``ID.answer.json``, the server's last
answer. A request is there once ``ID.json`` is, which is written last.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any, get_args

from filelock import FileLock

from fedunlearn.atomic import atomic_write, make_folder, sync_folder, write_json
from fedunlearn.deletion.signing import SigningKey
from fedunlearn.deletion.standing import State
from fedunlearn.deletion.statement import RequestProblem, Scope, Signed, Statement, is_id

__all__ = [
    "MOST_AT_ONCE",
    "MOST_INSTANCES",
    "Answer",
    "Bound",
    "Filing",
    "Meant",
    "OtherData",
    "Outbox",
    "OutboxError",
    "Posted",
    "desk",
]

MOST_INSTANCES = 10_000_000
"""Samples of one request."""
MOST_AT_ONCE = 1000
"""Requests of one message."""

_REGISTER = "register.sqlite"  # which is never in an outbox
_DIGEST = re.compile(r"[0-9a-f]{64}")
_SETTLED = ("done", "refused")
_BEGUN = ("unlearning", "recovering", "verified", "done")
_GONE = "gone"  # in place of a list: an empty one could as well be a damaged file
_LABEL = 8  # bytes
_LONGEST_BOUND = 1000
_LONGEST_REQUEST = 65_536  # bytes
_LONGEST_ANSWER = 8_388_608  # a receipt is in it
_LONGEST_LIST = 20 * MOST_INSTANCES
_LONGEST_MOVE = 10 * _LONGEST_LIST  # the lists of several requests
_PIECE = 1 << 20
_DIGITS = 15  # of the largest index
_LONGEST_WHY = 2000  # characters


class OutboxError(ValueError):
    """An outbox cannot do what is asked, or holds what it must not; the sentence says what to do."""


class OtherData(OutboxError):
    """A node's data are not those in which a request named places. The sentence has numbers that are the node's own."""


@dataclass(frozen=True)
class Filing:
    """What came of filing.

    Attributes:
        id: of the request.
        again: it had been filed before, and this is that one.
    """

    id: str
    again: bool


@dataclass(frozen=True)
class Meant:
    """What a request is about, as only its filer knows.

    Attributes:
        scope: ``client``, ``class:3`` or ``instances``.
        instances: places of the samples in the filer's own data, from 0, sorted; empty in the other scopes, and where
            the samples are deleted already: none of those that are left is meant.
    """

    scope: str
    instances: tuple[int, ...]


@dataclass(frozen=True)
class Bound:
    """The data that a request's places are places of.

    Attributes:
        samples: how many there are.
        labels: SHA-256 of all labels, in hexadecimal digits; None: the places were renumbered after a deletion, and
            the next data must be exactly so many samples.
        found: how many samples there were where an order was refused since, because the data were others; else None.
    """

    samples: int
    labels: str | None
    found: int | None = None

    @classmethod
    def of(cls, content: Any) -> Bound:
        """Read plain values.

        Raises:
            OutboxError: they are of no such data.
        """
        if not isinstance(content, dict) or content.keys() != {"samples", "labels", "found"}:
            raise OutboxError("data have samples, labels and found, and nothing else")
        bound = cls(**content)
        numbers = [bound.samples, *([] if bound.found is None else [bound.found])]
        digest = bound.labels is None or (isinstance(bound.labels, str) and _DIGEST.fullmatch(bound.labels))
        if not digest or any(type(number) is not int or number < 0 for number in numbers):
            raise OutboxError("data have numbers of samples, and a SHA-256 of their labels")
        return bound

    def fits(self, labels: bytes) -> bool:
        """Whether data with these labels have the same samples at the same places; new ones may follow."""
        if self.labels is None:
            return len(labels) == self.samples * _LABEL
        known = labels[: self.samples * _LABEL]
        return len(known) == self.samples * _LABEL and _digest(known) == self.labels


@dataclass(frozen=True)
class Answer:
    """What the server says of a request.

    Attributes:
        request: its id.
        state: in which it is.
        why: it was refused; else empty.
        receipt: in full, of one that is done; else None.
    """

    request: str
    state: State
    why: str
    receipt: dict[str, Any] | None

    @classmethod
    def of(cls, content: Any) -> Answer:
        """Read what `json` gives, from wherever it comes.

        Raises:
            OutboxError: it is no answer.
        """
        if not isinstance(content, dict) or content.keys() != {"request", "state", "why", "receipt"}:
            raise OutboxError("an answer has a request, a state, a why and a receipt, and nothing else")
        answer = cls(**content)
        if not is_id(answer.request):
            raise OutboxError("an answer names its request by 32 hexadecimal digits")
        if not isinstance(answer.state, str) or answer.state not in get_args(State):
            raise OutboxError(f"an answer's state is one of {', '.join(get_args(State))}")
        if not isinstance(answer.why, str) or len(answer.why) > _LONGEST_WHY:
            raise OutboxError(f"an answer's why is a text of {_LONGEST_WHY} characters at most")
        if not (isinstance(answer.receipt, dict) if answer.state == "done" else answer.receipt is None):
            raise OutboxError("an answer bears a receipt if its request is done, and else none")
        return answer

    @property
    def json(self) -> dict[str, Any]:
        """Plain values, for `of`."""
        return {"request": self.request, "state": self.state, "why": self.why, "receipt": self.receipt}

    @property
    def settled(self) -> bool:
        """Whether nothing more will come."""
        return self.state in _SETTLED


@dataclass(frozen=True)
class Posted:
    """A request in the outbox, with the server's last answer; None: there was none yet."""

    signed: Signed
    answer: Answer | None

    @property
    def state(self) -> str:
        """As the server last said; "not sent" before it said anything."""
        return "not sent" if self.answer is None else self.answer.state


class Outbox:
    """A node's requests, or an operator's.

    Args:
        folder: made when the first request is filed, for the owner's eyes only.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def file(
        self, scope: str, reason: str, key: SigningKey, *, client: str | None = None, deleted: bool = False
    ) -> Filing:
        """Sign a request and keep it until the server has answered it.

        One that this key has filed before, of the same scope, client and samples, and that was not refused, is not
        filed again.

        Args:
            scope: ``client``, ``class:3``, or ``instances:FILE`` with the samples' places in the node's data, from 0:
                a JSON list, or one a line.
            reason: one line.
            key: a node's, or the server's for an operator's request.
            client: whom it is about, where the operator files it.
            deleted: whether the samples are gone from the node's data already, so that nothing can be audited.

        Raises:
            RequestProblem: the scope, the reason or the client is not as it must be.
            OutboxError: the list of samples is not, no reason is given, or the folder cannot be written, is open to
                others, or is a server's register.
        """
        if not reason.strip():
            raise OutboxError("say why, in one line: the reason stands in the register and in the receipt")
        kind, _, file = scope.partition(":")
        if kind == "instances" and not file:
            raise OutboxError("say which samples: instances:FILE, a file with their places, one a line")
        about = Scope.of("instances" if kind == "instances" else scope)
        instances = _listed(Path(file)) if kind == "instances" else ()
        statement = Statement.make(about, reason, client=client, data="deleted" if deleted else "here")
        self._make()
        with self._writing():
            if (first := self._same(statement, key.public.text, instances)) is not None:
                return Filing(first, again=True)
            if kind == "instances":
                self._write_private(self._instances(statement.id), _listing(instances))
            write_json(self._request(statement.id), Signed.by(key, statement).json)
        return Filing(statement.id, again=False)

    def exchange(self, answers: Sequence[Any]) -> list[dict[str, Any]]:
        """Keep the server's answers, and give it what is not settled.

        What is no answer, or answers nothing that was filed here, is left alone: a server's mistake must not keep a
        node from asking. So is a request's file that somebody has damaged; `entries` tells of it.

        Args:
            answers: plain values, as `Answer.json` gives them.

        Returns:
            The oldest requests that are neither done nor refused, `MOST_AT_ONCE` at most, as `Signed.json` gives them.

        Raises:
            OutboxError: the folder cannot be written.
        """
        if answers and self.folder.is_dir():
            with self._writing():
                for content in answers[:MOST_AT_ONCE]:
                    self._keep(content)
        open_ones = []
        for id in self._ids():
            try:
                answer = self._answer(id)
                if answer is None or not answer.settled:
                    open_ones.append(self._signed(id))
            except OutboxError:
                continue
        return [signed.json for signed in sorted(open_ones, key=_age)[:MOST_AT_ONCE]]

    def meant(self, request: str) -> Meant:
        """What a request is about.

        Raises:
            OutboxError: it was not filed here, or its file is damaged.
        """
        signed = self._signed(request)
        gone = signed.statement.data == "deleted"
        return Meant(signed.statement.scope, () if gone else self._named(signed))

    def places(self, request: str, labels: bytes) -> tuple[int, ...]:
        """Places of the samples that an instance-wise request means, in these data, to which it is bound from now on.

        Samples that have come behind the others are no other data.

        Args:
            request: its id.
            labels: of all samples in their order, 8 bytes each (int64, little-endian).

        Raises:
            OtherData: these are not the data that it was bound to, or have no sample at a place.
            OutboxError: it was not filed here, a file is damaged, or the folder cannot be written.
        """
        with self._writing():
            signed = self._signed(request)
            named = () if signed.statement.data == "deleted" else self._named(signed)
            if named:
                self._bind(request, named, labels)
            return named

    def bound(self, request: str) -> Bound | None:
        """The data that a request is bound to; None: no order has asked for its samples yet.

        Raises:
            OutboxError: the file is damaged.
        """
        path = self._data(request)
        if not path.exists():
            return None
        try:
            return Bound.of(_json(path, _LONGEST_BOUND))
        except OutboxError as error:
            raise OutboxError(f"{path} is damaged ({error}): restore it from a backup") from None

    def gone(self, request: str, *, renumber: bool = False) -> list[str]:
        """Take note that the samples of a request are deleted from the node's data, and forget their places.

        From now on it means none of those that are left. Where other requests have named samples by places, these
        have moved: each comes down by the number of samples below it that are gone, and what was deleted with them is
        struck out. Those requests are bound anew, to so many samples less.

        Args:
            request: its id: an instance-wise one, with which the server has begun, or that was filed as deleted.
            renumber: whether places of other requests may be changed.

        Returns:
            Ids of the other requests that still name samples, with new places.

        Raises:
            OutboxError: it is another kind of request, or was gone before; the server has not begun with it; others
                would have to be renumbered; or the folder cannot be written. Nothing is changed then.
        """
        with self._writing():
            deleted = self._deletable(request)
            changes, live = {request: _change((), None)}, []
            for id in self._ids():
                if id == request or (other := self._signed(id)).statement.scope != "instances" or self._refused(id):
                    continue
                if not (named := self._named(other)):
                    continue
                left, bound = _renumbered(named, deleted), self.bound(id)
                changes[id] = _change(left, None if bound is None else bound.samples - len(deleted))
                if left and other.statement.data == "here":
                    live.append(id)
            if live and not renumber:
                others = "1 other request names" if len(live) == 1 else f"{len(live)} other requests name"
                raise OutboxError(f"{others} samples by places that move when samples are deleted: give --renumber")
            self._write_private(self._moving, changes)
            self._move()
        return live

    def entries(self) -> list[Posted]:
        """All requests, oldest first.

        Raises:
            OutboxError: a file is damaged.
        """
        oldest_first = sorted(map(self._signed, self._ids()), key=_age)
        return [Posted(signed, self._answer(signed.statement.id)) for signed in oldest_first]

    def _same(self, statement: Statement, key: str, instances: tuple[int, ...]) -> str | None:
        """The request that asks for the same, and was not refused."""
        for id in self._ids():
            said = _json(self._request(id), _LONGEST_REQUEST)
            if not _asks(said, statement, key):  # else every signature would be checked
                continue
            answer = self._answer(id)
            if self._named(self._signed(id)) == instances and (answer is None or answer.state != "refused"):
                return id
        return None

    def _bind(self, id: str, named: tuple[int, ...], labels: bytes) -> None:
        bound, samples = self.bound(id), len(labels) // _LABEL
        fits = named[-1] < samples and (bound is None or bound.fits(labels))
        now = Bound(samples, _digest(labels)) if fits else bound and replace(bound, found=samples)
        if now is not None and now != bound:
            self._write_private(self._data(id), asdict(now))
        if not fits:
            was = f"samples up to place {named[-1]}" if bound is None else f"{bound.samples} samples"
            labelled = " with other labels" if bound is not None and bound.samples <= samples else ""
            raise OtherData(f"request {id} was filed about {was}, and the data are {samples}{labelled}")

    def _deletable(self, id: str) -> tuple[int, ...]:
        """Places of a request whose samples may be said to be deleted."""
        signed = self._signed(id)
        if signed.statement.scope != "instances":
            raise OutboxError(f"request {id} names no single samples, and so no places that could move")
        named, answer = self._named(signed), self._answer(id)
        if not named:
            raise OutboxError(f"the samples of request {id} were said to be gone before")
        if signed.statement.data == "here" and (answer is None or answer.state not in _BEGUN):
            raise OutboxError(
                f"the server has not begun with request {id}, and would find nothing to forget: file it anew with "
                "--deleted, then say that the samples of the new one are gone"
            )
        return named

    def _refused(self, id: str) -> bool:
        answer = self._answer(id)
        return answer is not None and answer.state == "refused"

    def _move(self) -> None:
        """Carry out what `gone` has written down: killed half-way, it is all done by whoever comes next."""
        if not self._moving.exists():
            return
        changes = _json(self._moving, _LONGEST_MOVE)
        if not _are_changes(changes):
            raise OutboxError(f"{self._moving} is damaged: restore the whole outbox from a backup")
        for id, change in changes.items():
            with _wiped(self._instances(id)):
                self._write_private(self._instances(id), _listing(change["places"]) if change["places"] else _GONE)
            if change["samples"] is None:
                self._data(id).unlink(missing_ok=True)
            else:
                self._write_private(self._data(id), asdict(Bound(change["samples"], None)))
        with _wiped(self._moving):
            self._moving.unlink()

    def _ids(self) -> list[str]:
        return [path.stem for path in self.folder.glob("*.json") if is_id(path.stem)]

    def _signed(self, id: str) -> Signed:
        if not is_id(id) or not self._request(id).exists():
            raise OutboxError(f"request {str(id)[:40]!r} was not filed here, in {self.folder}")
        path = self._request(id)
        try:
            signed = Signed.of(_json(path, _LONGEST_REQUEST))
        except RequestProblem as error:
            raise OutboxError(f"{path} is damaged ({error}): move it away, and file the request again") from None
        if signed.statement.id != id:
            raise OutboxError(f"{path} holds request {signed.statement.id}: move it away, and file the request again")
        return signed

    def _named(self, signed: Signed) -> tuple[int, ...]:
        if signed.statement.scope != "instances":
            return ()
        path = self._instances(signed.statement.id)
        listed = _json(path, _LONGEST_LIST)
        if listed == _GONE:
            return ()
        places = listed.get("places") if isinstance(listed, dict) else None
        if not isinstance(places, list) or listed != _listing(places):
            raise OutboxError(f"{path} is no list of samples, or was changed: restore it from a backup")
        return _checked(places, path)

    def _answer(self, id: str) -> Answer | None:
        path = self._answered(id)
        if not path.exists():
            return None
        try:
            return Answer.of(_json(path, _LONGEST_ANSWER))
        except OutboxError as error:
            raise OutboxError(f"{path} is no answer ({error}): remove it, and the server will say it again") from None

    def _keep(self, content: Any) -> None:
        try:
            answer = Answer.of(content)
            text = json.dumps(answer.json, ensure_ascii=False, allow_nan=False).encode()
        except (ValueError, TypeError, RecursionError):  # no answer, or none that could be written down
            return
        if len(text) > _LONGEST_ANSWER or not self._request(answer.request).exists():
            return
        try:
            last = self._answer(answer.request)
        except OutboxError:
            last = None
        if last is None or (not last.settled and last != answer):
            with atomic_write(self._answered(answer.request)) as file:
                file.write(text)

    def _write_private(self, path: Path, content: Any) -> None:
        with atomic_write(path) as file:
            if os.name == "posix":
                os.fchmod(file.fileno(), 0o600)
            file.write(json.dumps(content).encode())

    def _make(self) -> None:
        if (self.folder / _REGISTER).exists():
            raise OutboxError(f"{self.folder} is a server's register, and no node's outbox: name another folder")
        try:
            make_folder(self.folder, 0o700)
            mode = self.folder.stat().st_mode
        except OSError as error:
            raise OutboxError(f"the outbox {self.folder} cannot be made: {error.strerror or error}") from None
        if os.name == "posix" and mode & 0o077:
            raise OutboxError(f"others can look into the outbox {self.folder}: chmod 700 {self.folder}")

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """One process at a time, or two could file the same, or take an answer back."""
        try:
            with FileLock(self.folder / ".lock"):
                self._move()
                yield
        except OSError as error:
            raise OutboxError(f"the outbox {self.folder} cannot be written: {error.strerror or error}") from None

    def _request(self, id: str) -> Path:
        return self.folder / f"{id}.json"

    def _instances(self, id: str) -> Path:
        return self.folder / f"{id}.instances.json"

    def _data(self, id: str) -> Path:
        return self.folder / f"{id}.data.json"

    @property
    def _moving(self) -> Path:
        return self.folder / ".moving.json"

    def _answered(self, id: str) -> Path:
        return self.folder / f"{id}.answer.json"


def desk(register: Path) -> Outbox:
    """Where an operator files: a running server holds its register's lock, and takes from here at the next round."""
    return Outbox(register / "desk")


def _age(signed: Signed) -> tuple[str, str]:
    return signed.statement.filed, signed.statement.id


def _asks(said: Any, statement: Statement, key: str) -> bool:
    """Whether a request's file, which nobody has checked yet, asks for the same."""
    asked = said.get("statement") if isinstance(said, dict) else None
    return (
        isinstance(asked, dict)
        and said.get("key") == key
        and asked.get("scope") == statement.scope
        and asked.get("client") == statement.client
        # Single samples may be asked for anew once they are deleted: the server then looks for none at the node.
        and (statement.scope != "instances" or asked.get("data") == statement.data)
    )


def _listing(places: Sequence[int]) -> dict[str, Any]:
    """Places as they are kept: with a digest, since of a digit that has flipped on the disk nothing else would tell."""
    return {"places": list(places), "sha256": _digest(json.dumps(list(places)).encode())}


def _change(places: tuple[int, ...], samples: int | None) -> dict[str, Any]:
    """What becomes of a request's files: its places, and of how many samples, if it was bound and still names some."""
    return {"places": places, "samples": samples if places else None}


def _are_changes(content: Any) -> bool:
    """Whether these are what `_change` gives, by the ids of requests."""
    return isinstance(content, dict) and all(
        is_id(id)
        and isinstance(change, dict)
        and change.keys() == {"places", "samples"}
        and isinstance(change["places"], list)
        and (change["samples"] is None or type(change["samples"]) is int)
        for id, change in content.items()
    )


def _renumbered(places: tuple[int, ...], deleted: tuple[int, ...]) -> tuple[int, ...]:
    """Places, sorted, after samples at others, sorted, are deleted."""
    lost = set(deleted)
    return tuple(place - bisect_left(deleted, place) for place in places if place not in lost)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@contextmanager
def _wiped(path: Path) -> Iterator[None]:
    """A file is replaced or removed within; then its old bytes are written over, as far as a file system lets one."""
    if os.name != "posix":  # elsewhere an open file cannot be replaced
        yield
        return
    with open(path, "r+b") as old:
        yield
        sync_folder(path.parent)  # or after a power cut the old name could be there again, with nothing but zeros
        old.write(bytes(os.fstat(old.fileno()).st_size))
        old.flush()
        os.fsync(old.fileno())


def _read(path: Path, longest: int) -> bytes:
    raw = bytearray()
    try:
        with open(path, "rb") as file:
            # Asked for at once, all that is allowed would be set aside, whatever the file has.
            while len(raw) <= longest and (piece := file.read(_PIECE)):
                raw += piece
    except (OSError, ValueError) as error:  # a name with a null byte is a ValueError
        raise OutboxError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if len(raw) > longest:
        raise OutboxError(f"{path} is longer than {longest} bytes")
    return bytes(raw)


def _json(path: Path, longest: int) -> Any:
    return _parsed(_read(path, longest), path)


def _parsed(text: str | bytes, path: Path) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise OutboxError(f"{path} is no JSON: {error}") from None


def _listed(path: Path) -> tuple[int, ...]:
    """Places of samples from a user's file."""
    try:
        text = _read(path, _LONGEST_LIST).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise OutboxError(f"{path} is no text: write one sample's place a line, from 0") from None
    if text.lstrip().startswith("["):
        return _checked(_parsed(text, path), path)
    return _places(((f"line {number}", _place(word)) for number, word in _words(text)), path)


def _words(text: str) -> Iterator[tuple[int, str]]:
    """What stands on each line that is not empty, with the line's number."""
    stripped = ((number, line.strip()) for number, line in enumerate(StringIO(text), 1))
    return ((number, word) for number, word in stripped if word)


def _place(word: str) -> Any:
    """The number, or the word itself, which is none."""
    return int(word) if word.isascii() and word.isdecimal() and len(word) <= _DIGITS else word


def _checked(listed: list[Any], path: Path) -> tuple[int, ...]:
    return _places(((f"entry {number}", place) for number, place in enumerate(listed, 1)), path)


def _places(listed: Iterable[tuple[str, Any]], path: Path) -> tuple[int, ...]:
    """The places, sorted, from each with where it stands in the file."""
    seen: set[int] = set()
    for where, place in listed:
        if type(place) is not int or not 0 <= place < 10**_DIGITS:  # True is an int as well
            raise OutboxError(
                f"{path}, {where}: {str(place)[:40]!r} is no whole number from 0, of {_DIGITS} digits at most"
            )
        if place in seen:
            raise OutboxError(f"{path}, {where}: sample {place} was named before; name each once")
        seen.add(place)
        if len(seen) > MOST_INSTANCES:
            raise OutboxError(f"{path} names more than {MOST_INSTANCES} samples: file several requests")
    if not seen:
        raise OutboxError(f"{path} names no sample: write one's place a line, from 0")
    return tuple(sorted(seen))
