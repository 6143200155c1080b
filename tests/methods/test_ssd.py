"""SSD: by hand, against NumPy, and what its specification promises."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from joint import REQUESTS, Twin, account, by_hand, holdings, rounds, same, twin, vector, watched
from numpy_twin_joint import Array, Held, labelled, weighted
from torch import Tensor

from fedunlearn.contract import SmallNet, small_task
from fedunlearn.federation import Predicate, Work
from fedunlearn.methods.gradients import GradientMoment
from fedunlearn.methods.ssd import SSD, dampened
from fedunlearn.requests import ForgetClass, ForgetClient, ForgetInstances
from fedunlearn.rounds import Round, aggregate
from fedunlearn.weights import Weights

SAMPLES = {"a": [((1, 3, 1), 0)], "b": [((4, 2, -1), 1)] * 3}  # at w = (1, -1, 2) all have w x = 0


@pytest.mark.parametrize(
    ("alpha", "damping", "expected"),
    [
        (1.0, 0.5, (1, -0.5 * 1.3125 / 2.25, 2)),  # the third has F_f = F_D exactly, which does not exceed it
        (0.5, 0.5, (1, -0.5 * 1.3125 / 2.25, 1)),
        (0.0, 1.0, (1, -1.3125 / 2.25, 2)),  # all are selected, and a factor above 1 is 1
        (0.0, 0.0, (0, 0, 0)),
        (2.0, 0.0, (1, -1, 2)),
    ],
)
def test_a_round_by_hand(alpha: float, damping: float, expected: tuple[float, ...]) -> None:
    """Gradients are -x / 2 and x / 2: F_f = (0.25, 2.25, 0.25), and b's are (4, 1, 0.25), with three samples of four.

    F_D = (0.25 + 12, 2.25 + 3, 0.25 + 0.75) / 4 = (3.0625, 1.3125, 0.25).
    """
    task = by_hand(ForgetClient("a"), SAMPLES, weights=(1, -1, 2))
    (after,) = rounds(SSD(alpha, damping), task)
    assert vector(after) == pytest.approx(expected, abs=1e-6)


# --- against NumPy --------------------------------------------------------------------------------------------------


def fisher(theta: Array, held: Held, size: int) -> Array:
    """Of batches of one sample, or of one batch of all: otherwise it matters what meets in one."""
    assert size in (1, 100)
    cut = [held.where(np.arange(len(held)) == at) for at in range(len(held))] if size == 1 else [held]
    return weighted((labelled(batch)(theta) ** 2, len(batch)) for batch in cut)


def numpy_ssd(world: Twin, alpha: float, damping: float, size: int) -> Array:
    theta = world.theta
    of_all = weighted((fisher(theta, own, size), len(own)) for own in holdings().values())
    of_forgotten = weighted((fisher(theta, own, size), len(own)) for own in world.forgotten.values())
    factor = np.minimum(damping * of_all / of_forgotten, 1)
    return np.where(of_forgotten > alpha * of_all, theta * factor, theta)


@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
@pytest.mark.parametrize(("alpha", "damping"), [(0.5, 0.5), (1.5, 1.0), (1.0, 0.1)])
@pytest.mark.parametrize("size", [1, 100])
def test_the_model_equals_numpys(request_: Predicate, alpha: float, damping: float, size: int) -> None:
    world = twin(request_)
    (after,) = rounds(SSD(alpha, damping, size), world.task)
    same(after, numpy_ssd(world, alpha, damping, size))
    assert not after.same_bits(world.task.weights)


# --- importance -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [2, 3, 4])  # of a's five samples: 2 + 3, as none may be alone; 3 + 2; 5, likewise
@pytest.mark.parametrize("order", [1, 2])
def test_a_batch_counts_by_its_samples_also_a_ragged_last_one(order: int, size: int) -> None:
    world = twin(REQUESTS["client"])
    task, visits = watched(world.task)
    found = aggregate(task.forgotten, task.weights, GradientMoment(order, size), task.turn())  # type: ignore[arg-type]
    (visit,) = visits
    read = [Held(batch.x.numpy(), batch.y.numpy()) for batch in visit.read]
    assert [len(batch) for batch in read] == {2: [2, 3], 3: [3, 2], 4: [5]}[size]
    same(found, sum(labelled(batch)(world.theta) ** order * len(batch) for batch in read) / 5)


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_the_first_moment_is_the_gradient_on_all_samples_however_they_are_batched(size: int) -> None:
    world = twin(REQUESTS["two clients"])
    task, held = world.task, world.forgotten
    found = aggregate(task.forgotten, task.weights, GradientMoment(1, size), task.turn())
    both = Held(*(np.concatenate([getattr(own, part) for own in held.values()]) for part in "xy"))
    same(found, labelled(both)(world.theta))


def test_gradients_are_taken_in_eval_mode_at_the_weights_that_were_sent() -> None:
    """With running statistics and without dropout; with torch's own derivative of the network."""
    task = small_task(ForgetClient("1"))
    watching, visits = watched(task)
    (_, reply), *_ = watching.forgotten.run(GradientMoment(2, 5), task.weights, task.turn())
    network = SmallNet().eval()
    task.weights.into(network)
    total: dict[str, Tensor] = {name: torch.zeros_like(p) for name, p in network.named_parameters()}
    for batch in visits[0].read:
        cost = torch.nn.functional.cross_entropy(network(batch.x), batch.y)
        slopes = torch.autograd.grad(cost, list(network.parameters()))
        for (name, _), slope in zip(network.named_parameters(), slopes, strict=True):
            total[name] += slope.square() * len(batch.y)
    assert reply.weights is not None
    assert reply.samples == 17  # 21, of which a fifth is kept for validation
    assert len(visits[0].read) == 4
    for name, expected in total.items():
        assert torch.allclose(reply.weights.parameters[name], expected / 17, rtol=1e-4, atol=1e-9)
    assert all(torch.equal(reply.weights.buffers[name], buffer) for name, buffer in task.weights.buffers.items())


def test_a_parameter_that_no_gradient_reaches_has_no_importance_and_stays() -> None:
    task = by_hand(ForgetClient("a"), {"a": [((1, 3, 0), 0)], "b": [((4, 2, 0), 1)]}, weights=(1, -1, 2))
    (after,) = rounds(SSD(0.0, 0.0), task)
    assert vector(after) == [0, 0, 2]


@pytest.mark.parametrize("kind", REQUESTS)
def test_all_data_are_those_to_be_forgotten_too_in_batches_of_the_same_size(kind: str) -> None:
    world = twin(REQUESTS[kind])
    task, visits = watched(world.task)
    rounds(SSD(batch_size=3), task)
    parts = {"all": holdings(), "forgotten": world.forgotten}
    expected = [(s, k, {tuple(x) for x in own.x.tolist()}) for s, held in parts.items() for k, own in held.items()]
    assert [(visit.turn.step, visit.client, visit.x) for visit in visits] == expected
    assert {len(batch.y) for visit in visits for batch in visit.read[:-1]} == {3}


# --- dampening ------------------------------------------------------------------------------------------------------

NUMBERS = st.floats(-1e6, 1e6, width=32)
IMPORTANCE = st.one_of(st.just(0.0), st.floats(0.0, 1e6, width=32))


def entries(of: st.SearchStrategy[float]) -> st.SearchStrategy[list[float]]:
    return st.lists(of, min_size=4, max_size=4)


def model(values: Sequence[float]) -> Weights:
    return Weights({"w": torch.tensor(values)}, {"mean": torch.tensor([3.0])})


@given(entries(NUMBERS), entries(IMPORTANCE), entries(IMPORTANCE), st.floats(0, 20), st.floats(0, 20))
def test_unselected_entries_keep_their_bits_and_none_grows_or_changes_its_sign(
    theta: list[float], f_all: list[float], f_forgotten: list[float], alpha: float, damping: float
) -> None:
    before = model(theta)
    after = dampened(before, model(f_all), model(f_forgotten), alpha, damping)
    old, new = before.vector(), after.vector()
    selected = torch.tensor(f_forgotten) > alpha * torch.tensor(f_all)
    assert torch.equal(new[~selected].view(torch.int32), old[~selected].view(torch.int32))
    assert (new.abs() <= old.abs()).all()
    assert (torch.signbit(new) == torch.signbit(old)).all()
    assert new.isfinite().all()  # F_f = 0 never divides, as it exceeds nothing
    assert torch.equal(after.buffers["mean"], before.buffers["mean"])


@given(entries(NUMBERS), entries(IMPORTANCE), entries(IMPORTANCE), st.floats(0, 20))
def test_an_infinite_alpha_changes_nothing(
    theta: list[float], f_all: list[float], f_forgotten: list[float], damping: float
) -> None:
    assert dampened(model(theta), model(f_all), model(f_forgotten), inf, damping).same_bits(model(theta))


@given(entries(NUMBERS), entries(st.floats(0.125, 8, width=32)), entries(st.floats(0.125, 8, width=32)))
def test_a_damping_above_every_ratio_changes_nothing(
    theta: list[float], f_all: list[float], f_forgotten: list[float]
) -> None:
    """No F_f / F_D is above 64."""
    assert dampened(model(theta), model(f_all), model(f_forgotten), 0.0, 64.0).same_bits(model(theta))


@pytest.mark.parametrize(("alpha", "damping", "jump"), [(0.5, 0.5, 1.0), (10.0, 1.0, 0.1)])
def test_at_the_edge_of_the_selection_the_factor_is_damping_over_alpha(
    alpha: float, damping: float, jump: float
) -> None:
    below, above = (dampened(model([1.0]), model([1.0]), model([alpha * x]), alpha, damping) for x in (1.0, 1.0001))
    assert below.vector().item() == 1
    assert above.vector().item() == pytest.approx(jump, rel=2e-4)


@pytest.mark.parametrize(
    "request_", [ForgetClient("1"), ForgetClass(2), ForgetInstances({"0": (0, 5, 7)})], ids=["client", "class", "some"]
)
def test_on_a_network_with_batchnorm_and_dropout(request_: Predicate) -> None:
    task = small_task(request_)
    (after,) = rounds(SSD(1.0, 0.5, batch_size=5), task)
    changed = task.weights.vector() != after.vector()
    assert 0 < int(changed.sum()) < len(changed)
    assert (after.vector().abs() <= task.weights.vector().abs()).all()
    for name, buffer in task.weights.buffers.items():
        assert torch.equal(after.buffers[name], buffer)
    assert rounds(SSD(inf), task)[0].same_bits(task.weights)


# --- costs; resuming ------------------------------------------------------------------------------------------------


def test_the_price_is_three_passes_of_all_data_and_of_what_goes() -> None:
    task, ledger = account(twin(REQUESTS["client"]).task)
    rounds(SSD(), task)
    spent, passes = ledger.phases["unlearn"], (5 + 7 + 4 + 6) + 5
    assert (spent.down, spent.up) == ((4 + 1) * 15 * 8, (4 + 1) * 15 * 8)
    assert spent.work == Work(passes, passes)


def test_there_is_one_round_and_nothing_after_it() -> None:
    task = twin(REQUESTS["client"]).task
    assert [done.number for done in SSD().unlearn(task)] == [0]
    assert list(SSD().unlearn(task, Round(0, task.weights))) == []
