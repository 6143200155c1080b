"""Events of a service, for several tests: training, two requests answered together, one refused."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedunlearn.deletion.events import (
    Acknowledged,
    Audited,
    Began,
    Event,
    Filed,
    Opened,
    Recovered,
    Refused,
    RoundDone,
)
from fedunlearn.deletion.signing import SigningKey
from fedunlearn.deletion.statement import Scope, Signed, Statement

SERVER = SigningKey(Ed25519PrivateKey.from_private_bytes(bytes(range(32))))
OTHER = SigningKey(Ed25519PrivateKey.from_private_bytes(bytes(32)))
NODES = {name: SigningKey(generate_private_key(SECP384R1())) for name in ("a", "b")}

JUDGEMENT = {
    "sentence": "At a the new model is as sure of 20 samples as of unseen ones.",
    "status": "nothing found",
    "p": 0.31,
    "clients": {"a": {"area": 0.52}},
}


@dataclass(frozen=True)
class Place:
    """How far a register has come."""

    register: str = "7" * 32
    count: int = 41
    hash: str = "9" * 64


def at(second: int) -> str:
    return f"2026-11-30T10:00:{second:02d}+00:00"


def signed(id: str, scope: str, client: str | None, key: SigningKey, **changed: Any) -> Signed:
    said = Statement(id * 32, str(Scope.of(scope)), client, f"reason {id}", at(0), "here")
    return Signed.by(key, replace(said, **changed))


def story() -> list[tuple[str, Event]]:
    """Up to the audit; the requests are 111..., of the client a, and 222..., of the operator, about b's class 3."""
    first, second = signed("1", "instances", None, NODES["a"]), signed("2", "class:3", None, SERVER)
    one, two = first.statement.id, second.statement.id
    down, head = ["conv1.weight"], ["head.weight", "head.bias"]
    both = {"a": 30, "b": 40}
    events: list[Event] = [
        Opened({name: key.public.text for name, key in NODES.items()}, SERVER.public.text, {"method": "NoT"}),
        RoundDone("train", 1, None, "m1", "m1.safetensors", [], samples=both, seconds=9.0, bytes_down=999),
        RoundDone("train", 2, None, "m2", "m2.safetensors", [head], samples=both),
        Filed(one, "a", first.json),
        Acknowledged(one),
        Filed(two, None, second.json),
        Refused("3" * 32, None, "nobody knows this key"),
        Began(0, [one, two], {"name": "NoT", "layers": ["conv1"]}, "m2", "m2.safetensors", 91.5, {}, [head]),
        RoundDone("unlearn", 1, 0, "n1", "n1.safetensors", [head, down], seconds=0.5),
        replace(
            RoundDone("recover", 1, 0, "r1", "r1.safetensors", [head, down], samples={"a": 10, "b": 40}),
            **{"bytes_down": 100, "bytes_up": 90, "forward": 60, "backward": 50, "seconds": 2.0, "validation": 80.0},
        ),
        replace(
            RoundDone("recover", 2, 0, "r2", "r2.safetensors", [head, down], samples={"b": 40}, absent={"a": "silent"}),
            **{"bytes_down": 50, "bytes_up": 45, "forward": 48, "backward": 40, "seconds": 1.5, "validation": 91.25},
        ),
        Recovered(0, "recovered"),
        Audited(0, {one: JUDGEMENT, two: JUDGEMENT}),
    ]
    return [(at(second), event) for second, event in enumerate(events, 1)]
