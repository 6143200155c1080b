"""Outboxes: the files in one, what a server answers, and lists of samples that users write."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedunlearn.deletion.outbox import Outbox, OutboxError, _change, _listing
from fedunlearn.deletion.signing import SigningKey
from fedunlearn.deletion.statement import RequestProblem, Signed, Statement
from fuzzing.mutation import json_changed
from fuzzing.target import Target, folder

__all__ = ["OUTBOX"]

_KEY = SigningKey(Ed25519PrivateKey.from_private_bytes(bytes(range(32))))
_ONE, _TWO = "1" * 32, "2" * 32
_LABELS = bytes(8 * 20)  # of twenty samples


@functools.cache
def _seeds() -> Sequence[bytes]:
    said = [Statement(id, "instances", None, "why", "2026-11-30T10:00:00+00:00", "here") for id in (_ONE, _TWO)]
    answer = {"request": _ONE, "state": "unlearning", "why": "", "receipt": None}
    files = {
        f"{_ONE}.json": Signed.by(_KEY, said[0]).json,
        f"{_TWO}.json": Signed.by(_KEY, said[1]).json,
        f"{_ONE}.instances.json": _listing([3, 5]),
        f"{_TWO}.instances.json": _listing([7]),
        f"{_TWO}.data.json": {"samples": 20, "labels": None, "found": None},
        f"{_ONE}.answer.json": answer,
    }
    answers = [answer, {"request": _TWO, "state": "done", "why": "", "receipt": {"receipt": 1}}]
    moving = {_ONE: _change((), None), _TWO: _change((6,), 19)}
    contents = (files, {**files, ".moving.json": moving})
    return [json.dumps({"files": one, "answers": answers, "listed": "3\n5\n"}).encode() for one in contents]


def _read(data: bytes) -> None:
    try:
        content = json.loads(data)
        files, answers, listed = content["files"].items(), content["answers"], content["listed"]
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        return
    with folder() as place:
        box = place / "outbox"
        box.mkdir(mode=0o700)
        for name, file in files:
            if name.replace(".", "").isalnum() and len(name) < 100:
                (box / name).write_bytes(json.dumps(file).encode())
        (place / "listed").write_bytes(str(listed).encode("utf-8", "surrogatepass"))
        _use(Outbox(box), answers, place / "listed")


def _use(outbox: Outbox, answers: Any, listed: Path) -> None:
    """One thing after the other, whichever of them is refused; the last refusal counts."""
    refused: OutboxError | RequestProblem | None = None
    for step in (
        lambda: outbox.exchange(answers if isinstance(answers, list) else [answers]),
        lambda: outbox.meant(_ONE),
        lambda: outbox.places(_TWO, _LABELS),
        lambda: outbox.bound(_TWO),
        lambda: outbox.gone(_ONE, renumber=True),
        outbox.entries,
        lambda: outbox.file(f"instances:{listed}", "a reason", _KEY),
        lambda: outbox.file("class:3", str(answers)[:600], _KEY),
    ):
        try:
            step()
        except (OutboxError, RequestProblem) as error:
            refused = error
    if refused is not None:
        raise refused


OUTBOX = Target(
    "outbox", _read, (OutboxError, RequestProblem), _seeds, lambda data, random: json_changed(data, random, _seeds)
)
