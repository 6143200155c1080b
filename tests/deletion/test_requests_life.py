"""What becomes of a request: once, merged, during another's recovery, of whom it is not, of data that are gone."""

from __future__ import annotations

import json
import pickle
import pickletools
import secrets
import shutil
import warnings
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Message
from torch import Tensor, nn

import deletion.hospitals
from deletion.hospitals import NAMES, PLAN, TRAINING, Hospitals, forgotten, samples, trained, twin
from deletion.test_faults import SOON, Answered, fresh, name_of, served, standing_of, turn_of
from fedunlearn.architecture import Architecture
from fedunlearn.backends.in_process import InProcess
from fedunlearn.backends.sampled import Sampled
from fedunlearn.backends.wire import decode
from fedunlearn.client import Client
from fedunlearn.contract import SmallNet
from fedunlearn.deletion import receipt
from fedunlearn.deletion.plan import Plan, ServiceError
from fedunlearn.deletion.register import Register
from fedunlearn.deletion.service import Service
from fedunlearn.deletion.signing import SigningKey
from fedunlearn.deletion.standing import Entry
from fedunlearn.deletion.statement import Scope, Signed, Statement
from fedunlearn.deletion.verification import verify
from fedunlearn.federation import Federation, Predicate, Turn
from fedunlearn.flower.messages import talk, unpacked
from fedunlearn.methods.federaser import FedEraser
from fedunlearn.methods.ga import GA
from fedunlearn.methods.negation import NoT
from fedunlearn.randomness import stable_seed
from fedunlearn.requests import AnyOf, ForgetClass, ForgetClient, ForgetInstances, Rest
from fedunlearn.rounds import aggregate
from fedunlearn.task import Task
from fedunlearn.weights import Weights

TWO = replace(PLAN, rounds=2)
EAST = ForgetInstances({"east": (0, 3, 5)})


def after_a_round(hospitals: Hospitals, plan: Plan = TWO, **options: Any) -> Service:
    server = hospitals.service(plan, deadline=SOON, **options)
    assert server.step()
    return server


def ended(hospitals: Hospitals, server: Service) -> Weights:
    """What it comes to; the register holds what it must, and every receipt is right."""
    weights = server.run()
    hospitals.book.close()
    receipts = [entry.receipt for entry in standing_of(hospitals).requests.values() if entry.receipt is not None]
    public = hospitals.keys["server"].public
    assert [problem for one in receipts for problem in receipt.verify(one, public)] == []
    assert verify(hospitals.register, [public], receipts).problems == []
    return weights


def entries(hospitals: Hospitals) -> list[Entry]:
    return list(standing_of(hospitals).requests.values())


def in_one_process(
    request: Predicate, federation: Federation | None = None, plan: Plan = TWO, first: int = 1
) -> Weights:
    """The same without a grid: training, the request after so many rounds, and the rest of the training."""
    federation = federation or twin()
    weights = forgotten(federation, trained(federation, fresh(), 0, first, plan), request, plan=plan)
    return trained(federation.where(Rest(request)), weights, first, plan.rounds, plan)


def kinds(hospitals: Hospitals) -> list[str]:
    return [one.event.kind for one in Register.read(hospitals.register).events()]


# --- once ---


def test_a_request_that_is_handed_over_at_every_look_is_entered_once(tmp_path: Path) -> None:
    hospitals = Hospitals(tmp_path)
    server = after_a_round(hospitals)
    handed: list[int] = []
    exchange = server._site.exchange
    server._site.exchange = lambda answers: handed.append(len((found := exchange(answers))["east"])) or found  # type: ignore[method-assign]
    hospitals.files("east", "client")
    assert ended(hospitals, server).same_bits(in_one_process(ForgetClient("east")))
    assert sum(handed) > 3
    assert [kinds(hospitals).count(kind) for kind in ("filed", "acknowledged", "began", "done")] == [1, 1, 1, 1]


@pytest.mark.parametrize("scope", ["client", "class:1"])
def test_filed_again_after_the_outbox_was_lost_it_is_refused_with_the_id_of_the_first(
    tmp_path: Path, scope: str
) -> None:
    hospitals = Hospitals(tmp_path)
    server = after_a_round(hospitals)
    first = hospitals.files("east", scope)
    ended(hospitals, server)
    shutil.rmtree(tmp_path / "east" / "outbox")
    second = hospitals.files("east", scope)
    ended(hospitals, hospitals.service(TWO, deadline=SOON))
    assert [entry.request for entry in entries(hospitals)] == [first]
    ((_, refusal),) = standing_of(hospitals).refused
    assert (refusal.request, refusal.client) == (second, "east")
    (posted,) = hospitals.outbox("east").entries()
    assert posted.answer is not None
    assert (posted.answer.state, posted.answer.why) == ("refused", refusal.why)
    assert first in refusal.why


# --- several ---


def test_two_requests_before_one_boundary_are_one_unlearning_with_two_receipts(tmp_path: Path) -> None:
    hospitals = Hospitals(tmp_path)
    server = after_a_round(hospitals)
    hospitals.files("east", hospitals.instances("east", [0, 3, 5]))
    hospitals.files("west", "class:1")
    weights = ended(hospitals, server)
    places = tuple(samples("west")[1].eq(1).nonzero().flatten().tolist())
    assert weights.same_bits(in_one_process(AnyOf((EAST, ForgetInstances({"west": places})))))
    assert kinds(hospitals).count("began") == 1
    receipts = [entry.receipt for entry in entries(hospitals)]
    assert [one["answered"]["others"] for one in receipts if one] == [1, 1]
    assert [one["request"]["client"] for one in receipts if one] == ["east", "west"]


class Deeper(nn.Module):
    """A network with two layers that can be negated: of what stands last no sign is ever changed."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.last = nn.Linear(144, 3)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.last(torch.relu(self.second(torch.relu(self.first(x)))).flatten(1))
        return scores


def test_one_that_comes_in_recovery_is_left_out_at_once_and_answered_next_with_another_layer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deletion.hospitals, "SmallNet", Deeper)
    hospitals, asked = Hospitals(tmp_path), list[tuple[str, str]]()

    def hook(node: int, message: Message, answer: Callable[[], Message]) -> Answered:
        asked.append((turn_of(message), name_of(hospitals, node)))
        return answer()

    hospitals.hook = hook
    plan = replace(PLAN, rounds=1)
    server = after_a_round(hospitals, plan)
    hospitals.files("east", hospitals.instances("east", [0, 3, 5]))
    while kinds_of(server)[-1:] != ["recover"]:
        assert server.step()
    hospitals.files("west", "client")
    asked.clear()
    weights = ended(hospitals, server)
    first = asked.index(("recover 1", "north"))
    assert [name for turn, name in asked[first : first + 4] if turn == "recover 1"] == ["north", "east", "south"]
    assert not any(turn.startswith(("recover", "train")) and name == "west" for turn, name in asked)

    federation, seed = twin(), stable_seed(PLAN.seed, "unlearning", 0)
    architecture = Architecture(Deeper)
    weights_before = trained(federation, architecture.fresh(PLAN.seed), 0, 1)
    task = Task.of(federation, weights_before, EAST, TRAINING, architecture, seed=seed)
    (negated,) = NoT().unlearn(task)
    expected = aggregate(federation.where(Rest(EAST)), negated.after, TRAINING, Turn(seed, "recover", 0))
    both = AnyOf((EAST, ForgetClient("west")))
    expected = aggregate(federation.where(Rest(both)), expected, TRAINING, Turn(seed, "recover", 1))
    expected = forgotten(federation.where(Rest(EAST)), expected, ForgetClient("west"), 1)
    assert weights.same_bits(expected)
    assert weights.negations == expected.negations == (("first.weight",), ("second.weight",))


def kinds_of(server: Service) -> list[str]:
    return [done.phase for _, done in server._standing.rounds]


# --- the operator's ---


def test_the_operator_asks_for_a_class_of_everybody_through_the_desk(tmp_path: Path) -> None:
    hospitals = Hospitals(tmp_path)
    server = after_a_round(hospitals)
    hospitals.desk.file("class:1", "mislabelled", hospitals.keys["server"])
    assert ended(hospitals, server).same_bits(in_one_process(ForgetClass(1)))
    (posted,) = hospitals.desk.entries()
    assert posted.answer is not None
    assert posted.answer.receipt is not None
    assert posted.answer.receipt["request"]["client"] is None
    assert posted.answer.receipt["audit"]["clients"].keys() == set(NAMES)


def test_the_operator_asks_for_a_client_that_has_departed(tmp_path: Path) -> None:
    hospitals = Hospitals(tmp_path)
    server = after_a_round(hospitals)
    gone = next(node for node in hospitals.grid.get_node_ids() if name_of(hospitals, node) == "west")
    del hospitals.grid._nodes[gone]
    hospitals.desk.file("client", "left the study", hospitals.keys["server"], client="west")
    assert ended(hospitals, server).same_bits(in_one_process(ForgetClient("west")))
    (entry,) = entries(hospitals)
    assert entry.receipt is not None
    assert entry.receipt["audit"]["status"] == "not audited"
    assert "did not answer" in entry.receipt["audit"]["sentence"]


# --- data that are gone ---


@pytest.mark.parametrize("scope", ["client", "class:1", "instances"])
def test_of_data_that_are_deleted_the_receipt_says_so_first(tmp_path: Path, scope: str) -> None:
    hospitals = Hospitals(tmp_path)
    server = after_a_round(hospitals)
    hospitals.files("east", hospitals.instances("east", [0, 3, 5]) if scope == "instances" else scope, deleted=True)
    weights = ended(hospitals, server)
    (entry,) = entries(hospitals)
    assert entry.receipt is not None
    receipt.write(entry.receipt, tmp_path / "receipt.json")
    audit = next(iter(json.loads((tmp_path / "receipt.json").read_text()).values()))
    assert (audit["status"], audit["sentence"]) == ("not audited", "Not audited: data already deleted.")
    if scope == "client":
        assert weights.same_bits(in_one_process(ForgetClient("east")))


def test_a_client_of_which_nothing_is_left_may_leave_wholly(tmp_path: Path) -> None:
    hospitals = Hospitals(tmp_path)
    server = after_a_round(hospitals)
    hospitals.files("east", hospitals.instances("east", range(21)))
    while not standing_done(server):
        assert server.step()
    hospitals.files("east", "client", deleted=True)
    ended(hospitals, server)
    assert [entry.state for entry in entries(hospitals)] == ["done", "done"]


def test_each_receipt_tells_of_the_clients_that_its_request_concerns_alone(tmp_path: Path) -> None:
    """Of two hospitals', of one of them twice (once of data that are deleted), and of the operator's class."""
    hospitals = Hospitals(tmp_path)
    server = after_a_round(hospitals)
    some = hospitals.files("east", hospitals.instances("east", [0, 3, 5]))
    gone = hospitals.files("east", "class:2", deleted=True)
    west = hospitals.files("west", "client")
    hospitals.desk.file("class:1", "mislabelled", hospitals.keys["server"])
    ended(hospitals, server)
    assert kinds(hospitals).count("audited") == 1
    audits = {entry.request: entry.receipt["audit"] for entry in entries(hospitals) if entry.receipt}
    assert {id: set(audit["clients"]) for id, audit in audits.items() if id in (some, gone, west)} == {
        some: {"east"},
        gone: {"east"},
        west: {"west"},
    }
    (operators,) = (audit for id, audit in audits.items() if id not in (some, gone, west))
    assert set(operators["clients"]) == set(NAMES)
    assert audits[gone]["sentence"] == "Not audited: data already deleted."
    assert "too few samples" in audits[some]["sentence"]
    assert audits[some]["clients"]["east"]["after"]["accuracy_members"] == 0  # nothing was measured of so few


def standing_done(server: Service) -> bool:
    return [entry.state for entry in server._standing.requests.values()] == ["done"]


def test_after_a_deletion_a_hospital_trains_on_what_was_to_go_neither_before_it_has_renumbered_nor_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = list(range(21))

    def left(name: str) -> tuple[Tensor, Tensor]:
        values, labels = samples(name)
        return (values[kept], labels[kept]) if name == "east" else (values, labels)

    monkeypatch.setattr(deletion.hospitals, "samples", left)
    hospitals, plan = Hospitals(tmp_path), replace(PLAN, rounds=3)
    server = after_a_round(hospitals, plan)
    first = hospitals.files("east", hospitals.instances("east", [0, 3, 5]))
    second = hospitals.files("east", hospitals.instances("east", [8, 10]))
    while [entry.state for entry in server._standing.requests.values()] != ["done", "done"]:
        assert server.step()

    kept[:] = [place for place in kept if place not in (0, 3, 5)]
    while server._standing.trained < 2:
        assert server.step()
    assert "east" not in server._standing.rounds[-1][1].samples
    told = {fault.detail for _, fault in server._standing.faults if fault.client == "east"}
    assert len(told) == 1  # of the request that is looked up first
    assert told <= {f"the data are not those that request '{id}' was filed about" for id in (first, second)}

    hospitals.outbox("east").gone(first, renumber=True)
    assert hospitals.outbox("east").meant(second).instances == (5, 7)
    before = server.weights
    weights = ended(hospitals, server)
    now = InProcess(SmallNet, [Client.of(name, left(name)) for name in NAMES], workers=1, device="cpu")
    rest = now.where(Rest(ForgetInstances({"east": (5, 7)})))
    assert weights.same_bits(aggregate(rest, before, TRAINING, Turn(PLAN.seed, "train", 2)))


def test_samples_of_an_open_request_may_go_once_it_is_filed_anew_as_deleted(tmp_path: Path) -> None:
    hospitals = Hospitals(tmp_path)
    server = after_a_round(hospitals)
    scope = hospitals.instances("east", [0, 3, 5])
    first, anew = hospitals.files("east", scope), hospitals.files("east", scope, deleted=True)
    hospitals.outbox("east").gone(anew)
    ended(hospitals, server)
    assert {entry.request: entry.state for entry in entries(hospitals)} == {first: "refused", anew: "done"}


@pytest.mark.parametrize(("deleted", "name"), [(False, "GA"), (True, "NoT")])
@pytest.mark.parametrize("scope", ["client", "instances"])
def test_a_method_that_reads_data_that_are_gone_gives_way_to_not(
    tmp_path: Path, scope: str, deleted: bool, name: str
) -> None:
    hospitals = Hospitals(tmp_path)
    server = after_a_round(hospitals, replace(TWO, method=GA(lr=0.01)))
    hospitals.files("east", hospitals.instances("east", [0, 3, 5]) if scope == "instances" else scope, deleted=deleted)
    ended(hospitals, server)
    (one,) = standing_of(hospitals).unlearnings
    assert one.began.method["name"] == name
    assert one.done


# --- refused ---


def signed(key: SigningKey, scope: str = "client", **said: Any) -> dict[str, Any]:
    """A request, signed whatever it says."""
    statement = {**asdict(Statement.make(Scope.of("client"), "because")), "scope": scope, **said}
    return {"statement": statement, "key": key.public.text, "signature": key.sign("request", statement)}


REFUSED: dict[str, tuple[Callable[[Hospitals], Any], str]] = {
    "another's key": (lambda h: signed(h.keys["west"]), "must be signed with east's own key"),
    "the server's key": (lambda h: signed(h.keys["server"]), "must be signed with east's own key"),
    "a wrong signature": (
        lambda h: {**signed(h.keys["east"]), "signature": signed(h.keys["east"])["signature"]},
        "does not bear the signature of its key",
    ),
    "another client": (lambda h: signed(h.keys["east"], client="west"), "a node files for its own samples"),
    "a class of another client": (
        lambda h: signed(h.keys["east"], "class:1", client="west"),
        "a node files for its own samples",
    ),
    "an unknown scope": (lambda h: signed(h.keys["east"], "everything"), "write client, class:3"),
    "the samples' places": (lambda h: signed(h.keys["east"], instances=[3]), "and nothing else"),
    "no request": (lambda h: {"please": "forget"}, "this is no signed request"),
    "an id that is none": (lambda h: signed(h.keys["east"], id="../../etc"), "an id of 32 hexadecimal digits"),
}


@pytest.mark.parametrize("how", REFUSED)
def test_what_a_node_may_not_ask_is_refused_and_recorded_once(tmp_path: Path, how: str) -> None:
    make, why = REFUSED[how]
    hospitals = Hospitals(tmp_path)
    content, told = make(hospitals), list[Any]()

    def hook(node: int, message: Message, answer: Callable[[], Message]) -> Answered:
        if name_of(hospitals, node) != "east" or turn_of(message) != "query.requests":
            return answer()
        told.extend(json.loads(unpacked(message)[0])["answers"])
        return Message(talk({"statements": [content]}), reply_to=message)

    hospitals.hook = hook
    for _ in range(2):  # started again it is not recorded again
        assert served(hospitals).same_bits(trained(twin(), fresh(), 0, 2))
    assert entries(hospitals) == []
    ((_, refusal),) = standing_of(hospitals).refused
    assert why in refusal.why
    assert refusal.client == "east"
    if refusal.request:
        assert {answer["state"] for answer in told} == {"refused"}
        assert told[0]["request"] == refusal.request == content["statement"]["id"]


DESK: dict[str, tuple[Callable[[Hospitals], Any], str]] = {
    "a node's key": (
        lambda h: h.desk.file("class:1", "because", h.keys["east"]),
        "sign them with the server's key",
    ),
    "nobody's client": (
        lambda h: h.desk.file("client", "because", h.keys["server"], client="atlantis"),
        "there is no client 'atlantis'",
    ),
    "no client": (lambda h: h.desk.file("client", "because", h.keys["server"]), "there is no client None"),
    "a class of one": (
        lambda h: h.desk.file("class:1", "because", h.keys["server"], client="east"),
        "leave --client out",
    ),
}


@pytest.mark.parametrize("how", DESK)
def test_what_the_operator_may_not_ask_is_refused(tmp_path: Path, how: str) -> None:
    file, why = DESK[how]
    hospitals = Hospitals(tmp_path)
    server = after_a_round(hospitals)
    file(hospitals)
    assert ended(hospitals, server).same_bits(trained(twin(), fresh(), 0, 2))
    (posted,) = hospitals.desk.entries()
    assert posted.answer is not None
    assert posted.answer.state == "refused"
    assert why in posted.answer.why


def test_nobody_can_answer_or_take_over_a_request_of_somebody_else(tmp_path: Path) -> None:
    hospitals = Hospitals(tmp_path)
    theirs = hospitals.files("east", "client")
    stolen = signed(hospitals.keys["west"], id=theirs)

    def hook(node: int, message: Message, answer: Callable[[], Message]) -> Answered:
        if name_of(hospitals, node) != "west" or turn_of(message) != "query.requests":
            return answer()
        return Message(talk({"statements": [stolen]}), reply_to=message)

    hospitals.hook = hook
    served(hospitals)
    (entry,) = entries(hospitals)
    assert (entry.request, entry.client, entry.state) == (theirs, "east", "done")
    assert [refusal.client for _, refusal in standing_of(hospitals).refused] == ["west"]


def test_ten_thousand_requests_that_are_none_do_not_fill_the_register(tmp_path: Path) -> None:
    hospitals = Hospitals(tmp_path)
    west = hospitals.files("west", "client")

    def hook(node: int, message: Message, answer: Callable[[], Message]) -> Answered:
        if name_of(hospitals, node) != "east" or turn_of(message) != "query.requests":
            return answer()
        nonsense = [{"statement": {"id": secrets.token_hex(16)}, "key": "", "signature": ""} for _ in range(10_000)]
        return Message(talk({"statements": nonsense}), reply_to=message)

    hospitals.hook = hook
    for _ in range(2):
        served(hospitals)
    assert [(entry.request, entry.state) for entry in entries(hospitals)] == [(west, "done")]
    assert len(standing_of(hospitals).refused) == 100
    assert (hospitals.register / "register.sqlite").stat().st_size < 2**20


# --- nobody stays ---


def test_where_all_clients_go_the_model_becomes_a_new_one(tmp_path: Path) -> None:
    hospitals = Hospitals(tmp_path)
    server = after_a_round(hospitals)
    for name in NAMES:
        hospitals.files(name, "client")
    weights = ended(hospitals, server)
    seed = stable_seed(PLAN.seed, "unlearning", 0)
    assert weights.same_bits(Architecture(SmallNet).fresh(stable_seed(seed, "fresh", "Retrain")))
    assert [entry.state for entry in entries(hospitals)] == ["done"] * 4
    receipts = [entry.receipt for entry in entries(hospitals)]
    assert [one["recovery"]["ended"] for one in receipts if one] == ["nobody"] * 4
    assert "nobody stays to recover with" in receipt.tell(receipts[0])
    assert standing_of(hospitals).trained == 1  # nobody is there to train with


def test_where_the_others_go_in_recovery_it_ends_and_the_model_becomes_a_new_one(tmp_path: Path) -> None:
    hospitals = Hospitals(tmp_path)
    server = after_a_round(hospitals)
    hospitals.files("east", "client")
    while kinds_of(server)[-1:] != ["recover"]:
        assert server.step()
    for name in ("north", "south", "west"):
        hospitals.files(name, "client")
    weights = ended(hospitals, server)
    seed = stable_seed(PLAN.seed, "unlearning", 1)
    assert weights.same_bits(Architecture(SmallNet).fresh(stable_seed(seed, "fresh", "Retrain")))
    assert [entry.state for entry in entries(hospitals)] == ["done"] * 4


# --- before the first round, and how the plan decides ---


def test_a_request_before_the_first_round_is_answered(tmp_path: Path) -> None:
    hospitals = Hospitals(tmp_path)
    hospitals.files("east", "client")
    weights = ended(hospitals, hospitals.service(TWO, deadline=SOON))
    assert weights.same_bits(in_one_process(ForgetClient("east"), first=0))


def test_of_a_share_of_the_clients_the_same_take_part_as_in_one_process(tmp_path: Path) -> None:
    hospitals, plan = Hospitals(tmp_path), replace(PLAN, rounds=2, participation=0.5)
    server = after_a_round(hospitals, plan)
    hospitals.files("east", hospitals.instances("east", [0, 3, 5]))
    assert ended(hospitals, server).same_bits(in_one_process(EAST, Sampled(twin(), 0.5), plan))
    assert {len(done.samples) for _, done in standing_of(hospitals).rounds if done.phase != "unlearn"} == {2}


def test_every_other_round_it_looks_for_requests_and_measures(tmp_path: Path) -> None:
    hospitals, plan = Hospitals(tmp_path), replace(PLAN, rounds=4, every=2, scored=2)
    server = after_a_round(hospitals, plan)
    hospitals.files("east", "client")
    assert ended(hospitals, server).same_bits(in_one_process(ForgetClient("east"), plan=plan, first=2))
    measured = [done.validation is not None for _, done in standing_of(hospitals).rounds if done.phase == "train"]
    assert measured == [False, True, False, True]


def test_recovery_can_have_local_work_of_its_own(tmp_path: Path) -> None:
    longer = replace(TRAINING, epochs=2)
    hospitals, plan = Hospitals(tmp_path), replace(TWO, recovery=longer)
    server = after_a_round(hospitals, plan)
    id = hospitals.files("east", "client")
    weights = ended(hospitals, server)
    assert weights.same_bits(in_one_process(ForgetClient("east"), plan=plan))
    assert not weights.same_bits(in_one_process(ForgetClient("east")))
    issued = standing_of(hospitals).requests[id].receipt
    assert issued is not None
    assert decode(issued["answered"]["plan"]["recovery"]) == longer


def test_an_unlearning_is_gone_on_with_the_recovery_that_it_began_with(tmp_path: Path) -> None:
    hospitals = Hospitals(tmp_path)
    server = after_a_round(hospitals)
    hospitals.files("east", "client")
    while standing_of(hospitals).current is None:
        assert server.step()
    hospitals.book.close()
    with pytest.raises(ServiceError, match="start the server with that training, recovery, stop rule"):
        hospitals.service(replace(TWO, recovery=replace(TRAINING, epochs=2)))
    hospitals.book.close()
    assert served(hospitals).same_bits(in_one_process(ForgetClient("east")))


@pytest.mark.parametrize(
    ("plan", "why"),
    [
        (replace(TWO, seed=6), "was opened with another initial"),
        (replace(TWO, method=FedEraser()), "FedEraser needs a history or proxy data"),
        (replace(TWO, method=NoT(layers="conv9")), "NoT does not fit this network: .*conv9"),
    ],
)
def test_a_server_that_would_be_another_one_is_refused(tmp_path: Path, plan: Plan, why: str) -> None:
    hospitals = Hospitals(tmp_path)
    after_a_round(hospitals)
    hospitals.book.close()
    with pytest.raises(ServiceError, match=why):
        hospitals.service(plan)
    hospitals.book.close()
    assert served(hospitals).same_bits(trained(twin(), fresh(), 0, 2))


def test_another_network_is_refused(tmp_path: Path) -> None:
    hospitals = Hospitals(tmp_path)
    server = after_a_round(hospitals)
    other = Architecture(lambda: nn.Linear(4, 2))
    with pytest.raises(ServiceError, match="was opened with another network"):
        Service(server._site, hospitals.book, hospitals.keys["server"], other, TWO)


def test_an_unlearning_goes_on_with_the_method_that_it_began_with(tmp_path: Path) -> None:
    hospitals, again = Hospitals(tmp_path), replace(TWO, method=NoT(again="same"))
    server = after_a_round(hospitals, again)
    hospitals.files("east", "client")
    while server._standing.current is None:
        assert server.step()
    hospitals.book.close()
    with pytest.raises(ServiceError, match=r"unlearning 0 began with .*'same'.*: start the server with that method"):
        served(hospitals)
    assert served(hospitals, again).same_bits(in_one_process(ForgetClient("east")))


# --- what is said on the way ---


def test_messages_of_an_instance_wise_request_tell_which_samples_by_nothing_but_their_number(tmp_path: Path) -> None:
    hospitals, texts, bodies = Hospitals(tmp_path), list[str](), list[bytes]()

    def hook(node: int, message: Message, answer: Callable[[], Message]) -> Answered:
        reply = answer()
        for one in (message, reply):
            text, body = unpacked(one)
            texts.append(text)
            bodies.append(body)
        return reply

    hospitals.hook = hook
    server = after_a_round(hospitals, keep=True)
    id = hospitals.files("east", hospitals.instances("east", [0, 3, 5]))
    weights = ended(hospitals, server)
    assert weights.same_bits(in_one_process(EAST))
    said = [json.loads(text) for text in texts]
    statements = [one for content in said for one in content.get("statements", [])]
    (posted,) = hospitals.outbox("east").entries()
    assert statements
    assert all(one == posted.signed.json == Signed.of(one).json for one in statements)
    assert {name for one in statements for name in one["statement"]} == {
        *("id", "scope", "client", "reason", "filed", "data"),
    }
    orders = [content for content in said if "keeps" in content]
    names = {name for order in orders for name in types_in([order["keeps"], order["request"]])}
    assert names == {"AskedFor", "AnyOf", "Rest"}
    assert id in json.dumps(orders)
    shapes = [list(tensor.shape) for tensor in (*weights.parameters.values(), *weights.buffers.values())]
    assert all(shape in shapes for content in said for _, shape in content.get("tensors", []))
    numbers = {name for content in said if content.get("metrics") for name in json.dumps(content["metrics"]).split('"')}
    assert "per_sample" not in numbers
    assert all(content["values"] == [] for content in said if "values" in content)
    sent = b"".join(hospitals.grid.sent)
    assert id.encode() in sent
    for told in (str(tmp_path), "to-forget", "instances.json", "ForgetInstances", "[0,3,5]", "[0, 3, 5]"):
        assert told.encode() not in sent
    assert is_pickle(pickle.dumps({"index": 3}))
    for payload in (*hospitals.grid.sent, *bodies, *(text.encode() for text in texts)):
        assert not is_pickle(payload)


def types_in(content: Any) -> set[str]:
    """Names of the predicates in a message."""
    if isinstance(content, dict):
        own = {str(content["type"]).rpartition(".")[2].rpartition(":")[2]} if "type" in content else set()
        return own.union(*map(types_in, content.values()))
    return set[str]().union(*map(types_in, content)) if isinstance(content, list) else set()


def is_pickle(payload: bytes) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of escapes in what would be its texts
        try:
            return bool(list(pickletools.genops(payload)))
        except ValueError:
            return False
