from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stories import NODES, OTHER, at

from fedunlearn.deletion.statement import LONGEST_REASON, RequestProblem, Scope, Signed, Statement

STATEMENT = Statement("a" * 32, "class:3", None, "a reason", at(0), "here")
SIGNED = Signed.by(OTHER, STATEMENT)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.parametrize("text", ["client", "instances", "class:0", "class:3", "class:999999999"])
def test_scopes(text: str) -> None:
    assert str(Scope.of(text)) == text


@pytest.mark.parametrize(
    "text",
    ["", "clients", "client:", "client:a", "instances:FILE", "class", "class:", "class:-1", "class:³", "class:1e3"],
)
def test_no_scopes(text: str) -> None:
    with pytest.raises(RequestProblem, match=r"write client, class:3 \(a class's number\) or instances:FILE"):
        Scope.of(text)


def test_a_new_one() -> None:
    one, other = (Statement.make(Scope.of("client"), "r", client="a") for _ in range(2))
    assert one.id != other.id
    assert (one.scope, one.client, one.reason, one.data) == ("client", "a", "r", "here")


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"id": "A" * 32}, "32 hexadecimal digits"),
        ({"id": "a" * 31}, "32 hexadecimal digits"),
        ({"id": "a" * 32 + "\n"}, "32 hexadecimal digits"),
        ({"id": 7}, "32 hexadecimal digits"),
        ({"filed": "2026-11-30T10:00:00Z"}, "a time in UTC"),
        ({"filed": "2026-02-30T10:00:00+00:00"}, "a time in UTC"),
        ({"filed": "２026-11-30T10:00:00+00:00"}, "a time in UTC"),  # noqa: RUF001 - a digit, and none of ASCII's
        ({"scope": "class:03"}, "write class:3"),
        ({"scope": ["class:3"]}, "32 hexadecimal digits"),
        ({"scope": "instances", "client": "a"}, "by the client that holds them, and by nobody else"),
        ({"client": ""}, "a client's id has 1 to 200 characters"),
        ({"client": "a" * 201}, "a client's id has 1 to 200 characters"),
        ({"client": "a\x1b[2J"}, "all of which can be printed"),
        ({"client": "\ud800"}, "all of which can be printed"),
        ({"client": 3}, "a client's id has 1 to 200 characters"),
        ({"reason": "a" * (LONGEST_REASON + 1)}, "one line of 500 characters at most"),
        ({"reason": "two\nlines"}, "one line of 500 characters at most"),
        ({"data": "gone"}, "'here' or 'deleted'"),
        ({"data": ["here"]}, "'here' or 'deleted'"),
    ],
)
def test_what_a_statement_must_be(changed: dict[str, Any], says: str) -> None:
    with pytest.raises(RequestProblem, match=says):
        replace(STATEMENT, **changed)


@pytest.mark.parametrize("key", [OTHER, NODES["a"]], ids=["Ed25519", "P-384"])
def test_signed_and_read_back(key: Any) -> None:
    signed = Signed.by(key, STATEMENT)
    assert Signed.of(signed.json) == signed
    assert (signed.statement, signed.key) == (STATEMENT, key.public.text)


@given(st.sampled_from(sorted(asdict(STATEMENT))), JSON)
def test_a_changed_statement_is_found(name: str, value: Any) -> None:
    changed = {**SIGNED.json, "statement": {**asdict(STATEMENT), name: value}}
    if type(value) is type(asdict(STATEMENT)[name]) and value == asdict(STATEMENT)[name]:
        assert Signed.of(changed) == SIGNED
    else:
        with pytest.raises(RequestProblem):
            Signed.of(changed)


def test_another_key_or_purpose_is_found() -> None:
    with pytest.raises(RequestProblem, match=r"request a{32} does not bear the signature of its key"):
        Signed.of({**SIGNED.json, "key": NODES["a"].public.text})
    with pytest.raises(RequestProblem, match="does not bear the signature"):
        Signed.of({**SIGNED.json, "signature": OTHER.sign("receipt", asdict(STATEMENT))})


@pytest.mark.parametrize(
    "key", ["", "ssh-ed25519 AAAA", "ssh-ed25519 \ud800", None, "x" * 100_000, "-----BEGIN \ud800"]
)
def test_a_key_that_is_none(key: Any) -> None:
    with pytest.raises(RequestProblem, match="this is no public key"):
        Signed.of({**SIGNED.json, "key": key})


@given(
    JSON
    | st.fixed_dictionaries({"statement": JSON, "key": JSON, "signature": JSON})
    | st.fixed_dictionaries(
        {"statement": st.fixed_dictionaries(dict.fromkeys(asdict(STATEMENT), JSON)), "key": JSON, "signature": JSON}
    )
)
def test_whatever_comes_raises_nothing_else(content: Any) -> None:
    with pytest.raises(RequestProblem):
        Signed.of(content)


def test_a_statement_says_nothing_more() -> None:
    more = {**asdict(STATEMENT), "instances": [1, 2]}
    signed = {"statement": more, "key": OTHER.public.text, "signature": OTHER.sign("request", more)}
    with pytest.raises(RequestProblem, match="and nothing else"):
        Signed.of(signed)
