"""What a round does does not grow with clients that take no part in it: counted, not timed."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fedunlearn.backends.in_process import InProcess
from fedunlearn.backends.recorded import Recorded, Recorder
from fedunlearn.backends.sampled import Sampled
from fedunlearn.client import Client, View
from fedunlearn.federation import ClientId, Predicate, Turn
from fedunlearn.history import Layout
from fedunlearn.programs import SGD, LocalTraining
from fedunlearn.randomness import stable_seed, stable_seeds
from fedunlearn.requests import AnyOf, AskedFor, ForgetClass, ForgetClient, ForgetInstances, Rest, held, wholly
from fedunlearn.rounds import aggregate
from fedunlearn.samples import TensorSamples
from fedunlearn.task import Task

TRAINING = LocalTraining(SGD(0.01), batch_size=4)
MANY, TAKE_PART = 60, 3
DATA = TensorSamples(torch.randn(40, 3), torch.arange(40) % 4)

texts = st.text(max_size=5)


def net() -> nn.Module:
    return nn.Linear(3, 4)


@pytest.fixture(scope="module")
def many() -> InProcess:
    each = [Client.of(str(k), DATA, (torch.arange(5) + k) % 40, validation=0.2) for k in range(MANY)]
    return InProcess(net, each, workers=1, device="cpu")


asked = Counter[ClientId]()


@dataclass(frozen=True)
class Watched:
    """A predicate of which nobody knows anything; it counts who is asked."""

    label: int

    def __call__(self, client: ClientId, labels: Tensor) -> Tensor:
        asked[client] += 1
        return labels == self.label


def test_who_takes_no_part_is_asked_once_a_request_and_not_each_round(many: InProcess) -> None:
    asked.clear()
    task = Task.of(Sampled(many, TAKE_PART / MANY), many.architecture.fresh(0), Watched(1), TRAINING, many.architecture)
    assert set(asked.values()) == {2}  # of those who stay and those who go, whom there are
    assert len(asked) == MANY
    asked.clear()
    weights = task.weights
    for number in range(4):
        weights = aggregate(task.retained, weights, TRAINING, Turn(0, "recover", number))
    assert sum(asked.values()) == 4 * TAKE_PART


def test_a_request_of_clients_asks_for_nobodys_labels(many: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[ClientId] = []
    plain = View.of

    def of(self: View, client: Client) -> Any:
        opened.append(client.id)
        return plain(self, client)

    monkeypatch.setattr(View, "of", of)
    gone = AnyOf((ForgetClient("3"), ForgetClient("7")))
    task = Task.of(many, many.architecture.fresh(0), gone, TRAINING, many.architecture)
    assert task.targets == task.forgotten.clients == ("3", "7")
    assert len(task.retained.clients) == MANY - 2
    assert opened == []
    task = Task.of(many, task.weights, ForgetInstances({"5": (0,)}), TRAINING, many.architecture)
    assert len(task.retained.clients) == MANY
    assert set(opened) == {"5"}


def test_of_a_thousand_requests_a_client_is_asked_about_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[ClientId] = []
    plain = ForgetClient.__call__

    def call(self: ForgetClient, client: ClientId, labels: Tensor) -> Tensor:
        calls.append(self.client)
        return plain(self, client, labels)

    monkeypatch.setattr(ForgetClient, "__call__", call)
    requests = AnyOf((*(ForgetClient(str(k)) for k in range(1000)), ForgetClass(2)))
    assert requests("8", torch.tensor([1, 2])).tolist() == [True, True]
    assert requests("nobody", torch.tensor([1, 2])).tolist() == [False, True]
    assert calls == ["8"]


names = st.sampled_from(["a", "b", "c"])
simple = st.one_of(
    names.map(ForgetClient),
    st.integers(0, 2).map(ForgetClass),
    st.dictionaries(names, st.lists(st.integers(0, 3), max_size=2).map(tuple), max_size=2).map(ForgetInstances),
)
predicates = st.recursive(
    simple, lambda inner: st.one_of(inner.map(Rest), st.lists(inner, max_size=4).map(lambda some: AnyOf(tuple(some))))
)
LABELS = torch.tensor([0, 1, 2, 0])


@given(predicates, names)
def test_what_is_plain_is_true(predicate: Predicate, client: ClientId) -> None:
    meant = predicate(client, LABELS)
    plain = wholly(predicate, client)
    assert plain is None or meant.tolist() == [plain] * len(LABELS)


@given(st.lists(predicates, max_size=4), names)
def test_any_of_several_is_all_of_them_one_by_one(several: list[Predicate], client: ClientId) -> None:
    each = torch.stack([torch.zeros(len(LABELS), dtype=torch.bool), *(one(client, LABELS) for one in several)])
    assert torch.equal(AnyOf(tuple(several))(client, LABELS), each.any(0))


@given(st.lists(predicates, max_size=3), names)
def test_what_is_plainly_held_is_what_all_leave(keeps: list[Predicate], client: ClientId) -> None:
    left = torch.stack([torch.ones(len(LABELS), dtype=torch.bool), *(one(client, LABELS) for one in keeps)]).all(0)
    plain = held(keeps, client)
    assert plain is None or left.tolist() == [plain] * len(LABELS)


def test_what_only_a_client_can_say_is_plain_for_all_others() -> None:
    one = AskedFor("a", "some request")
    assert (wholly(one, "a"), wholly(one, "b"), wholly(Rest(one), "b")) == (None, False, True)
    assert AnyOf((one, ForgetClient("b"))).concerning("b") == [ForgetClient("b")]


@given(st.lists(texts | st.integers(), max_size=3), st.lists(texts, max_size=4), st.lists(texts, max_size=2))
def test_many_seeds_are_those_of_each(before: list[object], each: list[str], after: list[object]) -> None:
    assert list(stable_seeds(before, each, after)) == [stable_seed(*before, one, *after) for one in each]


@pytest.mark.parametrize("step", ["", "another"])
def test_those_with_the_lowest_hashes_take_part(many: InProcess, step: str) -> None:
    for number in range(5):
        rank = {id: Turn(7, "recover", number).seed_for(id, "takes part") for id in many.clients}
        lowest = sorted(many.clients, key=lambda id: rank[id])[:TAKE_PART]
        assert Sampled(many, TAKE_PART / MANY)._drawn(Turn(7, "recover", number, step)) == tuple(lowest)


def test_a_flush_lists_no_folder_and_what_has_arrived_takes_the_room_of_those_who_took_part(
    many: InProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder(tmp_path, {"sum", "last_local"}, many.clients)
    recorded = Recorded(Sampled(many, TAKE_PART / MANY), recorder)
    weights = aggregate(recorded, many.architecture.fresh(0), TRAINING, Turn(0, "train", 0))
    listed: list[str] = []
    plain = Layout.versions
    monkeypatch.setattr(Layout, "versions", lambda self, kind: listed.append(kind) or plain(self, kind))
    for number in range(1, 8):
        recorder.flush()
        weights = aggregate(recorded, weights, TRAINING, Turn(0, "train", number))
    recorder.flush()
    assert listed == []
    arrived = torch.from_file(str(tmp_path / ".work" / "arrived"), size=MANY * (3 * 4 + 4)).view(MANY, -1)
    assert int(arrived.any(1).sum()) == TAKE_PART
    recorder.finish(weights)
    for kind in ("sum", "last_local"):  # of each client one version is left, and of nobody else
        left = [path.stem.partition("@")[0] for path in (tmp_path / kind).iterdir()]
        assert TAKE_PART < len(left) == len(set(left)) <= 8 * TAKE_PART
