"""Activations: which points are read, that nothing overwrites them, and CKA by stream against CKA of all at once."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from fedunlearn.models import build
from fedunlearn.negation import negate
from fedunlearn.theory.activations import Position, activations, compare, positions
from fedunlearn.theory.cka import MinibatchCKA, cka, gram, unbiased_cka
from fedunlearn.weights import Weights

KNOWN: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "layernorm-cnn": ((1, 8, 8), {"channels": (4, 6), "kernel": 3}),
    "small-resnet": ((3, 16, 16), {"width": 4, "blocks": (1, 1)}),
    "small-vit": ((1, 8, 8), {"layers": 2, "heads": 2, "hidden": 8, "mlp": 16}),
}


def network(name: str, seed: int = 0) -> nn.Module:
    shape, options = KNOWN[name]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = build(name, 5, shape, **options)
        if name == "small-vit":
            nn.init.normal_(model.get_parameter("heads.head.weight"))  # torchvision's is zero
    return model


def inputs(name: str, n: int = 20) -> Tensor:
    return torch.randn(n, *KNOWN[name][0], generator=torch.Generator().manual_seed(9))


def names(model: nn.Module, x: Tensor) -> list[str]:
    return list(map(str, positions(model, x)))


def test_figure_3_positions_of_the_cnn() -> None:
    found = names(network("layernorm-cnn"), inputs("layernorm-cnn"))
    assert found == ["conv1", "relu1", "pool1", "norm1", "conv2", "relu2", "pool2", "norm2", "head"]


def test_section_3_resnets_relu_runs_twice_a_block() -> None:
    with torch.device("meta"):
        model = build("resnet18", 10, (3, 32, 32))
    found = names(model, torch.zeros(2, 3, 32, 32))
    relus = [f"layer{stage}.{block}.relu#{call}" for stage in (1, 2, 3, 4) for block in (0, 1) for call in (1, 2)]
    assert found == ["relu", "maxpool", *relus, "avgpool", "fc"]


def test_section_3_vits_blocks() -> None:
    found = names(network("small-vit"), inputs("small-vit"))
    blocks = [f"encoder.layers.encoder_layer_{number}" for number in (0, 1)]
    assert found == ["conv_proj", *blocks, "encoder.ln", "heads.head"]


class Bare(nn.Module):
    """A block as many write it: activations are functions, a table of positions is looked up, one layer is unused."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Linear(3, 3)
        self.table = nn.Embedding(7, 4)
        self.conv = nn.Conv1d(4, 4, 3, padding=1)
        self.bn = nn.BatchNorm1d(4)
        self.rnn = nn.GRU(7, 3, batch_first=True)
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.table(torch.arange(7)).T
        x = F.relu(self.bn(self.conv(x)))
        logits: Tensor = self.head(self.rnn(x)[0][:, -1])
        return logits


def test_functions_are_not_seen_and_without_activations_the_batchnorm_is_read() -> None:
    found = positions(Bare(), torch.randn(6, 4, 7))
    assert found == (Position("bn", 1, 1), Position("rnn", 1, 1), Position("head", 1, 1))


def test_a_network_of_functions_alone_is_refused() -> None:
    with pytest.raises(ValueError, match="no layer that is a module"):
        positions(nn.Sequential(nn.Identity()), torch.zeros(2, 3))


@pytest.mark.parametrize("name", KNOWN)
def test_the_last_position_is_the_output_and_all_have_a_row_a_sample(name: str) -> None:
    model, x = network(name), inputs(name)
    found = activations(model, x, batch_size=7)
    assert all(len(values) == len(x) and values.ndim == 2 for values in found.values())
    torch.testing.assert_close(list(found.values())[-1], model.eval()(x).detach())


def test_section_3_activations_in_place_do_not_write_over_what_was_read() -> None:
    def made(inplace: bool) -> nn.Sequential:
        return nn.Sequential(nn.Linear(4, 5), nn.ReLU(inplace), nn.Linear(5, 5), nn.ReLU(inplace))

    one, other, x = made(inplace=True), made(inplace=False), torch.randn(9, 4)
    other.load_state_dict(one.state_dict())
    found, expected = activations(one, x), activations(other, x)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert float(found["0"].min()) < 0
    assert compare(one, other, x)["0"].unbiased == pytest.approx(1)


def test_calls_of_one_module_are_told_apart() -> None:
    model, x = network("small-resnet").eval(), inputs("small-resnet", 4)
    found = activations(model, x)
    h = F.relu(model.bn1(model.conv1(x)))
    block = model.layer1[0]
    inner = F.relu(block.bn1(block.conv1(h)))
    torch.testing.assert_close(found["layer1.0.relu#1"], inner.flatten(1).detach())
    torch.testing.assert_close(found["layer1.0.relu#2"], F.relu(block.bn2(block.conv2(inner)) + h).flatten(1).detach())


@pytest.mark.parametrize("name", KNOWN)
def test_compare_is_cka_of_what_was_captured(name: str) -> None:
    a, b, x = network(name), network(name, 1), inputs(name)
    of_a, of_b = activations(a, x), activations(b, x)
    found = compare(a, b, x)
    assert list(found) == list(of_a)
    for place, one in found.items():
        assert one.unbiased == pytest.approx(unbiased_cka(of_a[place], of_b[place]), abs=1e-6)
        assert one.biased == pytest.approx(cka(of_a[place], of_b[place]), abs=1e-6)
        assert one.samples == len(x)


def test_section_3_compare_in_batches_sums_over_batches_of_equal_size() -> None:
    """17 samples in batches of 8 at the most are 6, 6 and 5: none is too small for an unbiased estimate."""
    a, b, x = network("layernorm-cnn"), network("layernorm-cnn", 1), inputs("layernorm-cnn", 17)
    of_a, of_b = activations(a, x)["relu2"], activations(b, x)["relu2"]
    expected = MinibatchCKA()
    for rows in (slice(0, 6), slice(6, 12), slice(12, 17)):
        expected.add(gram(of_a[rows]), gram(of_b[rows]))
    found = compare(a, b, x, batch_size=8)["relu2"]
    assert (found.unbiased, found.biased) == pytest.approx((expected.unbiased, expected.biased), abs=1e-6)
    assert found.samples == 17


@pytest.mark.parametrize("n", range(4, 40))
def test_no_batch_is_ever_too_small(n: int) -> None:
    model = nn.Sequential(nn.Linear(3, 2))
    assert compare(model, model, inputs("layernorm-cnn", n).flatten(1)[:, :3], 8)["0"].samples == n


def test_figure_3_a_negated_layer_is_alike_and_what_reads_it_is_not() -> None:
    model = network("layernorm-cnn")
    negated = negate(copy.deepcopy(model), "conv1", include_bias=True)
    found = compare(model, negated, inputs("layernorm-cnn"))
    assert found["conv1"].unbiased == pytest.approx(1, abs=1e-6)
    assert found["relu1"].unbiased < 0.99


def with_stem(stem: Weights, rest: nn.Module, tensors: tuple[str, ...]) -> nn.Module:
    model = copy.deepcopy(rest)
    model.load_state_dict({name: {**stem.parameters, **stem.buffers}[name] for name in tensors}, strict=False)
    return model


def test_figure_3_models_with_one_first_layer_are_one_until_the_next_layer() -> None:
    """So the original first layer with a random rest is at 1 up to the pooling, where the figure is read as 0.98; and
    behind a negated one the rest, random or not, changes nothing before it is reached, where 0.89 and 0.90 are read."""
    original, rest, x = network("layernorm-cnn"), network("layernorm-cnn", 5), inputs("layernorm-cnn")
    nn.init.normal_(rest.get_parameter("norm1.weight"))
    negated = negate(copy.deepcopy(original), "conv1")
    stem = ("conv1.weight", "conv1.bias")
    same, turned = (
        compare(original, with_stem(Weights.of(of), rest, stem), x, batch_size=8) for of in (original, negated)
    )
    not_first = compare(original, negated, x, batch_size=8)
    before = ("conv1", "relu1", "pool1")
    assert [same[place].unbiased for place in before] == pytest.approx([1, 1, 1], abs=1e-12)
    assert same["norm1"].unbiased < 0.99
    assert [turned[place] for place in before] == [not_first[place] for place in before]
    assert turned["norm1"] != not_first["norm1"]


def test_figure_3_is_possible_if_its_first_layer_is_the_weight_alone_as_in_the_listing() -> None:
    """With the bias among what is drawn anew, the convolution's answers are alike still, for CKA sees no shift; what
    ReLU leaves of them is not: 1, then less, as the figure is read for the original first layer."""
    original, rest, x = network("layernorm-cnn"), network("layernorm-cnn", 5), inputs("layernorm-cnn")
    found = compare(original, with_stem(Weights.of(original), rest, ("conv1.weight",)), x)
    assert found["conv1"].unbiased == pytest.approx(1, abs=1e-6)
    assert 0.5 < found["relu1"].unbiased < 0.9999


def test_section_3_figure_7_pair_with_the_same_rest_is_not_trivially_alike_behind_the_relu() -> None:
    """(-theta_0) + R and theta_0 + R: the convolution's answers are alike, what ReLU leaves of them is not."""
    original, rest, x = network("small-resnet"), network("small-resnet", 5), inputs("small-resnet")
    negated = negate(copy.deepcopy(original), "conv1")
    stem = ("conv1.weight", "bn1.weight", "bn1.bias", "bn1.running_mean", "bn1.running_var")
    pair = [with_stem(Weights.of(of), rest, stem) for of in (original, negated)]
    found = compare(*pair, x)
    assert found["relu"].unbiased < 0.99
    convolved = [model.get_submodule("conv1")(x) for model in pair]
    assert unbiased_cka(*convolved) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("read", [activations, lambda model, x: compare(model, model, x), positions])
def test_the_model_is_left_as_it_was(read: Callable[[nn.Module, Tensor], object]) -> None:
    model, x = network("small-resnet").train(), inputs("small-resnet")
    model.get_submodule("bn1").eval()
    model.get_parameter("fc.bias").requires_grad_(False)
    before, state = Weights.of(model), torch.random.get_rng_state()
    modes = [module.training for module in model.modules()]
    read(model, x)
    assert Weights.of(model).same_bits(before)
    assert [module.training for module in model.modules()] == modes
    assert all(not module._forward_hooks for module in model.modules())
    assert [p.requires_grad for p in model.parameters()].count(False) == 1
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.random.get_rng_state(), state)


def test_hooks_are_gone_after_a_failure_too() -> None:
    model = network("layernorm-cnn")
    with pytest.raises(RuntimeError):
        activations(model, torch.zeros(3, 2, 8, 8))
    assert all(not module._forward_hooks for module in model.modules())
    assert model.training


def test_wrapped_models_have_the_same_positions() -> None:
    model, x = network("layernorm-cnn"), inputs("layernorm-cnn")
    assert compare(nn.DataParallel(model), model, x)["head"].unbiased == pytest.approx(1)


def test_a_zero_head_has_no_cka() -> None:
    model = network("small-vit")
    nn.init.zeros_(model.get_parameter("heads.head.weight"))
    assert math.isnan(compare(model, network("small-vit"), inputs("small-vit"))["heads.head"].unbiased)


def test_what_cannot_be_compared_is_said() -> None:
    model, x = network("layernorm-cnn"), inputs("layernorm-cnn")
    with pytest.raises(ValueError, match="take 4 and 8 at least"):
        compare(model, model, x[:3])
    with pytest.raises(ValueError, match="take 4 and 8 at least"):
        compare(model, model, x, batch_size=7)
    with pytest.raises(ValueError, match="one architecture"):
        compare(model, nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), x)
