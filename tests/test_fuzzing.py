"""The rule of `fuzzing` holds: for all inputs that ever broke it, and for some hundred new ones a target."""

from __future__ import annotations

import base64
import importlib.util
import json
import pickle
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from random import Random
from typing import Any

import pytest
from fuzzing.__main__ import main
from fuzzing.target import Finding, Target, examine, folder
from fuzzing.targets import TARGETS
from hypothesis import given, settings
from hypothesis import strategies as st

from fedunlearn.deletion import verification
from fedunlearn.deletion.register import Row

SLOW = ("register-events", "outbox", "record", "register-file", "experiment")


def seed(name: str, number: int = 0) -> bytes:
    return TARGETS[name].seeds()[number]


def dotted(parts: int) -> str:
    return ".".join("a" * parts)


def extending(text: str) -> bytes:
    return f'extends = "quickstart"\n{text}'.encode()


def with_value(name: str, path: tuple[Any, ...], value: Any, number: int = 0) -> bytes:
    """A seed of JSON with another value at one place; what follows its end stays."""
    text, end, body = seed(name, number).partition(b"\0")
    tree = holder = json.loads(text)
    for part in path[:-1]:
        holder = holder[part]
    holder[path[-1]] = value
    return json.dumps(tree).encode() + end + body


def placed(name: str, path: tuple[Any, ...], text: str) -> bytes:
    """Likewise with a text that no tree can hold."""
    return with_value(name, path, "@here").replace(b'"@here"', text.encode())


def damaged_text() -> bytes:
    """A register in which a hash is no text."""
    with folder() as place:
        path = place / "register.sqlite"
        path.write_bytes(seed("register-file"))
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("UPDATE events SET hash = CAST(x'fe001b5b' AS TEXT) WHERE number = 3")
        return path.read_bytes()


def compressed_point() -> bytes:
    """A private key in OpenSSH's form whose public half is a compressed point."""
    first, *middle, last = seed("key", 2).decode().strip().split("\n")
    raw = base64.b64decode("".join(middle))
    head, point = raw.split(b"\0\0\0\x61\x04", 1)
    return "\n".join([first, base64.b64encode(head + b"\0\0\0\x61\x02" + point).decode(), last, ""]).encode()


ONE = ("program",)
WRONG = '{kind = "NoT", x = 1}, '
FOUND: Mapping[str, tuple[str, Callable[[], bytes]]] = {
    "deep arrays": ("experiment", lambda: extending(f"title = {'[' * 100_000}")),
    "deep tables": ("experiment", lambda: extending(f"title = {'{a = ' * 300}1{'}' * 300}")),
    "a key of many parts": ("experiment", lambda: f"{dotted(50_000)} = 1".encode()),
    "many parts and no value": ("experiment", lambda: dotted(50_000).encode()),
    "many parts behind quotes": ("experiment", lambda: f'a = ["""x"""", {{{dotted(20_000)} = 1}}]'.encode()),
    "a long number": ("experiment", lambda: extending(f"title = {'9' * 5_000}")),
    "a long hexadecimal number": ("experiment", lambda: extending(f"training.rounds = 0x{'f' * 5_000}")),
    "a long number in place of a file": ("experiment", lambda: f"extends = 0x{'f' * 5_000}".encode()),
    "a long number on the command line": ("experiment", lambda: extending(f"\n#--set seeds.{'9' * 5_000}=1")),
    "no name of a file": ("experiment", lambda: b'extends = "a\\u0000b"'),
    "too long a name of a file": ("experiment", lambda: f'extends = "{"a" * 300}"'.encode()),
    "a key that moves the cursor": ("experiment", lambda: extending('"\\u001b[2J" = 1')),
    "a key without end": ("experiment", lambda: extending(f"{'k' * 100_000} = 1")),
    "many unknown keys": ("experiment", lambda: extending("\n".join(f"k{number} = 1" for number in range(5_000)))),
    "many wrong tables": ("experiment", lambda: extending(f"methods = [{2_000 * WRONG}]")),
    "a name that moves the cursor": ("order", lambda: with_value("order", ONE, {"type": "a\x1b[2J", "fields": {}})),
    "a name without end": ("order", lambda: with_value("order", ONE, {"type": "a" * 70_000, "fields": {}})),
    "a tensor in place of a program": ("order", lambda: with_value("order", ONE, {"tensor": 0}, 4)),
    "a large product of sizes": ("answer", lambda: with_value("answer", ("tensors",), [["int8", [2**52] * 50_000]])),
    "a text that is none": ("register-file", damaged_text),
    "a field that moves the cursor": ("register-events", lambda: with_value("register-events", (2, 1, "\0"), 1)),
    "clients in a text": ("register-events", lambda: with_value("register-events", (0, 1, "clients"), "x")),
    "a compressed point": ("key", compressed_point),
    "models that are none": ("record", lambda: with_value("record", ("state", "models"), True)),
    "rows that are no number": ("record", lambda: with_value("record", ("complete",), {"rows": "2", "label": "a"})),
    "less than no rows": ("record", lambda: with_value("record", ("complete",), {"rows": -1, "label": "a"})),
    "a state of half a row": ("record", lambda: with_value("record", ("state", "rows"), 0.5)),
    "sessions that are none": ("record", lambda: with_value("record", ("environment", "sessions"), 3)),
    "deep JSON": ("found", lambda: placed("found", ("decides",), "[" * 100_000 + "]" * 100_000)),
    "many dimensions": ("idx", lambda: b"\0\0\x08\xff" + bytes(5_000)),
    "a name of code that moves the cursor": ("cifar", lambda: b"cos\nsys\x1b[2Jtem\n."),
}


@pytest.mark.parametrize("what", FOUND)
def test_what_was_found_once_is_refused_in_a_sentence(what: str) -> None:
    name, data = FOUND[what]
    assert not examine(TARGETS[name], data())


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_are_read(name: str) -> None:
    """Or nothing behind the first look at an input would ever be reached."""
    assert examine(TARGETS[name], seed(name))


@pytest.mark.parametrize("name", TARGETS)
def test_whatever_is_read_is_a_result_or_refused(name: str) -> None:
    target = TARGETS[name]

    @settings(max_examples=20 if name in SLOW else 100)
    @given(st.integers(0, 2**64), st.integers(1, 3))
    def holds(draws: int, times: int) -> None:
        random = Random(draws)
        data = random.choice(target.seeds())
        for _ in range(times):
            data = target.mutated(data, random)
        examine(target, data)

    holds()


def test_events_in_no_order_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a damaged file of SQLite's may give them."""
    rows = verification.rows

    def disordered(connection: sqlite3.Connection) -> Iterator[Row]:
        first, second, third, *others = rows(connection)
        return iter([first, *others, third, second])

    monkeypatch.setattr(verification, "rows", disordered)
    with folder() as place:
        (place / "register.sqlite").write_bytes(seed("register-file"))
        assert any("hash does not follow" in problem for problem in verification.verify(place).problems)


def test_a_receipt_is_told_whatever_its_method_is_said_to_be() -> None:
    assert examine(TARGETS["receipt"], with_value("receipt", ("answered", "method"), {"options": True}))


def hanging(data: bytes) -> None:
    started = time.process_time()
    while time.process_time() < started + 0.1:
        pass


def reading(read: Callable[[bytes], None]) -> Target:
    return Target("a", read, (ValueError,), lambda: [], lambda data, random: data)


def refusing(text: str) -> Callable[[bytes], None]:
    def read(data: bytes) -> None:
        raise ValueError(text)

    return read


@pytest.mark.parametrize(
    ("read", "told"),
    [
        (lambda data: json.loads(data)["a"], "KeyError"),
        (lambda data: pickle.loads(pickle.dumps(Path)), "pickle.find_class"),
        (lambda data: bytearray(80 * 2**20).count(1), "MiB of memory"),
        (refusing(""), "an error of 0 characters"),
        (refusing("a" * 3000), "an error of 3000 characters"),
        (refusing("one\ntwo"), "printed as one line"),
    ],
    ids=["another error", "unpickled", "memory", "no sentence", "a long one", "two lines"],
)
def test_the_rule_is_held_against_a_reader(read: Callable[[bytes], None], told: str) -> None:
    with pytest.raises(Finding, match=told):
        examine(reading(read), b"{}")


def test_a_reader_may_not_take_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fuzzing.target._SECONDS", 0.05)
    with pytest.raises(Finding, match="s for 2 bytes"):
        examine(reading(hanging), b"{}")


def test_targets_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert capsys.readouterr().out.split() == list(TARGETS)


@pytest.mark.skipif(importlib.util.find_spec("atheris") is not None, reason="atheris is installed")
def test_without_atheris_it_is_said_how_to_get_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["talk", "--seconds", "1", "--findings", str(tmp_path)]) == 2
    assert "pip install atheris" in capsys.readouterr().err
