"""PUF: by hand, against NumPy, and what the paper promises."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from joint import REQUESTS, Twin, account, answering, by_hand, rounds, same, trained, twin, vector, watched
from numpy_twin_joint import Array, weighted

from fedunlearn.contract import small_task
from fedunlearn.federation import Predicate, Work
from fedunlearn.methods.puf import PUF
from fedunlearn.requests import AnyOf, ForgetClass, ForgetClient
from fedunlearn.rounds import Round, aggregate
from fedunlearn.weights import Weights

LEAVES = {"a": [((1, 1, 0), 0)], "b": [((0, 2, 0), 1)] * 3}


def test_a_special_round_by_hand() -> None:
    """p = (1/2, 1/2): a's update is -0.1 (-1/2) (1, 1, 0) = (0.05, 0.05, 0); -2 times that."""
    (after,) = rounds(PUF(rate=2.0), by_hand(ForgetClient("a"), LEAVES))
    assert vector(after) == [-0.1, -0.1, 0]


def test_a_regular_round_by_hand() -> None:
    """b's update is (0, -0.1, 0), three quarters of the samples: 0.75 (0, -0.1, 0) - 2 * 0.25 (0.05, 0.05, 0)."""
    (after,) = rounds(PUF(rate=2.0, round="regular"), by_hand(ForgetClient("a"), LEAVES))
    assert vector(after) == [-0.025, -0.1, 0]


def numpy_puf(world: Twin, method: PUF) -> Array:
    theta = world.theta
    leaving = {k: trained(theta, h) - theta for k, h in world.forgotten.items()}
    u = sum(map(len, world.forgotten.values()))
    if method.round == "special":
        return theta - method.rate * sum(len(world.forgotten[k]) / u * delta for k, delta in leaving.items())
    staying = {k: trained(theta, h) - theta for k, h in world.retained.items()}
    n = u + sum(map(len, world.retained.values()))
    step = sum(len(world.retained[k]) / n * delta for k, delta in staying.items())
    return theta + step - method.rate * sum(len(world.forgotten[k]) / n * delta for k, delta in leaving.items())


@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
@pytest.mark.parametrize("method", [PUF(1.7), PUF(3.1, "regular")], ids=["special", "regular"])
def test_the_round_equals_numpys(method: PUF, request_: Predicate) -> None:
    world = twin(request_)
    (after,) = rounds(method, world.task)
    same(after, numpy_puf(world, method))


def test_shares_are_by_samples_among_those_who_leave_or_among_all() -> None:
    """Clients of 1, 3 and 4 samples answer with unit vectors, so from 0 the step is the shares themselves."""
    samples = {"a": LEAVES["a"], "b": LEAVES["b"], "c": [((0, 0, 1), 0)] * 4}
    task = by_hand(AnyOf((ForgetClient("a"), ForgetClient("b"))), samples)
    task = answering(task, {"a": (1, 0, 0), "b": (0, 1, 0), "c": (0, 0, 1)})
    assert vector(rounds(PUF(rate=2.0), task)[0]) == [-0.5, -1.5, 0]
    assert vector(rounds(PUF(rate=2.0, round="regular"), task)[0]) == [-0.25, -0.75, 0.5]


# --- invariants -----------------------------------------------------------------------------------------------------


def test_rate_zero_in_a_special_round_changes_nothing() -> None:
    task = small_task(ForgetClient("1"))
    (after,) = rounds(PUF(rate=0.0), task)
    assert after.same_bits(task.weights)
    (near,) = rounds(PUF(rate=1e-6), task)
    assert 0 < (near - task.weights).norm() < 1e-5


@pytest.mark.parametrize("kind", ["client", "two clients"])
def test_rate_minus_one_in_a_regular_round_is_an_ordinary_round_with_everybody(kind: str) -> None:
    task = twin(REQUESTS[kind]).task
    (after,) = rounds(PUF(rate=-1.0, round="regular"), task)
    ordinary = aggregate(task.everyone, task.weights, task.training, task.turn())
    assert torch.allclose(after.vector(), ordinary.vector(), rtol=1e-12, atol=1e-14)
    assert (ordinary - task.weights).norm() > 0.1


WORLDS = {kind: twin(request) for kind, request in REQUESTS.items()}


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(sorted(WORLDS)), st.floats(0.01, 50))
def test_a_special_displacement_is_collinear_with_the_mean_update_and_eta_times_as_long(kind: str, rate: float) -> None:
    world = WORLDS[kind]
    mean = weighted((trained(world.theta, h) - world.theta, len(h)) for h in world.forgotten.values())
    (after,) = rounds(PUF(rate), world.task)
    moved = (after - world.task.weights).vector().numpy()
    assert np.linalg.norm(moved) == pytest.approx(rate * np.linalg.norm(mean), rel=1e-9)
    assert moved @ mean / np.linalg.norm(moved) / np.linalg.norm(mean) == pytest.approx(-1, abs=1e-12)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(sorted(WORLDS)), st.sampled_from(["special", "regular"]), st.floats(0, 20), st.floats(0, 20))
def test_a_displacement_is_linear_in_eta(kind: str, round_: str, one: float, other: float) -> None:
    """In a regular round up to those who stay, which eta = 0 shows."""

    def moved(rate: float) -> Weights:
        (after,) = rounds(PUF(rate, round_), WORLDS[kind].task)  # type: ignore[arg-type]
        return after - WORLDS[kind].task.weights

    still = moved(0.0)
    assert (still.norm() == 0) == (round_ == "special")
    some, others, both = (moved(rate) - still for rate in (one, other, one + other))
    assert torch.allclose(both.vector(), (some + others).vector(), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("request_", [ForgetClient("1"), ForgetClass(2)], ids=["client", "class"])
def test_buffers_are_the_models_in_a_special_round_and_fedavgs_of_what_stays_in_a_regular_one(
    request_: Predicate,
) -> None:
    task = small_task(request_)
    (special,), (regular,) = (rounds(method, task) for method in (PUF(), PUF(round="regular")))
    staying = aggregate(task.retained, task.weights, task.training, task.turn())
    for name, buffer in task.weights.buffers.items():
        assert torch.equal(special.buffers[name], buffer)
        assert torch.equal(regular.buffers[name], staying.buffers[name])
    assert not torch.equal(staying.buffers["norm.running_var"], task.weights.buffers["norm.running_var"])


# --- who is asked, and what it costs --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", REQUESTS)
def test_a_client_trains_once_on_what_goes_and_in_a_regular_round_once_on_what_stays(kind: str) -> None:
    world = WORLDS[kind]
    for method in (PUF(), PUF(round="regular")):
        task, visits = watched(world.task)
        rounds(method, task)
        goes = [(k, {tuple(x) for x in h.x.tolist()}) for k, h in world.forgotten.items()]
        stays = [(k, {tuple(x) for x in h.x.tolist()}) for k, h in world.retained.items()]
        assert [(v.client, v.x) for v in visits] == goes + (stays if method.round == "regular" else [])
        assert all(visit.sent.same_bits(task.weights) for visit in visits)


def test_the_price_is_an_ordinary_round_of_those_who_take_part() -> None:
    size, passes = 15 * 8, {"a": 15, "b": 21, "c": 12, "d": 18}  # three epochs of 5, 7, 4 and 6
    for method, clients in ((PUF(), "a"), (PUF(round="regular"), "abcd")):
        task, ledger = account(WORLDS["client"].task)
        rounds(method, task)
        spent, work = ledger.phases["unlearn"], sum(passes[k] for k in clients)
        assert (spent.down, spent.up) == (len(clients) * size, len(clients) * size)
        assert spent.work == Work(work, work)


def test_there_is_one_round_and_nothing_after_it() -> None:
    task = WORLDS["client"].task
    assert [done.number for done in PUF().unlearn(task)] == [0]
    assert list(PUF().unlearn(task, Round(0, task.weights))) == []
