"""A deletion request as it is filed: what is asked, by whom, signed."""

from __future__ import annotations

import re
import secrets
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from typing import Any, Literal, get_args

from fedunlearn.deletion.signing import KeyProblem, PublicKey, SigningKey

__all__ = ["LONGEST_REASON", "RequestProblem", "Scope", "Signed", "Statement", "is_id", "now"]

LONGEST_REASON = 500
"""Characters."""

_ID = re.compile(r"[0-9a-f]{32}")
_CLIENT = 200  # characters of a client's id

Data = Literal["here", "deleted"]


class RequestProblem(ValueError):
    """A request is not as it must be; the sentence says what to do."""


@dataclass(frozen=True)
class Scope:
    """What a request is about: all that a client holds, its samples of a class, or single ones.

    Attributes:
        kind: which of them. Which single samples are meant only the client knows.
        label: the class.
    """

    kind: Literal["client", "class", "instances"]
    label: int | None = None

    @classmethod
    def of(cls, text: str) -> Scope:
        """``client``, ``class:3`` or ``instances``.

        Raises:
            RequestProblem: it is none of them.
        """
        kind, colon, label = text.partition(":")
        if kind in ("client", "instances") and not colon:
            return cls("client" if kind == "client" else "instances")
        if kind == "class" and label.isascii() and label.isdecimal() and len(label) < 10:
            return cls("class", int(label))
        raise RequestProblem(f"scope {text[:80]!r}: write client, class:3 (a class's number) or instances:FILE")

    def __str__(self) -> str:
        return self.kind if self.label is None else f"{self.kind}:{self.label}"


@dataclass(frozen=True)
class Statement:
    """What is signed.

    Attributes:
        id: 32 hexadecimal digits, drawn when it is filed.
        scope: as `Scope` reads it.
        client: whom it is about: the operator's requests alone say so, and may say None: a class, whoever holds it.
            A node's own are about itself, and who that is its key says.
        reason: in the words of whoever asks; 500 characters at most.
        filed: when, in UTC, to the second, by the clock of whoever filed it.
        data: whether the samples are "here" until all is done, to be audited, or "deleted" already.
    """

    id: str
    scope: str
    client: str | None
    reason: str
    filed: str
    data: Data

    def __post_init__(self) -> None:
        whole = all(isinstance(value, str) for value in (self.id, self.scope, self.reason, self.filed))
        if not whole or not is_id(self.id) or not _is_time(self.filed):
            raise RequestProblem("a request needs an id of 32 hexadecimal digits and a time in UTC")
        scope = Scope.of(self.scope)
        if str(scope) != self.scope:
            raise RequestProblem(f"scope {self.scope[:80]!r}: write {scope}")
        if scope.kind == "instances" and self.client is not None:
            raise RequestProblem("single samples are named by the client that holds them, and by nobody else")
        if self.client is not None and not _is_client(self.client):
            raise RequestProblem(f"a client's id has 1 to {_CLIENT} characters, all of which can be printed")
        if len(self.reason) > LONGEST_REASON or not self.reason.isprintable():
            raise RequestProblem(f"a reason is one line of {LONGEST_REASON} characters at most")
        if self.data not in get_args(Data):
            raise RequestProblem("a request says whether its data are 'here' or 'deleted'")

    @classmethod
    def make(cls, scope: Scope, reason: str, *, client: str | None = None, data: Data = "here") -> Statement:
        """A new one, filed now.

        Raises:
            RequestProblem: the reason is too long, or the client none.
        """
        return cls(secrets.token_hex(16), str(scope), client, reason, now(), data)


@dataclass(frozen=True)
class Signed:
    """A statement with the public key and the signature of whoever filed it."""

    statement: Statement
    key: str
    signature: str

    @classmethod
    def by(cls, key: SigningKey, statement: Statement) -> Signed:
        """Sign a statement."""
        return cls(statement, key.public.text, key.sign("request", asdict(statement)))

    @classmethod
    def of(cls, content: Any) -> Signed:
        """Read what `json` gives, from wherever it comes.

        Raises:
            RequestProblem: it is no signed request, or the signature is not right.
        """
        names = [field.name for field in fields(Statement)]
        if not isinstance(content, dict) or content.keys() != {"statement", "key", "signature"}:
            raise RequestProblem("this is no signed request: file one with `fedunlearn requests new`")
        said, key, signature = content["statement"], content["key"], content["signature"]
        if not isinstance(said, dict) or said.keys() != set(names):
            raise RequestProblem(f"a request says {', '.join(names)}, and nothing else")
        statement = Statement(**said)
        try:
            public = PublicKey.of(str(key))
        except KeyProblem as error:
            raise RequestProblem(f"request {statement.id}: {error}") from None
        if not public.verified("request", said, signature):
            raise RequestProblem(f"request {statement.id} does not bear the signature of its key")
        return cls(statement, public.text, str(signature))

    @property
    def json(self) -> dict[str, Any]:
        """Plain values, for `of`."""
        return asdict(self)


def _is_client(id: object) -> bool:
    return isinstance(id, str) and 0 < len(id) <= _CLIENT and id.isprintable()


def _is_time(text: str) -> bool:
    try:
        return datetime.fromisoformat(text).astimezone(UTC).isoformat(timespec="seconds") == text
    except (ValueError, OverflowError):
        return False


def is_id(text: object) -> bool:
    """Whether this is the id of a request: 32 hexadecimal digits."""
    return isinstance(text, str) and _ID.fullmatch(text) is not None


def now() -> str:
    """The time in UTC, to the second: ``2026-11-30T18:33:29+00:00``."""
    return datetime.now(UTC).isoformat(timespec="seconds")
