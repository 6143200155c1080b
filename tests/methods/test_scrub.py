"""SCRUB: by hand, against NumPy, and what the paper promises."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from math import log
from typing import Any

import numpy as np
import pytest
import torch
from joint import (
    DECAY,
    LR,
    MOMENTUM,
    REQUESTS,
    TRAINING,
    Twin,
    account,
    by_hand,
    holdings,
    rounds,
    same,
    twin,
    watched,
)
from numpy_twin_joint import Array, Gradient, Held, back, labelled, scores, sgd, softmax, weighted
from torch import nn

from fedunlearn.contract import SmallNet, small_task
from fedunlearn.federation import ClientContext, Predicate, Reply, Work
from fedunlearn.methods.distillation import distilled
from fedunlearn.methods.scrub import SCRUB, Away, Decayed, Towards
from fedunlearn.programs import SGD, Constant, Exponential
from fedunlearn.requests import ForgetClass, ForgetClient, ForgetInstances
from fedunlearn.rounds import aggregate
from fedunlearn.task import Task
from fedunlearn.weights import Weights

# --- by hand --------------------------------------------------------------------------------------------------------

HAND: Any = {"a": [((1, 0, 0), 0)], "b": [((0, 1, 0), 0)]}


def test_an_epoch_by_hand() -> None:
    """The teacher is 0: (1/2, 1/2) everywhere. First it is the student: KD is 0, and so is its gradient at "a".

    At "b" only cross-entropy pulls, at -1/2: with gamma = 1 and a learning rate of 2 log 3 to the score log 3.
    """
    (after,) = rounds(SCRUB(1, 1, 1.0, 1.0, 2.0), by_hand(ForgetClient("a"), HAND, lr=2 * log(3)))
    assert after.vector().tolist() == pytest.approx([0, log(3), 0], abs=1e-6)


def test_a_second_epoch_by_hand() -> None:
    """At "b" the score is log 3 now, at T = 1: cross-entropy's gradient is -1/4, KD's 3/4 - 1/2."""
    task = by_hand(ForgetClient("a"), HAND, lr=2 * log(3))
    step = [4 * after.vector()[1].item() / (2 * log(3)) for after in rounds(SCRUB(2, 0, 0.5, 1.0, 1.0), task)]
    assert step == pytest.approx([2, 2 + 1 - 0.5], abs=1e-6)


@pytest.mark.parametrize(("temperature", "gradient"), [(1.0, 3 / 4 - 1 / 2), (2.0, 2 * (3 / 4 - 1 / 2))])
def test_kd_by_hand(temperature: float, gradient: float) -> None:
    """T^2 KL: with scores T log 3 apart its gradient is T times the difference of the softened answers."""
    taught, learnt = torch.zeros(1, 2), torch.tensor([[temperature * log(3), 0.0]], requires_grad=True)
    kd = distilled(taught, learnt, temperature)
    kd.backward()  # type: ignore[no-untyped-call]
    assert learnt.grad is not None
    assert learnt.grad[0].tolist() == pytest.approx([gradient, -gradient])
    assert kd.item() == pytest.approx(temperature**2 * (-log(2) - (log(3 / 4) + log(1 / 4)) / 2))


# --- the twin -------------------------------------------------------------------------------------------------------


def towards(x: Array, teacher: Array, t: float) -> Gradient:
    """The gradient of KD, mean over samples."""
    old = softmax(scores(teacher, x) / t)
    return lambda theta: back(x, t * (softmax(scores(theta, x) / t) - old))


def numpy_scrub(world: Twin, method: SCRUB, rates: list[float]) -> list[Array]:
    model, found, t = world.theta, [], method.temperature

    def step(theta: Array, gradient: Gradient, lr: float) -> Array:
        return sgd(theta, gradient, lr, 1, MOMENTUM, DECAY)

    for epoch, lr in enumerate(rates, 1):
        if epoch <= method.msteps:
            replies = []
            for held in world.forgotten.values():
                kd = towards(held.x, world.theta, t)
                replies.append((step(model, lambda theta, kd=kd: -kd(theta), lr), len(held)))  # type: ignore[misc]
            model = weighted(replies)
        replies = []
        for held in world.retained.values():
            kd, ce = towards(held.x, world.theta, t), labelled(held)
            replies.append(
                (step(model, lambda th, a=kd, b=ce: method.alpha * a(th) + method.gamma * b(th), lr), len(held))  # type: ignore[misc]
            )
        model = weighted(replies)
        found.append(model)
    return found


@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
@pytest.mark.parametrize(
    "method", [SCRUB(), SCRUB(4, 3, 0.5, 1.0, 2.0, (1, 2, 3), 0.5, 0.3), SCRUB(2, 0, 0.5)], ids=str
)
def test_epochs_equal_numpys_with_the_teacher_where_it_was(request_: Predicate, method: SCRUB) -> None:
    world = twin(request_)
    rates = [0.3 * 0.5**n for n in range(4)] if method.lr else [LR] * method.epochs
    for after, theta in zip(rounds(method, world.task), numpy_scrub(world, method, rates), strict=True):
        same(after, theta)


def test_the_trainings_schedule_decays_too() -> None:
    world, method = twin(REQUESTS["class"]), SCRUB(2, 1, decay_after=(1,), decay=0.5)
    scheduled = replace(world.task, training=replace(TRAINING, schedule=Exponential(0.1)))
    same(rounds(method, scheduled)[-1], numpy_scrub(world, method, [LR, LR * 0.05])[-1])


def test_the_learning_rate_falls_after_the_epochs_that_are_listed() -> None:
    """The authors' small sets: ten epochs, after 5, 8 and 9."""
    factors = [Decayed(Constant(), 0.1, (5, 8, 9))(number) for number in range(10)]
    assert factors == pytest.approx([1] * 5 + [0.1] * 3 + [0.01] + [0.001])


# --- the teacher ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", [Away(None, 2.0), Towards(None, 2.0, 0.5, 1.0)], ids=["away", "towards"])
def test_the_teacher_is_theta_in_evaluation_mode_and_unchanged_while_the_student_is_in_training_mode(loss: Any) -> None:
    task = small_task(ForgetClient("1"))
    teachers: list[nn.Module] = []

    def training(context: ClientContext) -> Reply:
        plain: Any = context.frozen
        context.frozen = lambda *given: teachers.append(plain(*given)) or teachers[-1]  # type: ignore[method-assign,func-returns-value]
        reply = replace(task.training, loss=loss)(context)
        assert context.model.training
        return reply

    ((_, reply),) = task.forgotten.run(training, task.weights, task.turn())
    (teacher,) = teachers
    assert Weights.of(teacher).same_bits(task.weights)
    assert not any(module.training for module in teacher.modules())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert reply.weights is not None
    assert not reply.weights.same_bits(task.weights)


def still(task: Task) -> Task:
    """Without weight decay, which moves weights where no loss does."""
    return replace(task, training=replace(task.training, optimizer=SGD(1.0, 0.9, 0.0)))


@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
def test_the_first_step_away_has_no_gradient_where_student_and_teacher_compute_the_same(request_: Predicate) -> None:
    """A network without dropout and BatchNorm, all of D_f in a batch: KD is at its minimum, and nothing moves."""
    task, visits = watched(still(twin(request_).task))
    rounds(SCRUB(1, 1), task)
    first = [visit for visit in visits if visit.turn.step == "maximise"]
    assert first
    for visit in first:
        assert visit.reply.weights is not None
        assert (visit.reply.weights - task.weights).norm() < 1e-13


def test_it_has_one_with_dropout_and_batchnorm_since_the_student_is_in_training_mode() -> None:
    task, visits = watched(still(small_task(ForgetClass(2))))
    rounds(SCRUB(1, 1), task)
    for visit in visits:
        if visit.turn.step == "maximise":
            assert len(visit.read) == 1
            assert visit.reply.weights is not None
            assert (visit.reply.weights - task.weights).norm() > 1e-3


def test_maximising_moves_the_answers_on_what_goes_away_from_the_old_ones() -> None:
    task, visits = watched(small_task(ForgetClass(2)))
    rounds(SCRUB(3, 3, lr=0.1), task)
    passes = [(v.sent, v.reply.weights, v.read) for v in visits if v.turn.step == "maximise" and v.client == "1"]

    def apart(weights: Weights | None, x: torch.Tensor) -> float:
        assert weights is not None
        networks = SmallNet().eval(), SmallNet().eval()
        task.weights.into(networks[0])
        weights.into(networks[1])
        return float(distilled(networks[0](x).detach(), networks[1](x).detach(), 4.0))

    for sent, reply, read in passes[1:]:
        x = torch.cat([batch.x for batch in read])
        assert apart(reply, x) > apart(sent, x)


# --- the passes -----------------------------------------------------------------------------------------------------


def test_without_maximisation_and_distillation_it_is_fine_tuning() -> None:
    """Bit for bit, on a network with all that is awkward, several batches an epoch."""
    task = small_task(ForgetClient("1"))
    weights, found = task.weights, rounds(SCRUB(3, msteps=0, alpha=0.0, gamma=1.0, decay_after=()), task)
    for number, after in enumerate(found):
        weights = aggregate(task.retained, weights, task.training, task.turn(number, "minimise"))
        assert after.same_bits(weights)


@pytest.mark.parametrize("kind", REQUESTS)
def test_each_epoch_reads_what_goes_while_it_maximises_and_then_what_stays_once_each(kind: str) -> None:
    world = twin(REQUESTS[kind])
    task, visits = watched(world.task)
    rounds(SCRUB(3, 2), task)

    def inputs(held: Held) -> set[tuple[float, ...]]:
        return {tuple(x) for x in held.x.tolist()}

    goes = [("maximise", client, inputs(held)) for client, held in world.forgotten.items()]
    stays = [("minimise", client, inputs(held)) for client, held in world.retained.items()]
    assert [(v.turn.step, v.client, v.x) for v in visits] == [*goes, *stays, *goes, *stays, *stays]
    assert [v.turn.number for v in visits] == [0] * len(goes + stays) + [1] * len(goes + stays) + [2] * len(stays)


def test_both_passes_have_batch_sizes_of_their_own() -> None:
    task, visits = watched(small_task(ForgetClient("1")))
    rounds(SCRUB(1, 1, forget_batch_size=5, retain_batch_size=4), task)
    sizes = {
        step: {len(b.y) for v in visits if v.turn.step == step for b in v.read[:-1]}
        for step in ("maximise", "minimise")
    }
    assert sizes == {"maximise": {5}, "minimise": {4}}
    task, visits = watched(small_task(ForgetClient("1")))
    rounds(SCRUB(1, 1), task)
    assert {len(b.y) for v in visits for b in v.read[:-1]} == {8}  # the training's


def test_labels_of_what_goes_are_never_read_and_those_of_what_stays_are() -> None:
    held = holdings()
    request = ForgetInstances({"a": (0, 1, 2, 3, 4), "b": (1, 2, 5)})  # a client and a part of another
    goes = {"a": np.arange(5) >= 0, "b": np.isin(np.arange(7), (1, 2, 5))}
    others = {k: Held(held[k].x, np.where(goes[k], (held[k].y + 1) % 3, held[k].y)) for k in goes}
    plain, shuffled = (rounds(SCRUB(), twin(request, h).task) for h in (held, {**held, **others}))
    assert all(a.same_bits(b) for a, b in zip(plain, shuffled, strict=True))
    retained = Held(held["b"].x, np.where(~goes["b"], (held["b"].y + 1) % 3, held["b"].y))
    (changed, *_) = rounds(SCRUB(), twin(request, {**held, "b": retained}).task)
    assert not changed.same_bits(plain[0])


# --- price, needs, refusals, resuming -------------------------------------------------------------------------------


def test_the_price_of_each_epoch() -> None:
    """Bytes: the model both ways, and the teacher beside it from the second pass on. Passes: 3 and 1 a sample."""
    size, world = 15 * 8, twin(REQUESTS["client"])  # one leaves, three stay; 5 and 17 samples
    task, ledger = account(world.task)
    spent = [ledger.phases["unlearn"]]
    for _ in SCRUB(3, 2).unlearn(task):
        spent.append(ledger.phases["unlearn"])
    assert [b.both_ways - a.both_ways for a, b in pairwise(spent)] == [(2 + 9) * size, (3 + 9) * size, 9 * size]
    works = [(b.work.forward - a.work.forward, b.work.backward - a.work.backward) for a, b in pairwise(spent)]
    assert works == [(2 * 22, 22), (2 * 22, 22), (2 * 17, 17)]  # a backward pass costs two forward ones
    assert spent[-1].work == Work(2 * 61, 61)


def test_without_maximisation_nobody_who_leaves_is_asked() -> None:
    assert (SCRUB(msteps=0).needs.forget_data, SCRUB(msteps=0).needs.target_online) == ("none", False)
    assert (SCRUB().needs.forget_data, SCRUB().needs.target_online) == ("inputs", True)
    task, visits = watched(twin(REQUESTS["client"]).task)
    rounds(SCRUB(msteps=0), task)
    assert {visit.client for visit in visits} == {"b", "c", "d"}
