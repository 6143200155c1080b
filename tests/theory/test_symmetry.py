"""Signs that a network does not see: exactly, in evaluation, in training, and for ever after."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torchvision.models import VisionTransformer, resnet18, vit_b_16
from torchvision.models.vision_transformer import ConvStemConfig

from fedunlearn.models import LayerNormCNN
from fedunlearn.models.resnet import SmallResNet
from fedunlearn.models.vit import SmallViT
from fedunlearn.names import LayerError
from fedunlearn.theory.symmetry import residual_stream, sign_difference, sign_symmetry


def small_resnet() -> tuple[SmallResNet, Tensor]:
    torch.manual_seed(0)
    model, x = SmallResNet(10, (3, 16, 16), width=8, blocks=(1, 1)).double(), torch.randn(8, 3, 16, 16).double()
    model.train()(3 * x)  # running statistics of their own
    return model, x


def negate_(model: nn.Module, *names: str) -> nn.Module:
    other = copy.deepcopy(model)
    with torch.no_grad():
        for name in names:
            (other.get_parameter(name) if "running" not in name else other.get_buffer(name)).neg_()
    return other


def apart(one: nn.Module, other: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        before = one(x)
        return float((before - other(x)).abs().max() / before.abs().max())


def test_section_4_3_in_training_a_negated_convolution_is_a_negated_batchnorm_weight() -> None:
    model, x = small_resnet()
    assert apart(negate_(model, "conv1.weight").train(), negate_(model, "bn1.weight").train(), x) == 0
    assert apart(model.train(), negate_(model, "conv1.weight").train(), x) > 0.1


def test_section_4_3_in_evaluation_the_running_mean_must_follow() -> None:
    model, x = small_resnet()
    scale = negate_(model, "bn1.weight").eval()
    assert apart(scale, negate_(model, "conv1.weight", "bn1.running_mean").eval(), x) == 0
    assert apart(scale, negate_(model, "conv1.weight").eval(), x) > 1e-3
    assert apart(scale, negate_(model, "conv1.weight", "bn1.running_mean", "bn1.running_var").eval(), x) != 0


def test_section_4_3_convolution_weight_and_running_mean_together_are_the_identity() -> None:
    model, x = small_resnet()
    both = negate_(model, "conv1.weight", "bn1.weight", "bn1.running_mean")
    assert apart(model.eval(), both.eval(), x) == 0
    assert apart(model.train(), both.train(), x) == 0
    assert sign_symmetry(model, "conv1", x) == ("bn1.weight", "bn1.running_mean")


def test_section_4_3_convolution_and_whole_batchnorm_flip_its_bias_alone() -> None:
    model, x = small_resnet()
    with torch.no_grad():
        model.bn1.bias.normal_()
    all_of_it = negate_(model, "conv1.weight", "bn1.weight", "bn1.running_mean", "bn1.bias").eval()
    assert apart(negate_(model, "bn1.bias").eval(), all_of_it, x) == 0
    assert apart(model.eval(), all_of_it, x) > 1e-3


def test_section_4_3_five_steps_of_sgd_keep_the_equivalence() -> None:
    """ResNet NoT is a flip of the weights of one BatchNorm, and stays one: with momentum and weight decay."""
    model, x = small_resnet()
    y = torch.arange(8) % 10
    pair = [negate_(model, "conv1.weight").train(), negate_(model, "bn1.weight").train()]
    for network in pair:
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
        for _ in range(5):
            optimizer.zero_grad()
            F.cross_entropy(network(x), y).backward()
            optimizer.step()
    one, other = (dict(network.named_parameters()) for network in pair)
    turned = {"conv1.weight", "bn1.weight"}
    assert all(torch.equal(one[name], -other[name] if name in turned else other[name]) for name in one)
    assert not torch.equal(one["fc.weight"], model.fc.weight)


def test_a_batchnorm_behind_a_residual_block_s_second_convolution_counts_too() -> None:
    model, x = small_resnet()
    found = sign_symmetry(model, "layer2.0.downsample.0.weight", x)
    assert found == ("layer2.0.downsample.1.weight", "layer2.0.downsample.1.running_mean")
    assert sign_symmetry(model, "fc", x) is None


def test_torchvision_s_resnet_18_has_it() -> None:
    torch.manual_seed(0)
    model, x = resnet18(num_classes=10), torch.randn(2, 3, 32, 32)
    assert sign_symmetry(model, "conv1", x) == ("bn1.weight", "bn1.running_mean")


def test_section_4_3_the_layer_s_own_bias_turns_with_it_unless_the_batch_takes_it_away() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3)).double()
    x = torch.randn(20, 4)
    assert sign_symmetry(model, "0", x) == ("1.weight", "1.running_mean")
    weight_alone = ("0.weight", "1.weight", "1.running_mean")
    assert sign_difference(model, weight_alone, x) > 1e-3
    assert sign_difference(model, ("0.weight", "1.weight"), x, training=True) < 1e-12


def test_what_else_reads_the_layer_breaks_the_symmetry_and_is_noticed() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            z: Tensor = self.norm(y) + y
            return z

    assert sign_symmetry(Twice(), "conv", torch.randn(3, 1, 8, 8)) is None


def test_normalisations_without_a_weight_or_behind_an_activation_give_none() -> None:
    x = torch.randn(6, 4)
    assert sign_symmetry(nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5, affine=False)), "0", x) is None
    assert sign_symmetry(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.BatchNorm1d(5)), "0", x) is None
    assert sign_symmetry(nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5)), "0", x) == ("1.weight",)
    assert sign_symmetry(LayerNormCNN(10), "conv1", torch.randn(2, 1, 28, 28)) is None


def test_section_4_3_the_vision_transformer_has_77_tensors_of_one_sign() -> None:
    with torch.device("meta"):
        names = residual_stream(vit_b_16())
    assert len(names) == 77
    assert [name for name in names if "encoder_layer" not in name] == [
        "class_token",
        "conv_proj.weight",
        "conv_proj.bias",
        "encoder.pos_embedding",
        "encoder.ln.weight",
    ]
    ends = ("ln_1.weight", "ln_2.weight", "out_proj.weight", "out_proj.bias", "mlp.3.weight", "mlp.3.bias")
    for layer in range(12):
        mine = [name for name in names if f"encoder_layer_{layer}." in name]
        assert len(mine) == 6
        assert all(any(name.endswith(end) for name in mine) for end in ends)


def test_section_4_3_negating_all_of_them_changes_nothing_and_any_one_alone_a_lot() -> None:
    torch.manual_seed(0)
    model, x = SmallViT(10, layers=2), torch.randn(3, 1, 28, 28)
    names = residual_stream(model)
    assert len(names) == 5 + 6 * 2
    assert sign_difference(model, names, x) == 0
    assert sign_difference(model, ("conv_proj.weight", "conv_proj.bias"), x) > 0.1
    assert sign_difference(model, ("class_token",), x) > 0.1
    others = sign_symmetry(model, "conv_proj", x)
    assert others == tuple(name for name in names if not name.startswith("conv_proj"))
    assert len(set(sign_symmetry(model, "encoder.layers.encoder_layer_1.mlp.3", x) or ())) == len(names) - 2


def test_the_transformer_s_symmetry_holds_in_training_with_dropout() -> None:
    torch.manual_seed(0)
    model = VisionTransformer(16, 4, 2, 2, 16, 32, dropout=0.3, attention_dropout=0.0, num_classes=5)
    x = torch.randn(3, 3, 16, 16)
    assert sign_difference(model, residual_stream(model), x, training=True) == 0


def test_a_convolutional_stem_turns_in_its_last_convolution() -> None:
    torch.manual_seed(0)
    stem = [ConvStemConfig(4, 3, 2), ConvStemConfig(6, 3, 2)]
    model = VisionTransformer(16, 4, 1, 2, 16, 32, num_classes=5, conv_stem_configs=stem)
    x = torch.randn(3, 3, 16, 16)
    names = residual_stream(model)
    assert {name for name in names if "conv_proj" in name} == {"conv_proj.conv_last.weight", "conv_proj.conv_last.bias"}
    assert sign_difference(model, names, x) == 0
    first = "conv_proj.conv_bn_relu_0"
    assert sign_symmetry(model, f"{first}.0", x) == (f"{first}.1.weight", f"{first}.1.running_mean")


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"add_bias_kv": True}])
def test_attention_s_input_projection_is_turned_back_by_the_output_projection(options: dict[str, bool]) -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.MultiheadAttention(8, 2, batch_first=True, **options)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.inner(x, x, x)[0]
            return y

    found = sign_symmetry(Attention(), "inner.in_proj_weight", torch.randn(3, 5, 8))
    kv = {"inner.bias_k", "inner.bias_v"} if options.get("add_bias_kv") else set()
    assert set(found or ()) == {"inner.out_proj.weight"} | kv


def test_the_perceptron_of_a_transformer_has_none() -> None:
    model, x = SmallViT(10, layers=1), torch.randn(2, 1, 28, 28)
    assert sign_symmetry(model, "encoder.layers.encoder_layer_0.mlp.0", x) is None
    assert sign_symmetry(model, "heads.head", x) is None


def test_initial_zeros_hide_nothing_and_the_network_is_left_alone() -> None:
    """Torchvision's head starts at zero: any sign whatever would pass."""
    torch.manual_seed(0)
    model, x = SmallViT(10, layers=1), torch.randn(2, 1, 28, 28)
    with torch.no_grad():
        assert torch.equal(model(x), negate_(model, "conv_proj.weight")(x))
    before, state = {n: t.clone() for n, t in model.state_dict().items()}, torch.get_rng_state()
    assert sign_difference(model, ("conv_proj.weight",), x) > 0.1
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.training
    assert torch.equal(state, torch.get_rng_state())


def test_names_and_networks_that_are_not_there() -> None:
    with pytest.raises(LayerError, match="no layer conv9"):
        sign_symmetry(LayerNormCNN(10), "conv9", torch.randn(2, 1, 28, 28))
    with pytest.raises(ValueError, match="VisionTransformer"):
        residual_stream(LayerNormCNN(10))


def test_section_4_3_a_stale_mean_is_forgotten_by_a_tenth_a_batch_and_reset_ones_are_worse() -> None:
    """Of the shift that a mean of the old sign makes, 0.9^k is left after k batches: 2e-4 after 79."""
    model, x = small_resnet()
    right = negate_(model, "conv1.weight", "bn1.running_mean")
    stale = negate_(model, "conv1.weight")
    before = (stale.bn1.running_mean - right.bn1.running_mean).clone()
    with torch.no_grad():
        for _ in range(79):
            stale.train()(x)
            right.train()(x)
    left = stale.bn1.running_mean - right.bn1.running_mean
    torch.testing.assert_close(left, before * 0.9**79, rtol=1e-6, atol=1e-12)
    assert pytest.approx(2.4e-4, abs=1e-5) == 0.9**79
    assert torch.equal(stale.bn1.running_var, right.bn1.running_var)
    turned = negate_(model, "conv1.weight", "bn1.running_mean").eval()
    reset = copy.deepcopy(turned)
    reset.bn1.reset_running_stats()
    assert apart(turned, reset.eval(), x) > apart(turned, negate_(model, "conv1.weight").eval(), x)


@pytest.mark.long
def test_section_4_3_vit_b_16_itself() -> None:
    torch.manual_seed(0)
    model, x = vit_b_16(image_size=32), torch.randn(2, 3, 32, 32)
    assert sign_difference(model, residual_stream(model), x) == 0
