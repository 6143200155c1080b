"""Operations per sample against counts made by hand, from the paper's networks, and by other programs."""

import copy
import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fedunlearn.evaluation import flops
from fedunlearn.evaluation.flops import SampleFlops, flops_per_sample
from fedunlearn.models import LayerNormCNN, build


def test_a_linear_layer_costs_two_operations_per_weight() -> None:
    counted = flops_per_sample(lambda: nn.Linear(9, 10), (9,))
    assert counted == SampleFlops(forward=180, backward=180)
    assert 8 * counted.forward == 1440


def test_the_input_gets_no_gradient_but_hidden_layers_do() -> None:
    counted = flops_per_sample(lambda: nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)), (4,))
    assert counted == SampleFlops(forward=2 * (20 + 15), backward=2 * (20 + 15 + 15))


def test_first_convolution_of_resnet18() -> None:
    counted = flops_per_sample(lambda: nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False), (3, 224, 224))
    assert counted == SampleFlops(236_027_904, 236_027_904)


def test_resnet18() -> None:
    counted = flops_per_sample(lambda: build("resnet18", 10, (3, 224, 224)), (3, 224, 224))
    assert counted.forward == 3_627_132_928
    assert counted.forward + counted.backward == 10_645_370_880


def test_vit_counts_its_attention() -> None:
    counted = flops_per_sample(lambda: build("vit_b_16", 101, (3, 224, 224)), (3, 224, 224))
    assert counted.forward == 35_126_275_584


def test_small_vit_counts_its_attention() -> None:
    """On 16 patches: their projection; three blocks on 17 tokens, of projections, scores and mixture, and perceptron;
    the head on one token."""
    counted = flops_per_sample(lambda: build("small-vit", 10, (1, 28, 28), patch=7), (1, 28, 28))
    block = 17 * (192 * 64 + 64 * 64 + 2 * 128 * 64) + 2 * 17 * 17 * 64
    assert counted.forward == 2 * (16 * 64 * 49 + 3 * block + 64 * 10)


@pytest.mark.parametrize("convolution", [nn.Conv2d, nn.ConvTranspose2d])
@pytest.mark.parametrize("groups", [1, 2, 8])
def test_groups_cut_the_cost_of_both_gradients(convolution: type[nn.Module], groups: int) -> None:
    """A 1x1 convolution of 8 to 16 channels on 6x6: 2 * 36 * 8 * 16 / groups, and as much per gradient."""
    counted = flops_per_sample(
        lambda: nn.Sequential(nn.Conv2d(8, 8, 1, groups=8), convolution(8, 16, 1, groups=groups)), (8, 6, 6)
    )
    depthwise, grouped = 2 * 36 * 8, 2 * 36 * 8 * 16 // groups
    assert counted == SampleFlops(depthwise + grouped, depthwise + 2 * grouped)


def test_our_formula_is_torchs_where_there_are_no_groups() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, dilation=2), nn.ConvTranspose2d(4, 5, 3, stride=2))
    with FlopCounterMode(display=False) as counter:
        network(torch.rand(1, 3, 17, 19)).sum().backward()
    counted = flops_per_sample(lambda: network, (3, 17, 19))
    assert counted.forward + counted.backward == counter.get_total_flops()


def test_frozen_parameters_cost_no_backward_pass() -> None:
    assert flops_per_sample(lambda: nn.Linear(9, 10).requires_grad_(False), (9,)) == SampleFlops(180, 0)


def test_normalisation_of_single_pixels_is_possible() -> None:
    counted = flops_per_sample(lambda: nn.Sequential(nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4)), (3, 2, 2))
    assert counted == SampleFlops(96, 96)


class LooksAtItsValues(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(9, 10)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)
        return y * 2 if y.sum() > 0 else y


def test_a_network_that_cannot_run_without_values_runs_on_the_cpu() -> None:
    assert flops_per_sample(LooksAtItsValues, (9,)) == SampleFlops(180, 180)


class Attention(nn.Module):
    """Self-attention over 5 tokens of width 8, one head."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 24)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.layer(x).chunk(3, dim=-1)
        return nn.functional.scaled_dot_product_attention(query, key, value)


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_attention_is_counted_on_both_devices(device: str) -> None:
    """Forward 2 * 5 * 8 * 24 for the layer, 2 * 2 * 5 * 5 * 8 for scores and mixture; each product has 2
    gradients."""
    assert flops._count(Attention, (5, 8), device) == SampleFlops(1920 + 800, 1920 + 2 * 800)


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_the_papers_cnn_is_counted_on_both_devices(device: str) -> None:
    """Two convolutions of 5x5 on 8x8 and 4x4, and the head of 2x2 pixels; the first has no gradient for its
    input."""
    first, second, head = 2 * 64 * 25 * 8, 2 * 16 * 25 * 8 * 16, 2 * 4 * 16 * 2
    counted = flops._count(lambda: LayerNormCNN(2, (1, 8, 8)), (1, 8, 8), device)
    assert counted == SampleFlops(first + second + head, first + 2 * second + 2 * head)


def test_what_fails_everywhere_is_reported_as_it_is() -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        flops_per_sample(lambda: nn.Linear(9, 10), (8,))


@pytest.mark.parametrize("kind", [LooksAtItsValues, lambda: nn.Sequential(nn.Linear(9, 4), nn.BatchNorm1d(4))])
def test_the_given_network_is_left_as_it_is(kind: Callable[[], nn.Module]) -> None:
    network = kind().eval()
    before = copy.deepcopy(network.state_dict())
    flops_per_sample(lambda: network, (9,))
    after = network.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not network.training
    assert all(parameter.grad is None for parameter in network.parameters())


def test_generators_and_gradient_mode_are_left_alone() -> None:
    torch_state, python_state = torch.get_rng_state(), random.getstate()
    with torch.no_grad():
        counted = flops_per_sample(lambda: nn.Sequential(LooksAtItsValues(), nn.Dropout()), (9,))
        assert not torch.is_grad_enabled()
    assert counted.backward == 180
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert random.getstate() == python_state
