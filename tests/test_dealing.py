"""Twins and coins: what every shadow has in common with the run whose shadow it is, and what it has not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedunlearn.client import View
from fedunlearn.data.datasets import DataSet, load
from fedunlearn.data.partition import Dirichlet
from fedunlearn.data.treatment import Backdoored
from fedunlearn.dealing import Deal, Partition
from fedunlearn.experiment import Data
from fedunlearn.federation import Predicate
from fedunlearn.requests import AnyOf, ForgetClass, ForgetClient, ForgetInstances, ForgetShare
from fedunlearn.samples import TensorSamples
from fedunlearn.shadows import shadow_of
from fedunlearn.simulation import Setting, Simulation
from tiny import load_tiny

CPU = torch.device("cpu")
REQUESTS: list[Predicate] = [
    ForgetClient("0"),
    ForgetClass(3),
    ForgetShare(0.3),
    ForgetInstances({"1": (0, 5, 11)}),
    AnyOf((ForgetClient("2"), ForgetClass(1))),
]


def digits() -> DataSet:
    return load("digits", None, None)


def dealt(seed: int, **plan: object) -> Deal:
    settings: dict[str, object] = {"clients": 4, "samples": 60, "partition": Dirichlet(0.5), **plan}
    return Deal.of(Data("digits", **settings), digits(), seed)  # type: ignore[arg-type]


def few(*free: int, held: tuple[tuple[int, ...], ...]) -> Deal:
    """Clients that hold samples of these classes, none for validation, and samples of these that nobody holds."""
    labels = torch.tensor([label for own in held for label in own] + list(free))
    samples = TensorSamples(torch.zeros(len(labels), 1), labels)
    data = DataSet("few", samples, samples, int(labels.max()) + 1, (1,))
    ends = torch.tensor([len(own) for own in held]).cumsum(0).tolist()
    every = torch.arange(len(labels))
    parts = tuple(every[end - len(own) : end] for own, end in zip(held, ends, strict=True))
    plan = Data("few", clients=len(held), samples=1, validation=0)
    return Deal(plan, data, 0, parts, every[:0], every[ends[-1] :])


@given(st.integers(0, 10**6), st.sampled_from(REQUESTS), st.integers(0, 50))
@settings(max_examples=25)
def test_a_twin_is_of_the_same_class_nobodys_and_nobody_elses(seed: int, request: Predicate, proxy: int) -> None:
    deal = dealt(seed, proxy=proxy)
    twins, labels = deal.twins(request), deal.data.train.labels
    found = torch.cat([twin[twin >= 0] for twin in twins]).tolist()
    taken = {*torch.cat(deal.held).tolist(), *deal.server.tolist()}
    assert len(found) > 100
    assert len(set(found)) == len(found)
    assert taken.isdisjoint(found)
    for client, own, twin in zip(deal.clients(), deal.held, twins, strict=True):
        assert twin.shape == own.shape
        there = twin >= 0
        assert torch.equal(labels[twin[there]], labels[own[there]])
        assert not bool((there & client.validation).any())  # only at training positions


def test_where_there_are_enough_every_training_sample_has_a_twin_and_the_seed_says_which() -> None:
    deal = dealt(0, clients=3, samples=40)
    twins = deal.twins(ForgetClient("0"))
    for client, twin in zip(deal.clients(), twins, strict=True):
        assert torch.equal(twin >= 0, ~client.validation)
    again, other = (dealt(seed, clients=3, samples=40).twins(ForgetClient("0")) for seed in (0, 1))
    assert all(torch.equal(a, b) for a, b in zip(twins, again, strict=True))
    assert not torch.equal(torch.cat(twins), torch.cat(other))


def test_where_a_class_has_too_few_what_is_to_be_forgotten_comes_first() -> None:
    """By hand. Samples 0 to 3 at client 0, 4 to 6 at client 1; nobody's are 7 and 8, of class 0, and 9, of class 1."""
    deal = few(0, 0, 1, held=((0, 0, 1, 1), (0, 0, 1)))
    assert [twin.tolist() for twin in deal.twins(ForgetClient("1"))] == [[-1, -1, -1, -1], [7, 8, 9]]
    assert [twin.tolist() for twin in deal.twins(ForgetClient("0"))] == [[7, 8, 9, -1], [-1, -1, -1]]
    instances = ForgetInstances({"0": (1, 3), "1": (1,)})
    assert [twin.tolist() for twin in deal.twins(instances)] == [[-1, 7, -1, 9], [-1, 8, -1]]
    assert [twin.tolist() for twin in deal.twins(ForgetInstances({"1": (0,)}))] == [[8, -1, 9, -1], [7, -1, -1]]


def test_where_all_are_dealt_out_nobody_has_a_twin() -> None:
    deal = dealt(0, samples=None)
    assert len(deal.free) == 0
    assert all(bool((twin == -1).all()) for twin in deal.twins(ForgetClient("0")))


def test_positions_without_a_twin_are_kept_and_the_others_tossed() -> None:
    deal = dealt(3)
    twins = deal.twins(ForgetClient("0"))
    for seed in range(5):
        for own, twin, held in zip(deal.held, twins, deal.mixed(twins, seed), strict=True):
            assert torch.equal(held[twin < 0], own[twin < 0])
            assert bool(((held == own) | (held == twin)).all())
            assert len(set(held.tolist())) == len(held)


def test_about_half_of_the_coins_are_heads_and_each_is_its_own() -> None:
    """Within 3.3 standard errors, over shadows, over positions and between neighbours."""
    deal = dealt(0, clients=3, samples=50, partition=Dirichlet(5))
    twins = deal.twins(ForgetClient("0"))
    there = torch.cat(twins) >= 0
    heads = torch.stack(
        [(torch.cat(list(deal.mixed(twins, seed))) == torch.cat(twins))[there] for seed in range(100)]
    ).double()
    assert heads.numel() > 10_000
    assert abs(float(heads.mean()) - 0.5) < 3.3 * 0.5 / heads.numel() ** 0.5
    assert float((heads.mean(0) - 0.5).abs().max()) < 4.5 * 0.05
    assert float((heads.mean(1) - 0.5).abs().max()) < 4.5 * 0.5 / heads.shape[1] ** 0.5
    alike = (heads[:, 1:] == heads[:, :-1]).double()
    assert abs(float(alike.mean()) - 0.5) < 3.3 * 0.5 / alike.numel() ** 0.5
    again = torch.cat(list(deal.mixed(twins, 7))) == torch.cat(twins)
    assert torch.equal(again[there].double(), heads[7])


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.sampled_from(REQUESTS), st.booleans())
@settings(max_examples=20)
def test_labels_and_validation_are_the_same_in_every_shadow(
    seed: int, shadow: int, request: Predicate, poisoned: bool
) -> None:
    """So what is meant by the request is the same, and the partition."""
    treatment = {"0": Backdoored(0.5, 7), "2": Backdoored(1.0, 7)} if poisoned else {}
    deal = dealt(seed, treatment=treatment)
    own, mixed = deal.clients(), deal.clients(list(deal.mixed(deal.twins(request), shadow)))
    for ours, theirs in zip(own, mixed, strict=True):
        assert ours.id == theirs.id
        assert torch.equal(ours.labels, theirs.labels)
        assert torch.equal(ours.validation, theirs.validation)
        assert not torch.equal(ours.indices, theirs.indices)
    meant = View((request,))
    assert Partition.of(own, meant, 10) == Partition.of(mixed, meant, 10)


def test_a_shadow_is_poisoned_at_the_same_positions() -> None:
    """Where a twin is held, the twin bears the trigger and the label."""
    deal = dealt(1, treatment={"0": Backdoored(0.6, 7)})
    twins = deal.twins(ForgetClient("0"))
    clean = deal.data.train
    marked = []
    for held in (deal.held, *(tuple(deal.mixed(twins, seed)) for seed in range(3))):
        poisoned = deal.clients(list(held))[0]
        changed = (inputs(poisoned.samples, held[0]) != inputs(clean, held[0])).flatten(1).any(1)
        assert torch.equal(changed, poisoned.labels != clean.labels[held[0]])
        marked.append(changed)
    assert all(torch.equal(marked[0], other) for other in marked[1:])
    others = int((clean.labels[deal.held[0]] != 7).sum())
    assert int(marked[0].sum()) == int(round(0.6 * others, 9))


def inputs(samples: object, indices: Tensor) -> Tensor:
    found: Tensor = samples.inputs(indices, None, CPU)  # type: ignore[attr-defined]
    return found


def test_a_twins_class_is_its_own_not_the_one_that_it_is_said_to_be() -> None:
    deal = dealt(1, treatment={"0": Backdoored(0.6, 7)})
    own, twin = deal.held[0], deal.twins(ForgetClient("0"))[0]
    labels, said = deal.data.train.labels, deal.clients()[0].labels
    there = twin >= 0
    assert torch.equal(labels[own[there]], labels[twin[there]])
    assert not torch.equal(said[there], labels[twin[there]])


@pytest.mark.parametrize("request_", ['{ kind = "Client", client = "1" }', '{ kind = "Class", label = 4 }'])
def test_the_simulation_of_a_shadow_has_the_runs_partition_and_a_training_of_its_own(
    tmp_path: Path, request_: str
) -> None:
    plan = load_tiny(tmp_path, f"request={request_}", "data.samples=100")
    setting = Setting.of(plan, workers=1)
    run = Simulation(setting, 3)
    for number in (1, 2):
        shadow = shadow_of(plan, 3, number)
        (seed,) = shadow.seeds
        there = Simulation(replace(setting, experiment=shadow), seed)
        assert there.partition == run.partition
        assert there.deal.seed == 3
        assert all(torch.equal(a, b) for a, b in zip(there.deal.held, run.deal.held, strict=True))
        assert there.seed == seed not in (3, 1, 2)
        assert shadow.request == plan.request
        assert shadow.methods == plan.methods
