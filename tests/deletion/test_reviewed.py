"""What must not end the server, and must not have it train on what was forgotten."""

from __future__ import annotations

import base64
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, generate_private_key
from flwr.app import Message
from hypothesis import given
from hypothesis import strategies as st

from deletion.hospitals import PLAN, Hospitals
from fedunlearn.contract import SmallNet
from fedunlearn.deletion.events import Instead
from fedunlearn.deletion.plan import Plan, ServiceError
from fedunlearn.deletion.register import Register, RegisterError
from fedunlearn.deletion.service import Service
from fedunlearn.deletion.signing import KeyProblem, PublicKey, SigningKey
from fedunlearn.flower.local import LocalGrid
from fedunlearn.flower.server import serve
from fedunlearn.methods.ga import GA
from fedunlearn.methods.mode import MoDE
from fedunlearn.programs import SGD


def until(service: Service, done: Callable[[Service], bool]) -> None:
    while not done(service):
        assert service.step()


def compressed() -> str:
    """A key whose point is written in the short form, which OpenSSH does not use."""
    point = (
        generate_private_key(SECP384R1())
        .public_key()
        .public_bytes(serialization.Encoding.X962, serialization.PublicFormat.CompressedPoint)
    )
    parts = (b"ecdsa-sha2-nistp384", b"nistp384", point)
    blob = b"".join(struct.pack(">I", len(part)) + part for part in parts)
    return "ecdsa-sha2-nistp384 " + base64.b64encode(blob).decode()


def test_a_key_that_the_library_cannot_read_is_no_key() -> None:
    with pytest.raises(KeyProblem, match="this is no public key"):
        PublicKey.of(compressed())


KEY = SigningKey(generate_private_key(SECP384R1())).public.text


@given(st.integers(0, len(KEY) - 1), st.characters(), st.booleans())
def test_of_a_mutilated_key_nothing_but_that_is_said(at: int, other: str, cut: bool) -> None:
    text = KEY[:at] + other + ("" if cut else KEY[at + 1 :])
    try:
        PublicKey.of(text)
    except KeyProblem:
        return


def test_a_node_with_such_a_key_is_a_stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hospitals = Hospitals(tmp_path)
    key = compressed()
    real = SigningKey.public.fget
    mine = hospitals.keys["west"].public.text
    assert real is not None
    monkeypatch.setattr(
        SigningKey, "public", property(lambda self: PublicKey(key) if real(self).text == mine else real(self))
    )
    monkeypatch.setattr(hospitals, "keys", {**hospitals.keys, "west": hospitals.keys["east"]})
    hospitals.keys["west"] = SigningKey(generate_private_key(SECP384R1()))
    service = hospitals.service()
    assert "west" not in {client for client, node in service._site._nodes.items() if node is not None}  # type: ignore[attr-defined]
    service.run()
    assert [fault.what for _, fault in service._standing.faults if not fault.client] == ["stranger"]


def test_a_client_keeps_its_name(tmp_path: Path) -> None:
    """What was forgotten is known by it: under another it would be trained on again."""
    hospitals = Hospitals(tmp_path)
    hospitals.service().run()
    roster = {name: hospitals.keys[name].public.text for name in hospitals.names}
    renamed = {("orient" if name == "east" else name): key for name, key in roster.items()}
    with pytest.raises(RegisterError, match=r"the key of orient has been east's: leave it that name on the list"):
        hospitals.book.enrol(renamed)
    hospitals.book.enrol({**roster, "east": SigningKey(generate_private_key(SECP384R1())).public.text})
    assert hospitals.book.standing().enrolled == set(roster)


def write_roster(hospitals: Hospitals) -> Path:
    path = hospitals.folder / "clients.toml"
    lines = [f'{name} = "{hospitals.keys[name].public.text}"' for name in hospitals.names]
    path.write_text("\n".join(["[clients]", *lines]))
    return path


def test_a_register_begun_with_keys_is_not_gone_on_with_without_them(tmp_path: Path) -> None:
    hospitals = Hospitals(tmp_path)
    key, roster = tmp_path / "server" / "key", write_roster(hospitals)
    grid = LocalGrid(hospitals.app(), [{"name": name} for name in hospitals.names])
    plan = replace(PLAN, rounds=1)
    serve(grid, SmallNet, plan, register=hospitals.register, key=key, clients=roster, patience=5)
    with pytest.raises(ServiceError, match="of a deployment, whose clients are known by their keys: give clients="):
        serve(grid, SmallNet, plan, register=hospitals.register, key=key, patience=5)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"rounds": -1}, "rounds must be a whole number, 0 or more, not -1"),
        ({"rounds": 4.5}, "rounds must be a whole number"),
        ({"most": 0}, "most must be"),
        ({"every": 0}, "every must be"),
        ({"scored": 0}, "scored must be"),
        ({"tries": True}, "tries must be"),
        ({"participation": 7}, r"participation must be a share in \(0, 1\], not 7"),
        ({"participation": float("nan")}, "participation must be"),
        ({"stay": -1}, "stay and pause are seconds"),
        ({"pause": float("nan")}, "stay and pause are seconds"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(wrong: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        replace(PLAN, **wrong)


def test_only_a_servers_own_ed25519_key_signs_a_register(tmp_path: Path) -> None:
    hospitals = Hospitals(tmp_path)
    hospitals.service().run()
    opened = hospitals.book.standing().opened
    assert opened is not None
    east = hospitals.keys["east"]
    with pytest.raises(RegisterError, match="signs with an Ed25519 key"):
        hospitals.book.rotate(east)
    with pytest.raises(RegisterError, match="signs with an Ed25519 key"):
        Register.create(tmp_path / "other", east, replace(opened, key=east.public.text))
    server = hospitals.keys["server"]
    with pytest.raises(RegisterError, match="the server's key stands on the list of clients"):
        Register.create(tmp_path / "other", server, replace(opened, clients={"x": server.public.text}))
    with pytest.raises(RegisterError, match="the server's key stands on the list of clients"):
        hospitals.book.enrol({"x": server.public.text})


def test_a_request_that_means_nothing_touches_nothing(tmp_path: Path) -> None:
    hospitals = Hospitals(tmp_path)
    service = hospitals.service()
    id = hospitals.files("east", "class:99")
    other = hospitals.files("west", "class:1")
    service.run()
    entries = service._standing.requests
    assert (entries[id].state, entries[other].state) == ("refused", "done")
    assert entries[id].why == "it means no training sample of anybody: there is nothing to forget"
    assert len(service._standing.unlearnings) == 1
    assert [posted.state for posted in hospitals.outbox("east").entries()] == ["refused"]


def test_where_the_target_of_a_method_falls_silent_not_answers_instead(tmp_path: Path) -> None:
    hospitals = Hospitals(tmp_path)
    plan = replace(PLAN, method=GA())
    service = hospitals.service(plan, deadline=0.5)
    until(service, lambda at: at._standing.trained == 1)
    id = hospitals.files("east", "client")
    until(service, lambda at: at._standing.current is not None)
    hospitals.book.close()
    silent: list[int] = []

    def hook(node: int, message: Message, answer: Callable[[], Message]) -> Message | None:
        east = hospitals.grid._nodes[node].node_config["name"] == "east"
        silent.extend([node] * east)
        return None if east and "work" in message.metadata.message_type else answer()

    hospitals.hook = hook
    service = hospitals.service(plan, deadline=0.5)
    service.run()
    entry = service._standing.requests[id]
    assert silent
    assert entry.state == "done"
    assert entry.receipt is not None
    assert entry.receipt["answered"]["method"]["name"] == "NoT"
    (instead,) = [one.event for one in hospitals.book.events() if isinstance(one.event, Instead)]
    assert "0 of 1 clients answered" in instead.why


def test_an_unlearning_goes_on_with_its_training(tmp_path: Path) -> None:
    hospitals = Hospitals(tmp_path)
    service = hospitals.service()
    hospitals.files("east", "client")
    until(service, lambda at: at._standing.current is not None)
    hospitals.book.close()
    other = replace(PLAN, training=replace(PLAN.training, optimizer=SGD(lr=5.0)))
    with pytest.raises(ServiceError, match=r"unlearning 0 began with .*start the server with that training, recovery"):
        hospitals.service(other)
    hospitals.book.close()
    service = hospitals.service()
    service.run()
    started = [event for _, event in service._standing.started]
    assert [event.plan == PLAN.said for event in started] == [True, True]
    assert started[0].software["torch"]


def test_a_model_that_a_method_takes_along_is_held_against_the_register(tmp_path: Path) -> None:
    hospitals = Hospitals(tmp_path)
    plan: Plan = replace(PLAN, method=MoDE())
    service = hospitals.service(plan)
    hospitals.files("east", "client")
    until(service, lambda at: any(done.carried for _, done in at._standing.rounds))
    last = service._standing.last
    assert last is not None
    for file, _ in last.carried.values():
        path = hospitals.book.checkpoints / file
        raw = bytearray(path.read_bytes())
        raw[-1] ^= 128
        path.write_bytes(raw)
    with pytest.raises(ServiceError, match="is not the one that the register names: restore it"):
        service.run()
