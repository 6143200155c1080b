"""FUKD: what the paper promises, numbers by hand, and a twin in NumPy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy_twin import (
    TRAINING,
    Array,
    Model,
    Noting,
    Overheard,
    Trajectory,
    Twin,
    distance,
    federation,
    plus,
    scores,
    slope,
    softmax,
    start,
    three_clients,
    weights_of,
    zeros,
)
from numpy_twin_joint import Held
from torch import Tensor, nn

from fedunlearn.backends.in_process import InProcess
from fedunlearn.backends.metered import Ledger, Metered
from fedunlearn.backends.recorded import Recorded, Recorder
from fedunlearn.backends.sampled import Sampled
from fedunlearn.contract import size_of, small_task
from fedunlearn.federation import Batch, ClientContext, Predicate, Traffic, Work
from fedunlearn.methods.fukd import FUKD, Distillation
from fedunlearn.needs import NeedsError
from fedunlearn.programs import Exponential
from fedunlearn.requests import AnyOf, ForgetClass, ForgetClient
from fedunlearn.rounds import train
from fedunlearn.task import Task
from fedunlearn.weights import Weights

LEAVING = ForgetClient("a")
PROXY = Held(np.random.default_rng(5).normal(0, 2, (8, 2)), np.arange(8) % 3)


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Twin:
    return Twin.of(tmp_path_factory.mktemp("twin"), "sum")


@pytest.fixture(scope="module")
def small(one_worker: InProcess) -> Task:
    return small_task(ForgetClient("1"), one_worker)


def served(twin: Twin, request: Predicate = LEAVING, proxy: Held = PROXY) -> Task:
    return twin.task(request, federation({"server": proxy}))


def contribution(trajectory: Trajectory, client: str) -> Model:
    """A_k, the sum over rounds of share times update."""
    shards = three_clients()
    share = len(shards[client].y) / sum(len(shard.y) for shard in shards.values())
    total = zeros(trajectory.models[0])
    for number in range(len(trajectory.local)):
        total = plus(total, trajectory.update(number, client), share)
    return total


def distilled(student: Model, teacher: Model, x: Array, method: FUKD) -> Model:
    """Of T^2 KL(p || q), mean over n, the slope by the student's scores is T (q - p) / n."""
    heat, velocity = method.temperature, zeros(student)
    told = softmax(scores(teacher, x) / heat)
    for _ in range(method.epochs):
        learnt = softmax(scores(student, x) / heat)
        velocity = plus(slope(student, x, heat * (learnt - told) / len(x)), velocity, method.momentum)
        student = plus(student, velocity, -method.lr)
    return student


def context(teacher: nn.Module) -> ClientContext:
    """All that the loss asks of a client's context."""
    return cast(ClientContext, SimpleNamespace(frozen=lambda weights: teacher))


def costing(teacher: nn.Module, temperature: float) -> Callable[[nn.Module, Batch], Tensor]:
    return Distillation(Weights({}), temperature)(context(teacher))


def batch(x: Tensor) -> Batch:
    return Batch(x, torch.zeros(len(x), dtype=torch.int64), torch.zeros(len(x), dtype=torch.bool))


# --- by hand and by twin --------------------------------------------------------------------------------------------


def test_the_loss_by_hand() -> None:
    """Scores (2 ln 3, 0) at temperature 2 are (3/4, 1/4), against (1/2, 1/2): 4 (3/4 ln 3/2 + 1/4 ln 1/2)."""
    told, learnt = torch.tensor([[2 * np.log(3), 0.0]]), torch.zeros(1, 2, dtype=torch.float64)
    cost = costing(nn.Identity(), 2.0)(lambda _: learnt, batch(told))  # type: ignore[arg-type]
    assert float(cost) == pytest.approx(4 * (0.75 * np.log(1.5) + 0.25 * np.log(0.5)))
    assert float(cost) == pytest.approx(0.523248, abs=1e-6)
    other_way = costing(lambda _: learnt, 2.0)(nn.Identity(), batch(told))  # type: ignore[arg-type]
    assert float(other_way) == pytest.approx(4 * 0.5 * np.log(4 / 3))  # KL(teacher || student), not the reverse


@pytest.mark.parametrize("method", [FUKD(lr=0.3, epochs=1), FUKD(0.3, 0.5, 5, 2.0), FUKD(epochs=0)], ids=str)
def test_fukd_is_its_twin_in_numpy(twin: Twin, method: FUKD) -> None:
    task, trajectory = served(twin), twin.trajectory
    subtracted = plus(trajectory.models[-1], contribution(trajectory, "a"), -1)
    rounds = list(method.unlearn(task))
    assert [done.number for done in rounds] == [0, 1]
    assert distance(rounds[0].after, subtracted) < 1e-12
    assert distance(rounds[1].after, distilled(subtracted, trajectory.models[-1], PROXY.x, method)) < 1e-12


def test_distillation_draws_the_student_to_the_teacher(twin: Twin) -> None:
    task = served(twin)
    subtracted, restored = (done.after for done in FUKD(lr=0.1, epochs=50).unlearn(task))
    assert (restored - task.weights).norm() < 0.5 * (subtracted - task.weights).norm()


# --- invariants -----------------------------------------------------------------------------------------------------


def test_1_the_first_model_and_all_contributions_are_the_last_model(small: Task) -> None:
    """Of parameters; a network with BatchNorm in float32, with momentum, in two rounds."""
    assert small.history is not None
    total = small.history.initial
    for client in small.history.clients:
        total = total + small.history.sums[client]
    assert (total - small.history.initial).norm() > 0.1
    assert (total - small.weights).norm() < 1e-6


def test_2_who_had_no_share_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    """A client that was never drawn in training: nothing is kept of it, and there is nothing to subtract."""
    clients = federation(three_clients())
    drawn = Sampled(clients, 0.3)  # one of three in each round
    recorder = Recorder(tmp_path, {"sum"}, clients.clients)
    weights = train(Recorded(drawn, recorder), weights_of(start()), TRAINING, 2)
    history = recorder.finish(weights)
    (absent, *_) = [client for client in clients.clients if client not in history.sums]
    server = federation({"server": PROXY})
    task = Task.of(
        clients, weights, ForgetClient(absent), TRAINING, clients.architecture, history=history, proxy=server
    )
    subtracted, restored = FUKD().unlearn(task)
    assert subtracted.after.same_bits(weights)
    assert (restored.after - weights).norm() < 1e-9  # the student is its own teacher


def test_3_subtracting_everybody_gives_the_first_model(twin: Twin) -> None:
    task, trajectory = served(twin, AnyOf((ForgetClient("a"), ForgetClient("b"), ForgetClient("c")))), twin.trajectory
    subtracted, _ = FUKD().unlearn(task)
    assert distance(subtracted.after, trajectory.models[0]) < 1e-12


def test_contributions_of_several_are_subtracted_together(twin: Twin) -> None:
    task, trajectory = served(twin, AnyOf((ForgetClient("a"), ForgetClient("c")))), twin.trajectory
    subtracted, _ = FUKD().unlearn(task)
    assert distance(subtracted.after, plus(trajectory.models[0], contribution(trajectory, "b"))) < 1e-12


def test_4_the_teacher_has_the_same_bits_afterwards_and_the_student_trains(small: Task) -> None:
    """The teacher is in evaluation mode and frozen; the student's running statistics move from those of theta*."""
    assert small.proxy is not None
    heard: list[Any] = []
    subtracted, restored = FUKD(lr=0.1).unlearn(replace(small, proxy=Overheard(small.proxy, heard)))
    assert not restored.after.same_bits(subtracted.after)
    assert all(torch.equal(b, small.weights.buffers[n]) for n, b in subtracted.after.buffers.items())
    for name in ("norm.running_mean", "norm.running_var"):
        assert not torch.equal(restored.after.buffers[name], small.weights.buffers[name])
    ((turn, program, _, _),) = heard
    given: list[nn.Module] = []
    list(small.proxy.run(Noting(program, given), subtracted.after, turn))
    (teacher,) = given
    assert Weights.of(teacher).same_bits(small.weights)
    assert not teacher.training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.floats(0.1, 50), st.integers(1, 5), st.integers(2, 6))
def test_5_a_student_that_equals_its_teacher_costs_nothing_and_stays(
    seed: int, temperature: float, n: int, classes: int
) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network, x = nn.Linear(3, classes, dtype=torch.float64), torch.randn(n, 3, dtype=torch.float64)
    cost = costing(network, temperature)(network, batch(x))
    told = network(x).detach()
    assert float(cost.detach()) == pytest.approx(0, abs=1e-10)
    learnt = told.clone().requires_grad_()
    costing(lambda _: told, temperature)(lambda _: learnt, batch(x)).backward()  # type: ignore[arg-type,no-untyped-call]
    assert learnt.grad is not None
    assert float(learnt.grad.abs().max()) < 1e-12 * temperature


def test_labels_of_the_proxy_are_not_read(twin: Twin) -> None:
    found = []
    for labels in (PROXY.y, PROXY.y[::-1].copy()):
        task = served(twin, proxy=Held(PROXY.x, labels))
        *_, last = FUKD(lr=0.1).unlearn(task)
        found.append(last.after)
    assert found[0].same_bits(found[1])


def test_its_price_is_no_byte_and_two_networks_on_each_image(twin: Twin) -> None:
    """(1 + 3) C_f n E: two forward passes and one backward, of eight images, three times."""
    task = served(twin)
    assert task.proxy is not None
    ledger = Ledger()
    list(FUKD().unlearn(replace(task, proxy=Metered(task.proxy, ledger, wire=False))))
    assert ledger.phases["unlearn"] == Traffic(work=Work(48, 24)) == FUKD().cost(size_of(replace(task, history=None)))


def test_nothing_but_whole_clients_can_be_subtracted(twin: Twin) -> None:
    task = served(twin, ForgetClass(0))
    with pytest.raises(NeedsError, match="cannot forget a part of a client"):
        FUKD().needs.require(task.circumstances, "FUKD")


def test_the_ordinary_trainings_schedule_and_optimizer_play_no_part_in_distillation(twin: Twin) -> None:
    """Nor need that optimizer have a learning rate that can be set."""

    @dataclass(frozen=True)
    class Own:
        def __call__(self, parameters: Any, factor: float) -> torch.optim.Optimizer:
            return torch.optim.SGD(parameters, 1.0)

    task = served(twin)
    other = replace(task, training=replace(task.training, optimizer=Own(), schedule=Exponential(0.1)))
    for a, b in zip(*(FUKD(lr=0.3).unlearn(one) for one in (task, other)), strict=True):
        assert a.after.same_bits(b.after)
