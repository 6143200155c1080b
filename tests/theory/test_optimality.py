"""Theorem 7's conditions on networks by hand, and the layer-wise optimality norm against brute force."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import asdict
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fedunlearn.layers import FIRST
from fedunlearn.models import LayerNormCNN
from fedunlearn.models.resnet import SmallResNet
from fedunlearn.models.vit import SmallViT
from fedunlearn.negation import negate
from fedunlearn.theory.compensation import negated_and_compensated
from fedunlearn.theory.optimality import conditions, lwo_lipschitz_lower, lwo_norm
from fedunlearn.theory.symmetry import residual_stream
from fedunlearn.weights import Weights


class Square(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x


class Step(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x > 0).to(x.dtype)


class Sin(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(x)


def stack(psi: nn.Module) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), psi, nn.Dropout(), nn.Linear(6, 5), psi, nn.Linear(5, 3)), torch.randn(7, 4)


@pytest.mark.parametrize(
    ("psi", "kind"),
    [(Step(), "sigmoid-like"), (nn.Tanh(), "odd"), (Sin(), "odd"), (nn.Sigmoid(), "sigmoid-like")],
)
def test_section_12_4_the_theorem_s_examples_are_covered(psi: nn.Module, kind: str) -> None:
    model, x = stack(psi)
    found = conditions(model, FIRST, x)
    assert (found.antichain, found.maximal, found.covered_by_theorem, found.preserved) == (True, (), True, True)
    assert found.reasons == ()
    (layer,) = found.layers
    assert (layer.layer, layer.takers, layer.stuck) == ("0", ("3",), ())
    assert layer.activations[-1].parity is not None
    assert layer.activations[-1].parity.kind == kind
    assert ("exactly 0" in layer.reason) == isinstance(psi, Step)


def test_section_12_4_behind_an_even_function_nobody_need_take_the_sign_up() -> None:
    model, x = stack(Square())
    found = conditions(model, "0", x)
    assert found.covered_by_theorem
    assert found.layers[0].takers == ()
    assert "does not see the sign" in found.layers[0].reason


@pytest.mark.parametrize("psi", [nn.ReLU(), nn.GELU(), nn.SiLU(), nn.Softplus(), nn.LeakyReLU()])
def test_section_4_4_rectifiers_are_not_covered_and_nothing_else_is_known(psi: nn.Module) -> None:
    model, x = stack(psi)
    found = conditions(model, "0", x)
    assert (found.covered_by_theorem, found.preserved) == (False, None)
    assert len(found.reasons) == 1
    assert "has no relation" in found.reasons[0]


def test_section_4_2_the_last_layer_is_maximal_and_excluded() -> None:
    model, x = stack(nn.Tanh())
    found = conditions(model, "5", x)
    assert found.maximal == ("5",)
    assert (found.covered_by_theorem, found.preserved) == (False, None)
    assert found.reasons == ("5 is maximal: no layer after it could take its sign up",)


def test_a_chain_is_not_covered_though_its_norms_are_preserved_one_by_one() -> None:
    model, x = stack(nn.Tanh())
    found = conditions(model, ["3", "0"], x)
    assert found.comparable == (("0", "3"),)
    assert (found.antichain, found.covered_by_theorem, found.preserved) == (False, False, True)
    assert all(layer.covered for layer in found.layers)
    assert "may not all be turned at once" in found.reasons[-1]


def test_many_comparable_pairs_are_counted() -> None:
    model, x = SmallViT(4, (1, 8, 8), layers=2, hidden=8, mlp=8), torch.randn(2, 1, 8, 8)
    found = conditions(model, ["conv_proj", "encoder.layers.*.mlp.*"], x)
    assert len(found.comparable) == 10
    assert "no antichain: 7 more pairs are comparable" in found.reasons


def test_an_antichain_of_parallel_layers_is_covered() -> None:
    class Parallel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c, self.head = (nn.Linear(4, 4) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.head(torch.tanh(self.a(x))) + self.c(torch.sigmoid(self.b(x)))
            return y

    found = conditions(Parallel(), ["a", "b"], torch.randn(3, 4))
    assert found.antichain
    assert found.covered_by_theorem
    assert [layer.takers for layer in found.layers] == [("head",), ("c",)]


class Gated(nn.Module):
    """tanh(a) * sigmoid(b), or another product of these."""

    def __init__(self, product: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.product = product

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.product(self.a(x), self.b(x)))
        return y


@pytest.mark.parametrize(
    ("product", "op"),
    [
        (lambda a, b: torch.tanh(a) * torch.sigmoid(b), "mul"),
        (lambda a, b: torch.tanh(a) / (1 + b * b), "div"),
    ],
)
def test_a_layer_gated_by_another_branch_is_preserved_but_not_covered(
    product: Callable[[Tensor, Tensor], Tensor], op: str
) -> None:
    found = conditions(Gated(product), "a", torch.randn(3, 4))
    (layer,) = found.layers
    assert (layer.covered, found.covered_by_theorem, found.preserved) == (False, False, True)
    assert layer.reason == f"the theorem speaks of activations, not of {op}; but head can take the sign up"


def test_a_product_in_which_the_sign_is_lost_is_no_activation_either() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x)
            z: Tensor = self.head(y * y.flip(1))
            return z

    (layer,) = conditions(Twice(), "first", torch.randn(3, 4)).layers
    assert (layer.covered, layer.preserved, layer.takers) == (False, True, ())
    assert layer.reason == "the theorem speaks of activations, not of mul; but the network does not see the sign"


@pytest.mark.parametrize(
    "psi", [lambda a: a * torch.tanh(a), lambda a: a.abs() * torch.sin(2 * a), lambda a: a * a * a]
)
def test_a_product_of_functions_of_one_value_is_an_activation(psi: Callable[[Tensor], Tensor]) -> None:
    (layer,) = conditions(Gated(lambda a, _: psi(a)), "a", torch.randn(3, 4)).layers
    assert (layer.covered, layer.preserved) == (True, True)


def test_erratum_7_an_odd_activation_before_a_maximum_or_a_sum_is_not_enough() -> None:
    """As printed, the theorem asks for the activation alone; the proof needs every path to a layer."""
    pooled = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Tanh(), nn.MaxPool2d(2), nn.Conv2d(3, 2, 2))
    found = conditions(pooled, "0", torch.randn(2, 1, 8, 8))
    assert found.layers[0].activations[0].parity is not None
    assert (found.covered_by_theorem, found.preserved) == (False, None)
    assert "max(-u) = -min(u)" in found.reasons[0]

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.last(x + torch.tanh(self.first(x)))
            return y

    beside = conditions(Residual(), "first", torch.randn(2, 4))
    assert (beside.covered_by_theorem, beside.preserved) == (False, None)
    assert "residual connection" in beside.reasons[0]


def test_erratum_7_the_printed_condition_has_no_compensation_where_a_maximum_is_taken() -> None:
    """Three inputs to a maximum, one weight after it: no weight and bias there restore the function."""
    torch.manual_seed(0)
    u = torch.randn(200, 3, dtype=torch.float64).tanh()
    before, after = u.max(1).values, (-u).max(1).values
    columns = torch.stack([after, torch.ones_like(after)], 1)
    best = columns @ torch.linalg.lstsq(columns, before).solution
    assert float((best - before).square().mean()) > 0.3 * float(before.var())
    average = torch.stack([(-u).mean(1), torch.ones_like(after)], 1)
    assert torch.allclose(average @ torch.linalg.lstsq(average, u.mean(1)).solution, u.mean(1))


def test_section_4_3_a_batchnorm_preserves_for_any_activation_though_not_covered() -> None:
    torch.manual_seed(0)
    found = conditions(SmallResNet(10, (3, 16, 16), width=4, blocks=(1, 1)), FIRST, torch.randn(2, 3, 16, 16))
    (layer,) = found.layers
    assert (found.covered_by_theorem, found.preserved) == (False, True)
    assert layer.takers == ("bn1",)
    assert layer.symmetry == ("bn1.weight", "bn1.running_mean")


def test_section_4_3_the_patch_projection_is_preserved_though_not_covered() -> None:
    torch.manual_seed(0)
    model = SmallViT(4, (1, 8, 8), layers=1, hidden=8, mlp=8)
    found = conditions(model, FIRST, torch.randn(2, 1, 8, 8))
    (layer,) = found.layers
    assert (layer.layer, found.covered_by_theorem, found.preserved) == ("conv_proj", False, True)
    assert len(layer.symmetry) == len(residual_stream(model)) - 2
    assert "beside what keeps its sign" in layer.reason


def test_attention_is_preserved_and_the_paper_s_small_network_unknown() -> None:
    model = SmallViT(4, (1, 8, 8), layers=1, hidden=8, mlp=8)
    name = "encoder.layers.encoder_layer_0.self_attention"
    (layer,) = conditions(model, f"{name}.in_proj_weight", torch.randn(2, 1, 8, 8)).layers
    assert (layer.covered, layer.preserved, layer.takers) == (False, True, (f"{name}.out_proj",))
    assert "scaled_dot_product_attention" in layer.reason
    assert conditions(LayerNormCNN(10), FIRST, torch.randn(2, 1, 28, 28)).preserved is None


def test_recurrent_and_computed_layers_are_told_and_not_followed() -> None:
    """The gates of an LSTM do not turn with its parameters, and two factors of a weight turn it back."""

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.head = nn.LSTM(4, 5, batch_first=True), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.head(self.cell(x)[0])
            return y

    recurrent = conditions(Recurrent(), FIRST, torch.randn(2, 3, 4))
    assert recurrent.preserved is None
    assert "does not turn" in recurrent.reasons[0]
    weighted = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.Tanh(), nn.Linear(4, 2))
    computed = conditions(weighted, FIRST, torch.randn(2, 4))
    assert (computed.covered_by_theorem, computed.preserved) == (False, None)
    assert "computed from others" in computed.reasons[0]


def test_the_network_is_left_alone_and_the_result_is_plain() -> None:
    model, x = stack(nn.Tanh())
    before = Weights.of(model)
    found = conditions(model, "0", x)
    assert before.same_bits(Weights.of(model))
    assert model.training
    assert all(not module._forward_hooks for module in model.modules())
    assert asdict(found)["layers"][0]["activations"][0]["op"] == "tanh"
    with pytest.raises(ValueError, match="9"):
        conditions(model, "9", x)


VECTORS = st.lists(st.floats(-3, 3), min_size=3, max_size=3)


@settings(max_examples=50)
@given(VECTORS, st.lists(VECTORS, min_size=1, max_size=3), st.booleans())
def test_definition_7_against_brute_force(theta: list[float], optima: list[list[float]], free: bool) -> None:
    """The best multiple among many, of each optimal model and, if its sign is free, of its mirror image."""
    at = torch.tensor(theta, dtype=torch.float64)
    stars = [torch.tensor(one, dtype=torch.float64) for one in optima]
    found = lwo_norm(at, stars, sign_is_free=free)
    grid = np.concatenate([[0], np.geomspace(1e-3, 1e3, 400)])
    tried = [
        np.linalg.norm(at.numpy() - a * s * star.numpy()) for star in stars for a in grid for s in (1, -1)[: 1 + free]
    ]
    assert found <= min(tried) + 1e-12
    assert found <= float(at.norm()) + 1e-12  # alpha = 0
    scaled = [3.7 * star for star in stars]
    assert lwo_norm(at, scaled, sign_is_free=free) == pytest.approx(found, abs=1e-9)
    projections = []
    for star in stars:
        along = float(at @ star)
        if float(star @ star) and (along > 0 or free):
            projections.append(float((at - along / float(star @ star) * star).norm()))
    assert found == pytest.approx(min([*projections, float(at.norm())]), abs=1e-9)


def test_definition_7_by_hand() -> None:
    star = torch.tensor([3.0, 4.0])
    assert lwo_norm(2 * star, [star]) == 0
    assert lwo_norm(-star, [star]) == 5
    assert lwo_norm(-star, [star], sign_is_free=True) == 0
    assert lwo_norm(torch.tensor([4.0, -3.0]), [star], sign_is_free=True) == pytest.approx(5)
    assert lwo_norm(star, [torch.zeros(2)]) == 5
    assert lwo_norm(torch.tensor([1.0, 7.0]), [torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0])]) == pytest.approx(1)
    with pytest.raises(ValueError, match="give one at least"):
        lwo_norm(star, [])
    with pytest.raises(ValueError, match="no distance"):
        lwo_norm(star, [torch.ones(3)])


def test_erratum_7_the_proof_s_choice_without_alpha_need_not_exist() -> None:
    """Printed is ||theta - theta*|| <= norm + epsilon; at theta = 2 theta* the norm is 0, and no theta* is near."""
    star = torch.tensor([3.0, 4.0])
    theta = 2 * star
    norm = lwo_norm(theta, [star])
    assert float((theta - star).norm()) > norm + 4.9
    alpha = float(theta @ star / (star @ star))
    assert float((theta - alpha * star).norm()) <= norm + 1e-6
    assert lwo_norm(-theta, [star, -star]) == norm  # equations (78) to (81), with alpha theta*


def optimal_pair() -> tuple[nn.Module, Weights, Weights]:
    """An optimal model, and the other one that Lemma 8 makes of it."""
    model, x = stack(nn.Tanh())
    return model, Weights.of(model), Weights.of(negated_and_compensated(model, "0", x))


def noisy(weights: Weights, count: int) -> list[Weights]:
    generator = torch.Generator().manual_seed(3)
    return [weights.map(lambda t: t + torch.randn(t.shape, generator=generator)) for _ in range(count)]


def test_definition_8_negation_of_a_covered_layer_has_norm_0() -> None:
    model, optimum, mirrored = optimal_pair()
    turn = partial(negate, layers="0", like=model, include_bias=True)
    layers = ["0.weight", "3.weight", "5.weight"]
    found = lwo_lipschitz_lower(turn, noisy(optimum, 20), [optimum, mirrored], layers)
    assert found.norms == (0, 0, 0)
    assert found.norm == 0
    assert found.constants[0] == pytest.approx(1, rel=1e-9)  # the set of optima is its own mirror image in this layer
    assert found.constants[1:] == (1, 1)
    free = lwo_lipschitz_lower(turn, noisy(optimum, 20), [optimum], layers, free_signs=["0.weight"])
    assert free.norms == (0, 0, 0)


def test_definition_8_without_the_mirrored_optimum_the_whole_layer_is_lost() -> None:
    model, optimum, _ = optimal_pair()
    turn = partial(negate, layers="0", like=model, include_bias=True)
    found = lwo_lipschitz_lower(turn, [], [optimum], ["0.weight", "3.weight"])
    size = math.hypot(float(optimum.parameters["0.weight"].norm()), float(optimum.parameters["0.bias"].norm()))
    assert found.norms == (pytest.approx(size, rel=1e-6), 0)
    assert found.constants == (math.inf, 0)
    assert found.norm == pytest.approx(size, rel=1e-6)


def test_erratum_7_equation_72_is_meant_of_models_and_decided_at_optimal_ones() -> None:
    """inf over A of max over the sample of ||sigma(theta)|| - A ||theta||, spelled out for growing A."""
    _, optimum, _ = optimal_pair()

    def shifted(weights: Weights) -> Weights:
        return weights.map(lambda t: t + 1)

    models = noisy(optimum, 10)
    found = lwo_lipschitz_lower(shifted, models, [optimum], ["0.weight"])

    def norm(weights: Weights) -> float:
        def both(of: Weights) -> Tensor:
            return torch.cat([of.parameters["0.weight"].flatten(), of.parameters["0.bias"]])

        return lwo_norm(both(weights), [both(optimum)])

    pairs = [(norm(shifted(one)), norm(one)) for one in [optimum, *models]]
    suprema = [max(s - a * n for s, n in pairs) for a in (1e-3, 1, 1e2, 1e4)]
    assert suprema == sorted(suprema, reverse=True)
    assert found.norms[0] == pytest.approx(suprema[-1], rel=1e-3)
    assert found.norms[0] > 0.1
    assert found.constants == (math.inf,)


@settings(max_examples=8)
@given(st.integers(0, 9), st.integers(0, 9))
def test_definition_8_the_estimate_grows_with_the_sample(first: int, more: int) -> None:
    _, optimum, _ = optimal_pair()

    def scaled(weights: Weights) -> Weights:
        return weights.map(lambda t: t.abs())

    models = noisy(optimum, first + more)
    few = lwo_lipschitz_lower(scaled, models[:first], [optimum], ["0.weight", "3.weight"])
    all_of_them = lwo_lipschitz_lower(scaled, models, [optimum], ["0.weight", "3.weight"])
    assert few.norm <= all_of_them.norm
    assert all(a <= b for a, b in zip(few.constants, all_of_them.constants, strict=True))


def test_what_is_no_parameter_or_no_optimum_is_refused() -> None:
    _, optimum, _ = optimal_pair()
    with pytest.raises(ValueError, match="give one at least"):
        lwo_lipschitz_lower(copy.copy, [], [], ["0.weight"])
    with pytest.raises(ValueError, match="9 is no parameter"):
        lwo_lipschitz_lower(copy.copy, [], [optimum], ["9"])
