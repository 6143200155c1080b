"""RandL: by hand, against NumPy, and what its specification promises."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

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
    linear,
    rounds,
    same,
    trained,
    twin,
    vector,
    watched,
)
from numpy_twin_joint import Array, Held, cross_entropy, one_hot, weighted
from torch import Generator, Tensor

from fedunlearn.backends.in_process import InProcess
from fedunlearn.client import Client
from fedunlearn.federation import ClientId, Predicate, Turn, Work
from fedunlearn.methods import randl
from fedunlearn.methods.randl import RandL, random_labels
from fedunlearn.randomness import generator
from fedunlearn.requests import AnyOf, ForgetClass, ForgetClient, ForgetInstances
from fedunlearn.rounds import Round
from fedunlearn.task import Task

TWO = {"a": [((1, 1, 0), 0)], "b": [((0, 2, 0), 1)] * 3}


def test_a_round_by_hand() -> None:
    """Of two classes only the other one can be drawn, so a's label is 1: gradient x / 2 at w = 0.

    w = -0.1 (0.5, 0.5, 0). Then b, of class 1, has w x = -0.1, so p = 1 / (1 + e^0.1) for class 0: gradient p x.
    """
    (after,) = rounds(RandL(rounds=1), by_hand(ForgetClient("a"), TWO))
    p = 1 / (1 + np.exp(0.1))
    assert vector(after) == pytest.approx([-0.05, -0.05 - 0.1 * p * 2, 0], abs=1e-6)


def test_a_joint_round_by_hand() -> None:
    """At w = 0 both gradients are x / 2: a's label is drawn, b's is its own. b has three quarters of the samples."""
    (after,) = rounds(RandL(rounds=1, mix="joint"), by_hand(ForgetClient("a"), TWO))
    assert vector(after) == pytest.approx([-0.1 * 0.5 / 4, -0.1 * (0.5 / 4 + 3 / 4), 0], abs=1e-6)


# --- against NumPy --------------------------------------------------------------------------------------------------


def two_classes() -> dict[ClientId, Held]:
    """Where a label that is not the true one is the other one, and nothing is left to chance."""
    return {client: Held(own.x, own.y % 2) for client, own in holdings().items()}


PARTS: dict[str, Predicate] = {
    "client": ForgetClient("a"),
    "two clients": AnyOf((ForgetClient("a"), ForgetClient("c"))),
    "class": ForgetClass(1),
    "instances": ForgetInstances({"a": (0, 2), "b": (1, 2, 5)}),
}


def flipped(held: Held) -> Held:
    return Held(held.x, 1 - held.y)


def together(*parts: Held | None) -> Held:
    there = [part for part in parts if part is not None]
    return Held(np.concatenate([part.x for part in there]), np.concatenate([part.y for part in there]))


@pytest.mark.parametrize("request_", PARTS.values(), ids=PARTS)
def test_rounds_equal_numpys_with_the_labels_of_what_stays_untouched(request_: Predicate) -> None:
    world = twin(request_, two_classes(), classes=2)
    theta = world.theta
    for after in rounds(RandL(rounds=2), world.task):
        for part in ({c: flipped(own) for c, own in world.forgotten.items()}, world.retained):
            theta = weighted((trained(theta, own, classes=2), len(own)) for own in part.values())
        same(after, theta)


@pytest.mark.parametrize("request_", PARTS.values(), ids=PARTS)
def test_joint_rounds_equal_numpys_with_the_labels_of_what_stays_untouched(request_: Predicate) -> None:
    world = twin(request_, two_classes(), classes=2)
    theta = world.theta
    goes = {client: flipped(own) for client, own in world.forgotten.items()}
    both = [together(goes.get(client), world.retained.get(client)) for client in holdings()]
    for after in rounds(RandL(rounds=2, mix="joint"), world.task):
        theta = weighted((trained(theta, own, classes=2), len(own)) for own in both)
        same(after, theta)


def drawn(world: Twin, number: int, client: ClientId, y: Array, exclude_true: bool) -> list[Array]:
    """The labels of a client's full batches: an offset from the true class, or a class."""
    rng = generator(Turn(world.task.seed, "unlearn", number, "forget").seed_for(client, "program"))
    if exclude_true:
        return [(y + torch.randint(1, 3, (len(y),), generator=rng).numpy()) % 3 for _ in range(STEPS)]
    return [torch.randint(0, 3, (len(y),), generator=rng).numpy() for _ in range(STEPS)]


@pytest.mark.parametrize("exclude_true", [True, False])
def test_labels_of_three_classes_are_drawn_from_the_clients_generator(exclude_true: bool) -> None:
    """Those who leave hold one sample each, so that the order within a batch is nothing."""
    held = {c: own.where(np.arange(len(own)) == 0) if c in "ac" else own for c, own in holdings().items()}
    world = twin(REQUESTS["two clients"], held)
    theta = world.theta
    for number, after in enumerate(rounds(RandL(rounds=3, exclude_true=exclude_true), world.task)):
        replies = []
        for client, own in world.forgotten.items():
            local, velocity = theta, np.zeros_like(theta)
            for labels in drawn(world, number, client, own.y.astype(float), exclude_true):
                gradient = cross_entropy(own.x, one_hot(labels.astype(int), 3))(local)
                velocity = MOMENTUM * velocity + gradient + DECAY * local
                local = local - LR * velocity
            replies.append((local, len(own)))
        theta = world.fedavg(weighted(replies))
        same(after, theta)


# --- the labels -----------------------------------------------------------------------------------------------------


@given(st.integers(2, 12), st.lists(st.integers(0, 11), max_size=20), st.integers(0, 2**40), st.booleans())
def test_no_assigned_label_is_the_true_one_if_it_is_excluded_and_all_are_classes(
    classes: int, wanted: list[int], seed: int, exclude_true: bool
) -> None:
    labels = torch.tensor(wanted, dtype=torch.int64) % classes
    assigned = random_labels(labels, classes, exclude_true, torch.Generator().manual_seed(seed))
    assert (assigned.shape, assigned.dtype) == (labels.shape, torch.int64)
    assert ((assigned >= 0) & (assigned < classes)).all()
    assert not (exclude_true and (assigned == labels).any())


def chi_square(counts: Tensor) -> float:
    """Against a uniform distribution over the cells."""
    expected = counts.sum() / counts.numel()
    return float(((counts - expected) ** 2 / expected).sum())


def test_labels_are_uniform_over_the_others() -> None:
    """For each true class of ten separately: ten chi-squares with eight degrees of freedom, 26.1 at 99.9 percent."""
    truth = torch.arange(10).repeat(9000)
    assigned = random_labels(truth, 10, True, torch.Generator().manual_seed(0))
    table = torch.zeros(10, 10).index_put_((truth, assigned), torch.ones(()), accumulate=True)
    assert not table.diagonal().any()
    found = [chi_square(row[torch.arange(10) != true]) for true, row in enumerate(table)]
    assert max(found) < 26.1
    assert sum(found) > 46.5  # nor more even than chance: one percent of 80 degrees of freedom lie below 53.5


def test_labels_are_uniform_over_all_if_the_true_one_is_not_excluded() -> None:
    truth = torch.arange(10).repeat(9000)
    assigned = random_labels(truth, 10, False, torch.Generator().manual_seed(0))
    counts = torch.bincount(assigned, minlength=10).float()
    assert chi_square(counts) < 27.9  # nine degrees of freedom, 99.9 percent
    assert float((assigned == truth).float().mean()) == pytest.approx(0.1, abs=0.004)  # four standard deviations


def test_labels_are_drawn_anew_in_every_epoch_of_every_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order within an epoch differs anyway; how often each label is drawn would not."""
    seen: list[Counter[int]] = []

    def spy(labels: Tensor, classes: int, exclude_true: bool, rng: Generator) -> Tensor:
        assigned = random_labels(labels, classes, exclude_true, rng)
        seen.append(Counter(assigned.tolist()))
        return assigned

    monkeypatch.setattr(randl, "random_labels", spy)
    held = holdings()
    many = Held(np.tile(held["a"].x, (20, 1)), np.zeros(100, dtype=np.int64))
    rounds(RandL(rounds=2), twin(ForgetClient("a"), {**held, "a": many}, classes=10).task)
    assert len(seen) == 2 * STEPS
    assert len({tuple(sorted(counts.items())) for counts in seen}) == 2 * STEPS


def test_the_data_are_not_changed() -> None:
    clients = [Client.of(name, (own.x, own.y), validation=0) for name, own in holdings().items()]
    data = [client.samples for client in clients]
    federation = InProcess(linear, clients, workers=1, device="cpu")
    weights = federation.architecture.fresh(1)
    task = Task.of(federation, weights, REQUESTS["class"], TRAINING, federation.architecture)
    for method in (RandL(rounds=1), RandL(rounds=1, mix="joint")):
        rounds(method, task)
    for samples, own in zip(data, holdings().values(), strict=True):
        assert samples.labels.tolist() == own.y.tolist()
        assert samples.inputs(torch.arange(len(own)), None, torch.device("cpu")).tolist() == own.x.tolist()


def test_labels_of_what_goes_are_not_read_where_the_true_one_is_not_excluded() -> None:
    request = ForgetInstances({"a": (0, 1, 2, 3, 4), "b": (1, 2, 5)})  # a client and a part of another
    held = holdings()
    goes = np.isin(np.arange(7), (1, 2, 5))
    others = {
        **held,
        "a": Held(held["a"].x, (held["a"].y + 1) % 3),
        "b": Held(held["b"].x, np.where(goes, (held["b"].y + 2) % 3, held["b"].y)),
    }
    for method in (RandL(rounds=1, exclude_true=False), RandL(rounds=1, exclude_true=False, mix="joint")):
        assert method.needs.forget_data == "inputs"
        (plain,), (shuffled,) = (rounds(method, twin(request, h).task) for h in (held, others))
        assert plain.same_bits(shuffled)
        reading = replace(method, exclude_true=True)
        assert reading.needs.forget_data == "labelled"
        (plain,), (shuffled,) = (rounds(reading, twin(request, h).task) for h in (held, others))
        assert not plain.same_bits(shuffled)


# --- the rounds -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", REQUESTS)
def test_each_round_goes_over_what_goes_and_then_over_what_stays(kind: str) -> None:
    world = twin(REQUESTS[kind])
    task, visits = watched(world.task)
    rounds(RandL(rounds=2), task)
    a_round = [
        *(("forget", client, {tuple(x) for x in own.x.tolist()}) for client, own in world.forgotten.items()),
        *(("retain", client, {tuple(x) for x in own.x.tolist()}) for client, own in world.retained.items()),
    ]
    expected = [(number, *visit) for number in range(2) for visit in a_round]
    assert [(v.turn.number, v.turn.step, v.client, v.x) for v in visits] == expected


@pytest.mark.parametrize("kind", REQUESTS)
def test_a_joint_round_is_one_of_everybody_with_all_samples(kind: str) -> None:
    task, visits = watched(twin(REQUESTS[kind]).task)
    rounds(RandL(rounds=2, mix="joint"), task)
    expected = [(n, client, {tuple(x) for x in own.x.tolist()}) for n in range(2) for client, own in holdings().items()]
    assert [(v.turn.number, v.client, v.x) for v in visits] == expected


@pytest.mark.parametrize(("mix", "models"), [("sequential", 1 + 3), ("joint", 4)])
def test_the_price_is_three_passes_of_every_sample_an_epoch(mix: str, models: int) -> None:
    task, ledger = account(twin(REQUESTS["client"]).task)
    rounds(RandL(rounds=2, mix=mix), task)  # type: ignore[arg-type]
    spent, passes = ledger.phases["unlearn"], 2 * STEPS * (5 + 7 + 4 + 6)
    assert (spent.down, spent.up) == (2 * models * 15 * 8, 2 * models * 15 * 8)
    assert spent.work == Work(passes, passes)  # a backward pass costs two forward ones


def test_only_the_rounds_that_are_left_follow() -> None:
    task = twin(REQUESTS["client"]).task
    assert [done.number for done in RandL(rounds=3).unlearn(task, Round(1, task.weights))] == [2]
    assert rounds(RandL(rounds=0), task) == []
