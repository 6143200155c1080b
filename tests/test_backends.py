"""The in-process backend and the wrappers: bits, errors, early stops, scripts without a guard, accounts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from fedunlearn.audits.probe import Features
from fedunlearn.audits.recognition import Recognition
from fedunlearn.audits.signals import Confidence
from fedunlearn.backends.in_process import InProcess
from fedunlearn.backends.metered import Ledger, Metered
from fedunlearn.backends.packing import pack, unpack
from fedunlearn.backends.pool import Pool
from fedunlearn.backends.sampled import Sampled
from fedunlearn.backends.wire import WireError, decode, encode, weights_in
from fedunlearn.backends.worker import Settings
from fedunlearn.backends.wrapper import Wrapper
from fedunlearn.client import Client
from fedunlearn.contract import SmallNet, small_federation
from fedunlearn.federation import (
    ClientContext,
    ClientError,
    ClientId,
    Forgotten,
    Program,
    Reply,
    Retained,
    Traffic,
    Turn,
    Work,
)
from fedunlearn.methods.recalibration import Recalibrate
from fedunlearn.models import build
from fedunlearn.programs import (
    SGD,
    Adam,
    Constant,
    Cosine,
    CrossEntropy,
    Evaluate,
    Exponential,
    LocalTraining,
)
from fedunlearn.requests import AnyOf, ForgetClass, ForgetClient, ForgetInstances, Rest
from fedunlearn.rounds import aggregate
from fedunlearn.weights import Average, Weights

TURN = Turn(0, "train", 0)
TRAINING = LocalTraining(SGD(0.05), batch_size=8)


@dataclass(frozen=True)
class FailAt:
    client: int

    def __call__(self, context: ClientContext) -> Reply:
        if context.samples(part="all") == self.client:
            raise ZeroDivisionError("by nought")
        return Reply(samples=context.samples(part="all"))


@dataclass(frozen=True)
class Die:
    def __call__(self, context: ClientContext) -> Reply:
        os.kill(os.getpid(), signal.SIGKILL)
        return Reply()


class Peculiar(Exception):
    """Can be pickled, but not unpickled."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__("peculiar")


@dataclass(frozen=True)
class FailPeculiarly:
    unpickled: bool = False

    def __call__(self, context: ClientContext) -> Reply:
        if self.unpickled:
            return Reply(metrics={"generator": (n for n in range(3))})  # type: ignore[dict-item]
        raise Peculiar(1, 2)


@dataclass(frozen=True)
class Sleep:
    seconds: float

    def __call__(self, context: ClientContext) -> Reply:
        time.sleep(self.seconds)
        return Reply()


@dataclass(frozen=True)
class WhatIsSet:
    def __call__(self, context: ClientContext) -> Reply:
        return Reply(values={"mkldnn": torch.tensor(torch.backends.mkldnn.enabled)})


@dataclass(frozen=True)
class WhereAmI:
    def __call__(self, context: ClientContext) -> Reply:
        return Reply(metrics={"pid": os.getpid(), "threads": torch.get_num_threads()})


@pytest.fixture(params=["one_worker", "two_workers"])
def federation(request: pytest.FixtureRequest) -> InProcess:
    found: InProcess = request.getfixturevalue(request.param)
    return found


def test_replies_come_in_client_order_and_only_from_those_asked(federation: InProcess) -> None:
    weights = federation.architecture.fresh(0)
    assert [c for c, _ in federation.run(TRAINING, weights, TURN)] == ["0", "1", "2", "3"]
    assert [c for c, _ in federation.run(TRAINING, weights, TURN, ["3", "1"])] == ["1", "3"]
    with pytest.raises(KeyError, match="no such client here: 7, x"):
        federation.run(TRAINING, weights, TURN, ["x", "1", "7"])
    with pytest.raises(KeyError, match="no such client here: 1"):
        federation.where(Rest(ForgetClient("1"))).run(TRAINING, weights, TURN, ["1"])


def test_an_error_carries_the_clients_id_and_the_federation_goes_on(federation: InProcess) -> None:
    weights = federation.architecture.fresh(0)
    replies = federation.run(FailAt(22), weights, TURN)
    assert [next(replies)[0], next(replies)[0]] == ["0", "1"]
    with pytest.raises(ClientError, match="client 2, train round 0: by nought"):
        next(replies)
    assert len(list(federation.run(TRAINING, weights, TURN))) == 4


def test_a_reader_may_stop_early(federation: InProcess) -> None:
    weights = federation.architecture.fresh(0)
    expected = aggregate(federation, weights, TRAINING, TURN)
    replies = federation.run(TRAINING, weights, TURN)
    next(replies)
    replies.close()
    assert aggregate(federation, weights, TRAINING, TURN).same_bits(expected)


def test_a_round_inside_a_round_is_done_here_with_the_same_bits(two_workers: InProcess) -> None:
    weights = two_workers.architecture.fresh(0)
    expected = aggregate(two_workers, weights, TRAINING, TURN)
    outer = two_workers.run(TRAINING, weights, TURN)
    next(outer)
    assert aggregate(two_workers, weights, TRAINING, TURN).same_bits(expected)
    assert len(list(outer)) == 3


def test_federations_share_their_workers(two_workers: InProcess) -> None:
    other = small_federation(workers=2)
    weights, pids = other.architecture.fresh(0), []
    for federation in (two_workers, other, two_workers):
        assert aggregate(federation, weights, TRAINING, TURN).same_bits(aggregate(other, weights, TRAINING, TURN))
        pids.append({r.metrics["pid"] for _, r in federation.run(WhereAmI(), weights, TURN)})
    assert pids[0] == pids[1] == pids[2]


def test_workers_are_processes_with_one_thread(two_workers: InProcess) -> None:
    replies = [r.metrics for _, r in two_workers.run(WhereAmI(), two_workers.architecture.fresh(0), TURN)]
    assert {m["threads"] for m in replies} == {1}
    assert os.getpid() not in {m["pid"] for m in replies}


def test_here_too_one_thread_computes_and_the_callers_number_comes_back(one_worker: InProcess) -> None:
    before = torch.get_num_threads()
    replies = [r.metrics for _, r in one_worker.run(WhereAmI(), one_worker.architecture.fresh(0), TURN)]
    assert {m["threads"] for m in replies} == {1}
    assert torch.get_num_threads() == before


def test_a_worker_that_dies_is_an_error_and_others_replace_it() -> None:
    federation = small_federation(workers=2)
    weights = federation.architecture.fresh(0)
    with pytest.raises(RuntimeError, match=r"a worker process died \(exit code -9\)"):
        list(federation.run(Die(), weights, TURN))
    assert len(list(federation.run(TRAINING, weights, TURN))) == 4  # by workers that the next tests share


@pytest.mark.parametrize(("unpickled", "says"), [(False, "peculiar|cannot be read"), (True, "cannot travel")])
def test_what_does_not_travel_is_an_error_and_no_deadlock(two_workers: InProcess, unpickled: bool, says: str) -> None:
    weights = two_workers.architecture.fresh(0)
    with pytest.raises(RuntimeError, match=says):
        list(two_workers.run(FailPeculiarly(unpickled), weights, TURN))
    assert len(list(two_workers.run(TRAINING, weights, TURN))) == 4


@pytest.fixture
def _interruptible() -> Iterator[None]:
    """However the tests were started: a shell's background jobs ignore interrupts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_interruptible")
def test_an_interrupt_does_not_wait_for_clients_at_work() -> None:
    federation = small_federation(workers=2)
    weights = federation.architecture.fresh(0)
    list(federation.run(TRAINING, weights, TURN))
    timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    started = time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        list(federation.run(Sleep(60), weights, TURN))
    assert time.perf_counter() - started < 20
    assert len(list(federation.run(TRAINING, weights, TURN))) == 4


def test_a_forked_child_leaves_the_workers_alone_and_has_its_own() -> None:
    """In a process of its own: pytest's is no place to fork."""
    code = """
import os
from fedunlearn.contract import small_federation
from fedunlearn.federation import Turn
from fedunlearn.programs import LocalTraining
from fedunlearn.rounds import aggregate

federation = small_federation(workers=2)
weights = federation.architecture.fresh(0)
first = aggregate(federation, weights, LocalTraining(), Turn(0, "train", 0))
child = os.fork()
again = aggregate(federation, weights, LocalTraining(), Turn(0, "train", 0))
print("child" if child == 0 else "parent", again.same_bits(first), flush=True)
if child:
    os.waitpid(child, 0)
    print(aggregate(federation, weights, LocalTraining(), Turn(0, "train", 0)).same_bits(first))
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert told.returncode == 0, told.stderr
    assert sorted(told.stdout.split()) == ["True", "True", "True", "child", "parent"]


@pytest.mark.parametrize("setting", ["mkldnn", "matmul"])
def test_workers_take_over_torchs_settings(setting: str, one_worker: InProcess, two_workers: InProcess) -> None:
    before = Settings.here()
    changes = {"mkldnn": {"mkldnn": False}, "matmul": {"matmul": "medium"}}
    try:
        replace(before, **changes[setting]).apply()  # type: ignore[arg-type]
        weights = one_worker.architecture.fresh(0)
        one, two = (aggregate(f, weights, TRAINING, TURN) for f in (one_worker, two_workers))
        assert one.same_bits(two)
        seen = [r.values["mkldnn"] for _, r in two_workers.run(WhatIsSet(), weights, TURN)]
        assert {bool(v) for v in seen} == {setting != "mkldnn"}
    finally:
        before.apply()


def test_the_cause_of_a_clients_error_comes_along(federation: InProcess) -> None:
    with pytest.raises(ClientError) as caught:
        list(federation.run(FailAt(20), federation.architecture.fresh(0), TURN))
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert str(caught.value.__cause__) == "by nought"


def test_a_predicate_that_fails_names_the_client(federation: InProcess) -> None:
    view = federation.marking(ForgetInstances({"2": (99,)}))
    with pytest.raises(ClientError, match="client 2, train round 0: client 2 has samples 0 to 21, but 99"):
        list(view.run(TRAINING, federation.architecture.fresh(0), TURN))


def locked(workers: int | None) -> InProcess:
    class Locked(torch.utils.data.Dataset[tuple[torch.Tensor, int]]):
        lock = None

        def __init__(self) -> None:
            self.lock = threading.Lock()  # as an open archive has

        def __len__(self) -> int:
            return 8

        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            return torch.zeros(1, 6, 6), index % 3

    return InProcess(SmallNet, [Client.of(k, Locked()) for k in "ab"], workers=workers, device="cpu")


def test_data_that_cannot_travel(monkeypatch: pytest.MonkeyPatch) -> None:
    import fedunlearn.backends.in_process as module

    explicit = locked(2)
    with pytest.raises(RuntimeError, match=r"cannot travel between processes .*: run with workers=1"):
        list(explicit.run(TRAINING, explicit.architecture.fresh(0), TURN))
    monkeypatch.setattr(module, "_cores", lambda: 2)  # whose workers run already
    patient = locked(None)
    Pool.shared(2).started(wait=True)
    with pytest.warns(RuntimeWarning, match="going on with one worker"):
        assert len(list(patient.run(TRAINING, patient.architecture.fresh(0), TURN))) == 2


def test_patience_changes_no_bit(monkeypatch: pytest.MonkeyPatch, one_worker: InProcess) -> None:
    """Without a number of workers, a federation begins here and moves to workers in the middle of a round."""
    import fedunlearn.backends.in_process as module

    monkeypatch.setattr(module, "_cores", lambda: 3)  # a pool that no other test has started
    monkeypatch.setattr(module._Engine, "_PATIENCE", 1e-9)
    federation = InProcess(SmallNet, one_worker._engine.clients.values(), device="cpu")
    weights = federation.architecture.fresh(0)
    expected = aggregate(one_worker, weights, TRAINING, TURN)
    mean = Average(like=weights)
    for client, reply in federation.run(TRAINING, weights, TURN):
        assert reply.weights is not None
        mean.add(reply.weights, reply.samples)
        if client == "1":  # they were started after the first client; the third finds them
            Pool.shared(3).started(wait=True)
    assert mean.result().same_bits(expected)
    assert {r.metrics["pid"] == os.getpid() for _, r in federation.run(WhereAmI(), weights, TURN)} == {False}
    federation.close()


GUARDLESS = """
import torch
from torch import nn
from fedunlearn.backends.in_process import InProcess
from fedunlearn.backends.worker import Settings
from fedunlearn.backends.wrapper import Wrapper
from fedunlearn.client import Client
from fedunlearn.programs import LocalTraining
from fedunlearn.rounds import train

class Net(nn.Module):  # defined in __main__
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)
    def forward(self, x):
        print("a user's print")
        return self.layer(x)

data = (torch.randn(40, 2), torch.randint(2, (40,)))
clients = [Client.of(str(k), data, range(10 * k, 10 * k + 10)) for k in range(4)]
federation = InProcess(Net, clients, workers=2, device="cpu")
train(federation, federation.architecture.fresh(0), LocalTraining(), rounds=2)
print("done")
"""


@pytest.mark.parametrize("standard_input", [False, True])
def test_scripts_need_no_guard_and_no_file(tmp_path: Path, standard_input: bool) -> None:
    script = tmp_path / "script.py"
    script.write_text(GUARDLESS)
    command = [sys.executable, "-W", "error", "-" if standard_input else str(script)]
    told = subprocess.run(command, input=GUARDLESS, capture_output=True, text=True, timeout=120, check=False)
    assert told.stdout.strip().endswith("done"), told.stderr
    assert told.returncode == 0


def test_nothing_is_left_behind_by_a_federation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    federation = small_federation(workers=2)
    list(federation.run(TRAINING, federation.architecture.fresh(0), TURN))
    pool = federation._engine._pool
    assert pool is not None
    assert list(tmp_path.iterdir()) == []
    federation.close()
    assert all(process.poll() is not None for process in pool._processes)


def test_two_clients_of_one_name_and_no_worker_are_refused() -> None:
    client = Client.of("a", (torch.zeros(3, 1), torch.zeros(3, dtype=torch.int64)))
    with pytest.raises(ValueError, match="two clients have the id 'a'"):
        InProcess(SmallNet, [client, client])
    with pytest.raises(ValueError, match="workers must be at least 1, not 0"):
        InProcess(SmallNet, [client], workers=0)


def test_emptied_clients_vanish(one_worker: InProcess) -> None:
    assert one_worker.where(ForgetClient("2")).clients == ("2",)
    assert one_worker.where(ForgetInstances({"3": (0, 1, 2)})).clients == ("3",)
    assert one_worker.where(ForgetClass(9)).clients == ()
    assert one_worker.where(ForgetClass(1)).where(Rest(ForgetClass(1))).clients == ()
    assert one_worker.marking(ForgetClass(9)).clients == ("0", "1", "2", "3")


def test_tensors_travel_bit_for_bit_without_entering_the_pickle() -> None:
    tensors = [
        torch.randn(1000),
        torch.arange(3),
        torch.tensor(5),
        torch.zeros(0, 2),
        torch.randn(6, 4).t(),
        torch.randn(3).bfloat16(),
    ]
    frames = pack(tensors)
    assert len(frames[0]) < 2500
    for a, b in zip(tensors, unpack([bytearray(frame) for frame in frames]), strict=True):
        assert torch.equal(a, b)
        assert a.dtype == b.dtype


# --- accounts -------------------------------------------------------------------------------------------------------


def test_a_rounds_traffic_is_the_closed_form(one_worker: InProcess) -> None:
    """2 |A| S bytes, and one pass forward and one back for each training sample: 16 + 17 + 18 + 19."""
    ledger = Ledger()
    weights = one_worker.architecture.fresh(0)
    aggregate(Metered(one_worker, ledger), weights, TRAINING, TURN)
    size, everything = 4 * (4 * 9 + 8 + 36 * 3 + 3), 4 * (4 * 9 + 8 + 36 * 3 + 3) + 4 * 8 + 8
    assert (weights.parameter_bytes, weights.nbytes) == (size, everything)
    assert ledger.phases == {"train": Traffic(4 * size, 4 * size, 4 * everything, 4 * everything, Work(70, 70))}


def test_views_share_the_account_and_phases_do_not(one_worker: InProcess) -> None:
    ledger, weights = Ledger(), one_worker.architecture.fresh(0)
    metered = Metered(one_worker, ledger)
    list(metered.where(ForgetClient("0")).run(TRAINING, weights, TURN))
    list(metered.marking(ForgetClass(1)).run(Evaluate(per_sample=True), weights, Turn(0, "evaluate", 0)))
    assert ledger.phases["train"].work == Work(16, 16)
    evaluated = ledger.phases["evaluate"]
    assert (evaluated.down, evaluated.up) == (4 * weights.parameter_bytes, 0)
    assert evaluated.up_all == 70 * (8 + 1 + 1)


def test_resnet_18_has_the_papers_size() -> None:
    """Nine clients, up and down: 805,078,224 bytes a round; with BatchNorm's buffers 38,560 more a message."""
    resnet = Weights.of(build("resnet18", 10, (3, 224, 224)))
    assert 9 * 2 * resnet.parameter_bytes == 805_078_224
    assert resnet.nbytes == 44_765_128


class Unreachable(Wrapper):
    """A federation in which client 1 never answers."""

    def run(
        self, program: Program, weights: Weights, turn: Turn, clients: Sequence[ClientId] | None = None
    ) -> Iterator[tuple[ClientId, Reply]]:
        return ((c, r) for c, r in self.inner.run(program, weights, turn, clients) if c != "1")


def test_who_is_asked_in_vain_has_still_been_sent_a_model(one_worker: InProcess) -> None:
    ledger, weights = Ledger(), one_worker.architecture.fresh(0)
    average = aggregate(Metered(Unreachable(one_worker), ledger), weights, TRAINING, TURN)
    assert ledger.phases["train"].down == 4 * weights.parameter_bytes
    assert ledger.phases["train"].up == 3 * weights.parameter_bytes
    assert average.same_bits(aggregate(one_worker, weights, TRAINING, TURN, ["0", "2", "3"]))


@dataclass(frozen=True)
class WithTeacher:
    teacher: Weights

    def __call__(self, context: ClientContext) -> Reply:
        return Reply(extra={"copy": self.teacher})


def test_weights_in_a_programs_fields_and_in_extra_are_counted(one_worker: InProcess) -> None:
    ledger, weights = Ledger(), one_worker.architecture.fresh(0)
    list(Metered(one_worker, ledger).run(WithTeacher(weights), weights, TURN))
    assert ledger.phases["train"].down == 4 * 2 * weights.parameter_bytes
    assert ledger.phases["train"].up_all == 4 * weights.nbytes


# --- participation --------------------------------------------------------------------------------------------------


def test_a_share_takes_part_and_views_choose_alike(one_worker: InProcess) -> None:
    weights = one_worker.architecture.fresh(0)
    half = Sampled(one_worker, 0.5)
    drawn = [tuple(c for c, _ in half.run(Evaluate(), weights, Turn(0, "train", n))) for n in range(12)]
    assert {len(d) for d in drawn} == {2}
    assert len(set(drawn)) > 3
    assert drawn[3] == tuple(c for c, _ in half.run(Evaluate(), weights, Turn(0, "train", 3, "another step")))
    for number, all_ in enumerate(drawn):
        without = half.where(Rest(ForgetClient("1"))).run(Evaluate(), weights, Turn(0, "train", number))
        assert set(all_) - {"1"} <= {c for c, _ in without}
    assert [c for c, _ in half.run(Evaluate(), weights, TURN, ["0", "1", "2"])] == ["0", "1", "2"]
    for share in (0, -1, 1.5):
        with pytest.raises(ValueError, match=r"must be in \(0, 1\]"):
            Sampled(one_worker, share)


def test_shares_are_not_off_by_a_rounding_error(one_worker: InProcess) -> None:
    """0.28 * 100 is 28.000000000000004, 0.29 * 100 is 28.999999999999996."""
    data = (torch.zeros(100, 1), torch.zeros(100, dtype=torch.int64))
    hundred = InProcess(SmallNet, [Client.of(str(k), data, [k], validation=0) for k in range(100)], device="cpu")
    assert len(Sampled(hundred, 0.28)._drawn(TURN)) == 28
    assert int(Client.of("a", data, validation=0.29).validation.sum()) == 29


def test_the_meter_is_inside_the_draw(one_worker: InProcess) -> None:
    weights, ledger = one_worker.architecture.fresh(0), Ledger()
    with pytest.raises(TypeError, match="put Sampled around Metered"):
        Metered(Sampled(one_worker, 0.5), ledger)
    aggregate(Sampled(Metered(one_worker, ledger), 0.5), weights, TRAINING, TURN)
    assert ledger.phases["train"].down == 2 * weights.parameter_bytes


# --- the wire -------------------------------------------------------------------------------------------------------

TRAVELLERS = [
    TRAINING,
    LocalTraining(Adam(), Cosine(5), of=Retained(), clip=1.0, batches=3),
    LocalTraining(schedule=Exponential(0.5), of=Forgotten()),
    Evaluate(per_sample=True),
    Confidence("all", Forgotten()),
    Features(of=Retained(), batch_size=7),
    Recognition(batch_size=7),
    Recalibrate(8),
    CrossEntropy(),
    Constant(),
    ForgetClient("1"),
    ForgetClass(3),
    Rest(AnyOf((ForgetInstances({"0": (1, 2)}), ForgetClass(1)))),
]


@pytest.mark.parametrize("traveller", TRAVELLERS, ids=str)
def test_programs_and_predicates_travel_as_json(traveller: object) -> None:
    import json

    message, weights = encode(traveller)
    assert decode(json.loads(json.dumps(message)), weights) == traveller


def test_weights_travel_beside_the_json() -> None:
    one, two = Weights({"w": torch.ones(2)}), Weights({"w": torch.zeros(2)})
    message, weights = encode(AnyOf((WithTeacher(one), WithTeacher(two))))  # type: ignore[arg-type]
    assert weights == [one, two]
    assert weights_in(WithTeacher(one)) == [one]
    back = decode(message, weights, allow=[WithTeacher])
    assert [p.teacher for p in back.requests] == [one, two]


@pytest.mark.parametrize(
    "message",
    [
        {"type": "os:system", "fields": {"command": "true"}},
        {"type": "fedunlearn.randomness:stable_seed", "fields": {}},
        {"type": "fedunlearn.backends.metered:Weights", "fields": {}},  # defined elsewhere
        {"type": "fedunlearn.nothing:Here", "fields": {}},
        {"type": "fedunlearn.experiment:_Build", "fields": {}},
        {"type": "fedunlearn.client:View", "fields": {}},
        {"type": "fedunlearn.requests:ForgetClass", "fields": {"label": 1, "more": 2}},
        {"type": "fedunlearn.requests:ForgetClass"},
        {"weights": 3},
        {"weights": -1},
        {"map": [[1]]},
        {"type": ["a"], "fields": {}},
        {},
        3 + 4j,
    ],
)
def test_what_is_not_ours_is_refused(message: object) -> None:
    with pytest.raises(WireError):
        decode(message)


def test_what_does_not_travel_is_told_so() -> None:
    with pytest.raises(WireError, match="function does not travel: use a frozen dataclass"):
        encode(LocalTraining(loss=lambda context: None))  # type: ignore[arg-type,return-value]
    with pytest.raises(WireError, match="refused"):
        decode(encode(FailAt(1))[0])
