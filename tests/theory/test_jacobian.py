"""Jacobian control: laws of Jacobians before and after negation, and gradients."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from fedunlearn.negation import negate
from fedunlearn.theory.jacobian import (
    JacobianControl,
    LayerJacobian,
    gradient_norms,
    jacobian_control,
    jacobian_sketches,
)
from fedunlearn.weights import Weights

LEVEL = 0.01


def chain(activation: Callable[[], nn.Module], bias: bool = False, classes: int = 3) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(6, 16, bias=bias),
            activation(),
            nn.Linear(16, 16, bias=bias),
            activation(),
            nn.Linear(16, classes),
        )


def samples(count: int = 160, mean: float = 0.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 6, generator=generator) + mean, torch.randint(3, (count,), generator=generator)


def controlled(
    activation: Callable[[], nn.Module], layer: str, mean: float = 0.0, bias: bool = False
) -> dict[str, LayerJacobian]:
    found = jacobian_control(chain(activation, bias), layer, *samples(mean=mean), seed=0, include_bias=bias)
    return {row.layer: row for row in found.rows}


def at_the_floor(distance: float, row: LayerJacobian) -> bool:
    return distance < 1.35 * row.floor


def jacobian(model: nn.Module, name: str, x: Tensor) -> Tensor:
    """Of each sample, by differentiating each output apart, ``(n, outputs * parameters)``."""
    parameter = model.get_parameter(name)
    rows = []
    for one in x:
        outputs = model(one[None])[0]
        rows.append(torch.cat([torch.autograd.grad(o, parameter, retain_graph=True)[0].flatten() for o in outputs]))
    return torch.stack(rows).double()


# Theorem 6 where all is symmetric


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh])
def test_section_7_of_symmetric_outputs_the_jacobian_above_keeps_its_law(activation: Callable[[], nn.Module]) -> None:
    """No bias and X symmetric: TV(Y; -Y) = 0, and (51) says that nothing above changes."""
    model, (x, y) = chain(activation), samples()
    found = jacobian_control(model, "0", x, y, seed=0)
    assert found.variation.value < 4 * found.variation.error
    above = [row for row in found.rows if row.place == "above"]
    assert [row.layer for row in above] == ["2", "4"]
    for row in above:
        assert row.sign == 1
        assert at_the_floor(row.distance, row)
        assert row.p > LEVEL


def test_section_7_where_x_is_shifted_both_sides_of_51_are_large() -> None:
    model, (x, y) = chain(nn.ReLU), samples(mean=1)
    found = jacobian_control(model, "0", x, y, seed=0)
    assert found.variation.value > 0.9
    for row in found.rows[1:]:
        assert row.distance > 3 * row.floor
        assert row.p == 1 / 200


def test_section_7_below_a_layer_that_linear_ones_follow_the_jacobian_is_minus_itself_exactly() -> None:
    """After the last hidden layer all is linear, so that J after is -J sample by sample: epsilon is right."""
    model, (x, _) = chain(nn.ReLU), samples(5)
    changed = negate(chain(nn.ReLU), "4")
    torch.testing.assert_close(jacobian(model, "0.weight", x), -jacobian(changed, "0.weight", x))
    rows = controlled(nn.ReLU, "4", mean=1)
    for name in ("0", "2"):
        assert (rows[name].place, rows[name].sign) == ("below", -1)
        assert rows[name].distance == pytest.approx(rows[name].floor, rel=1e-5)
        assert rows[name].p > LEVEL
        assert rows[name].opposite > 3 * rows[name].distance
    assert rows["4"].distance == pytest.approx(rows["4"].floor, rel=1e-5)


def test_erratum_16_the_distance_in_52_is_the_probability_that_y_is_not_0() -> None:
    """X uniform on five points symmetric about 0, Y = 2 X: TV(Y; -Y) = 0, but TV((X, Y); (X, -Y)) = 4/5."""
    points = (-2, -1, 0, 1, 2)

    def apart(one: list[tuple[int, ...]], other: list[tuple[int, ...]]) -> float:
        return sum(abs(one.count(at) - other.count(at)) for at in {*one, *other}) / 2 / len(points)

    assert apart([(2 * x,) for x in points], [(-2 * x,) for x in points]) == 0
    assert apart([(x, 2 * x) for x in points], [(x, -2 * x) for x in points]) == 4 / 5


def test_erratum_16_in_the_symmetric_case_the_sign_at_the_negated_layer_is_the_other_one() -> None:
    """J'(x) = -J(-x): though TV(Y; -Y) = 0, the law at L_neg is that of -J, where (52) has epsilon = 1."""
    model, (x, _) = chain(nn.ReLU), samples(5)
    changed = negate(chain(nn.ReLU), "0")
    torch.testing.assert_close(jacobian(changed, "0.weight", x), -jacobian(model, "0.weight", -x))
    row = controlled(nn.ReLU, "0")["0"]
    assert (row.place, row.sign) == ("at", 1)
    assert row.p == 1 / 200
    assert at_the_floor(row.opposite, row)
    assert row.distance > 2 * row.opposite


def test_erratum_16_below_odd_activations_the_sign_is_the_other_one_too() -> None:
    """J'(x) = J(-x) for tanh below: the law is that of J, where (52) has epsilon = -1; -J is another.

    The square above keeps J from being symmetric itself.
    """

    class Square(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x + 0.5).square()

    def build() -> nn.Sequential:
        return nn.Sequential(*chain(nn.Tanh)[:3], Square(), *chain(nn.Tanh)[4:])

    x, y = samples()
    torch.testing.assert_close(jacobian(negate(build(), "2"), "0.weight", x[:5]), jacobian(build(), "0.weight", -x[:5]))
    row = jacobian_control(build(), "2", x, y, seed=0).rows[0]
    assert (row.layer, row.place, row.sign) == ("0", "below", -1)
    assert at_the_floor(row.opposite, row)
    assert row.p == 1 / 200


# Constants of Theorem 6


class Absolute(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.abs()


def scalars(first: float, second: float, activation: nn.Module) -> nn.Sequential:
    model = nn.Sequential(nn.Linear(1, 1, bias=False), activation, nn.Linear(1, 1, bias=False))
    with torch.no_grad():
        model[0].weight.fill_(first)
        model[2].weight.fill_(second)
    return model


def moved(model: nn.Sequential, name: str, sign: int) -> float:
    """W(sign * J; J') at X = 1."""
    x = torch.ones(1, 1)
    before = jacobian(model, name, x)
    after = jacobian(negate(model, "0"), name, x)
    return float((sign * before - after).abs().sum())


def test_erratum_8_the_constant_of_62_lacks_lemma_4s_factor_two() -> None:
    """N(x) = |x|, all weights and norms 1, X = 1: A = 1 by (62) and TV = 1, but J = 1 becomes -1."""
    found = moved(scalars(1, 1, Absolute()), "0.weight", 1)
    printed = 1 * 1 * 1
    assert found == 2
    assert found > printed
    assert found <= 2 * printed


def test_erratum_8_the_constant_of_58_must_bound_the_negated_outputs_not_the_input() -> None:
    """N(x) = 1 * 10 x at X = 1: A = 2 sup|x| = 2 by (58) and TV = 1, but J of the last weight goes from 10 to -10."""
    found = moved(scalars(10, 1, nn.Identity()), "2.weight", 1)
    assert found == 20
    assert found > 2 * 1
    assert found <= 2 * 10


# Places and orders


class Branches(nn.Module):
    """below -> {left, right} -> above, and a branch of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.above, self.beside = nn.Linear(4, 3), nn.Linear(6, 3)  # not registered in the order of running
        self.left, self.right = nn.Linear(4, 4), nn.Linear(4, 4)
        self.below = nn.Linear(6, 4)
        self.unused = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.below(x).tanh()
        return self.above(self.left(y).relu() + self.right(y).relu()) + self.beside(x)


def before(one: str, other: str) -> bool:
    middle = {("below", "left"), ("below", "right"), ("left", "above"), ("right", "above")}
    return (one, other) in middle | {("below", "above")}


def branches(*layers: str) -> JacobianControl:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Branches()
    return jacobian_control(model, layers, *samples(24), seed=0, order=before)


def test_places_are_read_off_the_order() -> None:
    found = {row.layer: (row.place, row.sign) for row in branches("left").rows}
    assert found == {
        "below": ("below", -1),
        "left": ("at", 1),
        "right": ("beside", 1),
        "above": ("above", 1),
        "beside": ("beside", 1),
    }
    both = {row.layer: row.place for row in branches("left", "right").rows}
    assert both == {"below": "below", "left": "at", "right": "at", "above": "above", "beside": "beside"}
    chained = {row.layer: row.place for row in branches("below", "above").rows}
    assert (chained["left"], chained["below"], chained["above"]) == ("between", "at", "at")


def test_rows_are_in_the_order_of_running_and_idle_layers_are_no_rows() -> None:
    assert [row.layer for row in branches("left").rows] == ["below", "left", "right", "above", "beside"]


def test_what_a_branch_does_not_see_does_not_change() -> None:
    row = {row.layer: row for row in branches("left").rows}["beside"]
    assert row.distance == pytest.approx(row.floor, rel=1e-6)


# Sketches and gradients


def test_a_sketch_keeps_inner_products_in_expectation() -> None:
    model, (x, _) = chain(nn.Tanh), samples(6)
    exact = torch.cat([jacobian(model, "2.weight", x)], 1)
    products = (exact @ exact.T).numpy()
    sketched = np.mean([law @ law.T for law in (jacobian_sketches(model, x, seed=s)["2"] for s in range(60))], axis=0)
    assert np.abs(sketched - products).max() < 0.1 * np.abs(products).max()


def test_a_sketch_spreads_the_entries_of_one_input_over_all_its_numbers() -> None:
    """Of 128 inputs one is active, so that J's entries lie 128 apart. |J|^2 varies by sqrt(2 / 128) = 0.125."""
    model = nn.Sequential(nn.Linear(128, 64, bias=False), nn.Linear(64, 1))
    nn.init.constant_(model[1].weight, 0.5)
    x = F.one_hot(torch.tensor([5]), 128).float()
    sketches = np.concatenate([jacobian_sketches(model, x, seed=seed)["0"] for seed in range(400)])
    found = np.square(sketches).sum(1) / (64 * 0.5**2)
    assert found.mean() == pytest.approx(1, abs=0.03)
    assert found.std() == pytest.approx(math.sqrt(2 / 128), rel=0.2)
    assert np.count_nonzero(sketches, 1).min() > 30


def test_a_sketch_is_linear_in_the_jacobian_and_the_same_for_a_seed() -> None:
    """Of a linear last layer the Jacobian is the features: negating them negates the sketch of its weight."""
    model, (x, _) = chain(nn.Tanh), samples(4)
    model[4].bias.requires_grad_(False)
    once, again = jacobian_sketches(model, x, seed=3)["2"], jacobian_sketches(model, x, seed=3)["2"]
    assert np.array_equal(once, again)
    assert not np.array_equal(once, jacobian_sketches(model, x, seed=4)["2"])
    halved = chain(nn.Tanh)
    with torch.no_grad():
        halved[4].weight.mul_(0.5)
    np.testing.assert_allclose(jacobian_sketches(halved, x, seed=3)["2"], once / 2, atol=1e-6)


def test_of_many_outputs_orthonormal_combinations_are_differentiated() -> None:
    found = jacobian_control(chain(nn.Tanh, classes=15), "0", *samples(24), seed=0)
    assert found.outputs == 10
    model, (x, _) = chain(nn.Tanh, classes=15), samples(3)
    whole = float(jacobian(model, "2.weight", x).square().sum())
    part = np.mean([np.square(jacobian_sketches(model, x, seed=s)["2"]).sum() for s in range(20)])
    assert part == pytest.approx(whole * 10 / 15, rel=0.25)


def test_gradient_norms_are_those_of_the_mean_loss() -> None:
    model, (x, y) = chain(nn.Tanh, bias=True), samples(50)
    found = gradient_norms(model, x, y, batch_size=13)
    F.cross_entropy(model(x), y).backward()
    for name in ("0", "2", "4"):
        layer = model.get_submodule(name)
        expected = torch.cat([p.grad.flatten() for p in layer.parameters() if p.grad is not None]).norm()
        assert found[name] == pytest.approx(float(expected), rel=1e-5)


def test_gradients_before_and_after_stand_in_the_rows() -> None:
    model, (x, y) = chain(nn.ReLU), samples(40, mean=1)
    rows = jacobian_control(model, "2", x, y, seed=0).rows
    after = gradient_norms(negate(chain(nn.ReLU), "2"), x, y)
    for row in rows:
        assert row.before == gradient_norms(model, x, y)[row.layer]
        assert row.after == pytest.approx(after[row.layer], rel=1e-12)
        assert row.ratio == pytest.approx(row.after / row.before)


def test_below_a_layer_that_negation_kills_the_gradient_vanishes() -> None:
    """All pre-activations positive: after negation the ReLU is shut, and nothing reaches it or what lies below."""
    model = chain(nn.ReLU)
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight.abs_()
    x, y = samples(30)
    rows = {row.layer: row for row in jacobian_control(model, "2", x.abs(), y, seed=0).rows}
    assert rows["0"].ratio == rows["2"].ratio == 0
    for distance in (rows["0"].distance, rows["0"].opposite):
        assert distance == pytest.approx(1)  # as far as from 0, which is where it went
    again = {row.layer: row for row in jacobian_control(negate(model, "2"), "2", x.abs(), y, seed=0).rows}
    assert again["2"].ratio == again["2"].distance == float("inf")


def test_attention_and_batch_normalisation_can_be_differentiated() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv1d(1, 4, 3, padding=1), nn.BatchNorm1d(4)
            self.attention, self.head = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            z = self.bn(self.conv(x[:, None])).relu_().transpose(1, 2)
            z = z + self.attention(z, z, z, need_weights=False)[0]
            return self.head(z.mean(1))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Net()
    found = jacobian_control(model, "conv", *samples(24), seed=0)
    assert [row.layer for row in found.rows] == ["conv", "attention", "attention.out_proj", "head"]
    assert all(row.before > 0 and row.after > 0 and row.floor > 0 for row in found.rows)
    exact = torch.cat(
        [jacobian(model.eval(), f"attention.{part}", samples(4)[0]) for part in ("in_proj_weight", "in_proj_bias")], 1
    )
    sketches = [np.square(jacobian_sketches(model, samples(4)[0], seed=s)["attention"]).sum() for s in range(16)]
    assert np.mean(sketches) == pytest.approx(float(exact.square().sum()), rel=0.25)


def test_the_model_is_left_as_it_was_and_the_same_seed_says_the_same() -> None:
    model, (x, y) = chain(nn.ReLU).train(), samples(24)
    model[0].weight.requires_grad_(False)
    weights, state = Weights.of(model), torch.get_rng_state()
    once = jacobian_control(model, "0", x, y, seed=0)
    assert Weights.of(model).same_bits(weights)
    assert model.training
    assert [p.requires_grad for p in model.parameters()] == [False, True, True, True]
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert jacobian_control(model, "0", x, y, seed=0) == once
    assert jacobian_control(model, "0", x, y, seed=1) != once


def test_what_cannot_be_compared_is_refused() -> None:
    x, y = samples(19)
    with pytest.raises(ValueError, match="give 20 or more"):
        jacobian_control(chain(nn.ReLU), "0", x, y, seed=0)
    with pytest.raises(ValueError, match="give one at least"):
        gradient_norms(chain(nn.ReLU), x[:0], y[:0])
    with pytest.raises(ValueError, match="unused is no layer that the input flows through"):
        branches("unused")
