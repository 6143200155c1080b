"""Orders and answers as they travel: every bit of them, nothing else, and nothing that breaks their reader."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedunlearn.backends.envelope import (
    Answer,
    Broadcast,
    Envelope,
    Limits,
    Order,
    TooLarge,
    read_answer,
    read_order,
    write_answer,
)
from fedunlearn.backends.wire import WireError
from fedunlearn.client import View
from fedunlearn.contract import SmallNet
from fedunlearn.federation import ClientContext, Reply, Turn, Work
from fedunlearn.programs import LocalTraining
from fedunlearn.requests import AnyOf, AskedFor, ForgetClass, ForgetInstances, Rest
from fedunlearn.weights import Weights

NAMES = (
    *("float64", "float32", "float16", "bfloat16", "complex128", "complex64", "bool"),
    *("float8_e4m3fn", "float8_e5m2", "int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8"),
)
SHAPES = ((), (0,), (0, 3), (1,), (2, 3), (2, 1, 2))
MODEL = Weights.of(SmallNet())
TURN = Turn(7, "recover", 3, "guide")
VIEW = View((Rest(AnyOf((ForgetClass(1), AskedFor("2", "ab")))),), ForgetInstances({"0": (1, 5)}))


@dataclass(frozen=True, eq=False)
class Holds:
    """A program with all that a program may hold."""

    teacher: Weights
    mask: Tensor
    floor: float = -math.inf

    def __call__(self, context: ClientContext) -> Reply:
        raise NotImplementedError


def order(program: Any = LocalTraining(), weights: Weights = MODEL) -> Envelope:  # noqa: B008
    return Broadcast(program, weights, TURN, VIEW).to("2", "ticket")


def answer() -> Envelope:
    values = {"loss": torch.tensor([0.5, math.nan], dtype=torch.float64), "correct": torch.tensor([True, False])}
    small = Weights({"w": torch.ones(2)})
    return write_answer(Answer("t", "d", Reply(MODEL, 9, {"loss": math.nan}, {"half": small}, values, Work(3, 2))))


def bits(tensor: Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_every_dtype_and_shape_travels_bit_for_bit(name: str, shape: tuple[int, ...]) -> None:
    dtype = getattr(torch, name)
    raw = torch.arange(math.prod(shape) * dtype.itemsize, dtype=torch.uint8)
    sent = (raw % 2 if name == "bool" else raw * 37).view(dtype).reshape(shape)
    back = read_answer(write_answer(Answer("", "", Reply(Weights({"w": sent})))), Limits()).reply.weights
    assert back is not None
    got = back.parameters["w"]
    assert (got.dtype, got.shape) == (dtype, torch.Size(shape))
    assert bits(got) == bits(sent)


def test_what_is_not_in_a_row_travels_too() -> None:
    sent = torch.arange(6.0).reshape(2, 3).T
    back = read_answer(write_answer(Answer("", "", Reply(values={"v": sent}))), Limits()).reply.values["v"]
    assert torch.equal(back, sent)


def test_an_answer_by_hand() -> None:
    """Texts are JSON in one form; tensors are their numbers, little end first, in the order of the text."""
    weights = Weights({"w": torch.tensor([[1.0, -2.5]])}, {"n": torch.tensor(258)}, {"v": "w"}, (("w",),))
    envelope = write_answer(Answer("t", "d", Reply(weights, 4, {"loss": 0.25, "worst": math.inf}, work=Work(8, 4))))
    assert envelope.body == struct.pack("<ffq", 1.0, -2.5, 258)
    assert envelope.text == (
        '{"beside":[[]],"digest":"d","extra":[],"failed":null,'
        '"metrics":{"map":[["loss",0.25],["worst",{"float":"inf"}]]},"samples":4,'
        '"tensors":[["float32",[1,2]],["int64",[]]],"ticket":"t","values":[],'
        '"weights":{"aliases":[["v","w"]],"buffers":[["n",1]],"negations":[["w"]],"parameters":[["w",0]]},'
        '"work":[8,4]}'
    )


def test_an_order_comes_back_whole_and_in_order() -> None:
    names = list(reversed(MODEL.parameters))
    weights = replace(
        MODEL,
        parameters={name: MODEL.parameters[name] for name in names},
        aliases={"tied": names[0]},
        negations=((names[0],), (names[1], names[2])),
    )
    program = Holds(weights * 0.5, torch.tensor([True, False]))
    sent = Broadcast(program, weights, TURN, VIEW).to("2", "ticket")
    back = read_order(sent, Limits(), [Holds])
    assert back.weights is not None
    assert list(back.weights.parameters) == names
    assert (back.weights.aliases, back.weights.negations) == (weights.aliases, weights.negations)
    assert back.weights.same_bits(weights)
    assert (back.turn, back.view, back.client, back.ticket, back.digest) == (
        *(TURN, VIEW, "2", "ticket"),
        weights.digest(),
    )
    assert isinstance(back.program, Holds)
    assert back.program.teacher.same_bits(weights * 0.5)
    assert torch.equal(back.program.mask, program.mask)
    assert back.program.floor == -math.inf


def test_an_answer_comes_back_whole() -> None:
    back = read_answer(answer(), Limits())
    reply = back.reply
    assert (back.ticket, back.digest, back.failed) == ("t", "d", None)
    assert reply.weights is not None
    assert reply.weights.same_bits(MODEL)
    assert (reply.samples, reply.work) == (9, Work(3, 2))
    assert math.isnan(reply.metrics["loss"])
    assert torch.equal(reply.extra["half"].parameters["w"], torch.ones(2))
    assert math.isnan(reply.values["loss"][1])
    assert reply.values["correct"].tolist() == [True, False]


def test_one_body_serves_all_who_are_asked() -> None:
    broadcast = Broadcast(LocalTraining(), MODEL, TURN, View())
    one, two = broadcast.to("1", "a"), broadcast.to("2", "b")
    assert one.body is two.body
    assert one.text != two.text


def test_a_count_has_neither_program_nor_weights() -> None:
    back = read_order(Broadcast(None, None, TURN, VIEW).to("0", "t"), Limits(0, 0))
    assert (back.program, back.weights, back.view) == (None, None, VIEW)


def test_what_does_not_travel_is_refused_by_its_writer() -> None:
    sparse = torch.eye(2).to_sparse()
    with pytest.raises(WireError, match="does not travel"):
        write_answer(Answer("", "", Reply(values={"v": sparse})))
    with pytest.raises(WireError, match="does not travel"):
        Broadcast(lambda context: Reply(), MODEL, TURN, View())


def test_what_is_too_large_is_told_from_what_is_wrong() -> None:
    sent = order()
    tensors = len(MODEL.parameters) + len(MODEL.buffers)
    exactly = Limits(len(sent.body), tensors, len(sent.text))
    assert read_order(sent, exactly).client == "2"
    for less in ("body", "tensors", "text"):
        with pytest.raises(TooLarge, match="are allowed"):
            read_order(sent, replace(exactly, **{less: getattr(exactly, less) - 1}))


def test_limits_grow_with_the_model_that_was_sent() -> None:
    limits = Limits.around(Weights({"w": torch.zeros(5, 2**20)}))
    assert limits.body == 8 * 20 * 2**20 + 16 * 2**20
    assert limits.tensors == 1008


def test_weights_that_were_changed_on_their_way_are_refused() -> None:
    sent = order()
    other = bytes([sent.body[0] ^ 1]) + sent.body[1:]
    with pytest.raises(WireError, match="changed on their way"):
        read_order(replace(sent, body=other), Limits())


def changed(envelope: Envelope, change: Callable[[dict[str, Any]], object]) -> Envelope:
    content = json.loads(envelope.text)
    change(content)
    return replace(envelope, text=json.dumps(content))


WRONG_ANSWERS: dict[str, Callable[[dict[str, Any]], object]] = {
    "an unknown field": lambda c: c.update(more=1),
    "a missing field": lambda c: c.pop("samples"),
    "a negative number of samples": lambda c: c.update(samples=-1),
    "half a sample": lambda c: c.update(samples=0.5),
    "true samples": lambda c: c.update(samples=True),
    "endless samples": lambda c: c.update(samples=10**30),
    "work of three": lambda c: c.update(work=[1, 2, 3]),
    "a metric of text": lambda c: c.update(metrics={"map": [["loss", "1"]]}),
    "a metric without a name": lambda c: c.update(metrics={"map": [[1, 0.5]]}),
    "metrics that are a list": lambda c: c.update(metrics=[]),
    "a program as a metric": lambda c: c.update(metrics={"type": "fedunlearn.programs:Evaluate", "fields": {}}),
    "a dtype that there is not": lambda c: c["tensors"][0].__setitem__(0, "qint8"),
    "a dtype of another size": lambda c: c["tensors"][0].__setitem__(0, "float64"),
    "a negative size": lambda c: c["tensors"][0].__setitem__(1, [-1, -36]),
    "another shape": lambda c: c["tensors"][0].__setitem__(1, [1]),
    "a shape that overflows": lambda c: c["tensors"].append(["uint8", [0] + [2**39] * 9]),
    "a tensor too few": lambda c: c["tensors"].pop(),
    "a position beyond the end": lambda c: c["weights"]["parameters"][0].__setitem__(1, 99),
    "a position before the beginning": lambda c: c["weights"]["parameters"][0].__setitem__(1, -1),
    "a name twice": lambda c: c["weights"]["parameters"].append(c["weights"]["parameters"][0]),
    "a parameter that is a buffer": lambda c: c["weights"]["buffers"].append(c["weights"]["parameters"][0]),
    "an alias of nothing": lambda c: c["weights"].update(aliases=[["a", "b"]]),
    "negations that are no names": lambda c: c["weights"].update(negations=[[1]]),
    "nothing beside": lambda c: c.update(beside=[]),
    "something beside that is neither": lambda c: c.update(beside=[[["file", 0]]]),
    "a ticket that is a number": lambda c: c.update(ticket=1),
    "a failure that is a table": lambda c: c.update(failed={}),
}


@pytest.mark.parametrize("change", WRONG_ANSWERS.values(), ids=WRONG_ANSWERS)
def test_a_wrong_answer_is_refused(change: Callable[[dict[str, Any]], object]) -> None:
    with pytest.raises(WireError):
        read_answer(changed(answer(), change), Limits())


WRONG_ORDERS: dict[str, Callable[[dict[str, Any]], object]] = {
    "a phase that there is not": lambda c: c["turn"].__setitem__(1, "deploy"),
    "a round before the first": lambda c: c["turn"].__setitem__(2, -1),
    "a program that is a number": lambda c: c.update(program=3),
    "a program that is not allowed": lambda c: c.update(program={"type": "os:system", "fields": {"command": "true"}}),
    "a view that keeps one": lambda c: c.update(keeps=3),
    "a predicate that is none": lambda c: c.update(keeps=[3]),
    "a request that is none": lambda c: c.update(request="all"),
    "no weights": lambda c: c.update(weights=None),
    "no program": lambda c: c.update(program=None),
    "another digest": lambda c: c.update(digest="00"),
}


@pytest.mark.parametrize("change", WRONG_ORDERS.values(), ids=WRONG_ORDERS)
def test_a_wrong_order_is_refused(change: Callable[[dict[str, Any]], object]) -> None:
    with pytest.raises(WireError):
        read_order(changed(order(), change), Limits())


@pytest.mark.parametrize(
    "text",
    ["", "null", "[]", '{"a":1', '{"ticket":NaN}', "[" * 100_000, '{"a":1,"a":2}', "1" * 10_000],
    ids=lambda text: text[:8],
)
def test_what_is_no_table_is_refused(text: str) -> None:
    with pytest.raises(WireError):
        read_answer(Envelope(text), Limits())


def test_booleans_are_zero_or_one() -> None:
    sent = write_answer(Answer("", "", Reply(values={"v": torch.tensor([True])})))
    with pytest.raises(WireError, match="booleans"):
        read_answer(replace(sent, body=b"\x02"), Limits())


def test_bytes_that_nobody_speaks_of_are_refused() -> None:
    sent = answer()
    with pytest.raises(WireError, match="more bytes"):
        read_answer(replace(sent, body=sent.body + b"\0"), Limits())


def places(value: Any) -> list[tuple[Any, Any]]:
    """All (container, key) in nested JSON."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, item in items for place in ((value, key), *places(item))]


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "fields", "map", "weights", "tensor", "float", "x"]), inner, max_size=2
        )
    ),
    max_leaves=5,
)


def read_either(envelope: Envelope) -> Order | Answer | None:
    read: Any = read_order if '"program"' in envelope.text else read_answer
    try:
        found: Order | Answer = read(envelope, Limits(2**20, 1000, 2**20))
        return found
    except WireError:
        return None


@given(data=st.data(), which=st.sampled_from([order(), answer()]))
def test_junk_in_the_text_is_read_or_refused_and_nothing_else(data: st.DataObject, which: Envelope) -> None:
    content = json.loads(which.text)
    for _ in range(data.draw(st.integers(1, 3))):
        container, key = data.draw(st.sampled_from(places(content)))
        container[key] = data.draw(JUNK)
    read_either(replace(which, text=json.dumps(content)))


@given(data=st.data(), which=st.sampled_from([order(), answer()]))
def test_bytes_that_were_changed_are_read_or_refused_and_nothing_else(data: st.DataObject, which: Envelope) -> None:
    raw = bytearray(which.text.encode())
    for position in data.draw(st.lists(st.integers(0, len(raw) - 1), min_size=1, max_size=4)):
        raw[position] = data.draw(st.integers(0, 127))
    cut = data.draw(st.integers(0, len(which.body)))
    read_either(Envelope(raw.decode(), which.body[:cut] + data.draw(st.binary(max_size=20))))
