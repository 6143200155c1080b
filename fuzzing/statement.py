"""What comes signed, or should: requests, receipts, keys."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, derive_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedunlearn.deletion.receipt import ReceiptProblem, read, tell, verify
from fedunlearn.deletion.signing import KeyProblem, PublicKey, SigningKey, public_half
from fedunlearn.deletion.statement import RequestProblem, Scope, Signed, Statement
from fuzzing.mutation import bytes_changed, json_changed
from fuzzing.register import REGISTER_EVENTS
from fuzzing.target import Finding, Target, folder

__all__ = ["KEY", "RECEIPT", "REQUEST"]

_AT = "2026-11-30T10:00:00+00:00"
_NODE = SigningKey(derive_private_key(7, SECP384R1()))
_SERVER = SigningKey(Ed25519PrivateKey.from_private_bytes(bytes(range(32))))


@functools.cache
def _requests() -> Sequence[bytes]:
    said = (("instances", None, _NODE), ("class:3", None, _SERVER), ("client", "north", _SERVER))
    made = [Signed.by(key, Statement("1" * 32, scope, client, "why", _AT, "here")) for scope, client, key in said]
    return [json.dumps(one.json).encode() for one in made]


def _request(data: bytes) -> None:
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):  # its readers are those of `talk` and of an outbox
        return
    if isinstance(content, dict) and isinstance(content.get("statement"), dict):
        _sign_anew(content)
    signed = Signed.of(content)
    if Signed.of(signed.json) != signed or str(Scope.of(signed.statement.scope)) != signed.statement.scope:
        raise Finding("a request that is another when it is read again")


def _sign_anew(content: dict[str, object]) -> None:
    """As somebody would who has a key of their own, so that there is more to look at than the signature."""
    try:
        signature = _NODE.sign("request", content["statement"])
    except (ValueError, TypeError):
        return
    if content.get("key") == _NODE.public.text:
        content["signature"] = signature


@functools.cache
def _receipts() -> Sequence[bytes]:
    return [
        json.dumps(body["receipt"]).encode() for kind, body in json.loads(REGISTER_EVENTS.seeds()[0]) if kind == "done"
    ]


def _receipt(data: bytes) -> None:
    with folder() as place:
        path = place / "receipt.json"
        path.write_bytes(data)
        content = read(path)
    if isinstance(content, dict) and "signature" in content:
        try:
            rest = {name: value for name, value in content.items() if name != "signature"}
            content["signature"] = _SERVER.sign("receipt", rest)
        except (ValueError, TypeError, RecursionError):
            pass
    for problem in verify(content, _SERVER.public):
        if not problem.isprintable() or len(problem) > 2000:
            raise Finding(f"a problem that cannot be printed as one line: {problem[:200]!r}")
    tell(content)


@functools.cache
def _keys() -> Sequence[bytes]:
    private = serialization.PrivateFormat
    none = serialization.NoEncryption()
    keys = (Ed25519PrivateKey.from_private_bytes(bytes(range(32))), derive_private_key(7, SECP384R1()))
    pem = serialization.Encoding.PEM
    forms = (private.OpenSSH, private.PKCS8)
    spki = serialization.PublicFormat.SubjectPublicKeyInfo
    return [
        *(key.private_bytes(pem, form, none) for key in keys for form in forms),
        *(key.public_key().public_bytes(pem, spki) for key in keys),
        *(key.public.text.encode() for key in (_NODE, _SERVER)),
    ]


def _key(data: bytes) -> None:
    with folder() as place:
        path = place / "key"
        path.touch(0o600)
        path.write_bytes(data)
        public = public_half(path)
    if PublicKey.of(public.text) != public or not public.fingerprint.startswith("SHA256:"):
        raise Finding("a key that is another when it is read again")
    if public.verified("request", {}, "AAAA"):
        raise Finding("a signature of nothing")


REQUEST = Target(
    "request", _request, (RequestProblem,), _requests, lambda data, random: json_changed(data, random, _requests)
)
RECEIPT = Target(
    "receipt", _receipt, (ReceiptProblem,), _receipts, lambda data, random: json_changed(data, random, _receipts)
)
KEY = Target("key", _key, (KeyProblem,), _keys, bytes_changed)
