"""The whole of it on a real SuperLink: TLS, authentication, three SuperNodes, requests of every kind, a kill, receipts.

The processes are those of ``examples/flower-hospital``, started as its ``start.py`` starts them.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from fedunlearn.architecture import Architecture
from fedunlearn.backends.in_process import InProcess
from fedunlearn.checkpoint import load_weights
from fedunlearn.client import Client
from fedunlearn.deletion.events import Began, Filed, RoundDone
from fedunlearn.deletion.register import Register, RegisterError
from fedunlearn.deletion.signing import SigningKey
from fedunlearn.deletion.standing import Standing
from fedunlearn.federation import Federation, Predicate
from fedunlearn.randomness import stable_seed
from fedunlearn.requests import AnyOf, ForgetClass, ForgetClient, ForgetInstances, Rest
from fedunlearn.rounds import fedavg
from fedunlearn.task import Task
from fedunlearn.weights import Weights
from flower.processes import EXAMPLE, nothing_left

SETTINGS = {"rounds": 2, "most": 2, "stay": 0.0, "fewest": 3}
PLACES = (3, 14, 159, 265)
CLASS = 9
PATIENCE = 600  # seconds, on a machine that has other work


@pytest.fixture
def deployment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Three hospitals, prepared and not started; whatever happens, no process of theirs is left behind."""
    monkeypatch.syspath_prepend(str(EXAMPLE))
    from deployment import Deployment, prepare

    prepare(tmp_path / "hospitals", 3, free_ports(5))
    made = Deployment(tmp_path / "hospitals")
    with nothing_left(made.folder):
        try:
            yield made
        finally:
            made.stop()


@pytest.mark.long
def test_requests_outlive_the_server_and_end_in_receipts_and_the_bits_of_one_process(
    deployment: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    lap = Stages(capsys)
    deployment.start()
    lap("SuperLink and three SuperNodes are ready")
    require_tls_and_known_keys(deployment)
    lap("a plain connection and an unknown key are refused")

    server, node = deployment.folder / "server", deployment.folder / "hospital-2"
    register = server / "register"
    first = deployment.run(**SETTINGS)
    until(lambda: rounds(register, "train"))
    lap("the first round is trained")
    (node / "withdrawn.txt").write_text("\n".join(map(str, PLACES)))
    key, outbox = ("--key", node / "key"), ("--outbox", node / "outbox")
    scope = ("--scope", f"instances:{node / 'withdrawn.txt'}")
    fedunlearn("requests", "new", *scope, "--reason", "consent withdrawn", *key, *outbox)
    operator = ("--key", server / "key", "--register", register)
    fedunlearn("requests", "new", "--scope", f"class:{CLASS}", "--reason", "label was wrong", *operator)

    until(lambda: rounds(register, "recover"))
    lap("the first round of recovery is done")
    (pid,) = deployment.pids("flwr-serverapp", "superlink")
    os.kill(pid, signal.SIGKILL)
    assert standing(register).unlearnings[0].recovered is None
    leaves = deployment.folder / "hospital-3"
    mine = ("--key", leaves / "key", "--outbox", leaves / "outbox")
    fedunlearn("requests", "new", "--scope", "client", "--reason", "it leaves", *mine)  # in the middle of a recovery
    second = deployment.run(**SETTINGS)
    assert second != first
    until(lambda: deployment.pids("flwr-serverapp", "superlink"))
    lap("the server was killed, and is there again")
    until(lambda: not deployment.pids("flwr-serverapp", "superlink"))
    until(lambda: deployment.status(second).startswith("finished"))
    assert deployment.status(second) == "finished:completed", deployment.run_log(second)
    lap("it has ended")

    told = standing(register)
    receipts: list[object] = []
    for whose, scope_of in ((node, "instances"), (leaves, "client"), (server, f"class:{CLASS}")):
        (request,) = (id for id, entry in told.requests.items() if entry.scope == scope_of)
        receipt = whose / "receipt.json"
        fedunlearn("requests", "export", register if whose == server else whose / "outbox", request, "-o", receipt)
        assert "unchanged; audit: " in fedunlearn("receipt", "verify", receipt, "--key", server / "key.pub")
        receipts += ["--receipt", receipt]
    checked = ("requests", "verify", register, "--key", server / "key.pub", *receipts)
    assert "events, as its server wrote them" in fedunlearn(*checked)
    done = [(done.phase, done.unlearning, done.number) for done in done_rounds(told)]
    assert len(done) == len(set(done)), "a round stands there twice"
    assert [number for phase, _, number in done if phase == "train"] == [0, 1]
    for number in range(len(told.unlearnings)):
        assert [(p, n) for p, u, n in done if u == number] == [("unlearn", 0), ("recover", 0), ("recover", 1)]
    assert told.last is not None
    assert told.last.negations[:2] == [["conv1.weight"], ["conv2.weight"]]  # never the same layer twice in a row
    assert told.last.samples.keys() == {"hospital-1", "hospital-2"}
    weights = load_weights(register / "checkpoints" / told.last.checkpoint)
    assert weights.same_bits(in_one_process(register))
    assert [path.name for path in (register / "checkpoints").iterdir()] == [told.last.checkpoint]
    lap("and everything is as in one process")


def require_tls_and_known_keys(deployment: Any) -> None:
    from deployment import DeploymentError

    with pytest.raises((OSError, HTTPException)):
        urlopen(f"http://{deployment.address}/health", timeout=5)
    with pytest.raises(OSError, match="CERTIFICATE_VERIFY_FAILED"):  # for those who have not got the authority
        urlopen(f"https://{deployment.address}/health", timeout=5)
    stranger = deployment.folder / "stranger"
    SigningKey.make(stranger, node=True)
    deployment.start_hospital("hospital-4", stranger)
    with pytest.raises(DeploymentError, match="hospital-4 has ended; a key that is not registered"):
        deployment.wait_for("hospital-4")


def in_one_process(register: Path) -> Weights:
    """The same on one machine: what the register says was asked when, and nothing else of it."""
    from hospital.data import share
    from hospital.model import Network
    from hospital.server_app import plan

    does, architecture = plan(dict(SETTINGS)), Architecture(Network)
    clients = [Client.of(f"hospital-{number + 1}", share(number)) for number in range(3)]
    federation = InProcess(Network, clients, workers=1, device="cpu")
    means: dict[str, Predicate] = {
        "instances": ForgetInstances({"hospital-2": PLACES}),
        "client": ForgetClient("hospital-3"),
        f"class:{CLASS}": ForgetClass(CLASS),
    }
    filed: dict[str, Predicate] = {}
    answered: list[str] = []
    weights = architecture.fresh(does.seed)
    task: Any = None
    for entered in Register.read(register).events():
        match entered.event:
            case Filed(request, _, signed):
                filed[request] = means[signed["statement"]["scope"]]
            case Began(number, requests):
                earlier = without(federation, [filed[id] for id in answered])
                seed = stable_seed(does.seed, "unlearning", number)
                asked = AnyOf(tuple(filed[id] for id in requests))
                task = Task.of(earlier, weights, asked, does.training, architecture, recovery=does.recovery, seed=seed)
                answered += requests
            case RoundDone("train", number):
                steps = fedavg(without(federation, filed.values()), weights, does.training, does.seed, "train", number)
                weights = next(steps).after
            case RoundDone("unlearn"):
                (done,) = does.method.unlearn(task)
                weights = done.after
            case RoundDone("recover", number):
                staying = replace(task, retained=without(federation, filed.values()))
                weights = next(does.method.recover(staying, weights, number)).after
    return weights


def without(federation: Federation, predicates: Iterable[Predicate]) -> Federation:
    several = tuple(predicates)
    return federation.where(Rest(AnyOf(several))) if several else federation


def standing(register: Path) -> Standing:
    return Register.read(register).standing()


def rounds(register: Path, phase: str) -> list[RoundDone]:
    try:
        return [done for done in done_rounds(standing(register)) if done.phase == phase]
    except RegisterError:  # the server has not made it yet
        return []


def done_rounds(told: Standing) -> list[RoundDone]:
    return [done for _, done in told.rounds]


def fedunlearn(*arguments: object) -> str:
    command = [sys.executable, "-m", "fedunlearn", *map(str, arguments)]
    told = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert told.returncode == 0, told.stdout + told.stderr
    return told.stdout


def until(there: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE
    while not there():
        assert time.monotonic() < end, f"not within {PATIENCE} seconds"
        time.sleep(0.5)


def free_ports(count: int) -> int:
    """The first of so many ports in a row that nobody listens on."""
    while True:
        first = random.SystemRandom().randrange(20_000, 30_000)
        with suppress(OSError), ExitStack() as held:
            for port in range(first, first + count):
                held.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return first


class Stages:
    """Says how long each stage took."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys, self._begun, self._last = capsys, time.monotonic(), time.monotonic()

    def __call__(self, stage: str) -> None:
        now = time.monotonic()
        with self._capsys.disabled():
            print(f"\n{now - self._begun:6.1f} s  {now - self._last:+6.1f}  {stage}", end="", flush=True)
        self._last = now
