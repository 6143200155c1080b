"""MoDE: by hand, against NumPy, and what the paper promises."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from joint import (
    DECAY,
    LR,
    MOMENTUM,
    REQUESTS,
    STEPS,
    TRAINING,
    Twin,
    account,
    by_hand,
    holdings,
    rounds,
    same,
    trained,
    twin,
    vector,
    watched,
)
from numpy_twin_joint import Array, Held, cross_entropy, one_hot, scores, sgd, weighted
from torch import nn

from fedunlearn.contract import SmallNet, small_task
from fedunlearn.federation import Batch, ClientContext, ClientId, Predicate, Reply, Work
from fedunlearn.methods.mode import Guidance, MoDE, mixed
from fedunlearn.programs import SGD, Exponential
from fedunlearn.requests import ForgetClass, ForgetClient, ForgetInstances
from fedunlearn.rounds import Round
from fedunlearn.task import Task
from fedunlearn.weights import Weights

KINDS = ["client", "class"]


def test_a_round_by_hand() -> None:
    """M_de = 0 learns of b, x = (0, 2, 0) of class 1: p = (1/2, 1/2), so its gradient is x / 2: M_de = (0, -1, 0).

    M = 0.5 (0, 1, 0) + 0.5 M_de = 0. M_de gives a's x = (1, 1, 0) the score -1 against 0, so class 1, not its own.
    The gradients at M are then (0.5, 0.5, 0) and (0, 1, 0), times -0.2, and b has three quarters of the samples.
    """
    task = by_hand(ForgetClient("a"), {"a": [((1, 1, 0), 0)], "b": [((0, 2, 0), 1)] * 3}, weights=(0, 1, 0))
    (done,) = MoDE(rounds=1, erasure_rounds=1, keep=0.5, lr=0.2, degraded_lr=1.0).unlearn(task)
    assert vector(done.carry["degraded"]) == [0, -1, 0]
    assert vector(done.after) == [-0.025, -0.175, 0]


def numpy_mode(world: Twin, degraded: Array, method: MoDE) -> list[tuple[Array, Array]]:
    model, found = world.theta, []
    for number in range(method.rounds):
        if number < method.erasure_rounds:
            degraded = weighted((trained(degraded, h, method.degraded_lr), len(h)) for h in world.retained.values())
            model = method.keep * model + (1 - method.keep) * degraded
        replies = []
        for client in world.retained.keys() | world.forgotten.keys():
            x, targets = [], []
            if client in world.retained:
                x.append(world.retained[client].x)
                targets.append(one_hot(world.retained[client].y, 3))
            if client in world.forgotten:
                x.append(world.forgotten[client].x)
                targets.append(one_hot(scores(degraded, x[-1]).argmax(1), 3))
            gradient = cross_entropy(np.concatenate(x), np.concatenate(targets))
            replies.append((sgd(model, gradient, method.lr, STEPS, MOMENTUM, DECAY), sum(map(len, x))))
        model = weighted(replies)
        found.append((model, degraded))
    return found


@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
def test_three_rounds_equal_numpys(request_: Predicate) -> None:
    world, method = twin(request_), MoDE(rounds=3, erasure_rounds=2, keep=0.7, lr=0.05, degraded_lr=0.2)
    expected = numpy_mode(world, world.task.fresh("degraded").vector().numpy(), method)
    for done, (model, degraded) in zip(method.unlearn(world.task), expected, strict=True):
        same(done.after, model)
        same(done.carry["degraded"], degraded)


# --- erasure --------------------------------------------------------------------------------------------------------


def models(values: list[float], variance: float, counter: int) -> Weights:
    buffers = {"var": torch.tensor([variance]), "count": torch.tensor(counter)}
    return Weights({"w": torch.tensor(values, dtype=torch.float64)}, buffers)


NUMBERS = st.lists(st.floats(-1e3, 1e3), min_size=3, max_size=3)
VARIANCES = st.floats(0.015625, 1024, width=32)


@given(NUMBERS, NUMBERS, VARIANCES, VARIANCES, st.floats(0, 1))
def test_an_erasure_leaves_lambda_of_the_distance_to_the_degraded_model(
    some: list[float], others: list[float], variance: float, other_variance: float, keep: float
) -> None:
    model, degraded = models(some, variance, 3), models(others, other_variance, 7)
    after = mixed(model, degraded, keep)
    scale = 1e-15 * (model.norm() + degraded.norm())
    assert (after - degraded).norm() == pytest.approx(keep * (model - degraded).norm(), rel=1e-12, abs=4 * scale)
    assert (after - model).norm() == pytest.approx((1 - keep) * (model - degraded).norm(), rel=1e-12, abs=4 * scale)
    assert float(after.buffers["var"]) == pytest.approx(keep * variance + (1 - keep) * other_variance, rel=1e-6)
    assert after.buffers["count"] == 3


def test_lambda_one_changes_nothing_and_lambda_zero_gives_the_degraded_model() -> None:
    model, degraded = models([1.5, 0.1, -3.0], 0.3, 3), models([0.7, -2.1, 1e-9], 0.9, 7)
    assert mixed(model, degraded, 1.0).same_bits(model)
    assert mixed(model, degraded, 0.0).same_bits(
        replace(degraded, buffers={**degraded.buffers, "count": torch.tensor(3)})
    )


@pytest.mark.parametrize("keep", [0.0, 0.4, 1.0])
def test_what_is_guided_is_the_mixture_floating_buffers_included_and_counters_not(keep: float) -> None:
    """Seen at the clients of two rounds: M is what was left by the round before, M_de what this one's clients train."""
    counter = "norm.num_batches_tracked"
    plain = small_task(ForgetClient("1"))
    counted = replace(plain.weights, buffers={**plain.weights.buffers, counter: torch.tensor(9)})  # a fresh one has 0
    task, visits = watched(replace(plain, weights=counted))
    before = task.weights
    for done in MoDE(rounds=2, erasure_rounds=2, keep=keep).unlearn(task):
        degraded = done.carry["degraded"]
        sent = [v.sent for v in visits if v.turn.step == "guide" and v.turn.number == done.number]
        assert len(sent) == 4
        for weights in sent:
            assert (weights - degraded).norm() == pytest.approx(keep * (before - degraded).norm(), rel=1e-5)
            for name in ("norm.running_mean", "norm.running_var"):
                mean = keep * before.buffers[name] + (1 - keep) * degraded.buffers[name]
                assert torch.allclose(weights.buffers[name], mean, atol=1e-7)
            assert (weights.buffers[counter], degraded.buffers[counter]) == (9, 0)
        before = done.after


# --- the degraded model ---------------------------------------------------------------------------------------------


def inputs(held: Mapping[ClientId, Held]) -> set[tuple[float, ...]]:
    return {tuple(row) for own in held.values() for row in own.x.tolist()}


@pytest.mark.parametrize("kind", REQUESTS)
def test_the_degraded_model_is_never_trained_on_a_forget_sample(kind: str) -> None:
    world = twin(REQUESTS[kind])
    task, visits = watched(world.task)
    rounds(MoDE(rounds=3, erasure_rounds=2), task)
    degrading = [visit for visit in visits if visit.turn.step == "degrade"]
    assert [(v.turn.number, v.client) for v in degrading] == [(n, k) for n in (0, 1) for k in world.retained]
    for visit in degrading:
        assert visit.x == inputs({"": world.retained[visit.client]})
    guiding = [visit for visit in visits if visit.turn.step == "guide"]
    assert set().union(*(v.x for v in guiding)) == inputs(world.retained) | inputs(world.forgotten)
    assert len(degrading) + len(guiding) == len(visits)


def test_the_degraded_model_starts_from_a_fresh_draw_and_goes_on_from_round_to_round() -> None:
    task, visits = watched(twin(REQUESTS["client"]).task)
    done = list(MoDE(rounds=2, erasure_rounds=2).unlearn(task))
    sent = {v.turn.number: v.sent for v in visits if v.turn.step == "degrade"}
    assert not sent[0].same_bits(task.weights)
    assert not sent[0].same_bits(task.architecture.fresh(1))  # the first training's start
    assert sent[1].same_bits(done[0].carry["degraded"])


@pytest.mark.parametrize("kind", KINDS)
def test_the_degraded_model_is_frozen_after_the_rounds_of_erasure(kind: str) -> None:
    task, visits = watched(twin(REQUESTS[kind]).task)
    carried = [done.carry["degraded"] for done in MoDE(rounds=4, erasure_rounds=2).unlearn(task)]
    assert [a.same_bits(b) for a, b in pairwise(carried)] == [False, True, True]
    assert max(v.turn.number for v in visits if v.turn.step == "degrade") == 1


def test_without_a_round_of_erasure_nothing_is_mixed() -> None:
    task, visits = watched(twin(REQUESTS["client"]).task)
    rounds(MoDE(rounds=1, erasure_rounds=0), task)
    assert all(visit.sent.same_bits(task.weights) for visit in visits)
    assert rounds(MoDE(rounds=0), task) == []


# --- guidance -------------------------------------------------------------------------------------------------------


@dataclass
class Costs:
    """What `Guidance` makes of each batch, and what it should."""

    degraded: Weights

    def __call__(self, context: ClientContext) -> Reply:
        cost: Callable[[nn.Module, Batch], torch.Tensor] = Guidance(self.degraded)(context)
        student, teacher = context.model.eval(), SmallNet()
        self.degraded.into(teacher)
        teacher.eval()
        self.pairs, self.changed = [], 0
        for batch in context.batches(0, 8):
            labels = torch.where(batch.forget, teacher(batch.x).argmax(1), batch.y)
            self.changed += int((labels != batch.y).sum())
            expected = nn.functional.cross_entropy(student(batch.x), labels)
            self.pairs.append((cost(student, batch).item(), expected.item()))
        return Reply()


@pytest.mark.parametrize("request_", [ForgetClient("1"), ForgetClass(0)], ids=KINDS)
def test_labels_of_forget_inputs_are_the_degraded_models_argmax_in_eval_mode(request_: Predicate) -> None:
    task = small_task(request_)
    degraded = task.fresh("teacher")
    degraded = replace(degraded, buffers={**task.weights.buffers, "norm.running_mean": torch.tensor([3.0, -3, 2, 0])})
    costs = Costs(degraded)
    list(task.everyone.run(costs, task.weights, task.turn(), ["1"]))
    assert costs.changed > 0
    for cost, expected in costs.pairs:
        assert cost == pytest.approx(expected, rel=1e-6)


def test_shuffling_the_true_labels_of_forget_inputs_changes_no_bit() -> None:
    request = ForgetInstances({"a": (0, 1, 2, 3, 4), "b": (1, 2, 5)})  # a client and a part of another
    held = holdings()
    others = {
        "a": Held(held["a"].x, (held["a"].y + 1) % 3),
        "b": Held(held["b"].x, np.where(np.isin(np.arange(7), (1, 2, 5)), (held["b"].y + 2) % 3, held["b"].y)),
    }
    method = MoDE(rounds=2, erasure_rounds=1)
    plain, shuffled = (rounds(method, twin(request, h).task) for h in (held, {**held, **others}))
    assert all(a.same_bits(b) for a, b in zip(plain, shuffled, strict=True))
    retained = Held(held["b"].x, np.where(np.arange(7) == 0, (held["b"].y + 1) % 3, held["b"].y))
    (changed, *_) = rounds(method, twin(request, {**held, "b": retained}).task)
    assert not changed.same_bits(plain[0])  # the labels of what stays do matter


@pytest.mark.parametrize("kind", REQUESTS)
def test_everybody_guides_once_a_round_with_all_of_its_samples(kind: str) -> None:
    """Where a client has both, what stays and what goes are trained on jointly, in the same batches."""
    world = twin(REQUESTS[kind])
    task, visits = watched(world.task)
    rounds(MoDE(rounds=2, erasure_rounds=1), task)
    for number in (0, 1):
        guiding = [v for v in visits if v.turn.step == "guide" and v.turn.number == number]
        assert sorted(v.client for v in guiding) == ["a", "b", "c", "d"]
        for visit in guiding:
            assert visit.x == inputs({"": holdings()[visit.client]})
            assert visit.reply.samples == len(holdings()[visit.client])


def test_guidance_is_recomputed_in_each_round_from_the_degraded_model_as_it_is_then() -> None:
    """Labels by M_de after round 0 and after round 1 differ, and NumPy's twin, which takes the newest, agrees."""
    world, method = twin(REQUESTS["client"]), MoDE(rounds=2, erasure_rounds=2, degraded_lr=3.0, lr=0.05)
    done = list(method.unlearn(world.task))
    answers = [scores(d.carry["degraded"].vector().numpy(), world.forgotten["a"].x).argmax(1) for d in done]
    assert (answers[0] != answers[1]).any()
    expected = numpy_mode(world, world.task.fresh("degraded").vector().numpy(), method)
    same(done[1].after, expected[1][0])


def test_both_steps_have_learning_rates_of_their_own_whatever_the_schedule() -> None:
    world = twin(REQUESTS["client"])
    scheduled = replace(
        world.task, training=replace(TRAINING, optimizer=SGD(9.0, MOMENTUM, DECAY), schedule=Exponential(0.1))
    )
    method = MoDE(rounds=2, erasure_rounds=2)
    assert all(a.same_bits(b) for a, b in zip(rounds(method, world.task), rounds(method, scheduled), strict=True))
    usual = MoDE(rounds=1, erasure_rounds=1, lr=None, degraded_lr=None)
    explicit = MoDE(rounds=1, erasure_rounds=1, lr=LR, degraded_lr=LR)
    assert rounds(usual, world.task)[0].same_bits(rounds(explicit, world.task)[0])


# --- without those who leave; costs; resuming -----------------------------------------------------------------------


def test_without_guidance_by_the_target_nobody_who_leaves_is_asked_and_those_who_stay_guide_alone() -> None:
    world, method = twin(REQUESTS["client"]), MoDE(rounds=2, erasure_rounds=1, lr=0.05, guide_target=False)
    task, visits = watched(world.task)
    found = rounds(method, task)
    assert {visit.client for visit in visits} == {"b", "c", "d"}
    assert set().union(*(v.x for v in visits)) == inputs(world.retained)
    assert (method.needs.forget_data, method.needs.target_online) == ("none", False)
    alone = replace(world, forgotten={})
    expected = numpy_mode(alone, world.task.fresh("degraded").vector().numpy(), method)
    for weights, (model, _) in zip(found, expected, strict=True):
        same(weights, model)


def bytes_by_round(method: MoDE, task: Task) -> list[int]:
    counted, ledger = account(task)
    totals = [0]
    for _ in method.unlearn(counted):
        totals.append(ledger.phases["unlearn"].down + ledger.phases["unlearn"].up)
    return [b - a for a, b in pairwise(totals)]


def test_bytes_are_4r_3u_models_while_erasing_and_2r_3u_later_client_wise() -> None:
    size = 15 * 8  # float64
    for kind, (r, u) in {"client": (3, 1), "two clients": (2, 2)}.items():
        spent = bytes_by_round(MoDE(rounds=3, erasure_rounds=2), twin(REQUESTS[kind]).task)
        assert spent == [(4 * r + 3 * u) * size] * 2 + [(2 * r + 3 * u) * size]


def test_bytes_are_5k_models_while_erasing_and_3k_later_class_wise() -> None:
    """Each of the four clients degrades (2 models) and guides with the degraded model beside it (3)."""
    spent = bytes_by_round(MoDE(rounds=3, erasure_rounds=2), twin(REQUESTS["class"]).task)
    assert spent == [5 * 4 * 15 * 8] * 2 + [3 * 4 * 15 * 8]


def test_passes_of_an_erasing_round() -> None:
    """3 C E (2 sum_R n + sum_U n) + C E sum_U n: labels are computed batch by batch, so in each epoch anew."""
    counted, ledger = account(twin(REQUESTS["client"]).task)
    rounds(MoDE(rounds=1, erasure_rounds=1), counted)
    r, u = 7 + 4 + 6, 5
    assert ledger.phases["unlearn"].work == Work(STEPS * (2 * r + u) + STEPS * u, STEPS * (2 * r + u))


def test_what_is_carried_is_all_that_resuming_needs() -> None:
    task, method = twin(REQUESTS["client"]).task, MoDE(rounds=4, erasure_rounds=2)
    whole = list(method.unlearn(task))
    assert [set(done.carry) for done in whole] == [{"degraded"}] * 4
    for at, done in enumerate(whole):
        rest = list(MoDE(rounds=4, erasure_rounds=2).unlearn(task, Round(done.number, done.after, dict(done.carry))))
        assert [r.number for r in rest] == [r.number for r in whole[at + 1 :]]
        assert all(a.after.same_bits(b.after) for a, b in zip(rest, whole[at + 1 :], strict=True))
