"""What passes between a server and a client on another machine: a text of JSON and the bytes of tensors, and no pickle.

An order says what a client is to do, an answer what came of it. Both are written for any engine that carries a text
and bytes. What arrives was written by somebody else: it is read strictly, within limits, and refused by one error.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar, get_args

import torch
from torch import Tensor

from fedunlearn.backends.wire import WireError, decode, encode
from fedunlearn.client import View
from fedunlearn.federation import ClientId, Phase, Program, Reply, Turn, Work
from fedunlearn.weights import Weights

__all__ = [
    "Answer",
    "Broadcast",
    "Envelope",
    "Limits",
    "Order",
    "TooLarge",
    "read_answer",
    "read_order",
    "write_answer",
]

_T = TypeVar("_T")

_DTYPES: dict[str, torch.dtype] = {
    name: getattr(torch, name)
    for name in (
        *("float64", "float32", "float16", "bfloat16", "complex128", "complex64", "complex32", "bool"),
        *("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu"),
        *("int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8"),
    )
    if hasattr(torch, name)  # some are younger than the oldest torch that this runs on
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_MOST_DIMENSIONS = 64  # of torch's tensors


class TooLarge(WireError):
    """A message that is larger than its reader allows."""


@dataclass(frozen=True)
class Envelope:
    """A message: a text of JSON, and all tensors that it speaks of, one after another, as little-endian bytes."""

    text: str
    body: bytes = b""


@dataclass(frozen=True)
class Limits:
    """How large a message may be.

    Attributes:
        body: bytes of all its tensors.
        tensors: how many.
        text: characters of JSON.
    """

    body: int = 4 * 2**30
    tensors: int = 100_000
    text: int = 16 * 2**20

    @classmethod
    def around(cls, weights: Weights) -> Limits:
        """Of an answer to somebody who was sent these weights: eight such models, and a little for small ones."""
        tensors = len(weights.parameters) + len(weights.buffers)
        return cls(8 * weights.nbytes + 16 * 2**20, 8 * tensors + 1000)


@dataclass(frozen=True, eq=False)
class Order:
    """What one client is asked to do.

    Attributes:
        program, weights: what to run on what; both None: it is only asked how many training samples it has.
        turn, view: when, and on which of its samples.
        client: who is asked.
        ticket: of this message alone; the answer repeats it, so that an answer to another message is told from it.
        digest: of the weights; the answer repeats it too. Empty where there are none.
    """

    program: Program | None
    weights: Weights | None
    turn: Turn
    view: View
    client: ClientId
    ticket: str
    digest: str


@dataclass(frozen=True, eq=False)
class Answer:
    """What came of an order.

    Attributes:
        ticket, digest: those of the order.
        reply: of the program.
        failed: why there is no reply, in one sentence; None where there is one.
    """

    ticket: str
    digest: str
    reply: Reply = field(default_factory=Reply)
    failed: str | None = None


class Broadcast:
    """The same order to many clients, whose tensors are written once.

    Raises:
        WireError: the program or the view holds what does not travel.
    """

    def __init__(self, program: Program | None, weights: Weights | None, turn: Turn, view: View) -> None:
        writer = _Writer()
        self.digest = "" if weights is None else weights.digest()
        self._content = {
            "program": writer.plain(program),
            "weights": None if weights is None else writer.weights(weights),
            "digest": self.digest,
            "turn": [turn.seed, turn.phase, turn.number, turn.step],
            "keeps": writer.plain(view.keeps),
            "request": writer.plain(view.request),
            **writer.lists(),
        }
        self._body = writer.body()

    def to(self, client: ClientId, ticket: str) -> Envelope:
        """The order as it goes to one of them; all have their body in common."""
        return Envelope(_text({**self._content, "client": client, "ticket": ticket}), self._body)


def read_order(envelope: Envelope, limits: Limits, allow: Iterable[type] = ()) -> Order:
    """What a `Broadcast` wrote. Only programs and predicates of this package and those in ``allow`` are made.

    Raises:
        WireError: it is no order, or its weights are not those of its digest; `TooLarge`: it is beyond ``limits``.
    """
    names = ("program", "weights", "digest", "turn", "keeps", "request", "client", "ticket")
    reader = _Reader(envelope, limits, names, tuple(allow))
    content = reader.content
    seed, phase, number, step = _list(content["turn"], 4)
    turn = Turn(_whole(seed, -(2**63), 2**64), _one_of(phase, get_args(Phase)), _whole(number), _string(step))
    program, weights = reader.plain(content["program"]), reader.optional(content["weights"])
    keeps, request = reader.plain(content["keeps"]), reader.plain(content["request"])
    called = [one for one in (program, request) if one is not None]
    if not isinstance(keeps, tuple) or not all(map(callable, (*called, *keeps))):
        raise WireError("an order whose program or predicates are none")
    if (program is None) != (weights is None):
        raise WireError("an order with a program and no weights, or with weights and no program")
    digest = _string(content["digest"])
    if digest != ("" if weights is None else weights.digest()):
        raise WireError("an order whose weights are not those of its digest: they were changed on their way")
    client, ticket = _string(content["client"]), _string(content["ticket"])
    return Order(program, weights, turn, View(keeps, request), client, ticket, digest)


def write_answer(answer: Answer) -> Envelope:
    """The message that `read_answer` reads.

    Raises:
        WireError: the reply holds what does not travel.
    """
    writer, reply = _Writer(), answer.reply
    content = {
        "ticket": answer.ticket,
        "digest": answer.digest,
        "failed": answer.failed,
        "weights": None if reply.weights is None else writer.weights(reply.weights),
        "samples": reply.samples,
        "metrics": writer.plain({name: float(value) for name, value in reply.metrics.items()}),
        "extra": [[name, writer.weights(weights)] for name, weights in reply.extra.items()],
        "values": [[name, writer.tensor(tensor)] for name, tensor in reply.values.items()],
        "work": [reply.work.forward, reply.work.backward],
        **writer.lists(),
    }
    return Envelope(_text(content), writer.body())


def read_answer(envelope: Envelope, limits: Limits) -> Answer:
    """What `write_answer` wrote.

    Raises:
        WireError: it is no answer; `TooLarge`: it is beyond ``limits``.
    """
    names = ("ticket", "digest", "failed", "weights", "samples", "metrics", "extra", "values", "work")
    reader = _Reader(envelope, limits, names)
    content = reader.content
    metrics = reader.plain(content["metrics"])
    if not isinstance(metrics, dict) or not all(type(k) is str and type(v) is float for k, v in metrics.items()):
        raise WireError("an answer whose metrics are no numbers by name")
    forward, backward = _list(content["work"], 2)
    reply = Reply(
        reader.optional(content["weights"]),
        _whole(content["samples"]),
        metrics,
        _named(content["extra"], reader.weights),
        _named(content["values"], reader.tensor),
        Work(_whole(forward), _whole(backward)),
    )
    failed = None if content["failed"] is None else _string(content["failed"])
    return Answer(_string(content["ticket"]), _string(content["digest"]), reply, failed)


class _Writer:
    """Collects the tensors of a message while its text is made."""

    def __init__(self) -> None:
        self._tensors: list[Tensor] = []
        self._beside: list[list[Any]] = []

    def tensor(self, tensor: Tensor) -> int:
        if tensor.dtype not in _NAMES or tensor.layout != torch.strided:
            raise WireError(f"a tensor of {tensor.dtype} and layout {tensor.layout} does not travel")
        self._tensors.append(tensor.detach().cpu().contiguous())
        return len(self._tensors) - 1

    def weights(self, weights: Weights) -> dict[str, Any]:
        return {
            "parameters": [[name, self.tensor(tensor)] for name, tensor in weights.parameters.items()],
            "buffers": [[name, self.tensor(tensor)] for name, tensor in weights.buffers.items()],
            "aliases": [[name, of] for name, of in weights.aliases.items()],
            "negations": [list(names) for names in weights.negations],
        }

    def plain(self, value: object) -> Any:
        """Programs, predicates and the like; weights and tensors in them stand in a list beside them."""
        message, beside = encode(value)
        written = [
            ["weights", self.weights(item)] if isinstance(item, Weights) else ["tensor", self.tensor(item)]
            for item in beside
        ]
        self._beside.append(written)
        return message

    def lists(self) -> dict[str, Any]:
        return {
            "beside": self._beside,
            "tensors": [[_NAMES[tensor.dtype], list(tensor.shape)] for tensor in self._tensors],
        }

    def body(self) -> bytes:
        _require_little_endian()
        return b"".join(tensor.reshape(-1).view(torch.uint8).numpy().data for tensor in self._tensors)


class _Reader:
    """A message, its text parsed and its tensors cut."""

    def __init__(self, envelope: Envelope, limits: Limits, names: Iterable[str], allow: tuple[type, ...] = ()) -> None:
        self._allow = allow
        if len(envelope.text) > limits.text:
            raise TooLarge(f"a text of {len(envelope.text)} characters, where {limits.text} are allowed")
        if len(envelope.body) > limits.body:
            raise TooLarge(f"tensors of {len(envelope.body)} bytes, where {limits.body} are allowed")
        self.content = _table(_parsed(envelope.text), {*names, "beside", "tensors"})
        table = _list(self.content["tensors"])
        if len(table) > limits.tensors:
            raise TooLarge(f"{len(table)} tensors, where {limits.tensors} are allowed")
        self._tensors = list(_cut(table, envelope.body))
        self._beside = [
            [self._one_beside(*_list(item, 2)) for item in _list(part)] for part in _list(self.content["beside"])
        ]

    def tensor(self, position: Any) -> Tensor:
        return self._tensors[_whole(position, 0, len(self._tensors))]

    def weights(self, content: Any) -> Weights:
        content = _table(content, {"parameters", "buffers", "aliases", "negations"})
        weights = Weights(
            _named(content["parameters"], self.tensor),
            _named(content["buffers"], self.tensor),
            _named(content["aliases"], _string),
            tuple(tuple(_string(name) for name in _list(names)) for names in _list(content["negations"])),
        )
        if not weights.parameters.keys() >= set(weights.aliases.values()) or not weights.parameters.keys().isdisjoint(
            {*weights.aliases, *weights.buffers}
        ):
            raise WireError("weights in which a name stands for two tensors, or for none")
        return weights

    def optional(self, content: Any) -> Weights | None:
        return None if content is None else self.weights(content)

    def plain(self, message: Any) -> Any:
        """What `_Writer.plain` was given; to be called in the same order."""
        if not self._beside:
            raise WireError("a message with something beside too little")
        return decode(message, self._beside.pop(0), self._allow)

    def _one_beside(self, kind: Any, content: Any) -> Weights | Tensor:
        return self.weights(content) if _one_of(kind, ("weights", "tensor")) == "weights" else self.tensor(content)


def _text(content: Mapping[str, Any]) -> str:
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def _parsed(text: str) -> Any:
    def refused(constant: str) -> Any:
        raise ValueError(f"{constant} is no JSON")

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) < len(pairs):
            raise ValueError("a name stands twice in one table")
        return table

    try:
        return json.loads(text, parse_constant=refused, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise WireError(f"a message that is no JSON: {error}") from None


def _cut(table: list[Any], body: bytes) -> Iterable[Tensor]:
    _require_little_endian()
    start = 0
    for entry in table:
        name, shape = _list(entry, 2)
        dtype = _DTYPES[_one_of(name, _DTYPES)]
        if len(_list(shape)) > _MOST_DIMENSIONS:  # whose product alone could take minutes
            raise WireError(f"a tensor of more than {_MOST_DIMENSIONS} dimensions")
        sizes = [_whole(size) for size in shape]
        _whole(math.prod(max(size, 1) for size in sizes))  # strides would overflow, even where there is no element
        length = math.prod(sizes) * dtype.itemsize
        raw = bytearray(memoryview(body)[start : start + length])
        if len(raw) < length:
            raise WireError("a message with fewer bytes of tensors than it speaks of")
        if dtype == torch.bool and max(raw, default=0) > 1:
            raise WireError("a tensor of booleans that holds other bytes than 0 and 1")
        try:
            flat = torch.frombuffer(raw, dtype=torch.uint8).view(dtype) if raw else torch.empty(0, dtype=dtype)
            yield flat.reshape(sizes)
        except (RuntimeError, TypeError, ValueError):
            raise WireError(f"a tensor of a shape that there is not: {sizes[:8]}") from None
        start += length
    if start < len(body):
        raise WireError("a message with more bytes of tensors than it speaks of")


def _require_little_endian() -> None:
    if sys.byteorder != "little":
        raise WireError("tensors travel between little-endian machines only")


def _table(content: Any, names: set[str]) -> dict[str, Any]:
    if not isinstance(content, dict) or content.keys() != names:
        raise WireError(f"a message without exactly the fields {', '.join(sorted(names))}")
    return content


def _list(content: Any, length: int | None = None) -> list[Any]:
    if not isinstance(content, list) or (length is not None and len(content) != length):
        raise WireError(f"a message in which {'a list' if length is None else f'{length} values'} should stand")
    return content


def _named(content: Any, read: Callable[[Any], _T]) -> dict[str, _T]:
    pairs = [_list(pair, 2) for pair in _list(content)]
    named = {_string(name): read(item) for name, item in pairs}
    if len(named) < len(pairs):
        raise WireError("a message in which a name stands twice")
    return named


def _string(content: Any) -> str:
    if not isinstance(content, str):
        raise WireError("a message in which a text should stand")
    return content


def _one_of(content: Any, names: Iterable[str]) -> Any:
    if content not in tuple(names):
        raise WireError(f"a message in which one of {', '.join(names)} should stand")
    return content


def _whole(content: Any, least: int = 0, below: int = 2**53) -> int:
    if type(content) is not int or not least <= content < below:
        raise WireError(f"a message in which a whole number from {least} to {below - 1} should stand")
    return content
