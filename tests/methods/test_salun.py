"""SalUn: by hand, against NumPy, and what its specification promises."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from joint import (
    DECAY,
    LR,
    MOMENTUM,
    REQUESTS,
    STEPS,
    Twin,
    account,
    by_hand,
    rounds,
    same,
    twin,
    vector,
    watched,
)
from numpy_twin_joint import Array, Held, labelled, weighted
from test_randl import PARTS, flipped, together, two_classes
from torch import Tensor, nn

from fedunlearn.backends.wire import decode, encode
from fedunlearn.contract import SmallNet, small_task
from fedunlearn.federation import Predicate, Work
from fedunlearn.methods.randl import RandL
from fedunlearn.methods.salun import Masked, SalUn, most_salient
from fedunlearn.programs import SGD, Adam, LocalTraining
from fedunlearn.requests import ForgetClass, ForgetClient, ForgetInstances
from fedunlearn.rounds import Round
from fedunlearn.task import Task
from fedunlearn.weights import Weights

Mix = Literal["sequential", "joint"]


def test_a_round_by_hand() -> None:
    """a's gradient is -x / 2 = (-0.5, -1.5, -0.5): the second entry alone may move.

    Relabelled, a's gradient is x / 2, so w = (1, -1.15, 2), where b's score is 4 - 2.3 - 2 = -0.3.
    """
    samples = {"a": [((1, 3, 1), 0)], "b": [((4, 2, -1), 1)] * 3}
    task = by_hand(ForgetClient("a"), samples, weights=(1, -1, 2))
    (done,) = SalUn(0.34, rounds=1).unlearn(task)
    assert vector(done.carry["mask"]) == [0, 1, 0]
    p = 1 / (1 + np.exp(0.3))  # of class 0 at the score -0.3
    assert vector(done.after) == pytest.approx([1, -1.15 - 0.1 * p * 2, 2], abs=1e-6)


# --- against NumPy: of two classes a label that is not the true one is the other one --------------------------------


def masked_training(theta: Array, held: Held, mask: Array) -> Array:
    velocity, gradient = np.zeros_like(theta), labelled(held, 2)
    for _ in range(STEPS):
        velocity = (MOMENTUM * velocity + gradient(theta) + DECAY * theta) * mask
        theta = theta - LR * velocity
    return theta


def numpy_mask(world: Twin, count: int) -> Array:
    saliency = np.abs(labelled(together(*world.forgotten.values()), 2)(world.theta))
    mask = np.zeros_like(saliency)
    mask[np.argsort(-saliency, kind="stable")[:count]] = 1
    return mask


@pytest.mark.parametrize("request_", PARTS.values(), ids=PARTS)
@pytest.mark.parametrize("mix", ["sequential", "joint"])
def test_two_rounds_equal_numpys(request_: Predicate, mix: Mix) -> None:
    world = twin(request_, two_classes(), classes=2)
    theta, mask = world.theta, numpy_mask(world, 3)  # of 10 parameters
    goes = {client: flipped(own) for client, own in world.forgotten.items()}
    if mix == "joint":
        passes = [{c: together(goes.get(c), world.retained.get(c)) for c in two_classes()}]
    else:
        passes = [goes, dict(world.retained)]
    for done in SalUn(0.3, rounds=2, mix=mix).unlearn(world.task):
        same(done.carry["mask"], mask)
        for held in passes:
            theta = weighted((masked_training(theta, own, mask), len(own)) for own in held.values())
        same(done.after, theta)


# --- the mask -------------------------------------------------------------------------------------------------------


@example([1] * 100, 29)  # 0.29 * 100 is a little less than 29
@given(st.lists(st.integers(-3, 3), min_size=1, max_size=60), st.integers(0, 100))
def test_the_mask_has_exactly_floor_rho_p_ones_which_are_the_largest_and_of_equals_the_first(
    gradients: list[int], percent: int
) -> None:
    half = len(gradients) // 2
    two = {"a": torch.tensor(gradients[:half]).double(), "b": torch.tensor(gradients[half:]).double().view(1, -1)}
    mask = most_salient(Weights(two), percent / 100)
    assert {name: tensor.shape for name, tensor in mask.parameters.items()} == {n: t.shape for n, t in two.items()}
    ranked = sorted(range(len(gradients)), key=lambda at: (-abs(gradients[at]), at))
    expected = set(ranked[: percent * len(gradients) // 100])
    assert mask.vector().tolist() == [float(at in expected) for at in range(len(gradients))]


def test_the_mask_is_global_over_tensors_of_different_sizes() -> None:
    gradient = Weights({"a": torch.tensor([[1.0, -5.0], [0.0, 2.0]]), "b": torch.tensor([4.0, -3.0])})
    assert most_salient(gradient, 0.5).vector().tolist() == [0, 1, 0, 0, 1, 1]
    assert most_salient(gradient, 0.17).vector().tolist() == [0, 1, 0, 0, 0, 0]


@pytest.mark.parametrize("request_", [ForgetClient("1"), ForgetInstances({"0": (0, 5, 7)})], ids=["client", "some"])
def test_saliency_is_of_what_goes_alone_at_theta_star_in_eval_mode(request_: Predicate) -> None:
    task, visits = watched(small_task(request_))
    done = next(SalUn(0.2, rounds=1).unlearn(task))
    asked = [visit for visit in visits if visit.turn.step == "saliency"]
    (visit,) = asked
    network = SmallNet().eval()
    task.weights.into(network)
    x, y = (torch.cat([getattr(batch, part) for batch in visit.read]) for part in "xy")
    cost = nn.functional.cross_entropy(network(x), y)
    saliency = torch.cat([slope.flatten() for slope in torch.autograd.grad(cost, list(network.parameters()))]).abs()
    mask = done.carry["mask"].vector() == 1
    assert int(mask.sum()) == 31  # of 155
    assert saliency[mask].min() >= saliency[~mask].max()
    assert visit.sent.same_bits(task.weights)


def test_the_mask_is_computed_once_and_carried() -> None:
    task, visits = watched(small_task(ForgetClient("1")))
    carried = [done.carry["mask"] for done in SalUn(rounds=3).unlearn(task)]
    assert carried[0].same_bits(carried[1])
    assert carried[0].same_bits(carried[2])
    assert sum(visit.turn.step == "saliency" for visit in visits) == 1


# --- frozen ---------------------------------------------------------------------------------------------------------


def decaying(task: Task) -> Task:
    return replace(task, training=replace(task.training, optimizer=SGD(0.05, 0.9, 0.1)))


@pytest.mark.parametrize("request_", [ForgetClient("1"), ForgetClass(2)], ids=["client", "class"])
@pytest.mark.parametrize("mix", ["sequential", "joint"])
def test_frozen_entries_are_theta_stars_bit_for_bit_with_weight_decay_and_momentum(
    request_: Predicate, mix: Mix
) -> None:
    task = decaying(small_task(request_))
    before = task.weights.vector()
    for done in SalUn(rounds=3, mix=mix).unlearn(task):
        frozen = done.carry["mask"].vector() == 0
        after = done.after.vector()
        assert torch.equal(after[frozen].view(torch.int32), before[frozen].view(torch.int32))
        assert (after != before)[~frozen].all()
        assert frozen.sum() == 155 - 31


def test_frozen_entries_are_theta_stars_in_float64_too_where_a_mean_of_equals_is_not_exact() -> None:
    world = twin(REQUESTS["two clients"], two_classes(), classes=2)
    means = weighted([(world.theta, 5), (world.theta, 4), (world.theta, 7)])
    assert (means != world.theta).any()
    for done in SalUn(0.3, rounds=3).unlearn(world.task):
        frozen = (done.carry["mask"].vector() == 0).numpy()
        assert (done.after.vector().numpy()[frozen] == world.theta[frozen]).all()


def stepped(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], gradients: list[list[Tensor]]) -> None:
    for slopes in gradients:
        for parameter, slope in zip(parameters, slopes, strict=True):
            parameter.grad = slope.clone()
        optimizer.step()


@pytest.mark.parametrize("recipe", [SGD(0.1, 0.9, 0.1), Adam(0.1, weight_decay=0.1)], ids=["SGD", "Adam"])
def test_after_every_step_what_is_frozen_has_not_moved_and_has_no_momentum_and_the_rest_moves_as_ever(
    recipe: SGD | Adam,
) -> None:
    rng = torch.Generator().manual_seed(0)

    def values() -> list[Tensor]:
        return [torch.randn(2, 3, generator=rng), torch.randn(3, generator=rng), torch.randn((), generator=rng)]

    start, gradients = values(), [values() for _ in range(4)]
    mask = [torch.tensor([[1.0, 0, 0], [0, 1, 1]]), torch.tensor([0.0, 1, 0]), torch.tensor(0.0)]
    free, bound = ([nn.Parameter(tensor.clone()) for tensor in start] for _ in range(2))
    stepped(recipe(free, 0.5), free, gradients)
    masked = Masked(recipe, Weights({"a": mask[0], "b": mask[1], "c": mask[2]}))(bound, 0.5)
    for at, slopes in enumerate(gradients):
        stepped(masked, bound, [slopes])
        for parameter, tensor, ones in zip(bound, start, mask, strict=True):
            assert torch.equal(parameter.detach()[ones == 0], tensor[ones == 0]), at
            moments = [s for name, s in masked.state[parameter].items() if name != "step"]
            assert moments
            assert not any(moment[ones == 0].any() for moment in moments)
    for parameter, other, tensor, ones in zip(bound, free, start, mask, strict=True):
        assert torch.equal(parameter.detach()[ones == 1], other.detach()[ones == 1])
        assert (other != tensor).all()


def test_running_statistics_are_not_masked() -> None:
    task = small_task(ForgetClient("1"))
    (masked,), (free,) = rounds(SalUn(rounds=1), task), rounds(RandL(rounds=1), task)
    for name in ("norm.running_mean", "norm.running_var"):
        assert (masked.buffers[name] != task.weights.buffers[name]).all()
        assert (free.buffers[name] != task.weights.buffers[name]).all()


# --- all trainable: RandL -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("request_", [ForgetClient("1"), ForgetClass(2)], ids=["client", "class"])
@pytest.mark.parametrize("mix", ["sequential", "joint"])
@pytest.mark.parametrize("exclude_true", [True, False])
def test_a_fraction_of_one_is_randl_bit_for_bit(request_: Predicate, mix: Mix, exclude_true: bool) -> None:
    task = decaying(small_task(request_))
    found = rounds(SalUn(1.0, 2, exclude_true, mix, lr=0.02), task)
    expected = rounds(RandL(2, exclude_true, mix, lr=0.02), task)
    assert all(a.same_bits(b) for a, b in zip(found, expected, strict=True))
    assert not rounds(SalUn(0.9, 1, exclude_true, mix, lr=0.02), task)[0].same_bits(expected[0])


# --- refusals; travelling; costs; resuming --------------------------------------------------------------------------


def test_a_fraction_of_no_parameter_is_refused() -> None:
    task = small_task(ForgetClient("1"))
    SalUn(1 / 155).check(task)
    with pytest.raises(ValueError, match=r"0\.006 of the network's 155 parameters are none: raise trainable_fraction"):
        SalUn(0.006).check(task)


def test_a_masked_optimizer_travels() -> None:
    mask = Weights({"w": torch.tensor([1.0, 0.0])})
    message, weights = encode(LocalTraining(Masked(SGD(0.3), mask)))
    optimizer = decode(message, weights).optimizer
    assert optimizer.optimizer == SGD(0.3)
    assert optimizer.mask.same_bits(mask)


@pytest.mark.parametrize(("mix", "models"), [("sequential", 1 + 3), ("joint", 4)])
def test_the_price_is_a_look_at_what_goes_and_randls_with_a_mask_in_each_pass(mix: Mix, models: int) -> None:
    task, ledger = account(twin(REQUESTS["client"]).task)
    rounds(SalUn(rounds=2, mix=mix), task)
    spent, passes = ledger.phases["unlearn"], 5 + 2 * STEPS * (5 + 7 + 4 + 6)
    assert (spent.down, spent.up) == ((1 + 2 * 2 * models) * 15 * 8, (1 + 2 * models) * 15 * 8)
    assert spent.work == Work(passes, passes)


def test_only_the_rounds_that_are_left_follow_without_a_second_look() -> None:
    task, visits = watched(twin(REQUESTS["client"]).task)
    method = SalUn(rounds=3)
    whole = list(method.unlearn(task))
    visits.clear()
    saved = Round(1, whole[1].after, whole[1].carry)
    (last,) = method.unlearn(task, saved)
    assert (last.number, last.after.same_bits(whole[2].after)) == (2, True)
    assert "saliency" not in {visit.turn.step for visit in visits}
    assert rounds(SalUn(rounds=0), twin(REQUESTS["client"]).task) == []
