"""FedEraser and FedAccum: what the paper promises, numbers by hand, and a twin in NumPy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy_twin import (
    EPOCHS,
    ROUNDS,
    TRAINING,
    Model,
    Overheard,
    Regression,
    Trajectory,
    Twin,
    distance,
    federation,
    mean,
    plus,
    recorded,
    start,
    three_clients,
    trained,
    weights_of,
)
from numpy_twin_joint import Held

from fedunlearn.backends.in_process import InProcess
from fedunlearn.backends.metered import Ledger, Metered
from fedunlearn.backends.recorded import Recorded, Recorder
from fedunlearn.client import Client
from fedunlearn.contract import size_of, small_task
from fedunlearn.federation import ClientId, Traffic, Work
from fedunlearn.history import History, HistoryKind
from fedunlearn.methods.federaser import FedAccum, FedEraser
from fedunlearn.needs import NeedsError
from fedunlearn.programs import SGD, Exponential, LocalTraining
from fedunlearn.requests import ForgetClass, ForgetClient
from fedunlearn.rounds import train
from fedunlearn.task import Task
from fedunlearn.weights import Weights

NOBODY = ForgetClient("nobody")


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Twin:
    return Twin.of(tmp_path_factory.mktemp("twin"), "updates")


def replayed(
    trajectory: Trajectory,
    shards: Mapping[ClientId, Held],
    staying: tuple[ClientId, ...],
    *,
    interval: int = 1,
    epochs: float = EPOCHS / 2,
    norm: str = "tensor",
    first_samples: Mapping[ClientId, int] | None = None,
) -> list[Model]:
    """The models after each replayed round. ``first_samples``: behind the old updates, if others than those now."""
    samples = first_samples or {client: len(shards[client].y) for client in staying}
    model = trajectory.models[0]
    model = mean([(plus(model, trajectory.update(0, client)), samples[client]) for client in staying])
    models = [model]
    for number in range(interval, len(trajectory.local), interval):
        calibrated = []
        for client in staying:
            shard, old = shards[client], trajectory.update(number, client)
            new = plus(trained(model, shard, int(np.ceil(epochs))), model, -1)
            if norm == "tensor":
                factors = {name: np.linalg.norm(old[name]) / np.linalg.norm(new[name]) for name in new}
            else:
                lengths = [np.linalg.norm(np.concatenate([one[name].ravel() for name in one])) for one in (old, new)]
                factors = dict.fromkeys(new, lengths[0] / lengths[1])
            step = {name: factors[name] * new[name] for name in new}
            calibrated.append((plus(model, step), len(shard.y)))
        model = mean(calibrated)
        models.append(model)
    return models


def pair(first: tuple[float, float], second: tuple[float, float]) -> Weights:
    return Weights(
        {
            "head.weight": torch.tensor(first, dtype=torch.float64).view(2, 1),
            "head.bias": torch.tensor(second, dtype=torch.float64),
        }
    )


@pytest.fixture(scope="module")
def hand(tmp_path_factory: pytest.TempPathFactory) -> Task:
    """Scores (v x, w x) + bias. "b" (one sample, x = 0 of class 1) and "c" (three) stay; rounds, as (v, w), bias:

    0, from (0, 0), 0: b sends (4, 0), 0 and c (0, 4), 0; what a sends must not matter;
    1, from (10, 10), 0: a and b alone; b sends (13, 14), (1, 1): an update of lengths 5 and sqrt(2);
    2, from (20, 20), 0: a alone.
    """
    one = Client.of("b", (torch.zeros(1, 1, dtype=torch.float64), torch.tensor([1])), validation=0)
    three = Client.of("c", (torch.zeros(3, 1, dtype=torch.float64), torch.tensor([0, 0, 1])), validation=0)
    leaving = Client.of("a", (torch.ones(5, 1, dtype=torch.float64), torch.zeros(5, dtype=torch.int64)), validation=0)
    clients = InProcess(lambda: Regression(1, 2), [leaving, one, three], workers=1, device="cpu")
    away = pair((99, 99), (9, 9))
    rounds = [
        {"a": (away, 5), "b": (pair((4, 0), (0, 0)), 1), "c": (pair((0, 4), (0, 0)), 3)},
        {"a": (away, 5), "b": (pair((13, 14), (1, 1)), 1)},
        {"a": (away, 5)},
    ]
    models = [pair((0, 0), (0, 0)), pair((10, 10), (0, 0)), pair((20, 20), (0, 0)), pair((7, 7), (7, 7))]
    history = recorded(tmp_path_factory.mktemp("hand"), "updates", rounds, models)
    training = LocalTraining(SGD(0.1, 0.0, 0.0))
    return Task.of(clients, models[-1], ForgetClient("a"), training, clients.architecture, history=history)


def numbers(task: Task, method: FedEraser | FedAccum) -> list[list[float]]:
    return [[round(v, 6) for v in done.after.vector().tolist()] for done in method.unlearn(task)]


# --- by hand --------------------------------------------------------------------------------------------------------


def test_federaser_by_hand(hand: Task) -> None:
    """M_2 = (1 (4, 0) + 3 (0, 4)) / 4 = (1, 3): shares of those who stay alone, no second factor 1/(K - 1).

    Then only b took part. At x = 0 its scores are equal, so its bias moves by -lr (1/2, -1/2), and takes the old
    length sqrt(2): (-1, 1). Its weights do not move: no direction, no division by zero. In the last round nobody
    who stays took part, so nothing happens.
    """
    assert numbers(hand, FedEraser(calibration=1.0)) == [[1, 3, 0, 0], [1, 3, -1, 1], [1, 3, -1, 1]]


def test_with_a_global_norm_the_whole_update_has_its_old_length(hand: Task) -> None:
    """sqrt(5^2 + 2) = sqrt(27) along (0, 0, -1, 1) / sqrt(2)."""
    by = round(sqrt(27 / 2), 6)
    assert numbers(hand, FedEraser(calibration=1.0, norm="global"))[1] == [1, 3, -by, by]


def test_fedaccum_by_hand(hand: Task) -> None:
    """M_2 as above, plus b's own update (3, 4), (1, 1), taken against the model that b had started from."""
    assert numbers(hand, FedAccum()) == [[4, 7, 1, 1]]


def test_the_interval_skips_rounds(hand: Task) -> None:
    """With 2, rounds 0 and 2 are replayed, and in round 2 nobody who stays took part."""
    assert numbers(hand, FedEraser(interval=2)) == [[1, 3, 0, 0], [1, 3, 0, 0]]
    assert numbers(hand, FedAccum(interval=2)) == [[1, 3, 0, 0]]
    assert numbers(hand, FedEraser(interval=3)) == [[1, 3, 0, 0]]


def test_who_had_not_taken_part_in_a_round_is_not_asked_in_its_replay(hand: Task) -> None:
    heard: list[Any] = []
    list(FedEraser().unlearn(replace(hand, retained=Overheard(hand.retained, heard))))
    assert [(turn.number, client) for turn, _, client, _ in heard] == [(1, "b")]


# --- the twin -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["tensor", "global"])
@pytest.mark.parametrize("interval", [1, 2, 3])
@pytest.mark.parametrize("calibration", [0.5, 0.6, 1.0])
def test_federaser_is_its_twin_in_numpy(twin: Twin, interval: int, norm: str, calibration: float) -> None:
    """Also with 0.6 of four full batches: three."""
    task, trajectory = twin.task(ForgetClient("a")), twin.trajectory
    method = FedEraser(interval, calibration, norm)  # type: ignore[arg-type]
    expected = replayed(
        trajectory, three_clients(), ("b", "c"), interval=interval, epochs=calibration * EPOCHS, norm=norm
    )
    found = list(method.unlearn(task))
    assert [done.number for done in found] == list(range(len(expected)))
    for done, model in zip(found, expected, strict=True):
        assert distance(done.after, model) < 1e-6


@pytest.mark.parametrize("interval", [1, 3])
def test_fedaccum_is_its_twin_in_numpy(twin: Twin, interval: int) -> None:
    task, trajectory = twin.task(ForgetClient("a")), twin.trajectory
    shards, model = three_clients(), trajectory.models[0]
    for number in range(0, ROUNDS, interval):
        sent = [(plus(model, trajectory.update(number, client)), len(shards[client].y)) for client in ("b", "c")]
        model = mean(sent)
    (done,) = FedAccum(interval).unlearn(task)
    assert distance(done.after, model) < 1e-12


def test_class_wise_old_lengths_of_everybody_and_directions_from_what_stays(twin: Twin) -> None:
    """A heuristic: the first round's updates, and all norms, hold what is to be forgotten."""
    task, trajectory = twin.task(ForgetClass(0)), twin.trajectory
    every = three_clients()
    stays = {client: Held(shard.x[shard.y != 0], shard.y[shard.y != 0]) for client, shard in every.items()}
    samples = {client: len(shard.y) for client, shard in every.items()}
    expected = replayed(trajectory, stays, ("a", "b", "c"), first_samples=samples)
    for done, model in zip(FedEraser().unlearn(task), expected, strict=True):
        assert distance(done.after, model) < 1e-6


# --- invariants -----------------------------------------------------------------------------------------------------


def lone(twin: Twin) -> Task:
    """Only "c" stays."""
    task = twin.task(ForgetClient("a"))
    return replace(task, retained=task.retained.where(Only("c")), targets=("a", "b"))


class Only:
    def __init__(self, client: ClientId) -> None:
        self.client = client

    def __call__(self, client: ClientId, labels: torch.Tensor) -> torch.Tensor:
        return torch.full(labels.shape, client == self.client)


def test_1_a_calibrated_step_has_the_old_length_and_the_new_direction_tensor_by_tensor(twin: Twin) -> None:
    task, trajectory = lone(twin), twin.trajectory
    heard = []
    found = list(FedEraser().unlearn(replace(task, retained=Overheard(task.retained, heard))))
    assert len(heard) == ROUNDS - 1
    for (before, after), (turn, _, client, reply) in zip(pairwise(found), heard, strict=True):
        step, new = after.after - before.after, reply.weights - before.after
        old = trajectory.update(turn.number, client)
        for name, tensor in step.parameters.items():
            assert float(tensor.norm()) == pytest.approx(np.linalg.norm(old[name]), rel=1e-5)
            cosine = torch.nn.functional.cosine_similarity(tensor.flatten(), new.parameters[name].flatten(), dim=0)
            assert float(cosine) == pytest.approx(1, abs=1e-12)


def test_2_with_one_client_left_a_replayed_round_is_as_long_as_the_old_update(twin: Twin) -> None:
    """With either norm; the whole update, where that is what is rescaled."""
    task, trajectory = lone(twin), twin.trajectory
    for number, (before, after) in enumerate(pairwise(FedEraser(norm="global").unlearn(task)), 1):
        expected = weights_of(trajectory.update(number, "c")).norm()
        assert (after.after - before.after).norm() == pytest.approx(expected, rel=1e-6)
    for number, (before, after) in enumerate(pairwise(FedEraser().unlearn(task)), 1):
        for name, tensor in (after.after - before.after).parameters.items():
            assert float(tensor.norm()) == pytest.approx(np.linalg.norm(trajectory.update(number, "c")[name]), rel=1e-6)


def test_3_with_nobody_to_forget_the_replay_is_the_first_training(twin: Twin) -> None:
    task, trajectory = twin.task(NOBODY), twin.trajectory
    found = list(FedEraser(calibration=1.0).unlearn(task))
    for done, model in zip(found, trajectory.models[1:], strict=True):
        assert distance(done.after, model) < 1e-6
    (accumulated,) = FedAccum().unlearn(task)
    assert distance(accumulated.after, trajectory.models[-1]) < 1e-12


def test_3_with_a_schedule_too_for_a_replayed_round_trains_at_the_old_rounds_learning_rate(tmp_path: Path) -> None:
    training = replace(TRAINING, schedule=Exponential(0.5))
    clients = federation(three_clients())
    recorder = Recorder(tmp_path, {"norms"}, clients.clients)
    weights = train(Recorded(clients, recorder), weights_of(start()), training, ROUNDS)
    history = recorder.finish(weights)
    task, heard = Task.of(clients, weights, NOBODY, training, clients.architecture, history=history), []
    *_, last = FedEraser(calibration=1.0).unlearn(replace(task, retained=Overheard(task.retained, heard)))
    assert (last.after - weights).norm() < 1e-6
    assert [turn.number for turn, *_ in heard] == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    heard.clear()
    list(FedEraser(interval=3).unlearn(replace(task, retained=Overheard(task.retained, heard))))
    assert [turn.number for turn, *_ in heard] == [3, 3, 3]


def test_4_norms_alone_give_what_whole_updates_give(tmp_path: Path) -> None:
    clients = federation(three_clients())
    found: dict[HistoryKind, Weights] = {}
    kinds: tuple[HistoryKind, ...] = ("norms", "updates")
    for kind in kinds:
        recorder = Recorder(tmp_path / kind, {kind}, clients.clients)
        weights = train(Recorded(clients, recorder), weights_of(start()), TRAINING, ROUNDS)
        history = recorder.finish(weights)
        task = Task.of(clients, weights, ForgetClient("b"), TRAINING, clients.architecture, history=history)
        assert sum(len(kept.updates) for kept in history.rounds) == (3 if kind == "norms" else 3 * ROUNDS)
        *_, last = FedEraser(history=kind).unlearn(task)
        found[kind] = last.after
    assert (found["norms"] - found["updates"]).norm() < 1e-6


@pytest.mark.parametrize(("rounds", "interval", "replayed_rounds"), [(5, 1, 5), (5, 2, 3), (6, 2, 3), (4, 9, 1)])
def test_5_rounds_bytes_and_passes_are_the_formulas(
    tmp_path: Path, rounds: int, interval: int, replayed_rounds: int
) -> None:
    """J = floor((T - 1) / dt) + 1; (J - 1) 2 |R| S bytes, S = 9 numbers of 8 bytes; r E (J - 1) sum_R n passes."""
    task = Twin.of(tmp_path, "norms", rounds).task(ForgetClient("a"))
    ledger, method = Ledger(), FedEraser(interval)
    found = list(method.unlearn(replace(task, retained=Metered(task.retained, ledger))))
    more = replayed_rounds - 1
    passes = EPOCHS // 2 * more * (6 + 9)
    expected = Traffic(*[more * 2 * 72] * 4, Work(passes, passes))
    assert len(found) == replayed_rounds == (rounds - 1) // interval + 1
    assert ledger.phases["unlearn"] == expected == method.cost(size_of(task))


def test_a_fraction_of_an_epoch_is_the_next_whole_number_of_batches(one_worker: InProcess) -> None:
    """Of batches of eight: 16 samples are two, of which half is one; 19 are 8, 8 and 3, of which half is two."""
    task, heard = small_task(ForgetClient("1"), one_worker), []
    list(FedEraser(calibration=0.5).unlearn(replace(task, retained=Overheard(task.retained, heard))))
    assert {client: (reply.samples, reply.work.forward) for _, _, client, reply in heard} == {
        "0": (16, 8),
        "2": (18, 16),
        "3": (19, 16),
    }


def test_buffers_are_the_weighted_mean_of_those_who_calibrate(one_worker: InProcess) -> None:
    task, heard = small_task(ForgetClient("1"), one_worker), []
    before, after = FedEraser().unlearn(replace(task, retained=Overheard(task.retained, heard)))
    assert task.history is not None
    assert all(torch.equal(b, task.history.initial.buffers[n]) for n, b in before.after.buffers.items())
    total = sum(reply.samples for *_, reply in heard)
    for name in ("norm.running_mean", "norm.running_var"):
        expected = sum(reply.samples / total * reply.weights.buffers[name] for *_, reply in heard)
        assert torch.allclose(after.after.buffers[name], expected, atol=1e-6)
    assert torch.equal(
        after.after.buffers["norm.num_batches_tracked"], before.after.buffers["norm.num_batches_tracked"]
    )


def test_nothing_is_asked_of_those_who_leave_and_fedaccum_asks_nobody(twin: Twin) -> None:
    task = twin.task(ForgetClient("a"))
    asked: list[object] = []
    watched = replace(
        task,
        everyone=Overheard(task.everyone, asked),  # type: ignore[arg-type]
        forgotten=Overheard(task.forgotten, asked),  # type: ignore[arg-type]
        retained=Overheard(task.retained, asked),  # type: ignore[arg-type]
    )
    list(FedAccum().unlearn(watched))
    assert asked == []
    list(FedEraser().unlearn(replace(watched, retained=task.retained)))
    assert asked == []


def test_fedaccum_is_refused_for_a_part_of_a_client(twin: Twin) -> None:
    task = twin.task(ForgetClass(0))
    with pytest.raises(NeedsError, match="cannot forget a part of a client"):
        FedAccum().needs.require(task.circumstances, "FedAccum")


def test_a_second_request_is_answered_from_what_the_first_left_of_the_history(tmp_path: Path) -> None:
    """Of a client that was forgotten nothing is read any more: the replay is of those who are left."""
    twin = Twin.of(tmp_path, "norms")
    task, trajectory = twin.task(ForgetClient("a")), twin.trajectory
    assert task.history is not None
    *_, first = FedEraser().unlearn(task)
    history: History = task.history.forget(["a"], first.after)
    clients = federation(three_clients())
    second = Task.of(
        clients, first.after, ForgetClient("b"), TRAINING, clients.architecture, history=history, left=("a",)
    )
    *_, last = FedEraser().unlearn(second)
    assert distance(last.after, replayed(trajectory, three_clients(), ("c",))[-1]) < 1e-6
