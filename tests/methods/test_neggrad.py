"""NegGrad+: by hand, against NumPy and a plain loop, and how batches are paired."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import chain
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from joint import DECAY, LR, MOMENTUM, REQUESTS, TRAINING, Twin, account, by_hand, rounds, same, twin, vector, watched
from numpy_twin_joint import Array, Gradient, labelled, sgd, weighted
from torch import nn

from fedunlearn.contract import size_of, small_task
from fedunlearn.federation import ClientContext, Forgotten, Predicate, Reply, Retained, Work
from fedunlearn.methods.neggrad import NegativeGradient, NegGradPlus
from fedunlearn.programs import SGD, Evaluate, Exponential
from fedunlearn.requests import ForgetClass, ForgetClient, ForgetInstances
from fedunlearn.rounds import aggregate
from fedunlearn.task import Task
from fedunlearn.weights import Weights


def test_a_step_by_hand() -> None:
    """At w = 0 cross-entropy's gradient is -x / 2 for class 0: -(3/4) (0, 2, 0) / 2 + (1/4) (4, 0, 0) / 2, times -1."""
    task = by_hand(ForgetInstances({"a": (0,)}), {"a": [((4, 0, 0), 0), ((0, 2, 0), 0)]}, lr=1.0)
    assert [vector(after) for after in rounds(NegGradPlus(0.75, 1), task)] == [[-0.5, 0.75, 0]]


def test_clients_that_hold_one_of_both_by_hand() -> None:
    """ "a" ascends by (1/4) (4, 0, 0) / 2, "b" with three samples descends by (3/4) (0, 2, 0) / 2; the mean of both."""
    apart: Any = {"a": [((4, 0, 0), 0)], "b": [((0, 2, 0), 0)] * 3}
    task = by_hand(ForgetClient("a"), apart, lr=1.0)
    assert vector(rounds(NegGradPlus(0.75, 1), task)[0]) == [-0.125, 0.5625, 0]


def numpy_neggrad(world: Twin, beta: float, rates: list[float]) -> list[Array]:
    model, found = world.theta, []

    def nothing(theta: Array) -> Array:
        return 0 * theta

    for lr in rates:
        replies = []
        for client in sorted(world.retained.keys() | world.forgotten.keys()):
            parts = [part[client] for part in (world.retained, world.forgotten) if client in part]
            down, up = (
                labelled(part[client]) if client in part else nothing for part in (world.retained, world.forgotten)
            )

            def gradient(theta: Array, down: Gradient = down, up: Gradient = up) -> Array:
                return beta * down(theta) - (1 - beta) * up(theta)

            replies.append((sgd(model, gradient, lr, 1, MOMENTUM, DECAY), sum(map(len, parts))))
        model = weighted(replies)
        found.append(model)
    return found


@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
@pytest.mark.parametrize("beta", [0.5, 0.95])
def test_three_epochs_equal_numpys_each_with_a_fresh_optimizer(request_: Predicate, beta: float) -> None:
    world = twin(request_)
    found = rounds(NegGradPlus(beta, 3, 0.2), world.task)
    for after, theta in zip(found, numpy_neggrad(world, beta, [0.2] * 3), strict=True):
        same(after, theta)


def test_it_follows_the_trainings_schedule_unless_it_has_a_learning_rate_of_its_own() -> None:
    world = twin(REQUESTS["class"])
    scheduled = replace(world.task, training=replace(TRAINING, schedule=Exponential(0.5)))
    same(rounds(NegGradPlus(0.9, 2), scheduled)[-1], numpy_neggrad(world, 0.9, [LR, LR / 2])[-1])
    same(rounds(NegGradPlus(0.9, 2, LR), scheduled)[-1], numpy_neggrad(world, 0.9, [LR, LR])[-1])


# --- pairing --------------------------------------------------------------------------------------------------------


def one_client(goes: tuple[int, ...], batch_size: int) -> Task:
    """Client "1" of the small federation, alone: 17 samples to train on."""
    task = small_task(ForgetInstances({"1": goes}))
    return replace(task, training=replace(task.training, batch_size=batch_size))


def plain_loop(task: Task, beta: float) -> Weights:
    """An epoch at client "1": what stays beside what goes, which comes in a new order each time."""
    found: list[Weights] = []

    def loop(context: ClientContext) -> Reply:
        model, size = context.model.train(), task.training.batch_size
        optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
        stays = context.batches(0, size, of=Retained())
        goes = chain.from_iterable(context.batches(epoch, size, of=Forgotten()) for epoch in range(9))
        for kept, gone in zip(stays, goes, strict=False):
            optimizer.zero_grad()
            descent = nn.functional.cross_entropy(model(kept.x), kept.y)
            ascent = nn.functional.cross_entropy(model(gone.x), gone.y)
            (beta * descent - (1 - beta) * ascent).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        found.append(Weights.of(model))
        return Reply()

    list(task.everyone.run(loop, task.weights, task.turn(), ["1"]))
    return found[0]


@pytest.mark.parametrize("batch_size", [4, 8])
def test_an_epoch_equals_a_plain_loop_over_the_same_batches(batch_size: int) -> None:
    """Bit for bit, with BatchNorm, which normalises each half by itself, and dropout."""
    task = one_client((0, 1, 2, 3), batch_size)
    opposing = NegativeGradient(replace(task.training, epochs=1.0), 0.9)
    ((_, reply),) = task.everyone.run(opposing, task.weights, task.turn(), ["1"])
    assert reply.weights is not None
    assert reply.weights.same_bits(plain_loop(task, 0.9))


def reading(task: Task, client: str) -> list[tuple[str, list[int]]]:
    """What a client reads in an epoch, batch by batch: "goes" or "stays", and which samples."""
    seen, visits = watched(task)
    rounds(NegGradPlus(0.9, 1), seen)
    (visit,) = [visit for visit in visits if visit.client == client]
    number: dict[tuple[float, ...], int] = {}
    found = []
    for batch in visit.read:
        assert batch.forget.all() or not batch.forget.any()
        keys = [tuple(x.flatten().tolist()) for x in batch.x]
        found.append(("goes" if batch.forget.all() else "stays", [number.setdefault(key, len(number)) for key in keys]))
    return found


def test_beside_each_batch_of_what_stays_stands_one_of_what_goes_which_is_gone_round() -> None:
    read = reading(one_client(tuple(range(8)), 2), "1")
    kinds = [kind for kind, _ in read]
    assert kinds == ["stays", "goes"] * (len(read) // 2)
    stays = [sample for kind, samples in read for sample in samples if kind == "stays"]
    assert len(stays) == len(set(stays))  # once each
    goes = [sample for kind, samples in read for sample in samples if kind == "goes"]
    counts = Counter(goes)
    assert len(goes) > len(counts)  # gone round
    assert set(goes[: len(counts)]) == set(counts)  # all of them before one comes again
    assert max(counts.values()) - min(counts.values()) <= 1


def test_where_more_goes_than_stays_an_epoch_is_still_one_of_what_stays() -> None:
    read = reading(one_client(tuple(range(16)), 2), "1")
    stays = [samples for kind, samples in read if kind == "stays"]
    assert len(read) == 2 * len(stays) < 10


def test_a_client_with_nothing_to_forget_takes_beta_times_the_step_of_fine_tuning() -> None:
    plain = replace(TRAINING, optimizer=SGD(0.1, 0.0, 0.0), epochs=1.0)
    task = replace(twin(ForgetClient("nobody")).task, training=plain)
    tuned = aggregate(task.retained, task.weights, plain, task.turn()) - task.weights
    same(rounds(NegGradPlus(0.75, 1), task)[0] - task.weights, 0.75 * tuned.vector().numpy())


def test_a_client_with_nothing_that_stays_reads_what_goes_once() -> None:
    read = reading(small_task(ForgetClient("1")), "1")
    samples = [sample for _, batch in read for sample in batch]
    assert {kind for kind, _ in read} == {"goes"}
    assert sorted(samples) == list(range(17))


def test_the_share_of_a_client_is_all_that_it_holds_whatever_it_reads_more_than_once() -> None:
    task, visits = watched(small_task(ForgetInstances({"1": (0, 1, 2)})))
    rounds(NegGradPlus(0.9, 1), task)
    assert [visit.reply.samples for visit in visits] == [16, 17, 18, 19]


# --- price, name, refusals, resuming --------------------------------------------------------------------------------


def test_the_price_by_hand() -> None:
    """Class-wise, batches larger than anything: each client reads both parts once; two models a client and epoch."""
    world = twin(REQUESTS["class"])
    task, ledger = account(world.task)
    rounds(NegGradPlus(epochs=2), task)
    spent = ledger.phases["unlearn"]
    assert (spent.down, spent.up) == (2 * 4 * 120, 2 * 4 * 120)
    assert spent.work == Work(2 * 22, 2 * 22)


def test_what_is_gone_round_costs_each_time() -> None:
    """Of client "1" three samples go, beside seven batches of two that stay; the others only have what stays."""
    plain = one_client((1, 2, 3), 2)
    (goes,) = (reply.samples for _, reply in plain.forgotten.run(Evaluate(), plain.weights, plain.turn()))
    (stays,) = (reply.samples for _, reply in plain.retained.run(Evaluate(), plain.weights, plain.turn(), ["1"]))
    assert (goes, stays) == (3, 14)
    task, ledger = account(plain)
    rounds(NegGradPlus(epochs=1), task)
    passes = (16 + 18 + 19) + 14 + 7 * 3  # three samples are one batch, the last one merged into the one before
    assert ledger.phases["unlearn"].work == Work(passes, passes)


@settings(max_examples=60, deadline=None)
@given(
    held=st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)).filter(any), min_size=1, max_size=3),
    batch_size=st.integers(1, 5),
)
def test_the_price_is_what_it_says_whatever_the_sizes(held: list[tuple[int, int]], batch_size: int) -> None:
    """So many samples that stay, and that go, at each client."""
    samples: Any = {str(k): [((1, 0, 0), 0)] * stays + [((0, 1, 0), 1)] * goes for k, (stays, goes) in enumerate(held)}
    task = by_hand(ForgetClass(1), samples)
    task = replace(task, training=replace(task.training, batch_size=batch_size))
    counted, ledger = account(task)
    rounds(NegGradPlus(epochs=2), counted)
    assert ledger.phases["unlearn"] == NegGradPlus(epochs=2).cost(size_of(task))


def test_on_a_network_what_goes_is_told_less_often_and_what_stays_is_not() -> None:
    task = small_task(ForgetClass(2))
    (*_, after) = rounds(NegGradPlus(0.7, 5, 0.05), task)

    def accuracy(weights: Weights, forget: bool) -> float:
        view = task.forgotten if forget else task.retained
        replies = [reply for _, reply in view.run(Evaluate(), weights, task.turn(phase="evaluate"))]
        return sum(r.metrics["accuracy"] * r.samples for r in replies) / sum(r.samples for r in replies)

    assert accuracy(after, True) < accuracy(task.weights, True)
    assert accuracy(after, False) >= accuracy(task.weights, False)


def test_its_name_is_that_of_the_tables() -> None:
    assert NegGradPlus().name == "NegGrad+"
