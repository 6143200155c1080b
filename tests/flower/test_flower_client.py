"""What a node does and says, and who it is."""

from __future__ import annotations

import hashlib
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from flower_nodes import HERE, Meant, local_grid, over_flower, samples, with_outbox
from flwr.app import ConfigRecord, Context, Message, RecordDict

from fedunlearn.contract import small_task
from fedunlearn.deletion.outbox import Bound, Outbox
from fedunlearn.deletion.signing import KeyProblem, PublicKey, SigningKey
from fedunlearn.evaluation.follow import follow
from fedunlearn.federation import ClientContext, ClientError, Predicate, Reply, Turn
from fedunlearn.flower import messages
from fedunlearn.flower.federation import Fault, exchange, greet
from fedunlearn.flower.local import LocalGrid
from fedunlearn.flower.messages import HELLO, said, talk
from fedunlearn.methods.negation import NoT
from fedunlearn.programs import Diverged, Evaluate, LocalTraining
from fedunlearn.requests import AskedFor, ForgetClass, ForgetClient, ForgetInstances, Rest

TURN = Turn(1, "train", 0)
WEIGHTS = HERE.architecture.fresh(1)
ID = "a" * 32


# --- work -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Threads:
    def __call__(self, context: ClientContext) -> Reply:
        return Reply(metrics={"threads": torch.get_num_threads()})


def test_a_node_computes_with_one_thread_and_leaves_the_process_as_it_was() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        replies = dict(over_flower(local_grid(2, programs=[Threads])).run(Threads(), WEIGHTS, TURN))
        assert [reply.metrics["threads"] for reply in replies.values()] == [1, 1]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class Raises:
    what: str

    def __call__(self, context: ClientContext) -> Reply:
        raise {
            "diverged": Diverged("the loss became nan:\n lower the learning rate"),
            "file": FileNotFoundError(2, "No such file or directory", "/secret/place/patient-7.png"),
            "index": IndexError("sample 48611"),
            "nothing": RuntimeError(),
            "long": RuntimeError("x" * 10_000),
        }[self.what]


@pytest.mark.parametrize(
    ("what", "kind"),
    [
        ("diverged", "Diverged"),
        ("file", "FileNotFoundError"),
        ("index", "IndexError"),
        ("nothing", "RuntimeError"),
        ("long", "RuntimeError"),
    ],
)
def test_of_what_the_users_code_raises_the_kind_alone_is_told(what: str, kind: str) -> None:
    """Its text could name a patient, and would stand in other hospitals' receipts."""
    with pytest.raises(ClientError) as failed:
        list(over_flower(local_grid(1, programs=[Raises])).run(Raises(what), WEIGHTS, TURN))
    assert str(failed.value) == f"client 0, train round 0: its own code failed ({kind}): its log says why"


def test_of_a_request_that_only_the_client_knows_not_even_an_errors_text_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with_outbox(monkeypatch, {ID: Meant("instances", (3,)), "b" * 32: Meant("instances", (48611,))})
    federation = over_flower(local_grid(1, programs=[Raises], outbox=tmp_path))
    with pytest.raises(ClientError, match=r"round 0: its own code failed \(IndexError\): its log says why$"):
        list(federation.where(Rest(AskedFor("0", ID))).run(Raises("index"), WEIGHTS, TURN))
    with pytest.raises(ClientError, match=r"which samples are meant could not be told \(IndexError\)$"):
        list(federation.where(Rest(AskedFor("0", "b" * 32))).run(Evaluate(), WEIGHTS, TURN))


def test_samples_that_cannot_be_loaded_are_told_so_without_where() -> None:
    def data(context: Context) -> Any:
        raise FileNotFoundError("/secret/place")

    with pytest.raises(ClientError, match=r"round 0: its samples could not be loaded \(FileNotFoundError\)$"):
        list(over_flower(local_grid(1, data=data)).run(Evaluate(), WEIGHTS, TURN))


def test_values_per_sample_are_given_out_only_where_the_node_allows_it() -> None:
    ask = Evaluate(per_sample=True)
    with pytest.raises(ClientError, match="a node gives out no values per sample"):
        list(over_flower(local_grid(1)).run(ask, WEIGHTS, TURN))
    ((_, allowed),) = over_flower(local_grid(1, values=True)).run(ask, WEIGHTS, TURN)
    ((_, here),) = HERE.run(ask, WEIGHTS, TURN, ["0"])
    assert all(torch.equal(allowed.values[name], here.values[name]) for name in here.values)


def test_an_order_may_be_too_large_for_a_node() -> None:
    from fedunlearn.backends.envelope import Limits

    with pytest.raises(ClientError, match="where 3 are allowed"):
        list(over_flower(local_grid(1, limits=Limits(tensors=3))).run(LocalTraining(), WEIGHTS, TURN))


@pytest.mark.parametrize(
    ("meant", "same"),
    [
        (Meant("client"), ForgetClient("1")),
        (Meant("class:2"), ForgetClass(2)),
        (Meant("instances", (0, 7)), ForgetInstances({"1": (0, 7)})),
        (Meant("instances"), ForgetInstances({})),
    ],
    ids=str,
)
def test_what_a_client_asked_for_is_what_its_outbox_says(
    meant: Meant, same: Predicate, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with_outbox(monkeypatch, {ID: meant})
    federation = over_flower(local_grid(outbox=lambda context: tmp_path / str(context.node_config["partition-id"])))
    one = ForgetClient("1")  # of another client it means nothing, whatever its scope
    for over, here in (
        (federation.where(Rest(AskedFor("1", ID))).where(one), HERE.where(Rest(same)).where(one)),
        (federation.where(AskedFor("1", ID)), HERE.where(same).where(one)),
    ):
        assert over.clients == here.clients
        counts = [{c: r.samples for c, r in f.run(Evaluate(), WEIGHTS, TURN)} for f in (over, here)]
        assert counts[0] == counts[1]
    assert dict(federation.where(Rest(AskedFor("1", ID))).run(Evaluate(), WEIGHTS, TURN))["2"].samples == 18


@pytest.mark.parametrize("outbox", [True, False], ids=["not in the outbox", "no outbox"])
def test_an_unknown_request_never_means_training_on_everything(
    outbox: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with_outbox(monkeypatch, {})
    found: list[Fault] = []
    federation = over_flower(local_grid(outbox=tmp_path if outbox else None), faults=found.append)
    stays = federation.where(Rest(AskedFor("1", ID)))
    assert stays.clients == ("0", "1", "2", "3")
    assert [client for client, _ in stays.run(LocalTraining(), WEIGHTS, TURN)] == ["0", "2", "3"]
    assert [(fault.client, fault.kind) for fault in found] == [("1", "failed")]
    assert ID in found[0].detail


def test_a_request_in_a_real_outbox_gives_the_bits_of_one_machine(tmp_path: Path) -> None:
    key = SigningKey.make(tmp_path / "key", node=True)
    (tmp_path / "list.txt").write_text("0\n5\n7\n")
    filed = Outbox(tmp_path / "0").file(f"instances:{tmp_path / 'list.txt'}", "withdrawn", key)
    grid = local_grid(outbox=lambda context: tmp_path / str(context.node_config["partition-id"]))
    nodes = greet(grid, None, deadline=5).nodes
    assert [len(found) for found in exchange(grid, nodes, {}, 5).values()] == [1, 0, 0, 0]
    over = list(follow(NoT(), small_task(AskedFor("0", filed.id), over_flower(grid)), 1))
    here = list(follow(NoT(), small_task(ForgetInstances({"0": (0, 5, 7)})), 1))
    assert all(a.round.after.same_bits(b.round.after) for a, b in zip(over, here, strict=True))


def test_an_order_about_other_data_is_refused_without_a_number_on_the_wire(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    key, kept = SigningKey.make(tmp_path / "key", node=True), list(range(20))
    (tmp_path / "list.txt").write_text("5\n7\n")
    outbox = Outbox(tmp_path / "0")
    id = outbox.file(f"instances:{tmp_path / 'list.txt'}", "withdrawn", key).id

    def data(context: Context) -> Any:
        values, labels = samples(context)
        return values[kept], labels[kept]

    grid = local_grid(1, data=data, outbox=tmp_path / "0", keep=True)
    rest = over_flower(grid).where(Rest(AskedFor("0", id)))

    def counted() -> int:
        ((_, reply),) = rest.run(Evaluate(), WEIGHTS, TURN)
        return reply.samples

    before = HERE.where(Rest(ForgetInstances({"0": (5, 7)})))
    assert counted() == dict(before.run(Evaluate(), WEIGHTS, TURN, ["0"]))["0"].samples
    labels = samples(next(iter(grid._nodes.values())))[1]
    assert outbox.bound(id) == Bound(20, hashlib.sha256(struct.pack("<20q", *labels.tolist())).hexdigest())

    del kept[7], kept[5]
    grid.sent.clear()
    with pytest.raises(ClientError, match=rf"round 0: the data are not those that request '{id}' was filed about$"):
        counted()
    assert "was filed about 20 samples, and the data are 18" in caplog.text
    assert any(b"not those" in message for message in grid.sent)
    assert not any(b"the data are 18" in message or b"about 20" in message for message in grid.sent)

    kept[:] = range(20)  # they are there again
    counted()
    outbox.exchange([{"request": id, "state": "done", "why": "", "receipt": {}}])
    del kept[7], kept[5]
    outbox.gone(id)
    assert rest.clients == ("0",)
    whole = over_flower(local_grid(1, data=data))
    assert counted() == dict(whole.run(Evaluate(), WEIGHTS, TURN))["0"].samples


# --- requests ---------------------------------------------------------------------------------------------------------


def test_answers_go_out_and_statements_come_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    told = with_outbox(monkeypatch, {}, open=[{"statement": {"reason": "é"}, "signature": "x"}])
    grid = local_grid(2, outbox=tmp_path)
    nodes = greet(grid, None, deadline=5).nodes
    found = exchange(grid, nodes, {"1": [{"request": ID, "state": "done"}]}, 5)
    assert found == {client: [{"statement": {"reason": "é"}, "signature": "x"}] for client in ("0", "1")}
    assert told == [{"request": ID, "state": "done"}]


def test_a_node_without_an_outbox_asks_nothing() -> None:
    grid = local_grid(1)
    assert exchange(grid, greet(grid, None, deadline=5).nodes, {}, 5) == {"0": []}


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (None, "silent"),
        (talk({"statements": 3}), "malformed"),
        (talk({"statements": [3]}), "malformed"),
        (talk({}), "malformed"),
        (talk({"failed": "no\n disk"}), "malformed"),
        (talk({"statements": [{"reason": "x" * 1000}]}), "malformed"),
        (RecordDict({"fedunlearn": ConfigRecord({"text": "[" * 100_000})}), "malformed"),
        (RecordDict({"fedunlearn": ConfigRecord({"text": "[]"})}), "malformed"),
        (RecordDict({"other": ConfigRecord()}), "malformed"),
    ],
    ids=range(9),
)
def test_an_exchange_goes_on_without_a_bad_answer(
    content: RecordDict | None, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(messages, "_LONGEST_TALK", 1000)
    grid = local_grid(2)
    nodes = greet(grid, None, deadline=5).nodes

    def hook(node: int, message: Message, answer: Callable[[], Message]) -> Message | None:
        if node != nodes["1"]:
            return answer()
        return None if content is None else Message(content, reply_to=message)

    grid.hook, found = hook, []
    assert exchange(grid, nodes, {}, 0.3, found.append) == {"0": []}
    assert [(fault.client, fault.kind) for fault in found] == [("1", kind)]
    assert "\n" not in found[0].detail


def test_an_outbox_that_breaks_is_told_without_its_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with_outbox(monkeypatch, {}, open=map(Path.read_text, [tmp_path / "lost"]))
    grid = local_grid(1, outbox=tmp_path, keep=True)
    found: list[Fault] = []
    exchange(grid, greet(grid, None, deadline=5).nodes, {}, 5, found.append)
    assert [fault.detail for fault in found] == ["its outbox cannot be used: its own log says why"]
    assert not any(tmp_path.name.encode() in message for message in grid.sent)


# --- who a node is ----------------------------------------------------------------------------------------------------


def keyed(tmp_path: Path, keys: list[str]) -> tuple[LocalGrid, dict[str, str]]:
    """Nodes with keys by name, and the public text of each name."""
    public = {name: SigningKey.make(tmp_path / name, node=True).public.text for name in dict.fromkeys(keys)}
    grid = local_grid(len(keys), key=lambda context: tmp_path / keys[int(context.node_config["partition-id"])])
    return grid, public


def test_a_node_is_whose_key_it_signs_with_whatever_number_it_says(tmp_path: Path) -> None:
    grid, public = keyed(tmp_path, ["b", "a", "stranger"])
    one, two, other = grid.get_node_ids()
    greeting = greet(grid, {"hospital a": public["a"], "hospital b": public["b"], "hospital c": _key(tmp_path)})
    assert greeting.nodes == {"hospital a": two, "hospital b": one}
    assert list(greeting.nodes) == ["hospital a", "hospital b"]
    assert [stranger.node for stranger in greeting.strangers] == [other]
    assert PublicKey.of(public["stranger"]).fingerprint in greeting.strangers[0].reason


def _key(tmp_path: Path) -> str:
    return SigningKey.make(tmp_path / "absent", node=True).public.text


def test_two_nodes_with_one_key_are_both_strangers(tmp_path: Path) -> None:
    grid, public = keyed(tmp_path, ["a", "b", "a"])
    greeting = greet(grid, {"1": public["a"], "2": public["b"]})
    assert greeting.nodes == {"2": grid.get_node_ids()[1]}
    assert {stranger.node for stranger in greeting.strangers} == {grid.get_node_ids()[0], grid.get_node_ids()[2]}
    assert greeting.strangers[0].reason == "2 nodes say that they are client 1"


def test_a_signature_is_of_one_node_one_run_and_one_moment(tmp_path: Path) -> None:
    """A node that shows another's key cannot use what that one has signed, at another node or another time."""
    grid, public = keyed(tmp_path, ["a", "thief"])
    honest, thief = grid.get_node_ids()
    roster, overheard = {"1": public["a"]}, []

    def listening(node: int, message: Message, answer: Callable[[], Message]) -> Message:
        reply = answer()
        if node == honest:
            overheard.append(said(reply))
        return reply if node == honest else Message(talk(overheard[-1]), reply_to=message)

    grid.hook = listening
    greeting = greet(grid, roster)
    assert greeting.nodes == {"1": honest}
    assert [s.node for s in greeting.strangers] == [thief]
    assert "could not sign with the key" in greeting.strangers[0].reason
    grid.hook = lambda node, message, answer: Message(talk(overheard[0]), reply_to=message)
    assert greet(grid, roster).nodes == {}


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"key": 3, "signature": "x"},
        {"key": "ssh-ed25519 AAAA", "signature": "x"},
        {"partition": 0},
        {"failed": "no"},
    ],
    ids=str,
)
def test_who_proves_nothing_is_a_stranger(content: dict[str, Any], tmp_path: Path) -> None:
    grid, public = keyed(tmp_path, ["a"])
    grid.hook = lambda node, message, answer: Message(talk(content), reply_to=message)
    greeting = greet(grid, {"1": public["a"]})
    assert greeting.nodes == {}
    assert len(greeting.strangers) == 1


def test_who_is_silent_or_has_no_key_is_a_stranger(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    grid, public = keyed(tmp_path, ["a", "b"])
    silent, keyless = grid.get_node_ids()
    (tmp_path / "b").unlink()
    grid.hook = lambda node, message, answer: None if node == silent else answer()
    greeting = greet(grid, {"1": public["a"], "2": public["b"]}, deadline=0.2)
    assert greeting.nodes == {}
    reasons = {stranger.node: stranger.reason for stranger in greeting.strangers}
    assert reasons == {silent: "it gave no answer", keyless: "it cannot say who it is: its own log says why"}
    assert str(tmp_path) in caplog.text  # at the node, not at the server


def test_a_roster_must_hold_keys_one_each(tmp_path: Path) -> None:
    grid, public = keyed(tmp_path, ["a"])
    with pytest.raises(KeyProblem):
        greet(grid, {"1": "no key"})
    with pytest.raises(ValueError, match="two clients on the roster have the same key"):
        greet(grid, {"1": public["a"], "2": public["a"]})


def test_in_a_simulation_clients_are_partitions_in_order() -> None:
    grid = local_grid(12)
    assert list(greet(grid, None).nodes) == [str(k) for k in range(12)]
    say: dict[int, Any] = dict(zip(grid.get_node_ids(), [0, 0, -1, True, "3", None, *range(6, 12)], strict=True))
    grid.hook = lambda node, message, answer: Message(talk({"partition": say[node]}), reply_to=message)
    greeting = greet(grid, None)
    assert list(greeting.nodes) == ["6", "7", "8", "9", "10", "11"]
    assert [stranger.node for stranger in greeting.strangers] == [*grid.get_node_ids()[2:6], *grid.get_node_ids()[:2]]


QUERIES = """
import sys
from pathlib import Path
from flwr.app import Message
from fedunlearn.flower.client import client_app
from fedunlearn.flower.local import LocalGrid
from fedunlearn.flower.messages import HELLO, REQUESTS, said, talk

def model():
    import torch
    return torch.nn.Linear(2, 2)

folder = Path(sys.argv[1])
grid = LocalGrid(client_app(model, lambda context: None, outbox=folder / "outbox", key=folder / "key"), [{}])
(node,) = grid.get_node_ids()
for kind, content in ((HELLO, {"nonce": "1"}), (REQUESTS, {"answers": []})):
    (reply,) = grid.send_and_receive([Message(talk(content), node, kind)])
    print(sorted(said(reply)))
print("torch" in sys.modules)
"""


def test_a_process_that_answers_a_query_does_not_wait_for_torch(tmp_path: Path) -> None:
    SigningKey.make(tmp_path / "key", node=True)
    told = subprocess.run([sys.executable, "-c", QUERIES, str(tmp_path)], capture_output=True, text=True, check=True)
    assert told.stdout.splitlines() == ["['key', 'signature']", "['statements']", "False"]


def test_the_grid_in_this_process_is_like_the_others() -> None:
    grid = local_grid(1)
    (node,) = grid.get_node_ids()
    context = next(iter(grid._nodes.values()))
    assert samples(context)[1].shape == (20,)
    message = grid.create_message(talk({"nonce": "1"}), HELLO, node, "0")
    (reply,) = grid.send_and_receive([message], timeout=5)
    assert said(reply) == {"partition": 0}
    nobody = Message(talk({"nonce": "1"}), 7, HELLO)
    (missing,) = grid.send_and_receive([nobody])
    assert missing.has_error()
    grid.hook = lambda node, message, answer: None
    assert grid.send_and_receive([Message(talk({"nonce": "1"}), node, HELLO)], timeout=0.05) == []
    run = grid.run
    grid.set_run(run)
    assert grid.run is run
