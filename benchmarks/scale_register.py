"""Days of a server with many clients and many requests; see `benchmarks/scale.py`, whose stage "register" it is."""

from __future__ import annotations

import base64
import statistics
import struct
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, derive_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from measuring import timed
from scale import CLASSES, FEATURES, SAMPLES, TRAINING, peak
from torch import nn

from fedunlearn.architecture import Architecture
from fedunlearn.audits.recognition import Recognised, Recognition
from fedunlearn.deletion.events import Opened, Waited
from fedunlearn.deletion.plan import Plan
from fedunlearn.deletion.register import Register
from fedunlearn.deletion.service import Service
from fedunlearn.deletion.signing import SigningKey
from fedunlearn.deletion.statement import Scope, Signed, Statement
from fedunlearn.deletion.verification import verify
from fedunlearn.federation import ClientId, Predicate, Program, Reply, Turn
from fedunlearn.requests import held
from fedunlearn.weights import Weights

PRIME = 2**384 - 2**128 - 2**96 + 2**32 - 1  # of the curve P-384
_HEAD = b"".join(struct.pack(">I", len(part)) + part for part in (b"ecdsa-sha2-nistp384", b"nistp384"))
FIRST = 2**200 + 1  # the first private key, a number


def public_keys(count: int, block: int = 1000) -> Iterator[str]:
    """Lines in OpenSSH's form of the keys ``FIRST``, ``FIRST + 1`` and so on: a sum of points each, no product."""
    steps = [derive_private_key(number, SECP384R1()).public_key().public_numbers() for number in range(1, block + 1)]
    for start in range(0, count, block):
        base = derive_private_key(FIRST + start - 1, SECP384R1()).public_key().public_numbers()
        many = steps[: min(block, count - start)]
        for step, inverse in zip(many, _inverses([step.x - base.x for step in many]), strict=True):
            slope = (step.y - base.y) * inverse % PRIME
            x = (slope * slope - base.x - step.x) % PRIME
            y = (slope * (base.x - x) - base.y) % PRIME
            point = b"\x04" + x.to_bytes(48, "big") + y.to_bytes(48, "big")
            blob = _HEAD + struct.pack(">I", len(point)) + point
            yield f"ecdsa-sha2-nistp384 {base64.b64encode(blob).decode()}"


def _inverses(numbers: Sequence[int]) -> list[int]:
    """Modulo the curve's prime, by one inversion (Montgomery)."""
    products = [1]
    for number in numbers:
        products.append(products[-1] * number % PRIME)
    left, found = pow(products[-1], -1, PRIME), []
    for number, before in zip(reversed(numbers), reversed(products[:-1]), strict=True):
        found.append(left * before % PRIME)
        left = left * number % PRIME
    return found[::-1]


@dataclass
class Answering:
    """Clients that answer at once, with the model that they were sent."""

    every: tuple[ClientId, ...]
    keeps: tuple[Predicate, ...] = ()
    known: tuple[ClientId, ...] | None = None

    @property
    def clients(self) -> tuple[ClientId, ...]:
        if self.known is None:
            self.known = tuple(client for client in self.every if held(self.keeps, client))
        return self.known

    def run(
        self, program: Program, weights: Weights, turn: Turn, clients: Sequence[ClientId] | None = None
    ) -> Iterator[tuple[ClientId, Reply]]:
        metrics = {"accuracy": 0.9}
        if isinstance(program, Recognition):
            found = asdict(Recognised(30, 1.0, 0.6, 0.1, 0.2, 0.9))
            metrics = {name: value for name, value in found.items() if value is not None}
        return ((client, Reply(weights, SAMPLES, metrics)) for client in (self.clients if clients is None else clients))

    def where(self, keeps: Predicate) -> Answering:
        return Answering(self.every, (*self.keeps, keeps))

    def marking(self, request: Predicate) -> Answering:
        return self


@dataclass
class Site:
    """A site whose clients bring what they have filed until it is settled."""

    federation: Answering
    filed: dict[ClientId, dict[str, Any]] = field(default_factory=dict)

    def exchange(self, answers: Mapping[ClientId, Sequence[Mapping[str, Any]]]) -> dict[ClientId, list[Any]]:
        for client, told in answers.items():
            if any(answer["state"] in ("done", "refused") for answer in told):
                self.filed.pop(client, None)
        return {client: [content] for client, content in self.filed.items()}

    def faults(self) -> list[tuple[ClientId, str, str]]:
        return []


def register_point(clients: int, requests: int, days: int, participants: int) -> dict[str, Any]:
    """A server's days, in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        return _served(clients, requests, days, participants, Path(folder))


def _served(clients: int, requests: int, days: int, participants: int, folder: Path) -> dict[str, Any]:
    """Each day's requests are answered by one unlearning."""
    found: dict[str, Any] = {"days": []}
    roster: dict[ClientId, str] = {}
    found["making keys"] = timed(
        lambda: roster.update(zip(map(str, range(clients)), public_keys(clients), strict=True))
    )
    server = SigningKey(Ed25519PrivateKey.generate())
    architecture = Architecture(Small)
    plan = Plan(TRAINING, rounds=1, participation=min(1.0, participants / clients), most=10, pause=0.0)
    home, initial = folder / "register", architecture.fresh(0)
    opened = Opened(roster, server.public.text, Service.about(plan, initial))
    started = time.perf_counter()
    register = Register.create(home, server, opened)
    found["enrolling"], found["enrolled bytes"] = time.perf_counter() - started, _size(home)
    roster["new"] = SigningKey(derive_private_key(FIRST + clients, SECP384R1())).public.text
    found["one joins"] = timed(lambda: register.enrol(roster))
    with register:
        site = Site(Answering(tuple(roster)))
        service = Service(site, register, server, architecture, plan, initial)
        for day in range(days):
            askers = range(day * requests, (day + 1) * requests)
            signing = timed(lambda: site.filed.update(map(_filed, askers)))  # noqa: B023 - called at once
            before, events = _size(home), register.head.count
            steps, kinds = _worked(service, register)
            found["days"].append(
                {
                    "signing at the clients": signing, "steps": steps, "kinds": kinds,
                    "events": register.head.count - events, "bytes": _size(home) - before,
                    "peak": peak(), "done": sum(one.state == "done" for one in register.standing().requests.values()),
                }
            )  # fmt: skip
        waited = Waited("train", 0, "nobody was there")
        found["append"] = statistics.median(timed(lambda: register.append(waited)) for _ in range(50))
    found["opening"] = timed(lambda: Register.open(home, server).close())
    found["verifying"] = timed(lambda: _require_sound(home, server))
    found["bytes"], found["peak"] = _size(home), peak()
    return found


class Small(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(FEATURES, 16), nn.ReLU(), nn.Linear(16, CLASSES))


def _filed(number: int) -> tuple[ClientId, dict[str, Any]]:
    key = SigningKey(derive_private_key(FIRST + number, SECP384R1()))
    return str(number), Signed.by(key, Statement.make(Scope("client"), "we were asked to")).json


def _worked(service: Service, register: Register) -> tuple[dict[str, float], dict[str, int]]:
    """Seconds of a day's steps, by what they entered, and how many there were."""
    seconds, kinds, more = defaultdict[str, float](float), Counter[str](), True
    while more:
        count, started = register.head.count, time.perf_counter()
        more = service.step()
        taken = time.perf_counter() - started
        entered = {one.event.kind for one in register.events(count)}
        kind = next((kind for kind in ("done", "audited", "began", "recovered", "round") if kind in entered), "look")
        seconds[kind] += taken
        kinds[kind] += 1
    return dict(seconds), dict(kinds)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _require_sound(home: Path, server: SigningKey) -> None:
    if problems := verify(home, [server.public]).problems:
        raise RuntimeError(problems[0])
