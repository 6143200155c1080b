"""What a negated layer's mirror image has to do with what it mirrors."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F  # noqa: N812

from fedunlearn.theory.mirror import carried, mirror_correlation

EVEN = 0.25**2 * (1 - 2 / math.pi)


@pytest.mark.parametrize(
    ("psi", "expected"),
    [
        (torch.relu, -1 / (math.pi - 1)),
        (torch.tanh, -1.0),
        (torch.sigmoid, -1.0),
        (torch.abs, 1.0),
        (lambda y: 3 * y + 2, -1.0),
        # leaky: y of slope a where negative is (1 + a) y / 2 + (1 - a) |y| / 2, of which the parts are uncorrelated,
        # with variances ((1 + a) / 2)^2 and ((1 - a) / 2)^2 (1 - 2 / pi).
        (lambda y: F.leaky_relu(y, 0.5), (EVEN - 0.75**2) / (EVEN + 0.75**2)),
    ],
    ids=["relu", "tanh", "sigmoid", "abs", "affine", "leaky"],
)  # fmt: skip
def test_correlations_by_hand(psi: object, expected: float) -> None:
    assert mirror_correlation(psi) == pytest.approx(expected, abs=1e-7)  # type: ignore[arg-type]


@given(st.floats(-2, 2), st.floats(0.2, 3))
@settings(max_examples=5, deadline=None)
def test_it_is_the_correlation_of_draws(mean: float, std: float) -> None:
    y = mean + std * torch.randn(100_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    drawn = torch.corrcoef(torch.stack([F.gelu(y), F.gelu(-y)]))[0, 1]
    assert mirror_correlation(F.gelu, mean=mean, std=std) == pytest.approx(float(drawn), abs=0.03)


def test_what_has_no_correlation_is_told() -> None:
    for wrong in ({"std": 0.0}, {"mean": math.nan}, {"std": math.inf}):
        with pytest.raises(ValueError, match="must be above 0, and both finite"):
            mirror_correlation(torch.relu, **wrong)
    assert mirror_correlation(torch.relu, std=1e-6) == pytest.approx(-1 / (math.pi - 1), abs=1e-7)
    with pytest.raises(ValueError, match="constant where Y is"):
        mirror_correlation(torch.ones_like)


def wide() -> nn.Sequential:
    """A network so wide that what its second layer reads is nearly normal."""
    torch.manual_seed(0)
    layers = [nn.Linear(64, 512, bias=False), nn.ReLU(), nn.Linear(512, 256, bias=False), nn.ReLU(), nn.Linear(256, 4)]
    return nn.Sequential(*layers)


def test_a_second_negation_turns_the_copy_back() -> None:
    """At random weights the mean over samples is taken off, and what is left has ReLU's correlation."""
    network, x = wide(), torch.randn(2000, 64, generator=torch.Generator().manual_seed(1))
    once, twice = carried(network, "0", x, ["0", "1", "2"]), carried(network, ["0", "2"], x, ["0", "2"])
    assert once["0"] == pytest.approx(-1, abs=1e-6)
    assert once["1"] == pytest.approx(-1 / (math.pi - 1), abs=0.02)
    assert twice["0"] == once["0"]
    assert twice["2"] == pytest.approx(-once["2"], abs=1e-6)
    assert twice["2"] > 0.4


def test_the_model_is_left_as_it_was() -> None:
    network = wide().train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    carried(network, "0", torch.randn(4, 64), ["4"])
    assert network.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert not any(module._forward_hooks for module in network.modules())


def test_an_output_that_does_not_vary_carries_nothing() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    with torch.no_grad():
        network[0].weight.zero_()
    assert carried(network, "0.weight", torch.randn(3, 2), ["1"]) == {"1": 0.0}


def test_what_cannot_be_compared_is_told() -> None:
    network = wide()
    with pytest.raises(ValueError, match="give two or more"):
        carried(network, "0", torch.randn(1, 64), ["4"])
    shared = nn.ReLU()
    twice = nn.Sequential(nn.Linear(2, 2), shared, nn.Linear(2, 2), shared)
    with pytest.raises(ValueError, match="1 runs 2 times, not once"):
        carried(twice, "0", torch.randn(3, 2), ["1"])


def test_an_activation_in_place_changes_nothing_of_it_nor_does_a_wrapper() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    in_place = nn.Sequential(plain[0], nn.ReLU(inplace=True), plain[2])
    x = torch.randn(50, 4, dtype=torch.float64)
    expected = carried(plain, "0", x, ["0", "2"])
    assert expected["0"] == pytest.approx(-1)
    assert carried(in_place, "0", x, ["0", "2"]) == expected
    assert carried(nn.DataParallel(plain), "0", x, ["0", "2"]) == expected
