from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from fedunlearn.flow import first_by_running, in_order_of_registration, trace
from fedunlearn.layers import FIRST, CancellingNegation, LayerError, NegationWarning, Plan, layers, pairs, plan
from fedunlearn.models import build
from fedunlearn.names import Part, guess_kinds, spans


def on_meta(build: Callable[..., nn.Module], **options: Any) -> nn.Module:
    with torch.device("meta"):
        return build(**options)


@pytest.fixture(scope="module")
def resnet18() -> nn.Module:
    return on_meta(torchvision.models.resnet18)


@pytest.fixture(scope="module")
def vit() -> nn.Module:
    return on_meta(torchvision.models.vit_b_16)


def convolution_and_norm(**options: Any) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3, **options), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))


class Branching(nn.Module):
    """Branches on a value, so that it cannot be traced; counts its calls, has an unused layer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.unused = nn.Linear(3, 3)
        self.norm = nn.LayerNorm([5, 4])
        self.head = nn.Linear(4, 4)
        self.head_norm = nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        x = nn.functional.dropout(x, 0.5, training=True)
        if x.sum() > 0:
            x = 2 * x
        return self.head_norm(self.head(self.norm(x)))


class Language(nn.Module):
    """Looks positions up, by shape alone, before it looks at a token."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Embedding(10, 4)
        self.tokens = nn.Embedding(20, 4)

    def forward(self, x: Tensor) -> Tensor:
        positions: Tensor = self.positions(torch.arange(x.shape[1]))
        return positions + self.tokens(x)


class Functional(nn.Module):
    """Convolves with a parameter of its own, standardised on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(1, 3, 1, 1))
        self.weight = nn.Parameter(torch.randn(4, 3, 1, 1))
        self.bias = nn.Parameter(torch.zeros(4))
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean(dim=(1, 2, 3), keepdim=True)
        y: Tensor = self.norm(nn.functional.conv2d(x + self.shift, weight, self.bias))
        return y


def test_rows_follow_the_order_of_the_parameters(vit: nn.Module) -> None:
    rows = layers(vit)
    assert [row.name for row in rows] == [name for name, _ in vit.named_parameters()]
    assert [(row.index, row.name, row.kind) for row in rows[:4]] == [
        (0, "class_token", "token"),
        (1, "conv_proj.weight", "convolution"),
        (2, "conv_proj.bias", "bias"),
        (3, "encoder.pos_embedding", "token"),
    ]
    kinds = {row.name.removeprefix("encoder.layers.encoder_layer_0."): row.kind for row in rows}
    assert kinds["ln_1.weight"] == kinds["ln_1.bias"] == "normalisation"
    assert kinds["self_attention.in_proj_weight"] == "attention"
    assert kinds["mlp.0.weight"] == "linear"
    assert rows[1].shape == (768, 3, 16, 16)
    assert rows[1].dtype == "float32"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet18", "negate conv1.weight; bn1.running_mean becomes -m"),
        ("vit_b_16", "negate conv_proj.weight"),
        ("efficientnet_b0", "negate features.0.0.weight; features.0.1.running_mean becomes -m"),
        ("swin_t", "negate features.0.0.weight"),
        (
            "vgg11_bn",
            "negate features.0.weight; features.1.running_mean becomes 2b - m with b = features.0.bias",
        ),
    ],
)
def test_the_first_layer_of_torchvision_networks(name: str, expected: str) -> None:
    assert str(plan(on_meta(getattr(torchvision.models, name)))) == expected


def test_the_first_layer_of_modules_that_are_their_own_layer() -> None:
    assert plan(nn.Linear(2, 2)).names == ("weight",)
    assert plan(nn.Sequential(nn.BatchNorm1d(2), nn.PReLU(), nn.Linear(2, 2))).names == ("2.weight",)
    assert plan(nn.GRU(2, 3, bidirectional=True)).names == ("weight_ih_l0", "weight_ih_l0_reverse")
    assert plan(nn.MultiheadAttention(4, 2)).names == ("in_proj_weight",)


def test_the_first_layer_is_the_one_that_reads_values_not_shapes() -> None:
    assert plan(Language()).names == ("tokens.weight",)
    assert first_by_running(Language(), torch.zeros(1, 3, dtype=torch.long)) == ("tokens.weight",)


def test_the_first_layer_may_be_functional() -> None:
    chosen = plan(Functional(), include_bias=True)
    assert chosen.names == ("weight", "bias")
    assert str(chosen.means[0]) == "norm.running_mean becomes -m"


def test_without_a_trace_an_example_finds_the_first_layer_and_leaves_no_mark() -> None:
    model = Branching()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.norm.eval()
    with pytest.raises(LayerError, match=r"name the layer \(layers=...\) or give an example.*unused.weight"):
        plan(model)
    example, random = torch.randn(5, 4), torch.get_rng_state()
    with pytest.warns(NegationWarning, match="head_norm.running_mean follows because"):
        chosen = plan(model, example=example)
    assert torch.equal(random, torch.get_rng_state())
    assert chosen.names == ("head.weight",)
    assert str(chosen.means[0]) == "head_norm.running_mean becomes 2b - m with b = head.bias"
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert type(model.calls) is Tensor
    assert [model.training, model.norm.training] == [True, False]
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert not any(module._forward_pre_hooks for module in model.modules())
    with pytest.raises(LayerError, match="does not run on the example"):
        plan(model, example=torch.randn(5, 7))


def test_a_transformer_of_torch_needs_an_example() -> None:
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1)
    assert trace(model) is None or plan(model).names == ("layers.0.self_attn.in_proj_weight",)
    assert plan(model, example=torch.randn(1, 3, 8)).names == ("layers.0.self_attn.in_proj_weight",)
    both = nn.Transformer(8, 2, 1, 1, 16, batch_first=True)
    example = {"src": torch.randn(1, 3, 8), "tgt": torch.randn(1, 2, 8)}
    assert plan(both, example=example).names == ("encoder.layers.0.self_attn.in_proj_weight",)


def test_tracing_changes_nothing() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))
            self.layer = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            self.noise = torch.rand(2)
            y: Tensor = self.layer(x)
            return y

    model = Counting()
    random = torch.get_rng_state()
    assert plan(model).names == ("layer.weight",)
    assert type(model.calls) is Tensor
    assert model.calls == 0
    assert not hasattr(model, "noise")
    assert torch.equal(random, torch.get_rng_state())


@pytest.mark.parametrize(
    ("written", "include_bias", "names"),
    [
        ("conv_proj", False, ("conv_proj.weight",)),
        ("conv_proj", True, ("conv_proj.weight", "conv_proj.bias")),
        (["conv_proj.bias", "conv_proj"], False, ("conv_proj.weight", "conv_proj.bias")),
        ("conv_proj[0:2]", True, ("conv_proj.weight[0:2]", "conv_proj.bias[0:2]")),
        (["conv_proj[0:2]", "conv_proj[1:4]", "conv_proj.weight[9:]"], False,
         ("conv_proj.weight[0:4]", "conv_proj.weight[9:768]")),
        (["conv_proj[:9]", "conv_proj.weight[9:]"], False, ("conv_proj.weight",)),
        ("encoder.layers.encoder_layer_0.self_attention[q]", False,
         ("encoder.layers.encoder_layer_0.self_attention.in_proj_weight[0:768]",)),
        ("encoder.layers.encoder_layer_0.self_attention.in_proj_weight[v]", True,
         ("encoder.layers.encoder_layer_0.self_attention.in_proj_weight[1536:2304]",
          "encoder.layers.encoder_layer_0.self_attention.in_proj_bias[1536:2304]")),
        ("encoder.layers.*.mlp.0", False,
         tuple(f"encoder.layers.encoder_layer_{i}.mlp.0.weight" for i in range(12))),
        ("encoder.layers.encoder_layer_?.ln_1.weight*", False, None),
    ],
)  # fmt: skip
def test_selecting(vit: nn.Module, written: Any, include_bias: bool, names: tuple[str, ...] | None) -> None:
    if names is None:
        with pytest.raises(LayerError, match="a normalisation must be named in full"):
            plan(vit, written, include_bias=include_bias)
    else:
        assert plan(vit, written, include_bias=include_bias).names == names


def test_a_glob_of_everything_takes_each_layer_once(resnet18: nn.Module) -> None:
    modules = resnet18.named_modules()
    expected = tuple(f"{name}.weight" for name, m in modules if isinstance(m, (nn.Conv2d, nn.Linear)))
    assert plan(resnet18, "*").names == expected


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ([], "name at least one"),
        ("conv11", "did you mean conv1"),
        ("layer1", r"no weight of its own: name what lies in it, layer1.0.conv1, layer1.0.conv2"),
        ("*.conv9", "fits no layer"),
        ("conv1[60:70]", r"shape \(64, 3, 7, 7\), there are no such rows"),
        ("conv1[3:3]", "no such rows"),
        ("conv1[q]", "only in_proj_weight"),
        ("conv1[3]", "write conv1"),
        ("", "name at least one"),
        ([0], "negate_layers"),
    ],
)
def test_wrong_selections_say_what_to_do(resnet18: nn.Module, written: Any, says: str) -> None:
    with pytest.raises(LayerError, match=says):
        plan(resnet18, written)


def test_wrong_policies_say_what_to_do(resnet18: nn.Module) -> None:
    with pytest.raises(ValueError, match="'negate_mean' or 'leave'"):
        plan(resnet18, batchnorm="recalibrate")  # type: ignore[arg-type]


def test_tensors_without_a_sign_are_refused() -> None:
    model = nn.Linear(2, 2)
    model.scale = nn.Parameter(torch.ones(2, dtype=torch.int8), requires_grad=False)
    model.power = nn.Parameter(torch.ones(2).to(torch.float8_e8m0fnu), requires_grad=False)
    for name in ("scale", "power"):
        with pytest.raises(LayerError, match="only floating-point tensors with a sign"):
            plan(model, name)


def test_networks_whose_layers_cannot_be_seen() -> None:
    with pytest.raises(LayerError, match="run one batch"):
        plan(nn.LazyLinear(3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(LayerError, match="negate the network that it was made from"):
        plan(scripted, "0")


def test_a_computed_weight_names_its_tensors() -> None:
    model = nn.Sequential(weight_norm(nn.Linear(2, 2)), nn.Linear(2, 2))
    for written in ("0", FIRST):
        with pytest.raises(LayerError, match=r"0\.parametrizations\.weight\.original1"):
            plan(model, written)
    with pytest.raises(LayerError, match="whose weight is computed"):
        plan(model, "*")
    assert plan(model, "0.parametrizations.weight.original1").names == ("0.parametrizations.weight.original1",)


def test_wrappers_make_no_difference() -> None:
    model = convolution_and_norm()
    expected = plan(model)
    for wrapped in (nn.DataParallel(model), torch.compile(model), torch.compile(nn.DataParallel(model))):
        for written in (FIRST, "0", "module.0", "_orig_mod.0.weight", "_orig_mod.module.0"):
            assert plan(wrapped, written) == expected  # type: ignore[arg-type]


def test_tied_weights_are_one() -> None:
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    second.weight = first.weight
    model = nn.Sequential(first, second)
    assert plan(model, ["0", "1", "1.weight"]).names == ("0.weight",)
    second.weight = nn.Parameter(first.weight.data)
    with pytest.raises(LayerError, match=r"0\.weight and 1\.weight share memory"):
        plan(model, "1")


def test_a_plan_is_a_value(resnet18: nn.Module) -> None:
    assert {plan(resnet18): 1}[plan(resnet18, "conv1")] == 1
    assert plan(resnet18, batchnorm="leave") == Plan((Part("conv1.weight"),))


def test_which_mean_follows() -> None:
    def means(model: nn.Module, written: Any = FIRST, include_bias: bool = False) -> list[str]:
        return list(map(str, plan(model, written, include_bias=include_bias).means))

    assert means(convolution_and_norm(bias=False)) == ["1.running_mean becomes -m"]
    assert means(convolution_and_norm(), include_bias=True) == ["1.running_mean becomes -m"]
    assert means(convolution_and_norm()) == ["1.running_mean becomes 2b - m with b = 0.bias"]
    assert means(convolution_and_norm(), ["0[1:3]", "0.bias[2:]"]) == [
        "1.running_mean[2:3] becomes -m",
        "1.running_mean[1:2] becomes 2b - m with b = 0.bias",
        "1.running_mean[3:4] becomes m - 2b with b = 0.bias",
    ]
    assert means(convolution_and_norm(), "3") == []
    assert means(nn.Sequential(nn.Linear(2, 3), nn.Dropout(), nn.Identity(), nn.BatchNorm1d(3))) == [
        "3.running_mean becomes 2b - m with b = 0.bias"
    ]
    assert means(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.BatchNorm1d(3))) == []
    assert means(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3, track_running_stats=False))) == []
    assert means(nn.Sequential(nn.ConvTranspose2d(2, 3, 1, bias=False), nn.BatchNorm2d(3))) == [
        "1.running_mean becomes -m"
    ]


def test_a_mean_that_cannot_follow_is_an_error_with_a_way_out() -> None:
    transposed = nn.Sequential(nn.ConvTranspose2d(3, 4, 1), nn.BatchNorm2d(4))
    norm = nn.BatchNorm1d(2)
    shared = nn.Sequential(nn.Linear(2, 2), norm, nn.ReLU(), nn.Linear(2, 2), norm)
    for model, written in ((transposed, "0[1:2]"), (shared, "0")):
        with pytest.raises(LayerError, match="batchnorm='leave'"):
            plan(model, written)
        assert plan(model, written, batchnorm="leave").means == ()


def test_the_order_of_registration_agrees_with_the_trace_where_they_are_the_same() -> None:
    alternating = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.BatchNorm1d(2), nn.Linear(2, 2), nn.BatchNorm1d(2))
    for model in (convolution_and_norm(), alternating, on_meta(torchvision.models.vgg11_bn)):
        traced = trace(model)
        assert traced is not None
        guessed = in_order_of_registration(model)
        assert traced.readers == guessed.readers


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(4), nn.GroupNorm(2, 4)])
def test_a_layer_with_its_normalisation_warns(norm: nn.Module) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), norm)
    with pytest.warns(CancellingNegation, match=r"0\.weight together with 1\.weight changes nothing"):
        plan(model, ["0", "1"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plan(model, "1")


def test_guesses_from_names_and_shapes_agree_with_the_modules(resnet18: nn.Module, vit: nn.Module) -> None:
    for model in (resnet18, vit, on_meta(torchvision.models.efficientnet_b0)):
        rows = layers(model)
        assert guess_kinds({row.name: row.shape for row in rows}) == {row.name: row.kind for row in rows}


def test_spans() -> None:
    assert spans([range(5, 7), range(2, 4), range(0, 3), range(7, 8)]) == [(0, 4), (5, 8)]
    assert spans([range(0, 9), range(2, 3)]) == [(0, 9)]


class Untraceable(nn.Module):
    """Its normalisation comes first, and is registered after the convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 1, bias=False)
        self.bn = nn.BatchNorm2d(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.sum() > 0:
            x = -x
        return self.conv(self.bn(x))


def test_a_mean_that_follows_by_a_guess_is_told() -> None:
    with pytest.warns(NegationWarning, match=r"bn.running_mean follows because its normalisation is registered next"):
        plan(Untraceable(), "conv")
    assert plan(Untraceable(), "conv", batchnorm="leave").means == ()


# --- pairs ---


def test_pairs_of_known_networks() -> None:
    small = {"width": 4, "blocks": [1, 1, 1]}
    assert pairs(build("layernorm-cnn", 10, (1, 28, 28))) == (("conv1.weight", "conv2.weight"),)
    assert pairs(build("small-resnet", 10, (1, 28, 28), **small))[0] == (
        "layer1.0.conv1.weight",
        "layer1.0.conv2.weight",
    )
    block = "encoder.layers.encoder_layer_0.mlp"
    assert pairs(build("small-vit", 10, (1, 28, 28)))[0] == (f"{block}.0.weight", f"{block}.3.weight")
    assert pairs(on_meta(torchvision.models.vgg11))[-1] == ("classifier.0.weight", "classifier.3.weight")


class Around(nn.Module):
    """A skip connection around the second of three layers, and one around the last two of five."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d, self.e = (nn.Linear(2, 2) for _ in range(5))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.a(x))
        x = x + torch.relu(self.b(x))  # a's output goes another way too
        y = self.d(nn.functional.gelu(self.c(x)))
        return x + self.e(torch.relu(y))


def test_a_pair_has_one_way_between_its_layers() -> None:
    assert pairs(Around()) == (("c.weight", "d.weight"),)


@pytest.mark.parametrize(
    "between", [nn.Identity(), nn.Tanh(), nn.Sigmoid(), nn.Dropout()], ids=["nothing", "tanh", "sigmoid", "dropout"]
)
def test_what_is_no_rectifier_makes_no_pair(between: nn.Module) -> None:
    """Two negated layers would cancel, but for a constant."""
    with pytest.raises(LayerError, match="no two layers in a row with a rectifier between them"):
        pairs(nn.Sequential(nn.Linear(2, 2), between, nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)))


def test_a_layer_that_runs_twice_is_in_no_pair() -> None:
    shared = nn.Linear(2, 2)
    with pytest.raises(LayerError, match="name two layers"):
        pairs(nn.Sequential(shared, nn.ReLU(), shared, nn.ReLU(), nn.Linear(2, 2)))


def test_what_cannot_be_traced_has_no_pairs() -> None:
    class Untraceable(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if bool(x.sum() > 0) else -x

    with pytest.raises(LayerError, match="cannot be traced: name two layers"):
        pairs(Untraceable())
