"""Lipschitz constants against matrices written out, slopes on a grid, and what networks do to pairs of inputs."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from poset_networks import RandomDag, Skip
from torch import Tensor, nn
from torch.func import functional_call, jacrev

from fedunlearn.theory.lipschitz import (
    ACTIVATIONS,
    NetworkConstants,
    constants_of,
    jacobian_bound,
    lipschitz_bound,
    operator_norm,
    wasserstein_constant,
)


def constant(module: nn.Module, *shape: int) -> float:
    """Of one operation: what lies before and behind it are identities."""
    front = nn.Conv1d(shape[0], shape[0], 1, groups=shape[0], bias=False) if len(shape) == 2 else None
    front = front or nn.Conv2d(shape[0], shape[0], 1, groups=shape[0], bias=False)
    nn.init.ones_(front.weight)
    found = constants_of(nn.Sequential(front, module).eval(), torch.zeros(1, *shape))
    assert found.norms["0"] == pytest.approx(1)
    return math.exp(found.to_nodes(lambda node: node.op == "placeholder")[-1])


def matrix(module: nn.Module, *shape: int) -> Tensor:
    """Of a linear module, column by column."""
    eye = torch.eye(math.prod(shape), dtype=torch.float64).reshape(-1, *shape)
    with torch.no_grad():
        return module.double()(eye).flatten(1).T


CONVOLUTIONS = [
    nn.Conv2d(2, 3, 3, bias=False),
    nn.Conv2d(2, 3, 3, padding=1, bias=False),
    nn.Conv2d(2, 3, 3, padding="same", dilation=2, bias=False),
    nn.Conv2d(2, 4, 3, stride=2, padding=1, groups=2, bias=False),
    nn.ConvTranspose2d(2, 3, 3, stride=2, padding=1, output_padding=1, bias=False),
]


@pytest.mark.parametrize("size", [5, 12])
@pytest.mark.parametrize("number", range(len(CONVOLUTIONS)))
def test_a_convolution_s_norm_is_its_operator_s(number: int, size: int) -> None:
    """Written out as a matrix; with 12 x 12 pixels the norm is iterated. The kernel's own matrix has another norm."""
    module = copy.deepcopy(CONVOLUTIONS[number])
    nn.init.normal_(module.weight, generator=torch.Generator().manual_seed(number))
    found = constants_of(module, torch.zeros(3, 2, size, size))
    (norm,) = found.norms.values()
    exact = float(torch.linalg.matrix_norm(matrix(copy.deepcopy(module), 2, size, size), 2))
    assert norm == pytest.approx(exact, rel=1e-6)
    kernel = float(torch.linalg.matrix_norm(module.weight.detach().flatten(1), 2))
    assert abs(kernel / exact - 1) > 0.02, "so that the test can tell one from the other"


def test_the_norm_of_a_zero_map_and_of_a_matrix() -> None:
    assert operator_norm(lambda x: 0 * x, torch.zeros(1000, dtype=torch.float64)) == 0
    scales = torch.linspace(0, 3, 500, dtype=torch.float64)
    assert operator_norm(lambda x: x * scales, scales) == pytest.approx(3, rel=1e-6)
    assert operator_norm(lambda x: x * scales, scales, seed=1) == pytest.approx(3, rel=1e-6)


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.AvgPool2d(2), (1, 6, 6)),
        (nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=False), (1, 7, 7)),
        (nn.AdaptiveAvgPool2d((2, 3)), (2, 5, 5)),
        (nn.AvgPool1d(3, stride=1), (1, 9)),
        (nn.Upsample(scale_factor=2, mode="nearest"), (1, 4, 4)),
        (nn.ZeroPad2d(1), (1, 3, 3)),
    ],
)
def test_linear_operations_are_their_matrices(module: nn.Module, shape: tuple[int, ...]) -> None:
    exact = float(torch.linalg.matrix_norm(matrix(copy.deepcopy(module), *shape), 2))
    assert constant(module, *shape) == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize(("kernel", "stride", "attained"), [(2, 2, 1.0), (3, 2, 2.0), (3, 1, 3.0)])
def test_a_maximum_s_constant_is_attained_where_one_value_fills_all_its_windows(
    kernel: int, stride: int, attained: float
) -> None:
    pool = nn.MaxPool2d(kernel, stride)
    assert constant(pool, 1, 9, 9) == pytest.approx(attained)
    spike = torch.zeros(1, 1, 9, 9)
    spike[0, 0, 4, 4] = 1
    assert float(pool(spike).norm()) == attained


MODULES = {
    "sigmoid": nn.Sigmoid(),
    "hardsigmoid": nn.Hardsigmoid(),
    "hardswish": nn.Hardswish(),
    "silu": nn.SiLU(),
    "mish": nn.Mish(),
    "tanh": nn.Tanh(),
    "relu": nn.ReLU(),
    "softplus": nn.Softplus(),
    "log_sigmoid": nn.LogSigmoid(),
    "celu": nn.CELU(2.0),
}


@pytest.mark.parametrize("name", MODULES)
def test_an_activation_s_constant_is_its_steepest_slope(name: str) -> None:
    grid = torch.linspace(-12, 12, 480_001, dtype=torch.float64)
    slope = float((MODULES[name](grid).diff() / grid.diff()).abs().max())
    assert slope <= ACTIVATIONS[name] * (1 + 1e-9)
    assert slope == pytest.approx(ACTIVATIONS[name], rel=1e-4)


@pytest.mark.parametrize(
    "module", [nn.GELU(), nn.GELU("tanh"), nn.SELU(), nn.ELU(1.5), nn.LeakyReLU(2.0), nn.PReLU(init=3.0)]
)
def test_activations_with_arguments(module: nn.Module) -> None:
    grid = torch.linspace(-8, 8, 320_001, dtype=torch.float64)
    with torch.no_grad():
        slope = float((module.double()(grid).diff() / grid.diff()).abs().max())
    found = constant(copy.deepcopy(module).float(), 1, 3)
    assert slope <= found * (1 + 1e-9)
    assert slope == pytest.approx(found, rel=2e-4)


def test_softmax_s_jacobian_is_never_larger_than_a_half() -> None:
    x = torch.randn(300, 5, generator=torch.Generator().manual_seed(0)) * 3
    found = [float(torch.linalg.matrix_norm(jacrev(lambda v: v.softmax(0))(row), 2)) for row in x]
    assert max(found) <= ACTIVATIONS["softmax"]
    two = torch.tensor([0.0, 0.0, -50.0])
    assert float(torch.linalg.matrix_norm(jacrev(lambda v: v.softmax(0))(two), 2)) == pytest.approx(0.5)


def test_a_batch_norm_is_its_running_statistics() -> None:
    norm = nn.BatchNorm2d(3, eps=0.0).eval()
    norm.running_var.copy_(torch.tensor([4.0, 0.25, 1.0]))
    norm.weight.data.copy_(torch.tensor([2.0, -1.5, 1.0]))
    assert constant(norm, 3, 2, 2) == pytest.approx(3)  # 1.5 / 0.5


def test_a_layer_norm_is_steepest_where_all_values_are_alike() -> None:
    norm = nn.LayerNorm(4, eps=1e-4)
    norm.weight.data.copy_(torch.tensor([1.0, -2.0, 2.0, 1.0]))
    assert constant(norm, 2, 4) == pytest.approx(200)
    step = torch.tensor([0.0, 1.0, -1.0, 0.0]) * 1e-5
    assert float(norm(step).detach().norm() / step.norm()) == pytest.approx(200, rel=1e-3)
    with pytest.raises(ValueError, match=r"layer_norm after 0 \(with eps = 0 it is infinitely steep"):
        constant(nn.LayerNorm(4, eps=0.0), 2, 4)


# Lemma 5


@pytest.mark.parametrize("weight", [0.5, 1.0, 3.0])
def test_erratum_8_of_x_plus_w_x_the_printed_bound_is_violated_and_the_one_by_paths_attained(weight: float) -> None:
    found = lipschitz_bound(constants_of(Skip(weight), torch.ones(1, 1)))
    true = math.log(1 + weight)
    assert found.printed == pytest.approx(max(math.log(weight), 0))
    assert found.printed < true - 0.2
    assert found.path_sum == pytest.approx(true)
    assert found.corrected == pytest.approx(math.log(2) + max(math.log(weight), 0))
    assert (found.chains, found.paths, found.length) == (1, 2, 1)


def test_section_7_lemma_5_of_a_chain_by_hand() -> None:
    """Norms 2, 3 and 1/2, a sigmoid after each but the last: the mean is of three, the activations' at most 1."""
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(3)))
    for layer, norm in zip(model, (2.0, 3.0, 0.5), strict=True):
        layer.weight.data = torch.diag(torch.tensor([norm, 0.1]))
    chain = nn.Sequential(model[0], nn.Sigmoid(), model[1], nn.Sigmoid(), model[2])
    found = lipschitz_bound(constants_of(chain, torch.ones(1, 2)))
    assert [norm for _, norm in found.norms] == pytest.approx([2, 3, 0.5])
    assert found.path_sum == pytest.approx(math.log(3 / 16))
    assert found.weights == found.weights_by_paths == pytest.approx(math.log(3) / 3)
    assert found.activations == 0  # behind the last layer there is none
    assert found.printed == found.corrected == pytest.approx(math.log(3))


@settings(max_examples=12)
@given(st.integers(0, 10_000), st.integers(0, 100))
def test_section_7_no_pair_is_further_apart_than_the_bound_by_paths(seed: int, draw: int) -> None:
    model = RandomDag(seed).double()
    found = lipschitz_bound(constants_of(model, torch.ones(1, 3).double()))
    rng = torch.Generator().manual_seed(draw)
    x = torch.randn(200, 3, generator=rng).double() * 3
    y = x + torch.randn(200, 3, generator=rng).double() * 10.0 ** torch.randint(-4, 1, (200, 1), generator=rng)
    with torch.no_grad():
        ratio = float(((model(x) - model(y)).norm(dim=1) / (x - y).norm(dim=1)).max())
    assert math.log(ratio) <= found.path_sum + 1e-6
    assert found.path_sum <= found.corrected + 1e-9


def test_section_7_convolutions_and_batch_norms_too() -> None:
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=3)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.uniform_(0.5, 2)
    example = torch.zeros(1, 3, 16, 16)
    before = copy.deepcopy(model.state_dict())
    constants = constants_of(model, example)
    found = lipschitz_bound(constants)
    assert (found.chains, found.paths, found.length) == (8, 256, 18)
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    x, y = torch.randn(2, 8, 3, 16, 16)
    with torch.no_grad():
        model.eval()
        ratio = ((model(x) - model(y)).flatten(1).norm(dim=1) / (x - y).flatten(1).norm(dim=1)).max()
    assert math.log(float(ratio)) <= found.path_sum <= found.corrected


def test_by_paths_a_mean_is_over_the_layers_of_a_path() -> None:
    """x + w x has a path without a layer, which has no mean; 4 alone is larger than the root of 4 times 1."""

    class Ways(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
            self.a.weight.data.fill_(4.0)
            self.b.weight.data.fill_(1.0)

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x)
            return h + self.b(h)

    found = lipschitz_bound(constants_of(Ways(), torch.ones(1, 1)))
    assert math.exp(found.weights) == pytest.approx(2)
    assert math.exp(found.weights_by_paths) == pytest.approx(4)
    assert math.exp(found.path_sum) == pytest.approx(8)
    assert math.exp(found.corrected) == pytest.approx(32)


# Refusals


def test_erratum_17_attention_has_no_constant_and_is_named() -> None:
    encoder = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    with pytest.raises(ValueError, match=r"scaled_dot_product_attention after self_attn.in_proj_weight \(softmax"):
        constants_of(encoder, torch.ones(1, 3, 4))
    # And so it is: of two tokens, 0 and more and more, the slope grows without end.
    attend = nn.functional.scaled_dot_product_attention
    slopes = []
    for scale in (1.0, 10.0, 100.0):
        x = torch.tensor([[[0.0], [scale]]], dtype=torch.float64)
        jacobian = torch.autograd.functional.jacobian(lambda x: attend(x, x, x), x)
        slopes.append(float(jacobian.reshape(2, 2).norm()))
    assert slopes[2] > 50 * slopes[1] > 50 * slopes[0]


def test_products_of_data_recurrences_and_embeddings_are_refused_by_name() -> None:
    class Excited(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return x * torch.sigmoid(self.gate(x))

    with pytest.raises(ValueError, match=r"mul after gate \(a product of what depends on the input twice"):
        constants_of(Excited(), torch.ones(1, 3))
    with pytest.raises(ValueError, match=r"lstm in .*none is known"):
        constants_of(nn.LSTM(3, 2), torch.ones(1, 4, 3))
    with pytest.raises(ValueError, match=r"embedding in 0 \(none is known"):
        constants_of(nn.Sequential(nn.Embedding(4, 2), nn.Linear(2, 2)), torch.tensor([[1]]))
    weight = nn.utils.parametrizations.weight_norm(nn.Linear(3, 2))
    with pytest.raises(ValueError, match="remove the parametrization"):
        constants_of(weight, torch.ones(1, 3))
    with pytest.raises(ValueError, match="meta device"):
        constants_of(nn.Linear(3, 2, device="meta"), torch.ones(1, 3))


@pytest.mark.parametrize("use", [lambda x, w: x @ w.T, lambda x, w: x @ (2 * w), lambda x, w: torch.mm(x, w + w.T)])
def test_a_matrix_that_is_computed_is_refused_by_name(use: Callable[[Tensor, Tensor], Tensor]) -> None:
    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.eye(3))

        def forward(self, x: Tensor) -> Tensor:
            return use(x, self.w)

    with pytest.raises(ValueError, match=r"(matmul|mm) in w \(its matrix is computed: .* linear\(x, w\)"):
        constants_of(Product(), torch.ones(1, 3))


def test_a_threshold_is_continuous_only_where_it_puts_its_own_value() -> None:
    assert constant(nn.Threshold(0.5, 0.5), 1, 3) == pytest.approx(1)
    with pytest.raises(ValueError, match=r"threshold after 0 \(it jumps from 0 to 0.5 "):
        constant(nn.Threshold(0.5, 0.0), 1, 3)


# Lemma 6 and Theorem 6


def convolutional(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    model = nn.Sequential()
    model.add_module("c1", nn.Conv2d(1, 2, 3, stride=2, padding=1))
    model.add_module("r1", nn.Tanh())
    model.add_module("c2", nn.Conv2d(2, 2, 3, padding=1))
    model.add_module("r2", nn.ReLU())
    model.add_module("flat", nn.Flatten())
    model.add_module("fc", nn.Linear(18, 2))
    return model.double()


def steepest(model: nn.Module, layer: str, xs: Tensor, flipped: tuple[str, ...] = ()) -> float:
    """The largest norm, over these inputs, of the output's derivative by the layer's weight."""
    state = {name: -one if name.rpartition(".")[0] in flipped else one for name, one in model.named_parameters()}
    name = f"{layer}.weight"

    def output(weight: Tensor, x: Tensor) -> Tensor:
        return functional_call(model, {**state, name: weight}, (x[None],)).flatten()

    jacobians = [jacrev(output)(state[name].detach(), x).flatten(1) for x in xs]
    return max(float(torch.linalg.matrix_norm(one.detach(), 2)) for one in jacobians)


def ball(radius: float, shape: tuple[int, ...], seed: int = 0) -> Tensor:
    x = torch.randn(12, *shape, generator=torch.Generator().manual_seed(seed)).double()
    return radius * x / x.flatten(1).norm(dim=1).reshape(-1, *(1 for _ in shape))


@pytest.mark.parametrize("layer", ["c1", "c2", "fc"])
@pytest.mark.parametrize("radius", [1e-6, 1.0, 30.0])
def test_section_7_no_jacobian_is_larger_than_the_corrected_bound(layer: str, radius: float) -> None:
    model, example = convolutional(0), torch.zeros(1, 1, 6, 6).double()
    found = jacobian_bound(model, constants_of(model, example), example, layer, radius)
    assert math.log(steepest(model, layer, ball(radius, (1, 6, 6)))) <= found.corrected


def test_erratum_8_lemma_6_ignores_biases_and_the_corrected_bound_does_not() -> None:
    """On a tiny ball the printed bound is about 0; but the second layer still reads the first one's bias."""
    model, example, radius = convolutional(0), torch.zeros(1, 1, 6, 6).double(), 1e-6
    found = jacobian_bound(model, constants_of(model, example), example, "fc", radius)
    true = math.log(steepest(model, "fc", ball(radius, (1, 6, 6))))
    assert found.printed < true - 5
    assert true <= found.corrected < true + 1


def test_lemma_6_of_one_convolution_counts_how_often_its_kernel_meets_an_input() -> None:
    """All ones under a kernel of 3 x 3: far from the border the bound is met but for the border itself."""
    model = nn.Conv2d(1, 1, 3, bias=False).double()
    example = torch.zeros(1, 1, 40, 40).double()
    nn.init.zeros_(model.weight)
    model.weight.data[0, 0, 1, 1] = 1  # passes on what it sees: its norm is 1
    inside = nn.Sequential(model)
    found = jacobian_bound(inside, constants_of(inside, example), example, "0", 40.0)
    true = steepest(inside, "0", torch.ones(1, 1, 40, 40).double())
    assert true <= math.exp(found.corrected) == pytest.approx(3 * 40, rel=1e-6)
    assert true > 0.94 * 3 * 40
    assert math.exp(found.printed) == pytest.approx(40)


def test_erratum_8_above_the_negated_layers_their_outputs_count_and_not_the_inputs() -> None:
    """L_neg enlarges a hundredfold: the last layer's input, and so its Jacobian, is far beyond sup|x|."""
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)).double()
    model[0].weight.data.fill_(100.0)
    model[1].weight.data.fill_(1e-3)
    example = torch.ones(1, 1).double()
    constants = constants_of(model, example)
    found = wasserstein_constant(model, constants, example, "0", "1", 1.0)
    # The laws of J before and after, at X = 1: 100 and -100; Y = 100 and -Y are apart, so TV = 1 and W = 200.
    assert found.above
    assert math.exp(found.corrected) == pytest.approx(200)
    norm = math.sqrt(100 * 1e-3)
    assert math.exp(found.printed) == pytest.approx(2 * max(norm, 1))
    assert math.exp(found.printed) < 200


def test_erratum_8_at_the_negated_layer_the_factor_2_is_lost() -> None:
    """J = w2 x for the first layer, and x is 1 or -1: laws 2 w2 apart, where (62) allows 1 w2."""
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)).double()
    for layer in model:
        layer.weight.data.fill_(1.0)
    example = torch.ones(1, 1).double()
    found = wasserstein_constant(model, constants_of(model, example), example, "0", "0", 1.0)
    assert not found.above
    assert math.exp(found.printed) == pytest.approx(1)
    assert math.exp(found.corrected) == pytest.approx(2)


@pytest.mark.parametrize(("negated", "layer"), [("c1", "c2"), ("c1", "fc"), ("c2", "fc"), ("c2", "c1"), ("c1", "c1")])
def test_section_7_no_two_jacobians_are_further_apart_than_theorem_6_allows(negated: str, layer: str) -> None:
    """With total variation 1, A is a bound of the distance of any two Jacobians, one of them after the negation."""
    model, example = convolutional(1), torch.zeros(1, 1, 6, 6).double()
    found = wasserstein_constant(model, constants_of(model, example), example, negated, layer, 5.0)
    xs = ball(5.0, (1, 6, 6))
    furthest = steepest(model, layer, xs) + steepest(model, layer, xs, (negated,))
    assert math.log(furthest) <= found.corrected


def test_theorem_6_wants_a_cauchy_domain_by_paths_a_ball_and_modules() -> None:
    model, example = Skip(0.5), torch.ones(1, 1)
    constants = constants_of(model, example)
    with pytest.raises(ValueError, match="no Cauchy domain by paths"):
        wasserstein_constant(model, constants, example, "layer", "layer", 1.0)
    for radius in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="radius"):
            jacobian_bound(model, constants, example, "layer", radius)

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.matrix = nn.Parameter(torch.eye(3))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.matrix

    own, x = Own(), torch.ones(1, 3)
    with pytest.raises(ValueError, match="no linear or convolution module"):
        jacobian_bound(own, constants_of(own, x), x, "matrix", 1.0)


def test_deep_networks_do_not_overflow() -> None:
    model = nn.Sequential(*(nn.Linear(2, 2, bias=False) for _ in range(60)))
    for layer in model:
        layer.weight.data = 1e10 * torch.eye(2)
    constants: NetworkConstants = constants_of(model, torch.ones(1, 2))
    found = lipschitz_bound(constants)
    assert found.path_sum == pytest.approx(600 * np.log(10))
    assert found.printed == pytest.approx(600 * np.log(10))
