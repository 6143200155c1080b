"""Networks by name, the paper's CNN, and a small ViT."""

import math
import subprocess
import sys

import pytest
import torch
from torch import nn
from torchvision.models import efficientnet_b0, resnet18

from fedunlearn import models
from fedunlearn.layers import layers, plan
from fedunlearn.models import LayerNormCNN, PlainCNN
from fedunlearn.models.resnet import SmallResNet
from fedunlearn.models.vit import SmallViT
from fedunlearn.presets import presets

FIGURE_3 = ["conv1", "relu1", "pool1", "norm1", "conv2", "relu2", "pool2", "norm2", "head"]


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_cnn_runs_through_its_modules_in_the_order_of_figure_3() -> None:
    network = LayerNormCNN(10)
    assert [name for name, _ in network.named_children()] == FIGURE_3
    ran: list[str] = []
    for name, module in network.named_children():
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
    assert network(torch.rand(3, 1, 28, 28)).shape == (3, 10)
    assert ran == FIGURE_3


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (1, 28, 28), (2, 5, 7), (1, 4, 4)])
def test_cnn_fits_the_shape_of_its_input(shape: tuple[int, ...]) -> None:
    assert LayerNormCNN(7, shape)(torch.rand(2, *shape)).shape == (2, 7)


def test_cnn_has_the_parameters_counted_by_hand() -> None:
    """CIFAR-10, channels 32 and 64, kernel 5.

    Convolutions 3 * 32 * 25 + 32 and 32 * 64 * 25 + 64; normalisations over channel, height and width
    2 * 32 * 16 * 16 and 2 * 64 * 8 * 8; head 64 * 8 * 8 * 10 + 10.
    """
    network = LayerNormCNN(10, (3, 32, 32), channels=(32, 64))
    assert parameters(network) == 2432 + 51_264 + 16_384 + 8192 + 40_970


@pytest.mark.parametrize("shape", [(28, 28), (1, 3, 28), (1, 28, 3), (784,)])
def test_cnn_refuses_what_is_no_image(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="4x4 at least"):
        LayerNormCNN(10, shape)


def test_cnn_refuses_even_kernels() -> None:
    with pytest.raises(ValueError, match="odd kernel"):
        LayerNormCNN(10, kernel=4)


def test_cnn_draws_the_same_weights_and_computes_the_same_as_ever() -> None:
    """Against the modules in the order of Figure 3, drawn one after the other."""
    torch.manual_seed(0)
    network = LayerNormCNN(10, (2, 9, 12), (4, 6), 3)
    torch.manual_seed(0)
    by_hand = nn.Sequential(
        *(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.LayerNorm((4, 4, 6))),
        *(nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.LayerNorm((6, 2, 3))),
        *(nn.Flatten(), nn.Linear(36, 10)),
    )
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), by_hand.parameters(), strict=True))
    x = torch.rand(3, 2, 9, 12)
    assert torch.equal(network(x), by_hand(x))


def test_cnn_of_one_and_of_six_convolutions() -> None:
    assert [name for name, _ in LayerNormCNN(10, channels=(8,)).named_children()] == [*FIGURE_3[:4], "head"]
    deep = LayerNormCNN(10, (1, 28, 28), (4, 5, 6, 7, 8, 9), 3)
    further = [f"{what}{number}" for number in range(3, 7) for what in ("conv", "relu", "norm")]
    assert [name for name, _ in deep.named_children()] == [*FIGURE_3[:-1], *further, "head"]
    assert (deep.norm6.normalized_shape, deep.head.in_features) == ((9, 7, 7), 9 * 49)
    assert deep(torch.rand(2, 1, 28, 28)).shape == (2, 10)
    assert plan(deep).names == ("conv1.weight",)


@pytest.mark.parametrize("kind", [LayerNormCNN, PlainCNN])
def test_a_stack_of_no_convolution_is_refused(kind: type[nn.Module]) -> None:
    with pytest.raises(ValueError, match=f"{kind.__name__} has one convolution at least"):
        kind(10, channels=())


def test_options_reach_the_network() -> None:
    network = models.build("layernorm-cnn", 10, (1, 28, 28), channels=(4, 6), kernel=3)
    assert network.conv2.weight.shape == (6, 4, 3, 3)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("name", "classes", "count"),
    [
        ("resnet18", 10, 11_181_642),
        ("resnet18", 100, 11_227_812),
        ("vit_b_16", 101, 85_876_325),
        ("efficientnet_b0", 10, 4_020_358),
    ],
)
def test_torchvisions_networks_have_the_known_sizes(name: str, classes: int, count: int) -> None:
    with torch.device("meta"):
        network = models.build(name, classes, (3, 224, 224))
        assert parameters(network) == count
        assert network.eval()(torch.zeros(2, 3, 224, 224)).shape == (2, classes)


def test_vit_takes_the_size_of_its_images_from_the_shape() -> None:
    with torch.device("meta"):
        assert models.build("vit_b_16", 10, (3, 32, 32))(torch.zeros(1, 3, 32, 32)).shape == (1, 10)


@pytest.mark.parametrize("shape", [(3, 28, 28), (3, 32, 64)])
def test_vit_refuses_images_that_are_not_whole_patches(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="multiple of 16"):
        models.build("vit_b_16", 10, shape)


@pytest.mark.parametrize("name", ["resnet18", "vit_b_16", "efficientnet_b0"])
def test_torchvisions_networks_refuse_grey_images(name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name} takes images of 3 channels, not \(1, 32, 32\)"):
        models.build(name, 10, (1, 32, 32))


@pytest.mark.parametrize(("shape", "patch"), [((1, 28, 28), 7), ((1, 28, 28), 4), ((3, 32, 32), 4), ((1, 8, 8), 2)])
def test_small_vit_takes_images_of_one_channel_or_three(shape: tuple[int, ...], patch: int) -> None:
    assert SmallViT(7, shape, patch)(torch.rand(2, *shape)).shape == (2, 7)


def test_small_vit_has_the_parameters_counted_by_hand() -> None:
    """Patches of 7x7 on 28x28, 10 classes.

    Projection 64 * 49 + 64; class token 64; positions 17 * 64; three blocks of two normalisations 2 * 128, attention
    192 * 64 + 192 and 64 * 64 + 64, perceptron 128 * 64 + 128 and 64 * 128 + 64; normalisation 128; head 10 * 64 + 10.
    """
    block = 256 + 12_480 + 4160 + 8320 + 8256
    assert parameters(SmallViT(10, (1, 28, 28), patch=7)) == 3200 + 64 + 1088 + 3 * block + 128 + 650


def test_small_vits_tensors_are_called_as_torchvisions_and_stand_in_their_order() -> None:
    with torch.device("meta"):
        ours = models.build("small-vit", 10, (3, 32, 32), layers=12, heads=12, hidden=768, mlp=3072, patch=16)
        theirs = models.build("vit_b_16", 10, (3, 32, 32))
    assert [(row.name, row.shape, row.kind) for row in layers(ours)] == [
        (row.name, row.shape, row.kind) for row in layers(theirs)
    ]


def test_small_vits_first_layer_is_its_patch_projection() -> None:
    assert plan(SmallViT(10)).names == ("conv_proj.weight",)


@pytest.mark.parametrize("channels", [1, 3])
def test_small_vits_projection_is_drawn_as_torchvisions(channels: int) -> None:
    torch.manual_seed(0)
    projection = SmallViT(10, (channels, 28, 28), patch=7, hidden=512).conv_proj
    n = projection.weight.numel()
    assert projection.weight.std().item() * math.sqrt(channels * 49) == pytest.approx(1, abs=4 / math.sqrt(2 * n))
    assert not projection.bias.any()


@pytest.mark.parametrize(
    ("shape", "options", "says"),
    [
        ((1, 28, 28), {"patch": 5}, "patches of 5x5 do not fill images of 28x28: take a divisor of 28"),
        ((1, 28, 28), {"patch": 0}, "patches of 0x0 do not fill images of 28x28"),
        ((3, 32, 64), {}, r"takes square images of \(channels, height, width\), not \(3, 32, 64\)"),
        ((784,), {}, r"takes square images of \(channels, height, width\), not \(784,\)"),
        ((1, 28, 28), {"heads": 5}, "5 heads do not divide a token of 64"),
    ],
)
def test_small_vit_refuses_what_does_not_fit(shape: tuple[int, ...], options: dict[str, int], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        models.build("small-vit", 10, shape, **options)


def test_an_unknown_name_is_answered_with_the_closest() -> None:
    with pytest.raises(ValueError, match=r"no model 'resnet-18' \(did you mean resnet18\?\)"):
        models.build("resnet-18", 10, (3, 32, 32))


def test_own_network_is_built_with_its_options_alone() -> None:
    network = models.build("torch.nn:Linear", 10, (4,), in_features=4, out_features=2)
    assert network(torch.zeros(1, 4)).shape == (1, 2)
    assert isinstance(models.build("torch.nn:Identity", 10, (4,)), nn.Identity)


def test_what_is_no_network_is_refused() -> None:
    with pytest.raises(ValueError, match="returned OrderedDict"):
        models.build("collections:OrderedDict", 10, (4,))


def test_torchvision_is_imported_only_for_its_networks() -> None:
    code = """
import sys
from fedunlearn.models import build
build("layernorm-cnn", 2, (1, 8, 8))
sys.exit("torchvision" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- the plain network ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_plain_cnn_is_convolutions_activations_and_pooling_by_the_mean(activation: str) -> None:
    torch.manual_seed(0)
    network = models.build("plain-cnn", 5, (2, 9, 12), channels=[4, 6, 7], kernel=3, activation=activation)
    names = [f"{what}{n}" for n in (1, 2) for what in ("conv", activation, "pool")] + [
        "conv3",
        f"{activation}3",
        "head",
    ]
    assert [name for name, _ in network.named_children()] == names
    x = y = torch.rand(3, 2, 9, 12)
    for number in (1, 2, 3):
        layer = network.get_submodule(f"conv{number}")
        y = getattr(torch, activation)(nn.functional.conv2d(y, layer.weight, layer.bias, padding=1))  # type: ignore[arg-type]
        y = nn.functional.avg_pool2d(y, 2) if number < 3 else y
    head = network.get_submodule("head")
    assert torch.allclose(network(x), y.flatten(1) @ head.weight.T + head.bias, atol=1e-6)  # type: ignore[operator]
    assert plan(network).names == ("conv1.weight",)


@pytest.mark.parametrize(("activation", "preserved"), [("tanh", True), ("relu", False)])
def test_section_4_4_a_negated_layer_of_tanh_is_made_up_for_by_the_next_one(activation: str, preserved: bool) -> None:
    """Lemma 8 with a = b = 1, c = 0: zero padding and pooling by the mean commute with the sign; ReLU does not."""
    torch.manual_seed(0)
    network, x = PlainCNN(5, channels=(4, 6, 7), activation=activation), torch.randn(3, 1, 28, 28)  # type: ignore[arg-type]
    for layer in (1, 2):
        before = network(x)
        with torch.no_grad():
            for name in (f"conv{layer}.weight", f"conv{layer}.bias", f"conv{layer + 1}.weight"):
                network.get_parameter(name).neg_()
        assert torch.equal(network(x), before) is preserved
        assert preserved or (network(x) - before).abs().max() > 1e-3


def test_erratum_6_behind_pooling_by_the_maximum_it_is_not_made_up_for() -> None:
    """Theorem 7's "subsequent layer" must read the activation itself, or its mean: max(-u) is -min(u)."""
    torch.manual_seed(0)
    network, x = PlainCNN(5, channels=(4, 6), activation="tanh"), torch.randn(3, 1, 28, 28)
    network.pool1 = nn.MaxPool2d(2)
    before = network(x)
    with torch.no_grad():
        for name in ("conv1.weight", "conv1.bias", "conv2.weight"):
            network.get_parameter(name).neg_()
    assert (network(x) - before).abs().max() > 1e-2


def test_plain_cnn_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="activation='gelu' is none of PlainCNN's: take relu or tanh"):
        models.build("plain-cnn", 10, (1, 28, 28), activation="gelu")
    with pytest.raises(ValueError, match=r"PlainCNN takes images .* 4x4 at least, not \(1, 3, 28\)"):
        models.build("plain-cnn", 10, (1, 3, 28))
    with pytest.raises(ValueError, match="odd kernel"):
        models.build("plain-cnn", 10, (1, 28, 28), kernel=4)


# --- the residual network -------------------------------------------------------------------------------------------


def test_small_resnet_is_resnet18_but_for_its_stem() -> None:
    ours, theirs = SmallResNet(10), resnet18(num_classes=10)
    assert [name for name, _ in ours.named_parameters()] == [name for name, _ in theirs.named_parameters()]
    shapes = {name: tuple(tensor.shape) for name, tensor in theirs.state_dict().items()}
    shapes["conv1.weight"] = (64, 3, 3, 3)
    assert {name: tuple(tensor.shape) for name, tensor in ours.state_dict().items()} == shapes
    assert parameters(ours) == parameters(theirs) - 64 * 3 * (49 - 9) == 11_173_962


def test_small_resnet_computes_what_torchvisions_does_behind_the_stem() -> None:
    ours, theirs = SmallResNet(10).eval(), resnet18(num_classes=10).eval()
    theirs.load_state_dict({**ours.state_dict(), "conv1.weight": theirs.conv1.weight})
    theirs.conv1, theirs.maxpool = ours.conv1, nn.Identity()
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(ours(x), theirs(x))


def test_small_resnet_in_other_sizes() -> None:
    network = SmallResNet(5, (1, 28, 28), width=4, blocks=(1, 2))
    assert network(torch.rand(3, 1, 28, 28)).shape == (3, 5)
    assert network.fc.in_features == 8
    assert plan(network).names == ("conv1.weight",)
    with pytest.raises(ValueError, match=r"8x8 at least, not \(1, 7, 28\)"):
        SmallResNet(5, (1, 7, 28))


def test_presets_name_the_layers_that_the_paper_negates() -> None:
    """EfficientNet: "all convolution and dense layers with indices <= 150" (supplement 14.1)."""
    with torch.device("meta"):
        network = efficientnet_b0(num_classes=10)
    preset = presets("NoT")["paper-efficientnet"].values
    rows = [row.name for row in layers(network) if row.index <= 150 and row.kind in ("convolution", "linear")]
    assert len(rows) == 58
    assert plan(network, preset["layers"], batchnorm="leave").names == tuple(rows)
