from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stories import JUDGEMENT, NODES, OTHER, SERVER, Place, at, story

from fedunlearn.deletion.events import Audited, Done, Recovered, RoundDone
from fedunlearn.deletion.receipt import CLAIM, ReceiptProblem, issue, read, tell, verify, write
from fedunlearn.deletion.signing import canonical
from fedunlearn.deletion.standing import standing

ONE, TWO = "1" * 32, "2" * 32
PUBLIC = SERVER.public
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def issued(request: str = ONE) -> dict[str, Any]:
    return issue(standing(story()), request, Place(), SERVER, at(30))


RECEIPT = issued()


def places(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Of every value, tables and lists among them."""
    inner = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for name, value in inner:
        yield (*path, name)
        yield from places(value, (*path, name))


PLACES = list(places(RECEIPT))


def holder(content: Any, path: tuple[Any, ...]) -> Any:
    for name in path[:-1]:
        content = content[name]
    return content


def test_what_stands_in_it() -> None:
    assert list(RECEIPT) == [
        *("audit", "receipt", "request", "times", "answered", "recovery", "rounds", "costs", "register", "server"),
        *("issued", "statement", "signature"),
    ]
    assert RECEIPT["audit"] == JUDGEMENT
    assert list(RECEIPT["audit"])[:2] == ["status", "sentence"]
    request = dict(RECEIPT["request"])
    said = {"id": ONE, "scope": "instances", "client": None, "reason": "reason 1", "filed": at(0), "data": "here"}
    assert NODES["a"].public.verified("request", said, request.pop("signature"))
    assert request == {
        "id": ONE,
        "scope": "instances",
        "client": "a",
        "reason": "reason 1",
        "filed": at(0),
        "data": "here",
        "key": NODES["a"].public.fingerprint,
        "known by": "key",
    }
    assert RECEIPT["times"] == {
        "filed": at(4),
        "acknowledged": at(5),
        "unlearning": at(8),
        "recovering": at(10),
        "verified": at(13),
    }
    assert RECEIPT["answered"] == {
        "unlearning": 0,
        "others": 1,
        "method": {"name": "NoT", "layers": ["conv1"]},
        "plan": {},
        "layers": [["conv1.weight"]],
        "signs": {
            "before": [["head.weight", "head.bias"]],
            "after": [["head.weight", "head.bias"], ["conv1.weight"]],
        },
        "weights": {"before": "m2", "after each own round": ["n1"], "after recovery": "r2"},
    }
    assert RECEIPT["recovery"] == {"rounds": 2, "ended": "recovered", "validation": {"before": 91.5, "after": 91.25}}
    assert RECEIPT["rounds"] == [
        {"phase": "unlearn", "number": 1, "took part": {}, "absent": {}, "model": "n1"},
        {"phase": "recover", "number": 1, "took part": {"a": 10, "b": 40}, "absent": {}, "model": "r1"},
        {"phase": "recover", "number": 2, "took part": {"b": 40}, "absent": {"a": "silent"}, "model": "r2"},
    ]
    assert RECEIPT["costs"] == {  # of its own three rounds: training's are not its price
        "bytes": {"down": 150, "up": 135},
        "samples": {"forward": 108, "backward": 90},
        "seconds": 4.0,
    }
    assert RECEIPT["register"] == {"id": "7" * 32, "count": 41, "hash": "9" * 64}
    assert RECEIPT["server"] == {"key": PUBLIC.text, "fingerprint": PUBLIC.fingerprint}
    assert (RECEIPT["receipt"], RECEIPT["issued"], RECEIPT["statement"]) == (1, at(30), CLAIM)
    assert verify(RECEIPT, PUBLIC) == []


def test_the_others_are_not_named() -> None:
    assert TWO not in json.dumps(RECEIPT)
    assert issued(TWO)["request"]["client"] is None


def test_the_signature_is_the_servers_of_all_other_fields() -> None:
    rest = {name: value for name, value in RECEIPT.items() if name != "signature"}
    message = b"fedunlearn receipt\n" + json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()
    assert rest["audit"]["sentence"].isascii()  # or json would write it otherwise
    SERVER._key.public_key().verify(base64.b64decode(RECEIPT["signature"]), message)  # type: ignore[call-arg]


def test_nobody_stays() -> None:
    """The model is a new one, of no round, whose signs are as they were drawn."""
    events = [(when, event) for when, event in story()[:9] if getattr(event, "phase", "") != "unlearn"]
    events += [(at(10), RoundDone("unlearn", 1, 0, "new", "new.safetensors", [])), (at(11), Recovered(0, "nobody"))]
    receipt = issue(standing([*events, (at(12), Audited(0, {ONE: JUDGEMENT}))]), ONE, Place(), SERVER, at(30))
    assert receipt["answered"]["layers"] == receipt["answered"]["signs"]["after"] == []
    assert receipt["answered"]["weights"]["after recovery"] == "new"
    assert receipt["recovery"]["ended"] == "nobody"
    assert "0 rounds, ended: nobody stays to recover with" in tell(receipt)


@pytest.mark.parametrize("why", get_args(get_type_hints(Recovered)["why"]))
def test_however_recovery_ends_there_is_a_receipt(why: Any) -> None:
    events = [(when, Recovered(0, why) if isinstance(event, Recovered) else event) for when, event in story()]
    receipt = issue(standing(events), ONE, Place(), SERVER, at(30))
    assert receipt["recovery"]["ended"] == why
    assert "ended: " in tell(receipt)


def test_one_that_negates_nothing() -> None:
    before = [["head.weight", "head.bias"]]
    events = [
        (when, replace(event, negations=before) if isinstance(event, RoundDone) and event.unlearning == 0 else event)
        for when, event in story()
    ]
    receipt = issue(standing(events), ONE, Place(), SERVER, at(30))
    assert receipt["answered"]["layers"] == []
    assert "Negated         nothing" in tell(receipt)


@pytest.mark.parametrize(("events", "request_id"), [(13, "4" * 32), (12, ONE), (11, ONE), (8, ONE), (13, "3" * 32)])
def test_there_is_none_before_the_audit(events: int, request_id: str) -> None:
    with pytest.raises(ReceiptProblem, match="is not verified: a receipt is issued after the audit"):
        issue(standing(story()[:events]), request_id, Place(), SERVER, at(30))


def test_there_is_none_of_a_judgement_that_judges_nothing() -> None:
    events = [*story()[:12], (at(13), Audited(0, {ONE: {"status": "nothing found"}}))]
    with pytest.raises(ReceiptProblem, match=r"no receipt can be made of what the register holds: .* at audit"):
        issue(standing(events), ONE, Place(), SERVER, at(30))


def test_there_is_one_only() -> None:
    done = standing([*story(), (at(20), Done(ONE, RECEIPT))])
    assert done.requests[ONE].receipt == RECEIPT
    with pytest.raises(ReceiptProblem, match="not verified"):
        issue(done, ONE, Place(), SERVER, at(30))


@pytest.mark.parametrize("path", PLACES, ids=lambda path: "/".join(map(str, path)))
def test_no_value_can_be_removed_or_named_otherwise(path: tuple[Any, ...]) -> None:
    removed = deepcopy(RECEIPT)
    value = holder(removed, path).pop(path[-1])
    assert verify(removed, PUBLIC) != []
    if isinstance(path[-1], str):
        holder(removed, path)[path[-1] + " "] = value
        assert verify(removed, PUBLIC) != []


@given(st.sampled_from(PLACES), JSON)
def test_no_value_can_be_another(path: tuple[Any, ...], value: Any) -> None:
    changed = deepcopy(RECEIPT)
    last = holder(changed, path)[path[-1]]
    holder(changed, path)[path[-1]] = value
    same = canonical(last) == canonical(value)
    assert (verify(changed, PUBLIC) == []) == same
    assert len(verify(changed, PUBLIC)) <= 1


@given(st.data())
def test_no_character_can_be_another(data: st.DataObject) -> None:
    texts = [path for path in PLACES if isinstance(holder(RECEIPT, path)[path[-1]], str)]
    path = data.draw(st.sampled_from(texts))
    changed = deepcopy(RECEIPT)
    text = holder(changed, path)[path[-1]]
    at = data.draw(st.integers(0, len(text) - 1))
    character = data.draw(st.characters().filter(lambda one: one != text[at]))
    holder(changed, path)[path[-1]] = text[:at] + character + text[at + 1 :]
    assert verify(changed, PUBLIC) != []


def test_every_text_of_the_signature_but_one_is_wrong() -> None:
    """The last digit of 64 bytes in base64 has four bits that many readers overlook."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    right = [
        last
        for last in alphabet
        if not verify({**RECEIPT, "signature": RECEIPT["signature"][:85] + last + "=="}, PUBLIC)
    ]
    assert right == [RECEIPT["signature"][85]]


@given(
    JSON
    | st.fixed_dictionaries({"receipt": st.just(1)}, optional={name: JSON for name in RECEIPT if name != "receipt"})
)
def test_nothing_else_is_a_receipt_and_nothing_is_raised(content: Any) -> None:
    (problem,) = verify(content, PUBLIC)
    assert problem.isprintable()
    with pytest.raises(ReceiptProblem):
        tell(content)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"issued": at(31)}, "the signature does not fit: the receipt was changed after it was signed, get it again"),
        (
            {"rounds": [*RECEIPT["rounds"], 3]},
            "the receipt is not as a server makes it, at 'rounds', '4': it was changed",
        ),
        ({"note": "more"}, "the receipt is not as a server makes it, at its fields: it was changed"),
        ({"costs": {**RECEIPT["costs"], "seconds": -1}}, "not as a server makes it, at 'costs', 'seconds'"),
        ({"costs": {**RECEIPT["costs"], "seconds": 10**400}}, "not as a server makes it, at 'costs', 'seconds'"),
        ({"costs": {**RECEIPT["costs"], "seconds": True}}, "not as a server makes it, at 'costs', 'seconds'"),
        ({"audit": {"status": "all is well", "sentence": ""}}, "not as a server makes it, at audit"),
        ({"audit": {**JUDGEMENT, "p": float("nan")}}, "the receipt holds what JSON has no form for: it was changed"),
        ({"statement": "x" * 5_000_000}, "the receipt is longer than 4.19 MB"),
        ({"receipt": 2}, "another format than 1, which this version reads: use a newer fedunlearn"),
        (
            {"server": {**RECEIPT["server"], "fingerprint": "SHA256:x"}},
            "the fingerprint in the receipt is not its key's",
        ),
        ({"server": {**RECEIPT["server"], "key": "ssh-ed25519 \ud800"}}, "the receipt names no public key of a server"),
        (
            {"server": {**RECEIPT["server"], "key": PUBLIC.text + " x"}},
            "the fingerprint in the receipt is not its key's",
        ),
        ({"signature": "\ud800"}, "the signature does not fit"),
    ],
)
def test_what_is_wrong_is_one_sentence(changed: dict[str, Any], says: str) -> None:
    (problem,) = verify({**RECEIPT, **changed}, PUBLIC)
    assert says in problem


def test_another_key_is_told_from_a_change() -> None:
    (problem,) = verify(RECEIPT, OTHER.public)
    assert PUBLIC.fingerprint in problem
    assert OTHER.public.fingerprint in problem
    assert "if the server's key was rotated, give the one that was in force then" in problem


def test_whoever_signs_a_change_anew_is_found() -> None:
    forged = {name: value for name, value in RECEIPT.items() if name != "signature"}
    forged["signature"] = OTHER.sign("receipt", forged)
    assert verify(forged, PUBLIC) == [
        "the signature does not fit: the receipt was changed after it was signed, get it again"
    ]
    forged = {**forged, "server": {"key": OTHER.public.text, "fingerprint": OTHER.public.fingerprint}}
    forged["signature"] = OTHER.sign("receipt", {name: forged[name] for name in forged if name != "signature"})
    assert verify(forged, OTHER.public) == []
    assert "not this server's" in verify(forged, PUBLIC)[0]


def test_what_was_signed_as_something_else_is_no_receipt() -> None:
    rest = {name: value for name, value in RECEIPT.items() if name != "signature"}
    assert verify({**rest, "signature": SERVER.sign("head", rest)}, PUBLIC) != []


def test_deep_tables_are_refused() -> None:
    deep: Any = {}
    for _ in range(100_000):
        deep = {"a": deep}
    (problem,) = verify({**RECEIPT, "audit": deep}, PUBLIC)
    assert "no form for" in problem


def test_it_is_written_with_the_audit_first_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "receipt.json"
    write(json.loads(canonical(RECEIPT)), path)  # as a register keeps it, sorted
    lines = path.read_text().splitlines()
    assert lines[1] == ' "audit": {'
    assert list(read(path)) == list(RECEIPT)
    assert verify(read(path), PUBLIC) == []


@given(cut=st.integers(0, len(json.dumps(RECEIPT)) - 1))
def test_a_truncated_file_is_one_sentence(cut: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "cut.json"
    path.write_text(json.dumps(RECEIPT)[:cut])
    with pytest.raises(ReceiptProblem, match=r"cut.json is no JSON .*: if it was cut off on its way, get it again"):
        read(path)


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b'{"receipt": 1, "receipt": 1}', "a name stands there twice"),
        (b'{"receipt": NaN}', "NaN is no number"),
        (b"\xff\xfe\xff", "is no JSON"),
        (b"[" * 1_000_000, "is no JSON"),
        (b"9" * 10_000, "is no JSON"),
        (b" " * 16_777_217, "longer than any receipt, 16.8 MB"),
        (None, "cannot be read: No such file"),
    ],
)
def test_files_that_are_none(tmp_path: Path, raw: bytes | None, says: str) -> None:
    path = tmp_path / "receipt.json"
    if raw is not None:
        path.write_bytes(raw)
    with pytest.raises(ReceiptProblem, match=says):
        read(path)


def test_told_to_people() -> None:
    told = tell(RECEIPT).splitlines()
    assert told[0] == "Audit           nothing found"
    for line in (
        "                At a the new model is as sure of 20 samples as of unseen ones.",
        f"Request         {ONE}: instances, client a; data here",
        "Answered        unlearning 1, together with 1 more, by NoT()",
        "Negated         conv1.weight",
        "  before        head.weight, head.bias",
        "  after         head.weight, head.bias; then conv1.weight",
        "Weights         m2 before",
        "                n1 after unlearning round 1",
        "                r2 after recovery",
        "Recovery        2 rounds, ended: the stop rule was met",
        "Validation      91.50 % before, 91.25 % after",
        "Took part       2 clients in 3 rounds, 1 absences",
        "Costs           150 B to clients, 135 B from them; samples 108 forward and 90 backward; 4.0 s",
        f"It claims       {CLAIM}",
    ):
        assert line in told


def test_nothing_in_it_moves_a_terminals_cursor() -> None:
    hostile = deepcopy(RECEIPT)
    hostile["request"]["reason"] = "\x1b[2Jnothing\rhere\u202e"
    hostile["times"]["\x1b[1A"] = "now"
    assert "".join(tell(hostile).splitlines()).isprintable()


def test_no_torch() -> None:
    code = "import sys, fedunlearn.deletion.receipt, fedunlearn.deletion.outbox; print('torch' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "False"


def test_without_cryptography_the_package_to_install_is_named() -> None:
    code = "import sys; sys.modules['cryptography'] = None; import fedunlearn.deletion.receipt"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert told.stderr.endswith("pip install 'fedunlearn[flower]'\n")
