"""Messages between a server and its clients: orders, answers, and what is said beside them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from flwr.app import RecordDict

from fedunlearn.backends.envelope import (
    Answer,
    Broadcast,
    Envelope,
    Limits,
    read_answer,
    read_order,
    write_answer,
)
from fedunlearn.backends.wire import WireError
from fedunlearn.client import View
from fedunlearn.federation import Reply, Turn, Work
from fedunlearn.flower.messages import MessageError, parcel, said, talk, unpacked
from fedunlearn.methods.fedquit import VirtualTeacher
from fedunlearn.methods.ga import Ascent
from fedunlearn.methods.scrub import Away
from fedunlearn.programs import Adam, Cosine, Evaluate, LocalTraining
from fedunlearn.requests import AnyOf, AskedFor, ForgetClass, ForgetClient, ForgetInstances, ForgetShare, Rest
from fedunlearn.weights import Weights
from fuzzing.mutation import bytes_changed, json_changed
from fuzzing.target import Finding, Target

__all__ = ["ANSWER", "ORDER", "TALK"]

_END = b"\0"  # of the text; what follows are bytes of tensors
_LIMITS = Limits(body=2**20, tensors=1000, text=2**20)
_MODEL = Weights(
    {"w": torch.arange(6.0).reshape(2, 3), "b": torch.zeros(3).half()}, {"n": torch.tensor(3)}, {"v": "w"}, (("w",),)
)


@functools.cache
def _orders() -> Sequence[bytes]:
    requests = AnyOf((ForgetClass(1), AskedFor("2", "ab"), ForgetClient("1"), ForgetShare(0.1)))
    view = View((Rest(requests),), ForgetInstances({"0": (1, 5)}))
    training = LocalTraining(Adam(), Cosine(10), loss=Away(_MODEL, 2.0))
    programs = (training, LocalTraining(loss=VirtualTeacher()), Ascent(training), Evaluate())
    sent = [Broadcast(program, _MODEL, Turn(7, "recover", 3, "a"), view) for program in programs]
    asked = Broadcast(None, None, Turn(2**63, "train", 0, ""), View())
    return [_joined(order.to("2", "ticket")) for order in (*sent, asked)]


@functools.cache
def _answers() -> Sequence[bytes]:
    values = {"loss": torch.tensor([0.5, float("nan")]), "right": torch.tensor([True, False])}
    reply = Reply(_MODEL, 9, {"loss": float("nan"), "right": 0.5}, {"half": _MODEL}, values, Work(3, 2))
    return [_joined(write_answer(Answer("t", "d", reply))), _joined(write_answer(Answer("", "", failed="no")))]


@functools.cache
def _talks() -> Sequence[bytes]:
    contents = ({"nonce": "0f"}, {"statements": [{"key": "k"}]}, {"partition": 3}, {"answers": [], "failed": "no"})
    return [talk(content)["fedunlearn"]["text"].encode() for content in contents]  # type: ignore[union-attr]


@dataclass(frozen=True)
class _Message:
    """Flower's own can be made only where a run is under way."""

    content: RecordDict

    def has_content(self) -> bool:
        return True


def _joined(envelope: Envelope) -> bytes:
    return envelope.text.encode() + _END + envelope.body


def _envelope(data: bytes) -> Envelope:
    text, _, body = data.partition(_END)
    return Envelope(text.decode(errors="replace"), body)


def _order(data: bytes) -> None:
    order = read_order(_envelope(data), _LIMITS)
    again = read_order(Broadcast(order.program, order.weights, order.turn, order.view).to("2", "t"), Limits())
    if order.digest != again.digest:
        raise Finding("an order that becomes another when it is sent on")


def _answer(data: bytes) -> None:
    answer = read_answer(_envelope(data), _LIMITS)
    again = read_answer(write_answer(answer), Limits())
    if answer.reply.samples != again.reply.samples or answer.reply.values.keys() != again.reply.values.keys():
        raise Finding("an answer that becomes another when it is sent on")


def _talk(data: bytes) -> None:
    envelope = _envelope(data)
    message: Any = _Message(parcel(envelope.text, envelope.body))
    unpacked(message)
    said(message)


def _mutated(seeds: Callable[[], Sequence[bytes]]) -> Callable[[bytes, Random], bytes]:
    def mutated(data: bytes, random: Random) -> bytes:
        text, _, body = data.partition(_END)
        if random.random() < 0.2:
            return text + _END + bytes_changed(body, random)
        return json_changed(text, random, lambda: [seed.partition(_END)[0] for seed in seeds()]) + _END + body

    return mutated


ORDER = Target("order", _order, (WireError,), _orders, _mutated(_orders))
ANSWER = Target("answer", _answer, (WireError,), _answers, _mutated(_answers))
TALK = Target("talk", _talk, (MessageError,), _talks, _mutated(_talks))
