"""Minibatch gradients: against autograd, sample by sample, and a model that is left as it was."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from fedunlearn.theory.gradients import minibatch_gradients, parameters_named


class Net(nn.Module):
    """With all that behaves differently in training, a frozen layer, and one that is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3)
        self.norm = nn.BatchNorm2d(3)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(12, 4)
        self.idle = nn.Linear(2, 2)
        self.head.bias.requires_grad_(False)
        self.norm.eval()

    def forward(self, x: Tensor) -> Tensor:
        head: Tensor = self.head(self.drop(self.norm(self.conv(x))).relu().flatten(1))
        return head


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    made = Net()
    made.norm.running_mean = torch.randn(3)
    made.norm.running_var = torch.rand(3) + 0.5
    return made


X, Y = torch.randn(12, 1, 4, 4, generator=torch.Generator().manual_seed(1)), torch.arange(12) % 4


def by_autograd(net: Net, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    twin = copy.deepcopy(net).eval().requires_grad_()
    F.cross_entropy(twin(x), y).backward()  # type: ignore[no-untyped-call]
    return {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in twin.named_parameters()}


def test_a_batch_of_all_samples_has_autograds_gradient_at_each_coordinate(net: Net) -> None:
    full = torch.cat([g.flatten() for g in by_autograd(net, X, Y).values()])
    coordinates = torch.randperm(len(full), generator=torch.Generator().manual_seed(2))
    found = minibatch_gradients(net, X, Y, batches=2, batch_size=12, parameters=None, coordinates=coordinates, seed=0)
    assert found.shape == (2, len(full))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, full[coordinates].expand(2, -1), rtol=1e-4, atol=1e-6)


def test_the_mean_over_an_epoch_is_the_mean_of_the_samples_gradients(net: Net) -> None:
    """As it is with BatchNorm's running statistics, and would not be with those of the batch."""
    each = [torch.cat([g.flatten() for g in by_autograd(net, X[i : i + 1], Y[i : i + 1]).values()]) for i in range(12)]
    every = torch.arange(len(each[0]))
    found = minibatch_gradients(net, X, Y, batches=3, batch_size=4, parameters=None, coordinates=every, seed=0)
    torch.testing.assert_close(found.mean(0), torch.stack(each).mean(0), rtol=1e-4, atol=1e-6)


def test_globs_pick_and_coordinates_count_within_what_they_picked(net: Net) -> None:
    picked = ["conv.*", "head.bias"]
    assert parameters_named(net, picked) == {"conv.weight": 27, "conv.bias": 3, "head.bias": 4}
    full = by_autograd(net, X, Y)
    coordinates = torch.tensor([0, 28, 33])
    found = minibatch_gradients(net, X, Y, batches=1, batch_size=12, parameters=picked, coordinates=coordinates, seed=0)
    expected = [full["conv.weight"].flatten()[0], full["conv.bias"][1], full["head.bias"][3]]
    assert found[0].tolist() == pytest.approx([float(one) for one in expected], rel=1e-4, abs=1e-6)


def test_what_the_loss_does_not_depend_on_has_no_gradient(net: Net) -> None:
    sizes = {"batches": 2, "batch_size": 3, "coordinates": torch.arange(6), "seed": 0}
    found = minibatch_gradients(net, X, Y, parameters=["head.bias", "idle.*"], **sizes)
    assert found[:, :4].all()
    assert not found[:, 4:].any()
    with pytest.raises(ValueError, match=r"depends on none of idle.weight, idle.bias"):
        minibatch_gradients(net, X, Y, parameters=["idle.*"], **sizes)


def test_the_model_and_the_generators_are_left_as_they_were(net: Net) -> None:
    net.train()
    net.norm.eval()
    net.conv.weight.grad = torch.ones_like(net.conv.weight)
    before = copy.deepcopy(net.state_dict())
    torch.manual_seed(5)
    minibatch_gradients(net, X, Y, batches=3, batch_size=4, parameters=None, coordinates=torch.arange(5), seed=0)
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(1))
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert (net.training, net.norm.training, net.drop.training) == (True, False, True)
    assert [n for n, p in net.named_parameters() if p.grad is not None] == ["conv.weight"]
    assert torch.equal(net.conv.weight.grad, torch.ones_like(net.conv.weight))
    assert [n for n, p in net.named_parameters() if not p.requires_grad] == ["head.bias"]


def test_a_model_that_fails_gets_its_mode_back(net: Net) -> None:
    net.train()
    with pytest.raises(RuntimeError):
        minibatch_gradients(
            net, X[:, :, :3], Y, batches=1, batch_size=4, parameters=None, coordinates=torch.arange(1), seed=0
        )
    assert net.training


def who(seed: int, batches: int = 7) -> list[set[int]]:
    """Which of eleven samples each minibatch of three has: a linear model's gradient at one-hot inputs says so."""
    model = nn.Linear(11, 2, bias=False)
    x, y = torch.eye(11), torch.zeros(11, dtype=torch.int64)
    found = minibatch_gradients(
        model, x, y, batches=batches, batch_size=3, parameters=None, coordinates=torch.arange(11), seed=seed
    )
    return [set(row.nonzero().flatten().tolist()) for row in found]


def test_minibatches_are_drawn_without_replacement_within_an_epoch() -> None:
    drawn = who(0)
    assert [len(batch) for batch in drawn] == [3] * 7
    for epoch in (drawn[:3], drawn[3:6]):
        assert len(set.union(*epoch)) == 9
    assert drawn[:3] != drawn[3:6]
    assert {one for seed in range(20) for batch in who(seed, 3) for one in batch} == set(range(11))


def test_the_seed_decides_the_minibatches() -> None:
    assert who(1) == who(1)
    assert who(1) != who(2)
    assert who(1, 4) == who(1, 7)[:4]


def test_what_does_not_fit_is_refused(net: Net) -> None:
    one = torch.tensor([0])
    with pytest.raises(ValueError, match="'conv1' fits no parameter"):
        minibatch_gradients(net, X, Y, batches=1, batch_size=4, parameters=["conv1"], coordinates=one, seed=0)
    for size in (0, 13):
        with pytest.raises(ValueError, match=f"no minibatch of {size}"):
            minibatch_gradients(net, X, Y, batches=1, batch_size=size, parameters=None, coordinates=one, seed=0)
    for wrong in (-1, 4):
        with pytest.raises(ValueError, match="positions among 4"):
            minibatch_gradients(
                net,
                X,
                Y,
                batches=1,
                batch_size=4,
                parameters=["head.bias"],
                coordinates=torch.tensor([wrong]),
                seed=0,
            )
