"""GA: by hand, against NumPy, and what is to be expected of ascent."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice, pairwise
from math import sqrt

import numpy as np
import pytest
import torch
from joint import DECAY, LR, MOMENTUM, REQUESTS, TRAINING, Twin, account, by_hand, rounds, same, twin, vector, watched
from numpy_twin_joint import Array, labelled, one_hot, scores, sgd, softmax, weighted

from fedunlearn.contract import size_of, small_task
from fedunlearn.evaluation.follow import follow
from fedunlearn.federation import Predicate, Work
from fedunlearn.methods.ga import GA
from fedunlearn.programs import SGD, Evaluate, Exponential
from fedunlearn.requests import ForgetClass, ForgetClient, ForgetInstances
from fedunlearn.task import Task
from fedunlearn.weights import Weights

HAND = {"a": [((1, 2, 0), 0)], "b": [((5, 5, 5), 1)]}


def test_a_step_by_hand() -> None:
    """At w = 0 class 0 has probability 1/2, so its loss's gradient at x is -x / 2; uphill, 0.1 times that."""
    assert [vector(after) for after in rounds(GA(), by_hand(ForgetClient("a"), HAND))] == [[-0.05, -0.1, 0]]


@pytest.mark.parametrize("clip", ["the method's", "the training's"])
def test_a_gradient_is_clipped_at_its_euclidean_norm(clip: str) -> None:
    """It is sqrt(5) / 2 long: clipped at half of that, half the step."""
    task, half = by_hand(ForgetClient("a"), HAND), sqrt(5) / 4
    method = GA(clip=half) if clip == "the method's" else GA()
    if clip == "the training's":
        task = replace(task, training=replace(task.training, clip=half))
    assert rounds(method, task)[0].vector().tolist() == pytest.approx([-0.025, -0.05, 0], rel=1e-5)


def numpy_ga(world: Twin, rates: list[float], momentum: float, decay: float) -> list[Array]:
    model, found = world.theta, []
    for lr in rates:
        replies = []
        for held in world.forgotten.values():
            downhill = labelled(held)
            uphill = sgd(model, lambda theta, g=downhill: -g(theta), lr, 1, momentum, decay)  # type: ignore[misc]
            replies.append((uphill, len(held)))
        model = weighted(replies)
        found.append(model)
    return found


@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
def test_one_step_without_momentum_and_weight_decay_is_theta_plus_lr_times_the_gradient(request_: Predicate) -> None:
    world = twin(request_)
    plain = replace(world.task, training=replace(TRAINING, optimizer=SGD(0.3, 0.0, 0.0)))
    total = sum(map(len, world.forgotten.values()))
    gradient = sum(labelled(held)(world.theta) * len(held) / total for held in world.forgotten.values())
    same(rounds(GA(), plain)[0], world.theta + 0.3 * gradient)


@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
def test_three_epochs_equal_numpys_each_with_a_fresh_optimizer(request_: Predicate) -> None:
    """The training says three passes a round; here a round is an epoch, and momentum starts anew."""
    world = twin(request_)
    for after, expected in zip(
        rounds(GA(3, lr=0.2), world.task), numpy_ga(world, [0.2] * 3, MOMENTUM, DECAY), strict=True
    ):
        same(after, expected)


def test_without_a_learning_rate_of_its_own_it_follows_the_trainings_and_its_schedule() -> None:
    world = twin(REQUESTS["client"])
    scheduled = replace(world.task, training=replace(TRAINING, schedule=Exponential(0.5)))
    same(rounds(GA(2), scheduled)[-1], numpy_ga(world, [LR, LR / 2], MOMENTUM, DECAY)[-1])
    same(rounds(GA(2, lr=LR), scheduled)[-1], numpy_ga(world, [LR, LR], MOMENTUM, DECAY)[-1])


def loss(task: Task, weights: Weights) -> float:
    replies = [reply for _, reply in task.forgotten.run(Evaluate(), weights, task.turn(phase="evaluate"))]
    return sum(reply.metrics["loss"] * reply.samples for reply in replies) / sum(reply.samples for reply in replies)


@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
def test_the_loss_on_what_is_to_be_forgotten_rises_after_one_small_step(request_: Predicate) -> None:
    world = twin(request_)
    plain = replace(world.task, training=replace(TRAINING, optimizer=SGD(1e-3, 0.0, 0.0)))

    def mean(theta: Array) -> float:
        held = list(world.forgotten.values())
        x, y = np.concatenate([h.x for h in held]), np.concatenate([h.y for h in held])
        return float(-np.log((softmax(scores(theta, x)) * one_hot(y, 3)).sum(1)).mean())

    assert mean(rounds(GA(), plain)[0].vector().numpy()) > mean(world.theta)


def test_the_loss_rises_epoch_by_epoch_in_a_network_with_all_that_is_awkward() -> None:
    task = small_task(ForgetClass(2))
    losses = [loss(task, weights) for weights in (task.weights, *rounds(GA(4, lr=0.02), task))]
    assert all(a < b for a, b in pairwise(losses))


@pytest.mark.parametrize("kind", REQUESTS)
def test_only_what_goes_is_read_once_an_epoch(kind: str) -> None:
    world = twin(REQUESTS[kind])
    task, visits = watched(world.task)
    rounds(GA(2), task)
    expected = [(k, {tuple(x) for x in held.x.tolist()}, len(held)) for k, held in world.forgotten.items()]
    assert [(v.client, v.x, sum(len(b.y) for b in v.read)) for v in visits] == expected * 2


# --- overflow -------------------------------------------------------------------------------------------------------


def steep(samples: int, lr: float, x: float = 1.0) -> Task:
    """So many equal samples, one a step: at w = 0 a step is -lr x / 2, later ones, where p = 0, are -lr x."""
    task = by_hand(ForgetClient("a"), {"a": [((x, 0, 0), 0)] * samples, "b": [((0, 1, 0), 0)]}, lr=lr)
    return replace(task, training=replace(task.training, batch_size=1))


def test_it_stops_at_the_first_loss_that_is_not_finite_and_keeps_the_last_state_that_had_one() -> None:
    """-0.5, -1.5, -2.5 times 1e38; -3.5 is beyond float32, and the sixth sample is not read any more."""
    task, visits = watched(steep(6, 1e38))
    (after,) = rounds(GA(), task)
    assert after.vector().tolist() == pytest.approx([-2.5e38, 0, 0])
    assert [len(visit.read) for visit in visits] == [5]
    assert after.same_bits(rounds(GA(), steep(3, 1e38))[0])


def test_an_overflow_in_the_last_step_which_has_no_loss_any_more_is_seen_in_the_parameters() -> None:
    assert vector(rounds(GA(), steep(1, 1e38, x=10.0))[0]) == [0, 0, 0]


def test_a_later_epoch_starts_from_what_was_kept() -> None:
    """There p = 0 at once, and the first of its steps overflows, so that nothing is added to it."""
    kept, again = rounds(GA(2), steep(6, 1e38))
    assert again.same_bits(kept)


@pytest.mark.parametrize("lr", [1e25, 1e37])
def test_batchnorms_statistics_are_those_of_the_state_that_is_kept(lr: float) -> None:
    """They follow a batch before its loss is known, and would become NaN."""
    plain, method = small_task(ForgetClient("1")), GA(2, lr=lr)
    task, ledger = account(plain)
    assert all(after.finite() for after in rounds(method, task))
    stated, spent = method.cost(size_of(plain)), ledger.phases["unlearn"]
    assert spent.both_ways == stated.both_ways
    assert spent.work.backward < spent.work.forward <= stated.work.forward  # it stopped before its end


def test_clipping_goes_on_where_plain_ascent_overflows() -> None:
    plain, method = small_task(ForgetClient("1")), GA(2, lr=1e25, clip=1e-20)
    task, ledger = account(plain)
    rounds(method, task)
    assert ledger.phases["unlearn"] == method.cost(size_of(plain))


# --- statistics, price, refusals, resuming --------------------------------------------------------------------------


def test_batchnorms_statistics_follow_what_is_ascended_on_and_counters_do_not() -> None:
    task = small_task(ForgetClient("1"))
    (after,) = rounds(GA(), task)
    for name in ("norm.running_mean", "norm.running_var"):
        assert not torch.equal(after.buffers[name], task.weights.buffers[name])
    assert torch.equal(after.buffers["norm.num_batches_tracked"], task.weights.buffers["norm.num_batches_tracked"])


def test_the_price_is_two_models_and_three_passes_a_sample_in_each_epoch() -> None:
    task, ledger = account(twin(REQUESTS["two clients"]).task)
    rounds(GA(3), task)
    spent = ledger.phases["unlearn"]
    assert (spent.down, spent.up) == (3 * 2 * 15 * 8, 3 * 2 * 15 * 8)
    assert spent.work == Work(3 * 9, 3 * 9)  # backward costs two forward


def test_fine_tuning_follows_by_itself_and_is_no_part_of_the_method() -> None:
    """The supplement's 1 + 49 epochs are one round of ascent and 49 of recovery."""
    steps = follow(GA(), small_task(ForgetInstances({"0": (0, 5)})), 49)
    phases = [(step.phase, step.round.number) for step in islice(steps, 3)]
    assert phases == [("unlearn", 0), ("recover", 0), ("recover", 1)]


def test_it_is_centralized_on_one_client_and_the_mean_by_samples_on_several() -> None:
    """Two clients with one and three samples, a step each: the same as one client with all four of them in a batch."""
    some: dict[str, list[tuple[tuple[float, float, float], int]]] = {
        "a": [((1, 0, 0), 0)],
        "b": [((0, 1, 0), 0), ((0, 1, 1), 1), ((0, 0, 2), 0)],
    }
    apart = by_hand(ForgetInstances({"a": (0,), "b": (0, 1, 2)}), some)
    together = by_hand(ForgetClient("c"), {"c": [*some["a"], *some["b"]]})
    assert vector(rounds(GA(), apart)[0]) == vector(rounds(GA(), together)[0])
