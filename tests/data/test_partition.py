"""Every sample goes to exactly one client, by shares that have the right law."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedunlearn.data.partition import Dirichlet, Iid

SEEDS = st.integers(0, 2**63 - 1)


@st.composite
def labels_and_clients(draw: st.DrawFn) -> tuple[Tensor, int]:
    labels = draw(st.lists(st.integers(0, 4), min_size=1, max_size=60))
    return torch.tensor(labels), draw(st.integers(1, len(labels)))


def same(one: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def assert_is_partition(parts: tuple[Tensor, ...], samples: int, clients: int) -> None:
    assert len(parts) == clients
    assert all(part.dtype == torch.int64 and torch.equal(part, part.sort().values) for part in parts)
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(samples))


@given(labels_and_clients(), SEEDS)
def test_iid_deals_out_every_sample_once_and_evenly(case: tuple[Tensor, int], seed: int) -> None:
    labels, clients = case
    parts = Iid()(labels, clients, seed)
    assert_is_partition(parts, len(labels), clients)
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    assert same(parts, Iid()(labels, clients, seed))


@given(labels_and_clients(), SEEDS, st.floats(1e-3, 1e6))
def test_dirichlet_deals_out_every_sample_once(case: tuple[Tensor, int], seed: int, alpha: float) -> None:
    labels, clients = case
    parts = Dirichlet(alpha, minimum=0)(labels, clients, seed)
    assert_is_partition(parts, len(labels), clients)
    assert same(parts, Dirichlet(alpha, minimum=0)(labels, clients, seed))


@given(SEEDS, st.floats(0.3, 100), st.integers(1, 40))
def test_dirichlet_leaves_nobody_under_the_minimum(seed: int, alpha: float, minimum: int) -> None:
    labels = torch.arange(400) % 10
    parts = Dirichlet(alpha, minimum)(labels, 5, seed)
    assert min(len(part) for part in parts) >= minimum
    assert_is_partition(parts, 400, 5)


@pytest.mark.parametrize("partition", [Iid(), Dirichlet(1.0)])
def test_another_seed_deals_otherwise(partition: Iid | Dirichlet) -> None:
    labels = torch.arange(400) % 10
    assert not same(partition(labels, 4, 1), partition(labels, 4, 2))


def test_another_seed_draws_other_shares() -> None:
    labels = torch.arange(400) % 10
    sizes = [[len(part) for part in Dirichlet(1.0)(labels, 4, seed)] for seed in range(3)]
    assert sizes[0] != sizes[1] != sizes[2]


def test_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    Dirichlet(1.0)(torch.arange(400) % 10, 4, seed=0)
    Iid()(torch.arange(400) % 10, 4, seed=0)
    assert torch.equal(torch.get_rng_state(), before)


def test_dirichlet_takes_a_random_part_of_each_class() -> None:
    """Without the shuffle each client would have a run of neighbours in the data set."""
    labels = torch.zeros(1000, dtype=torch.int64)
    parts = Dirichlet(1000.0)(labels, 2, seed=0)
    assert all(400 < part.double().mean() < 600 for part in parts)


@pytest.mark.parametrize("alpha", [0.1, 1.0, 10.0])
def test_shares_have_the_variance_of_a_dirichlet_draw(alpha: float) -> None:
    """With k clients a share has mean 1/k and variance (k - 1) / (k^2 (k alpha + 1)); over 4000 classes."""
    classes, each, clients = 4000, 50, 4
    labels = torch.arange(classes * each) % classes
    parts = Dirichlet(alpha)(labels, clients, seed=3)
    shares = torch.stack([labels[part].bincount(minlength=classes) for part in parts]).double() / each
    expected = (clients - 1) / (clients**2 * (clients * alpha + 1))
    assert shares.mean(dim=1).sub(1 / clients).abs().max() < 0.03
    assert float((shares - 1 / clients).square().mean()) == pytest.approx(expected, rel=0.05)


def test_a_small_alpha_gives_each_class_to_one_client() -> None:
    labels = torch.arange(500) % 5
    parts = Dirichlet(1e-4, minimum=0)(labels, 10, seed=0)
    held = torch.stack([labels[part].bincount(minlength=5) for part in parts])
    assert torch.equal(held.max(dim=0).values, torch.full((5,), 100))


def test_the_papers_setting_is_possible() -> None:
    """10 clients, alpha = 0.1, as many samples as CIFAR-10."""
    parts = Dirichlet(0.1)(torch.arange(50_000) % 10, 10, seed=0)
    assert min(len(part) for part in parts) >= 10


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan"), float("inf")])
def test_alpha_must_be_positive(alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha must be positive"):
        Dirichlet(alpha)


def test_a_negative_minimum_is_refused() -> None:
    with pytest.raises(ValueError, match="0 or more"):
        Dirichlet(1.0, minimum=-1)


@pytest.mark.parametrize("partition", [Iid(), Dirichlet(1.0, minimum=0)])
@pytest.mark.parametrize("clients", [0, 4])
def test_a_client_without_a_sample_is_refused(partition: Iid | Dirichlet, clients: int) -> None:
    with pytest.raises(ValueError, match=f"3 samples .* not to {clients}"):
        partition(torch.tensor([0, 1, 0]), clients, 0)


def test_an_impossible_minimum_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="99 samples cannot give each of 10 clients 10"):
        Dirichlet(1.0)(torch.arange(99) % 10, 10, seed=0)


def test_an_improbable_minimum_ends_with_advice() -> None:
    """Three classes, each whole at one client, cannot reach ten clients."""
    with pytest.raises(ValueError, match=r"raise alpha \(now 0.0001\), or lower the minimum"):
        Dirichlet(1e-4)(torch.arange(300) % 3, 10, seed=0)
