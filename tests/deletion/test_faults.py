"""What goes wrong while a federation is served: what is left out, what is tried again, what the register says of it."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Context, Message, RecordDict

import deletion.hospitals
from deletion.hospitals import NAMES, PLAN, TRAINING, Hospitals, forgotten, trained, twin
from fedunlearn.architecture import Architecture
from fedunlearn.backends.envelope import Answer, Envelope, Limits, read_answer, write_answer
from fedunlearn.contract import SmallNet
from fedunlearn.deletion.plan import Plan, ServiceError
from fedunlearn.deletion.register import Register, RegisterError
from fedunlearn.deletion.service import Service
from fedunlearn.deletion.signing import SigningKey
from fedunlearn.deletion.standing import Standing
from fedunlearn.federation import Reply, Turn
from fedunlearn.flower.local import Late
from fedunlearn.flower.messages import parcel, talk, unpacked
from fedunlearn.requests import ForgetInstances, Rest
from fedunlearn.rounds import aggregate
from fedunlearn.weights import Weights

TWO = replace(PLAN, rounds=2)
SOON = 0.2  # seconds within which an answer must come

Answered = Message | Late | None
Trouble = Callable[[Message, Callable[[], Message]], Answered]


def name_of(hospitals: Hospitals, node: int) -> str:
    return str(hospitals.grid._nodes[node].node_config["name"])


def turn_of(message: Message) -> str:
    """Such as "train 1"; of a query its kind."""
    text = unpacked(message)[0]
    turn = re.search(r'"turn":\[-?\d+,"(\w+)",(\d+)', text)
    return f"{turn[1]} {turn[2]}" if turn else message.metadata.message_type


def troubled(hospitals: Hospitals, name: str, when: str, trouble: Trouble) -> None:
    """Let a node's answers go wrong in a turn."""

    def hook(node: int, message: Message, answer: Callable[[], Message]) -> Answered:
        concerned = name_of(hospitals, node) == name and turn_of(message) == when
        return trouble(message, answer) if concerned else answer()

    hospitals.hook = hook


def replied(message: Message, text: str, body: bytes = b"") -> Message:
    return Message(parcel(text, body), reply_to=message)


def changed(change: Callable[[Reply], Reply]) -> Trouble:
    """The node's own answer, with something else in it."""

    def trouble(message: Message, answer: Callable[[], Message]) -> Message:
        right = read_answer(Envelope(*unpacked(answer())), Limits())
        wrong = write_answer(Answer(right.ticket, right.digest, change(right.reply)))
        return replied(message, wrong.text, wrong.body)

    return trouble


def weights_of(reply: Reply) -> Weights:
    assert reply.weights is not None
    return reply.weights


def first_as(change: Callable[[torch.Tensor], torch.Tensor]) -> Trouble:
    """An answer whose first parameter is changed."""

    def other(reply: Reply) -> Reply:
        weights = weights_of(reply)
        name, tensor = next(iter(weights.parameters.items()))
        return replace(reply, weights=replace(weights, parameters={**weights.parameters, name: change(tensor)}))

    return changed(other)


def renamed(reply: Reply) -> Reply:
    weights = weights_of(reply)
    return replace(reply, weights=replace(weights, parameters={f"{n}x": t for n, t in weights.parameters.items()}))


def spoiled(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def spoil(tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.clone()
        tensor.view(-1)[0] = value
        return tensor

    return spoil


def stale() -> Trouble:
    """What it has answered before is sent once more, with its tensors."""
    kept: list[Message] = []

    def trouble(message: Message, answer: Callable[[], Message]) -> Message:
        kept.append(answer())
        return replied(message, *unpacked(kept[0]))

    return trouble


def texts(text: str, body: bytes = b"") -> Trouble:
    return lambda message, answer: replied(message, text, body)


TROUBLES: dict[str, tuple[str, Trouble]] = {
    "no answer": ("silent", lambda message, answer: None),
    "late": ("silent", lambda message, answer: Late(answer(), 30.0)),
    "NaN": ("not finite", first_as(spoiled(float("nan")))),
    "infinity": ("not finite", first_as(spoiled(float("inf")))),
    "shape": ("misshapen", first_as(lambda tensor: tensor[:1])),
    "dtype": ("misshapen", first_as(lambda tensor: tensor.double())),
    "names": ("misshapen", changed(renamed)),
    "another architecture": (
        "misshapen",
        changed(lambda reply: replace(reply, weights=Weights.of(torch.nn.Linear(3, 2)))),
    ),
    "no model": ("malformed", changed(lambda reply: replace(reply, weights=None))),
    "too many tensors": (
        "too large",
        changed(lambda reply: replace(reply, values={str(n): torch.zeros(0) for n in range(2000)})),
    ),
    "too long a text": ("too large", texts(" " * (16 * 2**20 + 1))),
    "no JSON": ("malformed", texts("{")),
    "half a surrogate": ("malformed", texts('{"failed": "\\ud800"}')),
    "deep": ("malformed", texts("[" * 100_000)),
    "a pickle": ("malformed", texts("{}", b"\x80\x04.")),
}


def standing_of(hospitals: Hospitals) -> Standing:
    return Register.read(hospitals.register).standing()


def faults_of(hospitals: Hospitals) -> list[tuple[str, str, str]]:
    faults = [fault for _, fault in standing_of(hospitals).faults]
    return [(fault.client, fault.what, f"{fault.phase} {fault.number}") for fault in faults]


def served(hospitals: Hospitals, plan: Plan = TWO, **options: Any) -> Weights:
    """What a server comes to, from its start to its end."""
    try:
        return hospitals.service(plan, deadline=SOON, **options).run()
    finally:
        hospitals.book.close()


def fresh() -> Weights:
    return Architecture(SmallNet).fresh(PLAN.seed)


def round_of(weights: Weights, number: int, clients: Iterable[str]) -> Weights:
    """A training round in one process, in which only these take part."""
    return aggregate(twin(), weights, TRAINING, Turn(PLAN.seed, "train", number), list(clients))


WITHOUT_EAST = [name for name in NAMES if name != "east"]


@pytest.mark.parametrize("trouble", TROUBLES)
def test_what_is_no_right_answer_is_left_out_of_the_average(tmp_path: Path, trouble: str) -> None:
    kind, how = TROUBLES[trouble]
    hospitals = Hospitals(tmp_path)
    troubled(hospitals, "east", "train 1", how)
    weights = served(hospitals)
    assert weights.same_bits(round_of(trained(twin(), fresh(), 0, 1), 1, WITHOUT_EAST))
    assert faults_of(hospitals) == [("east", kind, "train 1")]
    last = standing_of(hospitals).last
    assert last is not None
    assert list(last.samples) == WITHOUT_EAST
    assert last.absent.keys() == {"east"}
    assert last.absent["east"].startswith(f"{kind}: ")


def test_an_answer_to_an_earlier_order_is_left_out(tmp_path: Path) -> None:
    hospitals, again = Hospitals(tmp_path), stale()

    def hook(node: int, message: Message, answer: Callable[[], Message]) -> Answered:
        training = name_of(hospitals, node) == "east" and turn_of(message).startswith("train")
        return again(message, answer) if training else answer()

    hospitals.hook = hook
    weights = served(hospitals)
    assert weights.same_bits(round_of(trained(twin(), fresh(), 0, 1), 1, WITHOUT_EAST))
    assert faults_of(hospitals) == [("east", "stale", "train 1")]


def test_who_answers_the_second_time_takes_part(tmp_path: Path) -> None:
    hospitals, asked = Hospitals(tmp_path), list[str]()

    def trouble(message: Message, answer: Callable[[], Message]) -> Answered:
        asked.append(turn_of(message))
        return None if len(asked) == 1 else answer()

    troubled(hospitals, "east", "train 1", trouble)
    assert served(hospitals).same_bits(trained(twin(), fresh(), 0, 2))
    assert asked == ["train 1", "train 1"]
    assert faults_of(hospitals) == []


def test_code_of_its_own_that_raises_is_the_nodes_own_affair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def data(context: Context) -> Any:
        if context.node_config["name"] == "east":
            raise OSError(errno.EIO, "no such disk", "/private/ward-7/patients.db")
        return deletion.hospitals.samples(str(context.node_config["name"]))

    monkeypatch.setattr(deletion.hospitals, "data", data)
    hospitals = Hospitals(tmp_path)
    weights = served(hospitals)
    expected = round_of(round_of(fresh(), 0, WITHOUT_EAST), 1, WITHOUT_EAST)
    assert weights.same_bits(expected)
    assert {(client, kind) for client, kind, _ in faults_of(hospitals)} == {("east", "failed")}
    assert not any("ward-7" in fault.detail for _, fault in standing_of(hospitals).faults)


@pytest.mark.parametrize("accuracy", [float("nan"), float("inf"), 1e308, -1.0, None])
def test_an_accuracy_that_there_is_not_is_left_out(tmp_path: Path, accuracy: float | None) -> None:
    hospitals, metrics = Hospitals(tmp_path), {} if accuracy is None else {"accuracy": accuracy}
    troubled(hospitals, "east", "evaluate 0", changed(lambda reply: replace(reply, metrics=metrics)))
    served(hospitals)
    (tmp_path / "others").mkdir()
    others = Hospitals(tmp_path / "others")
    troubled(others, "east", "evaluate 0", lambda message, answer: None)
    served(others)
    values, expected = ([done.validation for _, done in standing_of(h).rounds] for h in (hospitals, others))
    assert values == expected
    assert {(client, kind) for client, kind, _ in faults_of(hospitals)} <= {
        ("east", "malformed"),
        ("east", "not finite"),
    }
    assert len(faults_of(hospitals)) == 2


def test_models_behind_which_there_is_no_sample_make_no_round(tmp_path: Path) -> None:
    hospitals = Hospitals(tmp_path)
    nothing = changed(lambda reply: replace(reply, samples=0))

    def hook(node: int, message: Message, answer: Callable[[], Message]) -> Answered:
        return nothing(message, answer) if turn_of(message) == "train 1" else answer()

    hospitals.hook = hook
    with pytest.raises(ServiceError, match="start the server again"):
        served(hospitals)
    hospitals.hook = None
    assert served(hospitals).same_bits(trained(twin(), fresh(), 0, 2))


def moved(hospitals: Hospitals, names: Iterable[str]) -> None:
    """Nodes come back under other numbers, and what was on its way to them is gone."""
    for node, context in list(hospitals.grid._nodes.items()):
        if context.node_config["name"] in names:
            new = secrets.randbits(63)
            config = dict(context.node_config)
            hospitals.grid._nodes[new] = Context(context.run_id, new, config, RecordDict(), {})
            del hospitals.grid._nodes[node]
    hospitals.grid._replies.clear()


def moving(hospitals: Hospitals, names: Iterable[str], when: str) -> None:
    """Let that happen when east is asked in a turn, once."""
    times = list[str]()

    def trouble(message: Message, answer: Callable[[], Message]) -> Answered:
        if times:
            return answer()
        times.append(when)
        moved(hospitals, names)
        return None

    troubled(hospitals, "east", when, trouble)


def test_a_node_that_comes_back_under_another_number_is_met_again(tmp_path: Path) -> None:
    hospitals = Hospitals(tmp_path)
    moving(hospitals, ["east"], "train 1")
    weights = served(hospitals, replace(PLAN, rounds=3))
    # North's answer was lost with it; north was asked again.
    expected = round_of(trained(twin(), fresh(), 0, 1), 1, WITHOUT_EAST)
    assert weights.same_bits(trained(twin(), expected, 2, 3))
    assert faults_of(hospitals) == [("east", "silent", "train 1")] * 2  # in training, and when accuracy was measured


def test_a_superlink_that_starts_again_in_a_round_costs_that_round_alone(tmp_path: Path) -> None:
    hospitals = Hospitals(tmp_path)
    moving(hospitals, NAMES, "train 1")
    assert served(hospitals).same_bits(trained(twin(), fresh(), 0, 2))
    (waited,) = [wait for _, wait in standing_of(hospitals).waits]
    assert (waited.phase, waited.number) == ("train", 1)
    assert "0 of 4 clients answered" in waited.why


@pytest.mark.parametrize(("call", "times"), [("push_messages", 3), ("get_node_ids", 1)])
def test_a_link_that_is_down_for_a_while_is_waited_for(tmp_path: Path, call: str, times: int) -> None:
    hospitals = Hospitals(tmp_path)
    server = hospitals.service(TWO, deadline=SOON)
    assert server.step()
    works, failed = getattr(hospitals.grid, call), list[str]()

    def down(*given: Any) -> Any:
        if len(failed) < times:
            failed.append(call)
            raise ConnectionError("connection refused")
        return works(*given)

    setattr(hospitals.grid, call, down)
    assert server.run().same_bits(trained(twin(), fresh(), 0, 2))
    assert len(failed) == times
    hospitals.book.close()
    assert len(standing_of(hospitals).waits) == 1


def test_a_node_that_is_nobodys_is_recorded_once_and_not_used(tmp_path: Path) -> None:
    hospitals = Hospitals(tmp_path)
    (tmp_path / "intruder").mkdir()
    SigningKey.make(tmp_path / "intruder" / "key", node=True)
    hospitals.guests = ("intruder",)
    assert served(hospitals).same_bits(trained(twin(), fresh(), 0, 2))
    (fault,) = [fault for _, fault in standing_of(hospitals).faults]
    assert (fault.client, fault.what) == ("", "stranger")
    assert "is not on the list of clients" in fault.detail


def test_of_two_nodes_with_one_key_neither_is_the_client(tmp_path: Path) -> None:
    hospitals = Hospitals(tmp_path)
    shutil.copytree(tmp_path / "east", tmp_path / "copy")
    hospitals.guests = ("copy",)
    expected = round_of(round_of(fresh(), 0, WITHOUT_EAST), 1, WITHOUT_EAST)
    assert served(hospitals).same_bits(expected)
    faults = [fault for _, fault in standing_of(hospitals).faults]
    assert (
        sum(fault.what == "stranger" and "2 nodes say that they are client east" in fault.detail for fault in faults)
        == 2
    )
    assert any((fault.client, fault.what) == ("east", "silent") for fault in faults)


def test_a_node_that_did_not_say_who_it_is_is_asked_again(tmp_path: Path) -> None:
    hospitals, asked = Hospitals(tmp_path), list[str]()

    def trouble(message: Message, answer: Callable[[], Message]) -> Answered:
        asked.append("hello")
        return None if len(asked) == 1 else answer()

    troubled(hospitals, "east", "query.hello", trouble)
    weights = served(hospitals, fewest=3)
    last = standing_of(hospitals).last
    assert last is not None
    assert "east" in last.samples
    assert weights.same_bits(trained(twin(), fresh(), 0, 2))


def nobody(hospitals: Hospitals, when: str, times: float) -> None:
    """So many orders of a turn come to nothing."""
    lost = list[str]()

    def hook(node: int, message: Message, answer: Callable[[], Message]) -> Answered:
        if turn_of(message) != when or len(lost) >= times:
            return answer()
        lost.append(when)
        return None

    hospitals.hook = hook


def test_a_round_for_which_too_few_answer_is_tried_again(tmp_path: Path) -> None:
    hospitals = Hospitals(tmp_path)
    nobody(hospitals, "train 1", 8)
    assert served(hospitals, fewest=2).same_bits(trained(twin(), fresh(), 0, 2))
    (waited,) = [wait for _, wait in standing_of(hospitals).waits]
    assert (waited.phase, waited.number) == ("train", 1)
    assert {(client, kind) for client, kind, _ in faults_of(hospitals)} == {(name, "silent") for name in NAMES}


def test_with_too_few_for_ever_the_server_ends_and_started_again_goes_on(tmp_path: Path) -> None:
    hospitals = Hospitals(tmp_path)
    nobody(hospitals, "train 1", float("inf"))
    with pytest.raises(ServiceError, match=r"0 of 4 clients answered.*, 2 times: start the server again"):
        served(hospitals)
    assert len(standing_of(hospitals).waits) == 2
    hospitals.hook = None
    assert served(hospitals).same_bits(trained(twin(), fresh(), 0, 2))


def test_who_has_lost_its_outbox_takes_no_part_and_never_trains_on_what_was_to_go(tmp_path: Path) -> None:
    hospitals, plan = Hospitals(tmp_path), replace(PLAN, rounds=2)
    server = hospitals.service(plan, deadline=SOON)
    assert server.step()
    hospitals.files("east", hospitals.instances("east", [0, 3, 5]))
    while server._standing.current is None or server._standing.current.judgements is None:
        assert server.step()
    shutil.rmtree(tmp_path / "east" / "outbox")
    weights = server.run()
    hospitals.book.close()
    request = ForgetInstances({"east": (0, 3, 5)})
    expected = forgotten(twin(), trained(twin(), fresh(), 0, 1), request, plan=plan)
    left = twin().where(Rest(request))
    expected = aggregate(left, expected, TRAINING, Turn(PLAN.seed, "train", 1), WITHOUT_EAST)
    assert weights.same_bits(expected)
    failed = [fault for _, fault in standing_of(hospitals).faults if fault.client == "east" and fault.what == "failed"]
    assert failed
    assert all("cannot say what request" in fault.detail for fault in failed)


@pytest.mark.parametrize("how", ["full", "read-only", "no room for the model", "no room in the desk"])
def test_a_disk_that_takes_nothing_ends_the_server_in_a_sentence_and_nothing_is_lost(
    tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hospitals = Hospitals(tmp_path)
    server = hospitals.service(TWO, deadline=SOON)
    assert server.step()
    with monkeypatch.context() as patched:
        if how == "full":
            (pages,) = server._register._connection.execute("PRAGMA page_count").fetchone()
            server._register._connection.execute(f"PRAGMA max_page_count = {pages}")
            hospitals.files("east", "client")
        elif how == "read-only":
            server._register._connection.execute("PRAGMA query_only = ON")
        else:
            hospitals.desk.file("client", "gone", hospitals.keys["server"], client="east")
            folder = hospitals.book.checkpoints if how == "no room for the model" else hospitals.desk.folder
            patched.setattr(os, "replace", full(os.replace, folder))
        with pytest.raises((RegisterError, ServiceError)) as caught:
            server.run()
    hospitals.book.close()
    assert re.search(r"make room on the disk|let this user write there|No space left on device", str(caught.value))
    server = hospitals.service(TWO, deadline=SOON)
    server.run()
    hospitals.book.close()
    assert standing_of(hospitals).trained == 2
    assert all(entry.state == "done" for entry in standing_of(hospitals).requests.values())


def full(replaced: Callable[..., None], folder: Path) -> Callable[..., None]:
    """A disk on which nothing more fits into a folder."""

    def replacing(source: Any, target: Any) -> None:
        if Path(target).parent == folder.resolve():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
        replaced(source, target)

    return replacing


def test_a_second_server_on_the_same_register_is_told_who_has_it(tmp_path: Path) -> None:
    hospitals = Hospitals(tmp_path)
    first = hospitals.service(TWO, deadline=SOON)
    assert first.step()
    with pytest.raises(RegisterError, match=rf"is written by process {os.getpid()} on .*: end that one"):
        Register.open(hospitals.register, hospitals.keys["server"])
    assert first.run().same_bits(trained(twin(), fresh(), 0, 2))


@pytest.mark.parametrize("depth", [*range(900, 1000, 10), 5000])
def test_statements_that_are_deep_do_not_end_the_server(tmp_path: Path, depth: int) -> None:
    hospitals = Hospitals(tmp_path)
    deep = '{"statements":[{"statement":' + "[" * depth + "]" * depth + "}]}"
    troubled(hospitals, "east", "query.requests", texts(deep))
    server: Service = hospitals.service(TWO, deadline=SOON)
    assert server.step()
    standing = server._standing
    assert len(standing.refused) + sum(fault.client == "east" for _, fault in standing.faults) == 1


@pytest.mark.parametrize("answer", [{"statements": "all"}, {"statements": [1]}, {}, {"failed": "no"}, {"failed": 3}])
def test_an_outbox_that_answers_nonsense_is_recorded(tmp_path: Path, answer: dict[str, Any]) -> None:
    hospitals = Hospitals(tmp_path)
    troubled(hospitals, "east", "query.requests", lambda message, _: Message(talk(answer), reply_to=message))
    assert served(hospitals).same_bits(trained(twin(), fresh(), 0, 2))
    assert {(client, kind) for client, kind, _ in faults_of(hospitals)} == {("east", "malformed")}


def test_the_table_of_faults_names_tests_that_exist() -> None:
    """And every fault above stands in it."""
    root = Path(__file__).parents[2]
    named = set(re.findall(r"`(test_\w+\.py)::(test_\w+)`", (root / "docs" / "faults.md").read_text(encoding="utf-8")))
    assert len(named) > 20
    for file, test in named:
        assert f"def {test}(" in (root / "tests" / "deletion" / file).read_text(encoding="utf-8"), test
    here = re.findall(r"^def (test_\w+)", Path(__file__).read_text(encoding="utf-8"), re.MULTILINE)
    assert {(Path(__file__).name, test) for test in here} - named == {
        (Path(__file__).name, "test_the_table_of_faults_names_tests_that_exist")
    }
