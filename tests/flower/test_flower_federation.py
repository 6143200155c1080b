"""The same methods over a grid: the same bits, the contract, who is asked, and what is done with bad answers."""

from __future__ import annotations

import json
import pickle
import pickletools
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from flower_nodes import HERE, Meant, in_process, local_grid, over_flower, samples, with_outbox
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict

from fedunlearn.backends.envelope import Envelope, Limits, read_answer, write_answer
from fedunlearn.contract import CHECKS, Case, small_task
from fedunlearn.evaluation.follow import Step, follow
from fedunlearn.federation import ClientContext, ClientError, Predicate, Reply, TooFewClients, Turn
from fedunlearn.flower import federation as module
from fedunlearn.flower.federation import Fault, Flower, greet
from fedunlearn.flower.local import Hook, Late, LocalGrid
from fedunlearn.flower.messages import parcel, unpacked
from fedunlearn.methods.badt import BadT
from fedunlearn.methods.fcu import FCU
from fedunlearn.methods.federaser import FedEraser
from fedunlearn.methods.fedosd import FedOSD
from fedunlearn.methods.fukd import FUKD
from fedunlearn.methods.negation import NoT
from fedunlearn.methods.retrain import Retrain
from fedunlearn.methods.ssd import SSD
from fedunlearn.needs import NeedsError
from fedunlearn.programs import SGD, Evaluate, LocalTraining
from fedunlearn.requests import AnyOf, AskedFor, ForgetClass, ForgetClient, ForgetInstances, Rest
from fedunlearn.rounds import aggregate
from fedunlearn.task import Method, Task
from fedunlearn.weights import Weights

TRAINING = LocalTraining(SGD(lr=0.05), batch_size=8)
TURN = Turn(1, "train", 0)
NAN = float("nan")
WEIGHTS = HERE.architecture.fresh(1)

MEANT = {"a" * 32: Meant("instances", (0, 5, 7)), "b" * 32: Meant("instances", (3,))}
ASKED = AnyOf((AskedFor("0", "a" * 32), AskedFor("2", "b" * 32)))

# what the server asks over Flower, and the same in process
REQUESTS: Mapping[str, tuple[Predicate, Predicate]] = {
    "client": (ForgetClient("1"), ForgetClient("1")),
    "class": (ForgetClass(2), ForgetClass(2)),
    "instances": (ASKED, ForgetInstances({"0": (0, 5, 7), "2": (3,)})),
}

METHODS: list[Method] = [  # with teachers in programs, further models in answers, single updates, proxy data
    Retrain(),
    NoT(),
    NoT(batchnorm="recalibrate"),
    FedEraser(),
    FUKD(),
    FCU(iterations=3, interval=2),
    FedOSD(rounds=1),
    BadT(epochs=1),
    SSD(batch_size=8),
]


def stepped(method: Method, task: Task, rounds: int = 2) -> list[Step]:
    return list(follow(method, task, rounds))


@pytest.mark.parametrize("kind", REQUESTS)
def test_training_negation_and_recovery_have_the_bits_of_one_machine(
    kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with_outbox(monkeypatch, MEANT)
    asked, there = REQUESTS[kind]
    here = stepped(NoT(), small_task(there, in_process()))
    over = stepped(NoT(), small_task(asked, over_flower(local_grid(outbox=tmp_path))))
    assert len(here) == len(over) == 3
    assert all(a.round.after.same_bits(b.round.after) for a, b in zip(here, over, strict=True))


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Task]]:
    with pytest.MonkeyPatch.context() as patch:
        with_outbox(patch, MEANT)
        grid = local_grid(outbox=tmp_path_factory.mktemp("outbox"), values=True)
        yield cache(lambda kind: small_task(REQUESTS[kind][0], over_flower(grid)))


CASES = [
    # Each method at one kind of request, and with --long at all.
    pytest.param(method, kind, id=f"{method}-{kind}", marks=[] if (row + column) % 3 == 0 else [pytest.mark.long])
    for row, method in enumerate(METHODS)
    for column, kind in enumerate(REQUESTS)
]


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize(("method", "kind"), CASES)
def test_keeps_the_contract(method: Method, kind: str, tasks: Callable[[str], Task], check: str) -> None:
    task = tasks(kind)
    if not method.needs.whole_clients or task.circumstances.whole_clients:
        CHECKS[check](Case(method, task))
    else:
        with pytest.raises(NeedsError, match="cannot forget a part of a client"):
            next(follow(method, task, 1))


# --- who is asked ---------------------------------------------------------------------------------------------------


def test_clients_are_in_the_order_of_nodes_whatever_order_answers_come_in() -> None:
    grid = local_grid()
    federation = over_flower(grid)
    federation = Flower(grid, dict(reversed(federation._link.nodes.items())), HERE.architecture)
    for number in range(5):  # the grid gives replies in any order
        assert [c for c, _ in federation.run(Evaluate(), WEIGHTS, Turn(1, "evaluate", number))] == ["3", "2", "1", "0"]


def test_many_clients_are_asked_chunk_by_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHUNK", 3)
    grid = local_grid(keep=True)
    replies = over_flower(grid).run(Evaluate(), WEIGHTS, TURN)
    grid.sent.clear()
    assert next(iter(replies))[0] == "0"
    assert len(grid.sent) == 6  # three orders and three answers: the fourth client has not been asked yet
    assert [client for client, _ in replies] == ["1", "2", "3"]


def test_named_clients_must_be_there() -> None:
    federation = over_flower()
    assert [client for client, _ in federation.run(Evaluate(), WEIGHTS, TURN, ["2", "0"])] == ["0", "2"]
    with pytest.raises(KeyError, match="no such client here: 9"):
        federation.run(Evaluate(), WEIGHTS, TURN, ["9"])
    with pytest.raises(KeyError, match="no such client here: 1"):
        federation.where(Rest(ForgetClient("1"))).run(Evaluate(), WEIGHTS, TURN, ["1"])


@dataclass(frozen=True)
class Plain:
    keeps: Predicate
    clients: tuple[str, ...]


@pytest.mark.parametrize(
    "case",
    [
        Plain(ForgetClient("1"), ("1",)),
        Plain(Rest(ForgetClient("1")), ("0", "2", "3")),
        Plain(AnyOf((ForgetClient("1"), ForgetClient("3"))), ("1", "3")),
        Plain(Rest(Rest(Rest(AnyOf((ForgetClient("1"), ForgetClient("3")))))), ("0", "2")),
        Plain(AnyOf((ForgetClient("1"), AskedFor("1", "x"))), ("1",)),
    ],
    ids=str,
)
def test_nobody_is_asked_whom_a_plain_view_empties(case: Plain) -> None:
    grid = local_grid(keep=True)
    federation = over_flower(grid)
    grid.sent.clear()
    assert federation.where(case.keeps).clients == case.clients
    assert grid.sent == []


def test_of_an_instance_wise_request_one_client_is_asked_for_one_number(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with_outbox(monkeypatch, {"a" * 32: Meant("instances", tuple(range(21)))})  # all that client 1 has
    grid = local_grid(keep=True, outbox=tmp_path)
    federation = over_flower(grid)
    grid.sent.clear()
    stays = federation.where(Rest(AskedFor("1", "a" * 32)))
    assert stays.clients == stays.clients == ("0", "2", "3")
    assert len(grid.sent) == 2  # an order and its answer, once
    assert b"tensors" in grid.sent[0]
    assert all(len(message) < 1500 for message in grid.sent)
    assert federation.where(AskedFor("1", "a" * 32)).clients == ("1",)


def test_a_view_that_is_made_again_is_not_counted_again() -> None:
    silent = Counted("1", 1, lambda message: None)
    grid = local_grid(keep=True, hook=silent)
    federation = over_flower(grid, deadline=0.2)
    assert federation.where(ForgetClass(1)).clients == ("0", "1", "2", "3")
    grid.sent.clear()
    assert federation.where(ForgetClass(1)).clients == ("0", "1", "2", "3")
    assert len(grid.sent) == 2  # of the one who had not answered
    assert federation.where(ForgetClass(1)).clients == ("0", "1", "2", "3")
    assert federation.where(ForgetClass(1)).marking(ForgetClass(1)).clients == ("0", "1", "2", "3")
    assert len(grid.sent) == 2
    assert federation.where(Rest(ForgetClass(1))).clients == ("0", "1", "2", "3")
    assert len(grid.sent) == 10


def test_views_of_classes_are_what_they_are_on_one_machine() -> None:
    def only_class_one(context: Any) -> Any:
        x, y = samples(context)
        return (x[y == 1], y[y == 1]) if context.node_config["partition-id"] == 2 else (x, y)

    federation = over_flower(local_grid(data=only_class_one))
    assert federation.where(Rest(ForgetClass(1))).clients == ("0", "1", "3")
    assert federation.where(ForgetClass(0)).clients == ("0", "1", "3")
    assert federation.where(ForgetClass(1)).clients == ("0", "1", "2", "3")


# --- answers that are not used ---------------------------------------------------------------------------------------


def addressee(message: Message) -> str | None:
    found: str | None = json.loads(unpacked(message)[0]).get("client")
    return found


def tampered(client: str, change: Callable[[Envelope], Envelope | RecordDict]) -> Hook:
    """One client's answers to orders are changed on their way."""

    def hook(node: int, message: Message, answer: Callable[[], Message]) -> Message:
        reply = answer()
        if addressee(message) != client:
            return reply
        content = change(Envelope(*unpacked(reply)))
        content = content if isinstance(content, RecordDict) else parcel(content.text, content.body)
        return Message(content, reply_to=message)

    return hook


def with_reply(change: Callable[[Reply], Reply]) -> Callable[[Envelope], Envelope]:
    def changed(envelope: Envelope) -> Envelope:
        answer = read_answer(envelope, Limits())
        return write_answer(replace(answer, reply=change(answer.reply)))

    return changed


def with_answer(**fields: Any) -> Callable[[Envelope], Envelope]:
    return lambda envelope: write_answer(replace(read_answer(envelope, Limits()), **fields))


def with_weights(change: Callable[[Weights], Weights]) -> Callable[[Envelope], Envelope]:
    def changed(reply: Reply) -> Reply:
        assert reply.weights is not None
        return replace(reply, weights=change(reply.weights))

    return with_reply(changed)


def filled(value: float) -> Callable[[Weights], Weights]:
    return lambda w: replace(w, buffers={n: b.fill_(value) if "var" in n else b for n, b in w.buffers.items()})


def renamed(weights: Weights) -> Weights:
    return replace(weights, parameters={f"my_{name}": t for name, t in weights.parameters.items()})


FAULTS: dict[str, tuple[str, Callable[[Envelope], Envelope | RecordDict]]] = {
    "NaN": ("not finite", with_weights(filled(NAN))),
    "infinity": ("not finite", with_weights(filled(float("inf")))),
    "NaN beside the weights": (
        "not finite",
        with_reply(
            lambda r: replace(r, extra={"more": Weights({"w": torch.tensor(float("nan")).to(torch.float8_e5m2)})})
        ),
    ),
    "another shape": ("misshapen", with_weights(lambda w: w.map(lambda t: t.reshape(1, *t.shape)))),
    "another dtype": ("misshapen", with_weights(lambda w: w.map(torch.Tensor.double))),
    "other names": ("misshapen", with_weights(renamed)),
    "a tensor too few": ("misshapen", with_weights(lambda w: replace(w, buffers={}))),
    "a parameter as a buffer": (
        "misshapen",
        with_weights(lambda w: Weights({}, {**w.parameters, **w.buffers})),
    ),
    "another ticket": ("stale", with_answer(ticket="0" * 32)),
    "another model's digest": ("stale", with_answer(digest="0" * 32)),
    "somebody else's failure": ("stale", with_answer(ticket="0" * 32, failed="no")),
    "no JSON": ("malformed", lambda e: Envelope(e.text[:-1], e.body)),
    "bytes too few": ("malformed", lambda e: Envelope(e.text, e.body[:-1])),
    "no text": ("malformed", lambda e: RecordDict({"fedunlearn": ConfigRecord({"text": 3})})),
    "another record": ("malformed", lambda e: RecordDict({"more": ConfigRecord(), **parcel(e.text, e.body)})),
    "arrays of NumPy": (
        "malformed",
        lambda e: RecordDict({**parcel(e.text), "tensors": ArrayRecord([torch.ones(2).numpy()])}),
    ),
    "too many bytes": (
        "too large",
        with_reply(lambda r: replace(r, extra={"more": Weights({"w": torch.zeros(17 * 2**20, dtype=torch.uint8)})})),
    ),
    "its own code": ("failed", with_answer(reply=Reply(), failed="disk\n full")),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_bad_answer_is_reported_and_the_round_goes_on_without_it(name: str) -> None:
    kind, change = FAULTS[name]
    found: list[Fault] = []
    grid = local_grid(hook=tampered("2", change))
    federation = over_flower(grid, faults=found.append)
    mean = aggregate(federation, WEIGHTS, TRAINING, TURN)
    assert [(fault.client, fault.kind) for fault in found] == [("2", kind)]
    assert "\n" not in found[0].detail
    assert mean.same_bits(aggregate(HERE, WEIGHTS, TRAINING, TURN, ["0", "1", "3"]))
    with pytest.raises(ClientError, match="client 2, train round 0: "):
        aggregate(over_flower(grid), WEIGHTS, TRAINING, TURN)


def test_an_app_that_breaks_off_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    def hook(node: int, message: Message, answer: Callable[[], Message]) -> Message:
        if addressee(message) == "2":
            message.metadata.message_type = "train.unheard_of"
        return answer()

    found: list[Fault] = []
    clients = [c for c, _ in over_flower(local_grid(hook=hook), faults=found.append).run(TRAINING, WEIGHTS, TURN)]
    assert clients == ["0", "1", "3"]
    assert [(fault.client, fault.kind) for fault in found] == [("2", "failed")]


class Counted:
    """A hook that lets one client die at its first so many orders."""

    def __init__(self, client: str, deaths: int, how: Callable[[Message], Message | None]) -> None:
        self.client, self.deaths, self.how, self.orders = client, deaths, how, 0

    def __call__(self, node: int, message: Message, answer: Callable[[], Message]) -> Message | Late | None:
        if addressee(message) == self.client:
            self.orders += 1
            if self.orders <= self.deaths:
                return self.how(message)
        return answer()


def killed(message: Message) -> Message:
    from flwr.app import Error
    from flwr.common.constant import ErrorCode

    return Message(Error(ErrorCode.CLIENT_APP_CRASHED), reply_to=message)


@pytest.mark.parametrize("how", [lambda message: None, killed], ids=["unheard of", "killed"])
def test_who_is_silent_is_asked_once_more(how: Callable[[Message], Message | None]) -> None:
    found: list[Fault] = []
    hook = Counted("1", 1, how)
    federation = over_flower(local_grid(hook=hook), deadline=0.3, faults=found.append)
    mean = aggregate(federation, WEIGHTS, TRAINING, TURN)
    assert mean.same_bits(aggregate(HERE, WEIGHTS, TRAINING, TURN))
    assert (hook.orders, found) == (2, [])


def test_who_is_silent_twice_is_left_out() -> None:
    found: list[Fault] = []
    hook = Counted("1", 2, lambda message: None)
    federation = over_flower(local_grid(hook=hook), deadline=0.2, faults=found.append)
    started = time.monotonic()
    mean = aggregate(federation, WEIGHTS, TRAINING, TURN)
    assert 0.4 <= time.monotonic() - started < 5
    assert mean.same_bits(aggregate(HERE, WEIGHTS, TRAINING, TURN, ["0", "2", "3"]))
    assert [(fault.client, fault.kind) for fault in found] == [("1", "silent")]


def test_the_silent_are_left_out_without_a_report_too() -> None:
    federation = over_flower(local_grid(hook=Counted("1", 2, lambda message: None)), deadline=0.2)
    assert [client for client, _ in federation.run(Evaluate(), WEIGHTS, TURN)] == ["0", "2", "3"]


def test_a_late_answer_is_used_within_the_deadline() -> None:
    def hook(node: int, message: Message, answer: Callable[[], Message]) -> Message | Late:
        return Late(answer(), 0.3) if addressee(message) == "0" else answer()

    federation = over_flower(local_grid(hook=hook), deadline=5)
    assert [client for client, _ in federation.run(Evaluate(), WEIGHTS, TURN)] == ["0", "1", "2", "3"]


def test_too_few_clients_end_the_round_with_an_error() -> None:
    dead = tampered("2", with_answer(ticket="0" * 32))
    found: list[Fault] = []
    federation = over_flower(local_grid(hook=dead), faults=found.append, fewest=4)
    with pytest.raises(TooFewClients, match=r"3 of 4 clients answered, where 4 are needed \(client 2 stale: "):
        aggregate(federation, WEIGHTS, TRAINING, TURN)
    assert [(fault.client, fault.kind) for fault in found] == [("2", "stale")]
    others = federation.where(Rest(ForgetClient("2")))
    assert len(list(others.run(Evaluate(), WEIGHTS, TURN))) == 3  # all of those who are asked


def test_who_is_silent_about_a_view_counts_as_present() -> None:
    federation = over_flower(local_grid(hook=Counted("1", 9, lambda message: None)), deadline=0.2)
    assert federation.where(ForgetClass(1)).clients == ("0", "1", "2", "3")


def test_a_message_that_cannot_be_pulled_hides_no_other(caplog: pytest.LogCaptureFixture) -> None:
    class Spoilt(LocalGrid):
        bad: str | None = None

        def pull_messages(self, message_ids: Any) -> list[Message]:
            ids = list(message_ids)
            self.bad = self.bad or ids[1]
            if self.bad in ids:
                raise ValueError("Mismatch in children object IDs")
            return super().pull_messages(ids)

    grid = local_grid()
    federation = over_flower(grid, deadline=0.5)
    grid.__class__ = Spoilt
    assert len(list(federation.run(Evaluate(), WEIGHTS, TURN))) == 4  # it is asked again, and answers
    assert "could not be pulled" in caplog.text


def test_a_client_without_a_node_is_silent_until_it_has_one() -> None:
    grid, found = local_grid(), []
    nodes: dict[str, int | None] = {**greet(grid, None, deadline=5).nodes}
    federation, node = Flower(grid, nodes, HERE.architecture, faults=found.append), nodes["2"]
    nodes["2"] = None
    assert [client for client, _ in federation.run(Evaluate(), WEIGHTS, TURN)] == ["0", "1", "3"]
    assert [(fault.client, fault.kind) for fault in found] == [("2", "silent")]
    nodes["2"] = node
    assert len(list(federation.run(Evaluate(), WEIGHTS, TURN))) == 4


@pytest.mark.parametrize("settings", [{"deadline": 0}, {"deadline": float("nan")}, {"fewest": 0}], ids=str)
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be over 0 seconds"):
        Flower(local_grid(), {}, HERE.architecture, **settings)


# --- what passes over the wire ---------------------------------------------------------------------------------------


def test_messages_of_an_instance_wise_request_hold_no_index_label_or_path_and_no_pickle(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Indices and labels are numbers that nothing else in the messages could be, and no random id by chance."""
    indices, label = (2000003, 2000029, 2000039), 1299709

    class Large:
        labels = torch.full((2000040,), label)

        def inputs(self, indices: Any, rng: Any, device: Any) -> Any:
            return torch.zeros(len(indices), 1, 6, 6)

    with_outbox(monkeypatch, {"a" * 32: Meant("instances", indices)})
    grid = local_grid(keep=True, outbox=tmp_path, data=lambda context: Large(), programs=[Recounting])
    federation = over_flower(grid)
    request = AskedFor("0", "a" * 32)
    for view in (federation.where(Rest(request)), federation.where(request), federation.marking(request)):
        for _ in view.run(Recounting(), WEIGHTS, TURN):
            pass
    unknown = federation.where(AskedFor("0", "b" * 32))
    with pytest.raises(ClientError, match="cannot say what request 'bbb"):
        list(unknown.run(Recounting(), WEIGHTS, TURN, ["0"]))
    assert len(grid.sent) > 30
    secrets = [*map(str, indices), str(label), str(tmp_path), tmp_path.name, "instances", "Traceback"]
    for message in grid.sent:
        assert [word for word in secrets if word.encode() in message] == []
        for payload in (message, *message.split(b"\0", 1)[1:]):  # Flower's heading ends with a zero
            assert not unpickles(payload)
            with pytest.raises(ValueError, match=r"."):
                list(pickletools.genops(payload))


def test_a_node_is_not_told_what_others_want_forgotten(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with_outbox(monkeypatch, {"a" * 32: Meant("instances", (0,))})
    grid = local_grid(keep=True, outbox=tmp_path, programs=[Recounting])
    both = AnyOf((AskedFor("0", "a" * 32), ForgetClient("3")))
    for view in (over_flower(grid).where(Rest(both)), over_flower(grid).marking(both)):
        grid.sent.clear()
        replies = {client: reply.samples for client, reply in view.run(Recounting(), WEIGHTS, TURN)}
        assert "3" in replies or len(replies) == 3
        told = [sent for sent in grid.sent if b"AskedFor" in sent or b"ForgetClient" in sent]
        orders = [sent for sent in told if b'"client":"' in sent]
        assert {sent.split(b'"client":"')[1][:1] for sent in orders if b'"client":"0"' not in sent} <= {b"3"}
        assert all(b"a" * 32 not in sent for sent in told if b'"client":"3"' in sent)
        assert any(b"a" * 32 in sent for sent in told)


def unpickles(payload: bytes) -> bool:
    try:
        pickle.loads(payload)
    except Exception:
        return False
    return True


@dataclass(frozen=True)
class Recounting:
    """How many samples there are, and nothing of them."""

    def __call__(self, context: ClientContext) -> Reply:
        return Reply(samples=context.samples())


def test_orders_are_of_the_kind_of_their_phase() -> None:
    seen: list[str] = []

    def hook(node: int, message: Message, answer: Callable[[], Message]) -> Message:
        seen.append(message.metadata.message_type)
        return answer()

    federation = over_flower(local_grid(1, hook=hook))
    for phase in ("train", "unlearn", "recover", "evaluate"):
        list(federation.run(Evaluate(), WEIGHTS, Turn(1, phase, 0)))
    assert seen == ["query.hello", "train.work", "train.work", "train.work", "evaluate.work"]


def test_programs_of_others_are_refused() -> None:
    with pytest.raises(ClientError, match="neither of fedunlearn nor on the list of allowed programs"):
        list(over_flower(local_grid(programs=())).run(Recounting(), WEIGHTS, TURN))
