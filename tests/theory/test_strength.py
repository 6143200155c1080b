"""Strength: the largest activation distances, Lemmas 1 and 2, Theorem 2, and a negated layer of a network."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from fedunlearn.theory.strength import (
    INDEPENDENT,
    Strength,
    Theorem2,
    independent_share,
    largest_distance,
    lemma_1,
    strength,
    theorem_2,
)
from fedunlearn.weights import Weights

matrices = st.integers(1, 5).flatmap(
    lambda width: st.lists(st.lists(st.integers(-6, 6), min_size=width, max_size=width), min_size=1, max_size=6)
)


def normal(samples: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(samples, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def on_the_sphere(s: Tensor, count: int = 4000) -> Tensor:
    """Squared distances from s to many non-negative vectors of its norm, those along the axes with them."""
    drawn = torch.cat([normal(count, len(s)).abs(), torch.eye(len(s), dtype=torch.float64)])
    points = drawn / drawn.norm(dim=1, keepdim=True) * s.norm()
    return (points - s).square().sum(1)


# The largest distance


def test_erratum_5_the_largest_distance_from_a_positive_vector_is_neither_printed_value() -> None:
    """(22) has 2 |y|^2 = 4 wherever a coordinate is not zero, (23) has |y|^2 = 2 where all are positive."""
    y = torch.ones(2, dtype=torch.float64)
    found = float(on_the_sphere(y).max())
    assert found == pytest.approx(4 - 2 * math.sqrt(2), abs=1e-12)  # 1.1716
    assert found < 1.2 < 2 < 4
    assert float(largest_distance(y, "relu")) == pytest.approx(found, abs=1e-12)


def test_erratum_5_a_long_positive_vector_is_further_than_23_allows() -> None:
    y = torch.tensor([10.0, 1.0, 1.0], dtype=torch.float64)
    found = float(on_the_sphere(y).max())
    assert found > 1.5 * float(y.square().sum())
    assert float(largest_distance(y, "relu")) == pytest.approx(found, abs=1e-12)


def test_erratum_5_with_a_zero_the_value_of_22_is_right() -> None:
    y = torch.tensor([3.0, 0.0, 4.0], dtype=torch.float64)
    assert float(largest_distance(y, "relu")) == float(on_the_sphere(y).max()) == 50


@given(st.lists(st.floats(0, 10), min_size=1, max_size=5))
def test_section_7_no_vector_of_the_same_norm_is_further_and_one_is_as_far(values: list[float]) -> None:
    s = torch.tensor(values, dtype=torch.float64)
    largest, tried = float(largest_distance(s, "relu")), on_the_sphere(s, 200)
    assert float(tried.max()) == pytest.approx(largest, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("bits", list(itertools.product((0.0, 1.0), repeat=4)))
def test_section_7_steps_of_the_same_norm_by_trying_all(bits: tuple[float, ...]) -> None:
    s = torch.tensor(bits)
    every = torch.tensor(list(itertools.product((0.0, 1.0), repeat=4)))
    equal = every[every.sum(1) == s.sum()]
    assert float(largest_distance(s, "step")) == float((equal - s).square().sum(1).max())
    assert float((every - s).square().sum(1).max()) == 4 == float((1 - s - s).square().sum())  # Boolean negation


def test_of_half_ones_the_boolean_negation_is_as_far_as_the_norm_allows() -> None:
    s = torch.tensor([1.0, 0.0, 0.0, 1.0])
    assert float(largest_distance(s, "step")) == 4
    assert float(largest_distance(torch.tensor([1.0, 0.0, 0.0, 0.0]), "step")) == 2


@pytest.mark.parametrize("activation", [torch.tanh, torch.sin, nn.Identity(), F.softsign])
def test_section_7_negation_moves_an_odd_activation_as_far_as_can_be(activation: Callable[[Tensor], Tensor]) -> None:
    y = normal(5, 7)
    moved = (activation(y) - activation(-y)).square().sum(1)
    torch.testing.assert_close(largest_distance(activation(y), "odd"), moved)


def test_activations_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="pass activations"):
        largest_distance(torch.tensor([-1.0, 1.0]), "relu")
    with pytest.raises(ValueError, match="exactly 0"):
        largest_distance(torch.tensor([0.5, 1.0]), "step")


# Lemma 1 and Theorem 2


def test_lemma_1_by_hand() -> None:
    """(3, -4): distance 25, largest 18, energies 9 and 16. (1, 1): distance 2, largest 1.17, energies 2 and 0."""
    found = lemma_1(torch.tensor([[3.0, -4.0], [1.0, 1.0]]))
    assert (found.samples, found.width, found.holds) == (2, 2, True)
    assert found.distance == pytest.approx(13.5)
    assert found.largest == pytest.approx((18 + 4 - 2 * math.sqrt(2)) / 2)
    assert found.epsilon == pytest.approx(4.5)
    assert found.slack == pytest.approx(found.distance - found.largest + found.epsilon)


@given(matrices)
def test_section_7_lemma_1_holds_on_any_data_with_the_true_maximum(rows: list[list[int]]) -> None:
    found = lemma_1(torch.tensor(rows))
    assert found.holds
    for row in rows:  # sample by sample even
        assert lemma_1(torch.tensor([row])).holds


def test_erratum_5_step_28_of_lemma_1s_proof_fails_where_all_is_positive() -> None:
    """(28) puts the maximum where all of Y is positive at |Y|^2; near an axis it is almost twice as much."""
    y = torch.tensor([[10.0, 0.1]], dtype=torch.float64)
    assert lemma_1(y).distance == pytest.approx(float(y.square().sum()))
    assert lemma_1(y).largest > 1.9 * lemma_1(y).distance
    assert lemma_1(y).holds


@pytest.mark.parametrize("width", [2, 10, 50])
def test_section_7_epsilon_of_normal_vectors_grows_as_the_root_of_the_width(width: int) -> None:
    found = lemma_1(normal(40_000, width))
    assert found.distance == pytest.approx(width, rel=0.02)
    assert found.slack > 0
    if width >= 10:
        assert found.epsilon == pytest.approx(math.sqrt(6 * width / math.pi), rel=0.05)


def test_section_7_slack_at_width_2_is_once_the_width() -> None:
    assert lemma_1(normal(100_000, 2)).slack == pytest.approx(2.0, rel=0.05)


@pytest.mark.parametrize("mean", [-1.0, 0.5, 3.0])
def test_section_7_a_shifted_mean_costs_energy_not_the_lemma(mean: float) -> None:
    shifted = lemma_1(normal(2000, 20) + mean)
    assert shifted.holds
    assert shifted.epsilon > 2 * lemma_1(normal(2000, 20)).epsilon


@given(matrices, st.integers(0, 100))
def test_section_7_theorem_2_holds_whatever_the_other_perturbation(rows: list[list[int]], seed: int) -> None:
    y = torch.tensor(rows, dtype=torch.float64)
    other = 4 * normal(*y.shape, seed=seed)
    found = theorem_2(y, other)
    assert found.holds
    assert found.distance >= theorem_2(y, other).other - 2 * found.epsilon - 1e-9


def test_theorem_2_by_hand() -> None:
    """Y = (3, -4), Y' = (-1, 2): s = (3, 0), s(-Y) = (0, 4), s' = (0, 2)."""
    found = theorem_2(torch.tensor([[3.0, -4.0]]), torch.tensor([[-1.0, 2.0]]))
    assert found == Theorem2(1, 2, energy=9, distance=25, other=13, epsilon=7, bound=-1, holds=True, vacuous=True)


def test_of_wide_normal_layers_theorem_2_says_something() -> None:
    found = theorem_2(normal(200, 1000), normal(200, 1000, seed=1))
    assert not found.vacuous
    assert found.other / found.distance == pytest.approx(INDEPENDENT, rel=0.02)


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(samples, width\)"):
        lemma_1(torch.zeros(0, 3))
    with pytest.raises(ValueError, match=r"\(samples, width\)"):
        lemma_1(torch.zeros(3))
    with pytest.raises(ValueError, match="cannot be compared"):
        theorem_2(torch.zeros(2, 3), torch.zeros(2, 4))


# Lemma 2


@pytest.mark.parametrize(
    ("width", "expected", "most"), [(2, 0.838, 0.814), (3, 0.719, 0.951), (5, 0.686, 0.991), (10, 0.682, 1.0)]
)
def test_section_7_share_of_the_largest_distance_by_sampling(width: int, expected: float, most: float) -> None:
    one, other = normal(200_000, width).relu(), normal(200_000, width, seed=1).relu()
    distance = float((one - other).square().sum(1).mean())
    largest = float(largest_distance(one, "relu").mean())
    assert distance == pytest.approx(width * INDEPENDENT, rel=0.01)  # exact for every width
    assert independent_share(width) == pytest.approx(expected, abs=5e-4)
    assert distance / largest == pytest.approx(independent_share(width), rel=0.01)
    assert largest / width == pytest.approx(most, rel=0.01)
    assert float(largest_distance(normal(100, 1).relu(), "relu").max()) == 0  # alone, nothing can be as large and other


def test_erratum_5_the_constant_of_lemma_2_is_a_limit() -> None:
    shares = [independent_share(width) for width in (2, 3, 5, 10, 20)]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > 1.2 * INDEPENDENT
    assert shares[-1] == pytest.approx(1 - 1 / math.pi, rel=1e-5)
    by_22_and_23 = [INDEPENDENT / (1 - 0.5**width) for width in (2, 3, 5, 10, 20)]  # nor is it 1 - 1/pi by these
    assert by_22_and_23[0] > 1.3 * INDEPENDENT
    assert shares[0] < by_22_and_23[0]
    assert independent_share(3000) == pytest.approx(INDEPENDENT, rel=1e-12)  # 2^-3000 underflows, and may


def test_section_7_negation_reaches_the_width_exactly() -> None:
    y = normal(100, 30)
    assert torch.equal((y.relu() - (-y).relu()).square().sum(1), y.square().sum(1))


def test_a_single_activation_cannot_move() -> None:
    with pytest.raises(ValueError, match="give 2 or more"):
        independent_share(1)


# Networks


def images(count: int = 40) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(5, (count,), generator=generator)
    return torch.randn(count, 1, 8, 8, generator=generator), labels


class Blocks(nn.Module):
    """A convolution, a residual block, and a layer of the user's own activation; in place where that is possible."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.hidden = nn.Linear(8, 12)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        before = self.relu(self.conv1(x))
        x = self.bn(self.conv2(before))
        x += before
        x = self.relu(x)
        return self.head(F.dropout(self.hidden(x.mean((2, 3))), 0.5, self.training).tanh())


def blocks() -> Blocks:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Blocks()
        model(images(200)[0])  # running statistics that are not the initial ones
    return model


def looked(layer: str = "conv1", **options: bool) -> Strength:
    return strength(blocks(), layer, *images(), seed=0, **options)  # type: ignore[arg-type]


def test_a_relu_layer_by_hand() -> None:
    model = blocks().eval()
    x, y = images()
    with torch.no_grad():
        pre = model.conv1(x).double().flatten(1)
        bias = model.conv1.bias.double().repeat_interleave(36)
        after = 2 * bias - pre  # the weights alone are negated
        before_logits = model(x).double()
        changed = copy.deepcopy(model)
        changed.conv1.weight.neg_()
        logits = changed(x).double()
    found = looked()
    energy = float(pre.relu().square().sum())
    assert (found.layer, found.activation, found.samples) == (("conv1.weight",), "relu", 40)
    assert found.negated.distance == pytest.approx(float((pre.relu() - after.relu()).square().sum()) / energy, rel=1e-5)
    assert found.negated.energy == pytest.approx(float(after.relu().square().sum()) / energy, rel=1e-5)
    away = float((logits - before_logits).norm() / before_logits.norm())
    assert found.negated.logits == pytest.approx(away, rel=1e-5)
    assert found.loss == pytest.approx(float(F.cross_entropy(before_logits, y)))
    assert found.negated.loss == pytest.approx(float(F.cross_entropy(logits, y)))
    assert found.negated.changed == float((logits.argmax(1) != before_logits.argmax(1)).double().mean())
    assert found.theorem is not None
    assert found.theorem.distance == pytest.approx(float(pre.square().sum()) / 40, rel=1e-5)
    assert (found.theorem.samples, found.theorem.width) == (40, 8 * 36)


def test_section_4_2_with_its_bias_negated_a_layer_gives_minus_y() -> None:
    found = looked(include_bias=True)
    assert found.theorem is not None
    assert found.negated.distance == pytest.approx(found.theorem.distance / found.theorem.energy, rel=1e-6)


def test_a_layer_before_a_sum_has_no_activation_and_turns_its_sign() -> None:
    found = looked("conv2", include_bias=True)
    assert (found.activation, found.theorem) == ("none", None)
    # the running mean follows, so that the normalised output turns about the BatchNorm's bias, here 0
    assert found.negated.distance == pytest.approx(4, rel=1e-5)
    assert found.negated.energy == pytest.approx(1, rel=1e-5)


def test_section_7_behind_a_batchnorm_lemma_1_is_about_what_is_normalised() -> None:
    """What ReLU reads is g yhat + b: it turns, as Lemma 1 wants, only where b is 0 and the running mean follows."""

    def found(bias: float, **options: Any) -> Strength:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = nn.Sequential(
                nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 5)
            )
        model(images(200)[0] + 1)
        nn.init.constant_(model[1].bias, bias)
        return strength(model, "0", *images(), seed=0, **options)

    turned = found(0.0)
    assert turned.theorem is not None
    assert turned.activation == "relu"
    assert turned.negated.distance == pytest.approx(turned.theorem.distance / turned.theorem.energy, rel=1e-5)
    for other in (found(1.0), found(0.0, batchnorm="leave")):
        assert other.theorem is not None
        assert other.theorem.holds
        assert other.negated.distance != pytest.approx(other.theorem.distance / other.theorem.energy, rel=1e-2)


def test_section_7_an_odd_activation_behind_a_dropout_moves_by_twice_its_size() -> None:
    found = looked("hidden", include_bias=True)
    assert (found.activation, found.theorem) == ("tanh", None)
    assert found.negated.distance == pytest.approx(4, rel=1e-5)


def test_the_last_layer_is_compared_as_it_is() -> None:
    found = looked("head", include_bias=True)
    assert found.activation == "none"
    assert found.negated.distance == pytest.approx(4)
    assert found.negated.logits == pytest.approx(2)


def test_section_7_the_redrawn_layer_reaches_less_than_the_negated_one() -> None:
    """Symmetric pre-activations, so that energies are near to equal, and 1 - 1/pi of the distance."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(50, 800, bias=False), nn.ReLU(), nn.Linear(800, 4))
    x, y = normal(300, 50).float(), torch.arange(300) % 4
    found = strength(model, "0", x, y, seed=0)
    assert found.negated.energy == pytest.approx(1, abs=0.05)
    assert found.redrawn.energy == pytest.approx(1, abs=0.1)
    assert found.redrawn.distance / found.negated.distance == pytest.approx(INDEPENDENT, abs=0.05)
    assert found.theorem is not None
    assert not found.theorem.vacuous
    assert found.theorem.other == pytest.approx(found.redrawn.distance * found.theorem.energy, rel=1e-6)


def test_batches_and_seeds_decide_nothing_that_they_should_not() -> None:
    whole, parts = looked(), strength(blocks(), "conv1", *images(), seed=0, batch_size=7)
    assert parts.negated.distance == pytest.approx(whole.negated.distance, rel=1e-6)
    assert parts.redrawn.loss == pytest.approx(whole.redrawn.loss, rel=1e-6)
    other = strength(blocks(), "conv1", *images(), seed=1)
    assert other.negated == whole.negated
    assert other.redrawn != whole.redrawn
    assert looked() == whole


def test_the_model_is_left_as_it_was() -> None:
    model = blocks().train()
    before, state = Weights.of(model), torch.get_rng_state()
    strength(model, "conv1", *images(), seed=0)
    assert Weights.of(model).same_bits(before)
    assert model.training
    assert model.conv1.weight.grad is None
    assert not model.conv1._forward_hooks
    assert torch.equal(torch.get_rng_state(), state)


def test_what_cannot_be_looked_at_is_refused() -> None:
    x, y = images()
    with pytest.raises(ValueError, match="select one of conv1, conv2"):
        strength(blocks(), ["conv1", "conv2"], x, y, seed=0)
    with pytest.raises(ValueError, match="give one at least"):
        strength(blocks(), "conv1", x[:0], y[:0], seed=0)
    idle = blocks()
    idle.extra = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="did not run"):
        strength(idle, "extra", x, y, seed=0)
    assert np.isfinite(looked().redrawn.distance)
