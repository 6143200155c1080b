"""Negations turned back: the model from before, bit for bit wherever nothing rounds."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from fedunlearn.audits.reversal import turned_back
from fedunlearn.contract import SmallNet
from fedunlearn.models import build
from fedunlearn.negation import negate
from fedunlearn.weights import Weights

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "layernorm-cnn": lambda: build("layernorm-cnn", 4, (1, 8, 8), channels=(4, 6), kernel=3),
    "small-vit": lambda: build("small-vit", 4, (1, 8, 8), layers=2, heads=2, hidden=8, mlp=12),
    "small-resnet": lambda: build("small-resnet", 4, (1, 8, 8), width=4, blocks=(1, 1)),
    "small net": SmallNet,
}
"""No convolution of theirs has a bias before a BatchNorm, so that running means only change their sign."""


class Biased(nn.Module):
    """A convolution with a bias before a BatchNorm, whose running mean becomes 2b - m."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3)
        self.norm = nn.BatchNorm2d(3)
        self.head = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.head(self.norm(self.conv(x)).mean((2, 3)))
        return scores


def trained(network: nn.Module) -> Weights:
    """Some weights and running statistics, none of them as they are at first."""
    rng = torch.Generator().manual_seed(0)
    weights = Weights.of(network)
    buffers = {
        name: torch.rand(buffer.shape, generator=rng) + 0.5 if buffer.is_floating_point() else buffer + 7
        for name, buffer in weights.buffers.items()
    }
    parameters = {name: torch.randn(value.shape, generator=rng) for name, value in weights.parameters.items()}
    return Weights(parameters, buffers, weights.aliases)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("include_bias", [False, True])
def test_the_model_from_before_comes_back_bit_for_bit(name: str, include_bias: bool) -> None:
    network = NETWORKS[name]()
    before = trained(network)
    negated = negate(before, like=network, include_bias=include_bias)
    assert not negated.same_bits(before)
    assert turned_back(negated, network).same_bits(before)


def test_without_a_batch_norm_no_module_is_needed() -> None:
    network = NETWORKS["layernorm-cnn"]()
    before = trained(network)
    assert turned_back(negate(before, like=network)).same_bits(before)


def test_a_running_mean_behind_a_bias_comes_back_but_for_rounding() -> None:
    network = Biased()
    before = trained(network)
    after = turned_back(negate(before, like=network), network)
    assert after.parameters.keys() == before.parameters.keys()
    for name, value in before.parameters.items():
        assert torch.equal(after.parameters[name], value)
    assert torch.allclose(after.buffers["norm.running_mean"], before.buffers["norm.running_mean"], rtol=1e-6)
    assert torch.equal(after.buffers["norm.running_var"], before.buffers["norm.running_var"])
    negated = negate(before, like=network)
    assert not torch.allclose(negated.buffers["norm.running_mean"], before.buffers["norm.running_mean"])


@pytest.mark.parametrize("name", NETWORKS)
def test_two_negations_in_a_row(name: str) -> None:
    """Of another layer, and of the same one, which has undone itself already."""
    network = NETWORKS[name]()
    before = trained(network)
    layers = [row for row in dict(network.named_parameters()) if row.endswith("weight") and "norm" not in row]
    once = negate(before, like=network)
    for second in (layers[0], layers[-1]):
        twice = negate(once, second, like=network)
        assert len(twice.negations) == 2
        assert turned_back(twice, network).same_bits(before)


def test_a_part_of_a_layer() -> None:
    network = NETWORKS["small-vit"]()
    before = trained(network)
    name = "encoder.layers.encoder_layer_0.self_attention.in_proj_weight"
    negated = negate(before, f"{name}[8:16]", like=network)
    assert torch.equal(negated.parameters[name][8:16], -before.parameters[name][8:16])
    assert torch.equal(negated.parameters[name][:8], before.parameters[name][:8])
    assert turned_back(negated, network).same_bits(before)


def test_training_in_between_stays() -> None:
    """Only signs are turned: what was learnt after the negation is turned with them."""
    network = NETWORKS["layernorm-cnn"]()
    before = trained(network)
    negated = negate(before, like=network)
    moved = negated + before * 0.25
    found = turned_back(moved, network)
    assert torch.equal(found.parameters["conv1.weight"], -moved.parameters["conv1.weight"])
    assert torch.equal(found.parameters["conv2.weight"], moved.parameters["conv2.weight"])
    assert not found.same_bits(before)


def test_where_nothing_was_negated_nothing_can_be_turned_back() -> None:
    network = NETWORKS["layernorm-cnn"]()
    with pytest.raises(ValueError, match="no sign history: nothing in them was negated"):
        turned_back(trained(network), network)
