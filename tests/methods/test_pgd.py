"""PGD: what the paper promises, numbers by hand, and a twin in NumPy."""

from __future__ import annotations

from dataclasses import replace
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy_twin import (
    TRAINING,
    Model,
    Overheard,
    Regression,
    Twin,
    distance,
    federation,
    gradient,
    loss,
    mean,
    plus,
    recorded,
    squared_distance,
    start,
    three_clients,
    weights_of,
    zeros,
)
from numpy_twin_joint import Held
from torch import Tensor, nn

from fedunlearn.architecture import Architecture
from fedunlearn.backends.in_process import InProcess
from fedunlearn.backends.metered import Ledger, Metered
from fedunlearn.backends.recorded import Recorded, Recorder
from fedunlearn.backends.sampled import Sampled
from fedunlearn.client import Client
from fedunlearn.contract import size_of, small_task
from fedunlearn.evaluation.follow import follow
from fedunlearn.federation import Turn
from fedunlearn.methods.pgd import PGD, ProjectedAscent, reference, squared_radius
from fedunlearn.needs import NeedsError
from fedunlearn.programs import SGD, LocalTraining
from fedunlearn.requests import AnyOf, ForgetClass, ForgetClient
from fedunlearn.rounds import train
from fedunlearn.task import Task
from fedunlearn.weights import Weights

FAR = 1e9


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Twin:
    return Twin.of(tmp_path_factory.mktemp("twin"), "last_local")


@pytest.fixture(scope="module")
def small(one_worker: InProcess) -> Task:
    return small_task(ForgetClient("1"), one_worker)


def all_of(*leaving: str) -> AnyOf:
    return AnyOf(tuple(map(ForgetClient, leaving)))


def ascended(centre: Model, own: Model, shard: Held, method: PGD) -> tuple[Model, int]:
    """The model that a leaving client sends, and how many steps it took."""
    assert method.squared_radius is not None
    model, velocity, steps = centre, zeros(centre), 0
    for _ in range(method.iterations * method.updates):
        uphill = gradient(model, shard)
        length = sqrt(squared_distance(uphill, zeros(uphill)))
        velocity = plus(zeros(model), velocity, method.momentum)
        velocity = plus(velocity, uphill, min(1.0, method.clip / (length + 1e-6)))
        model = plus(model, velocity, method.lr)
        steps += 1
        if (squared := squared_distance(model, centre)) > method.squared_radius:
            model = plus(centre, plus(model, centre, -1), sqrt(method.squared_radius / squared))
        if squared_distance(model, own) > method.squared_stop_distance:
            break
    return model, steps


def heard_from(method: PGD, task: Task) -> tuple[Weights, list[int]]:
    """The model after the method, and the steps of those who leave."""
    heard: list[Any] = []
    (done,) = method.unlearn(replace(task, forgotten=Overheard(task.forgotten, heard)))
    return done.after, [reply.metrics["steps"] for *_, reply in heard]


# --- by hand --------------------------------------------------------------------------------------------------------


def quad(values: list[float]) -> Weights:
    first, second = torch.tensor(values, dtype=torch.float64).view(2, 2)
    return Weights({"head.weight": first.view(2, 1), "head.bias": second})


@pytest.fixture(scope="module")
def hand(tmp_path_factory: pytest.TempPathFactory) -> Task:
    """Scores (v x, w x) + bias. "a" leaves with one sample, x = 2 of class 1; its last model is (-1, 1), (-1/2, 1/2).

    "b", with one sample too, had sent 0: so theta* is half of a's model, and w_ref is 0.
    """
    one = Client.of("a", (torch.full((1, 1), 2.0, dtype=torch.float64), torch.tensor([1])), validation=0)
    other = Client.of("b", (torch.zeros(1, 1, dtype=torch.float64), torch.tensor([0])), validation=0)
    clients = InProcess(lambda: Regression(1, 2), [one, other], workers=1, device="cpu")
    own, trained = quad([-1, 1, -0.5, 0.5]), quad([-0.5, 0.5, -0.25, 0.25])
    replies = [{"a": (own, 1), "b": (quad([0, 0, 0, 0]), 1)}]
    history = recorded(tmp_path_factory.mktemp("hand"), "last_local", replies, [quad([3, 3, 3, 3]), trained])
    return Task.of(clients, trained, ForgetClient("a"), TRAINING, clients.architecture, history=history)


def test_one_step_by_hand(hand: Task) -> None:
    """At 0 the loss's gradient is (1, -1) for the weights and (1/2, -1/2) for the bias, of squared length 2.5.

    Uphill at learning rate 2: (2, -2), (1, -1), at a squared distance of 10 from 0. A squared radius of 2.5 halves
    it; a radius of 2.5 would leave 2.5 / sqrt(10) of it.
    """
    step = PGD(2.0, 0.0, 1, 1, FAR, clip=9.0, squared_radius=FAR)
    assert heard_from(step, hand)[0].vector().tolist() == pytest.approx([2, -2, 1, -1])
    inside = heard_from(replace(step, squared_radius=2.5), hand)[0]
    assert inside.vector().tolist() == pytest.approx([1, -1, 0.5, -0.5])


def test_a_gradient_is_clipped_at_its_euclidean_norm(hand: Task) -> None:
    """sqrt(2.5) / 2 halves it."""
    step = PGD(2.0, 0.0, 1, 1, FAR, clip=sqrt(2.5) / 2, squared_radius=FAR)
    assert heard_from(step, hand)[0].vector().tolist() == pytest.approx([1, -1, 0.5, -0.5], rel=1e-5)


@pytest.mark.parametrize(("limit", "steps"), [(9.9, 1), (10.1, 6)])
def test_it_stops_once_the_squared_distance_from_its_last_model_is_exceeded(
    hand: Task, limit: float, steps: int
) -> None:
    """(1, -1), (1/2, -1/2) is (2, -2, 1, -1) off a's last model: 10, squared. All later steps stay on that ray."""
    method = PGD(2.0, 0.0, 3, 2, limit, clip=9.0, squared_radius=2.5)
    found, counted = heard_from(method, hand)
    assert counted == [steps]
    assert found.vector().tolist() == pytest.approx([1, -1, 0.5, -0.5])


def test_the_radius_is_a_third_of_the_mean_squared_distance() -> None:
    """From 0 to models of squared length 4 and 16: 10 / 3, not the square of the mean distance 3."""
    fresh = [quad([2, 0, 0, 0]), quad([0, 0, 0, 4])]
    assert squared_radius(quad([0, 0, 0, 0]), fresh) == pytest.approx(10 / 3)


def test_without_a_radius_ten_fresh_models_give_it(hand: Task) -> None:
    """Where all ten are (3, 0), 0, the ball around 0 has the squared radius 9 / 3, and a large step ends on it."""
    built = []

    def build() -> nn.Module:
        network = Regression(1, 2)
        quad([3, 0, 0, 0]).into(network)
        built.append(network)
        return network

    hand = replace(hand, architecture=Architecture(build))
    found, _ = heard_from(PGD(lr=100.0, iterations=1, squared_stop_distance=FAR), hand)
    assert found.norm() ** 2 == pytest.approx(3)
    assert len(built) == 10


def test_the_fresh_models_differ_from_each_other_and_from_seed_to_seed(hand: Task) -> None:
    draws = [hand.fresh("radius", n).vector() for n in range(10)]
    assert len({tuple(draw.tolist()) for draw in draws}) == 10
    method = PGD(lr=100.0, iterations=1, squared_stop_distance=FAR)
    expected = sum(float((draw**2).sum()) for draw in draws) / 10 / 3
    assert heard_from(method, hand)[0].norm() ** 2 == pytest.approx(expected)
    assert heard_from(method, replace(hand, seed=7))[0].norm() ** 2 != pytest.approx(expected)


# --- the twin -------------------------------------------------------------------------------------------------------

METHODS = {
    "plain": PGD(0.1, 0.0, 2, 3, FAR, 100.0, 1e6),
    "in a small ball, with momentum": PGD(0.5, 0.9, 3, 4, FAR, 100.0, 0.3),
    "clipped": PGD(0.3, 0.9, 3, 4, FAR, 0.2, 1e6),
    "stopped early": PGD(0.3, 0.9, 10, 5, 25.0, 2.0, 40.0),
}


@pytest.mark.parametrize("leaving", [("a",), ("c",), ("a", "b")])
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_pgd_is_its_twin_in_numpy(twin: Twin, method: PGD, leaving: tuple[str, ...]) -> None:
    """Where several leave, each ascends from the same w_ref, and the mean is by samples."""
    task, trajectory = twin.task(all_of(*leaving)), twin.trajectory
    shards, last = three_clients(), trajectory.local[-1]
    centre = mean([(last[client], len(shards[client].y)) for client in shards if client not in leaving])
    sent = {client: ascended(centre, last[client], shards[client], method) for client in leaving}
    found, steps = heard_from(method, task)
    assert steps == [taken for _, taken in sent.values()]
    assert distance(found, mean([(sent[client][0], len(shards[client].y)) for client in leaving])) < 1e-9


def test_the_twins_cases_are_what_they_are_called(twin: Twin) -> None:
    task = twin.task(all_of("a"))
    assert task.history is not None
    centre = reference(task.weights, [task.history.last["a"]])
    found = {name: heard_from(method, task) for name, method in METHODS.items()}
    assert (found["in a small ball, with momentum"][0] - centre).norm() ** 2 == pytest.approx(0.3)
    assert 1 < found["stopped early"][1][0] < 50
    unclipped = heard_from(replace(METHODS["clipped"], clip=100.0), task)[0]
    assert (found["clipped"][0] - unclipped).norm() > 0.1


# --- invariants -----------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    lr=st.floats(1e-3, 1e3),
    momentum=st.sampled_from([0.0, 0.9]),
    clip=st.floats(1e-2, 1e2),
    radius=st.floats(1e-3, 1e2),
    steps=st.integers(0, 5),
)
def test_1_after_every_step_the_model_is_in_the_ball(
    lr: float, momentum: float, clip: float, radius: float, steps: int
) -> None:
    clients, centre = federation(three_clients()), weights_of(start())
    program = ProjectedAscent(centre, radius, FAR * FAR, SGD(lr, momentum, 0.0), steps, clip, 5)
    for _, reply in clients.run(program, centre, Turn(0, "unlearn", 0)):
        assert reply.metrics["steps"] == steps
        assert (reply.weights - centre).norm() ** 2 <= radius * (1 + 1e-5)


@settings(max_examples=60, deadline=None)
@given(st.data(), st.lists(st.integers(1, 50), min_size=2, max_size=6))
def test_2_the_reference_is_the_weighted_mean_of_the_others_last_models(data: Any, samples: list[int]) -> None:
    leaving = data.draw(st.integers(1, len(samples) - 1))
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    models = [{"w": rng.normal(0, 10, 4)} for _ in samples]
    shares = [n / sum(samples) for n in samples]
    gone = [(weights_of(model), share) for model, share in zip(models, shares, strict=True)][:leaving]
    found = reference(weights_of(mean(list(zip(models, samples, strict=True)))), gone)
    expected = mean(list(zip(models, samples, strict=True))[leaving:])
    # Subtracting rounds in float64, and dividing by what is left of the shares makes that larger.
    assert distance(found, expected) < 1e-13 * 100 / sum(shares[leaving:])


@pytest.mark.parametrize("leaving", [("a",), ("b",), ("c",), ("a", "c")])
def test_2_at_learning_rate_zero_the_others_last_models_come_out(twin: Twin, leaving: tuple[str, ...]) -> None:
    """Also from a history on disk; where one client stays, it is that client's model: N = 2."""
    task, trajectory = twin.task(all_of(*leaving)), twin.trajectory
    shards = three_clients()
    expected = mean([(trajectory.local[-1][c], len(shards[c].y)) for c in shards if c not in leaving])
    found, _ = heard_from(PGD(lr=0.0, squared_stop_distance=FAR), task)
    assert distance(found, expected) < 1e-12


def test_2_with_two_clients_the_reference_is_the_other_ones_model(hand: Task) -> None:
    assert hand.history is not None
    assert reference(hand.weights, [hand.history.last["a"]]).vector().tolist() == [0, 0, 0, 0]


def test_2_with_equal_shares_it_is_the_mean_of_the_others() -> None:
    """(N theta* - theta_i) / (N - 1): (3 * 2 - 0) / 2 = 3 = (1 + 5) / 2."""
    found = reference(Weights({"w": torch.tensor([2.0])}), [(Weights({"w": torch.tensor([0.0])}), 1 / 3)])
    assert found.parameters["w"].item() == pytest.approx(3)


def test_3_at_learning_rate_zero_the_reference_comes_out(small: Task) -> None:
    """Bit for bit, in float32 with BatchNorm, with all steps taken."""
    assert small.history is not None
    found, steps = heard_from(PGD(lr=0.0, squared_stop_distance=FAR), small)
    assert found.same_bits(reference(small.weights, [small.history.last["1"]]))
    assert steps == [50]


@pytest.mark.parametrize(("iterations", "updates"), [(0, 5), (5, 0), (1, 1), (3, 7), (10, 5)])
def test_4_so_many_updates_run_as_iterations_times_updates(small: Task, iterations: int, updates: int) -> None:
    """And not one more in each. 17 samples are two batches, of 8 and 9, which are gone round again."""
    heard: list[Any] = []
    method = PGD(1e-3, iterations=iterations, updates=updates, squared_stop_distance=FAR)
    ledger = Ledger()
    list(method.unlearn(replace(small, forgotten=Overheard(Metered(small.forgotten, ledger), heard))))
    ((_, _, client, reply),) = heard
    assert (client, reply.metrics["steps"]) == ("1", iterations * updates)
    assert ledger.phases["unlearn"] == method.cost(size_of(small))


def test_4_stopped_early_fewer_run(small: Task) -> None:
    found, (steps,) = heard_from(PGD(squared_stop_distance=1.0), small)
    assert 0 < steps < 50
    assert found.finite()


@pytest.mark.parametrize("lr", [1e-3, 1e-2, 0.1, 1.0, 10.0])
@pytest.mark.parametrize("client", ["a", "b", "c"])
def test_5_the_leaving_clients_loss_is_no_smaller_than_at_the_reference(twin: Twin, client: str, lr: float) -> None:
    task = twin.task(all_of(client))
    assert task.history is not None
    centre = reference(task.weights, [task.history.last[client]])
    found, _ = heard_from(PGD(lr), task)
    before, after = (
        loss({n: t.numpy() for n, t in w.parameters.items()}, three_clients()[client]) for w in (centre, found)
    )
    assert after > before


def test_buffers_are_those_of_the_trained_model(one_worker: InProcess) -> None:
    task = small_task(AnyOf((ForgetClient("1"), ForgetClient("2"))), one_worker)
    (done,) = PGD().unlearn(task)
    assert all(torch.equal(buffer, task.weights.buffers[name]) for name, buffer in done.after.buffers.items())
    assert not torch.equal(done.after.buffers["norm.running_mean"], torch.zeros(4))


def test_it_ascends_in_training_mode(hand: Task) -> None:
    modes: list[bool] = []

    class Moody(Regression):
        def forward(self, x: Tensor) -> Tensor:
            modes.append(self.training)
            return super().forward(x)

    one = Client.of("a", (torch.ones(1, 1, dtype=torch.float64), torch.tensor([1])), validation=0)
    clients = InProcess(lambda: Moody(1, 2), [one], workers=1, device="cpu")
    list(PGD(squared_stop_distance=FAR).unlearn(replace(hand, forgotten=clients)))
    assert modes == [True] * 50


class Brittle(nn.Module):
    """Scores (log w, 0): not a number once w is negative."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([1.0]))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.w.log() * x, torch.zeros_like(x)], 1)


def test_it_stops_before_a_step_that_is_not_finite(tmp_path: Path) -> None:
    """At w = 1, x = 1 of class 0: the loss's gradient is -1/2; uphill at learning rate 4 gives w = -1."""
    one, other = (Client.of(c, (torch.ones(1), torch.tensor([0])), validation=0) for c in "ab")
    clients = InProcess(Brittle, [one, other], workers=1, device="cpu")
    model = Weights({"w": torch.tensor([1.0])})
    history = recorded(tmp_path, "last_local", [{"a": (model, 1), "b": (model, 1)}], [model, model])
    task = Task.of(clients, model, ForgetClient("a"), LocalTraining(), clients.architecture, history=history)
    found, steps = heard_from(PGD(4.0, 0.0, squared_stop_distance=FAR, squared_radius=FAR), task)
    assert found.parameters["w"].tolist() == [-1]
    assert steps == [1]


def test_who_never_took_part_is_not_visited(tmp_path: Path) -> None:
    """Nothing of it is in the model; whoever did take part leaves as always."""
    clients = federation(three_clients())
    recorder = Recorder(tmp_path, {"last_local"}, clients.clients)
    weights = train(Recorded(Sampled(clients, 0.6), recorder), weights_of(start()), TRAINING, 1)
    history = recorder.finish(weights)
    (absent,) = [client for client in clients.clients if client not in history.last]
    leaver, _ = history.last
    architecture = clients.architecture
    for requests, expected in [((absent,), []), ((absent, leaver), [leaver])]:
        task, heard = Task.of(clients, weights, all_of(*requests), TRAINING, architecture, history=history), []
        (done,) = PGD().unlearn(replace(task, forgotten=Overheard(task.forgotten, heard)))
        assert [client for _, _, client, _ in heard] == expected
        assert done.after.same_bits(weights) == (expected == [])


def test_there_must_be_somebody_who_stays(twin: Twin) -> None:
    task = twin.task(all_of("a", "b", "c"))
    with pytest.raises(ValueError, match="PGD needs clients that stay"):
        next(follow(PGD(), task, 1))  # before anything runs
    with pytest.raises(ValueError, match="nobody else took part in the last round"):
        list(PGD().unlearn(task))


def test_nothing_but_whole_clients_can_be_forgotten(one_worker: InProcess) -> None:
    with pytest.raises(NeedsError, match="cannot forget a part of a client"):
        PGD().needs.require(small_task(ForgetClass(0), one_worker).circumstances, "PGD")
