"""The layer poset against the specification's oracles, brute force, and networkless orders by hand."""

from __future__ import annotations

import itertools
import time

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from poset_networks import RandomDag, Skip, brute_paths
from torch import Tensor, nn

from fedunlearn.layers import FIRST, layers
from fedunlearn.models.cnn import LayerNormCNN
from fedunlearn.theory.graph import Graph, Node
from fedunlearn.theory.poset import Hits, LayerPoset


def poset_of(name: str, *, constants: bool = False) -> LayerPoset:
    with torch.device("meta"):
        model = torchvision.models.get_model(name)
    return LayerPoset.of(model, torch.zeros(1, 3, 224, 224), constants=constants)


@pytest.fixture(scope="module")
def resnet18() -> LayerPoset:
    return poset_of("resnet18")


@pytest.fixture(scope="module")
def efficientnet() -> LayerPoset:
    return poset_of("efficientnet_b0")


@pytest.fixture(scope="module")
def vit() -> LayerPoset:
    return poset_of("vit_b_16")


def verdicts(poset: LayerPoset, *chosen: str) -> tuple[bool, bool, bool, bool]:
    """Antichain, has a maximal element, Cauchy by order, Cauchy by paths: the columns of section 4.2."""
    one = poset.verdict(chosen)
    assert (one.cauchy, one.cauchy_by_paths) == (poset.is_cauchy(chosen), poset.is_cauchy_by_paths(chosen))
    return one.antichain, bool(one.maximal), one.cauchy, one.cauchy_by_paths


# Section 4.2


def test_section_4_2_cnn() -> None:
    """Two convolutions and two matrices in a row."""
    model = nn.Sequential()
    model.add_module("c1", nn.Conv2d(3, 4, 5))
    model.add_module("r1", nn.ReLU())
    model.add_module("c2", nn.Conv2d(4, 4, 5))
    model.add_module("flat", nn.Flatten())
    model.add_module("f1", nn.Linear(4 * 24 * 24, 8))
    model.add_module("f2", nn.Linear(8, 10))
    poset = LayerPoset.of(model, torch.zeros(1, 3, 32, 32))
    assert (len(poset.layers), poset.chains, poset.length, poset.paths) == (4, 1, 4, 1)
    assert verdicts(poset, "c1") == verdicts(poset, "c2") == (True, False, True, True)
    assert verdicts(poset, "f2") == (True, True, True, True)
    assert verdicts(poset, "c1", "c2") == (False, False, False, False)
    assert poset.covers == (("c1", "c2"), ("c2", "f1"), ("f1", "f2"))


def test_section_4_2_resnet18_has_256_paths(resnet18: LayerPoset) -> None:
    assert (len(resnet18.layers), resnet18.chains, resnet18.length, resnet18.paths) == (21, 8, 18, 256)
    assert (resnet18.minimal, resnet18.maximal) == (("conv1",), ("fc",))


def test_section_4_2_resnet18_verdicts(resnet18: LayerPoset) -> None:
    assert verdicts(resnet18, "conv1") == (True, False, True, True)
    assert verdicts(resnet18, "layer1.0.conv1") == (True, False, True, False)
    assert resnet18.verdict("layer1.0.conv1").paths == Hits(128, 128, 0), "128 of 256 skip it"
    assert verdicts(resnet18, "layer2.0.conv1") == (True, False, False, False)
    assert verdicts(resnet18, "layer2.0.conv1", "layer2.0.downsample.0") == (True, False, True, True)
    assert verdicts(resnet18, "fc") == (True, True, True, True)


def test_section_4_2_efficientnet_b0(efficientnet: LayerPoset) -> None:
    found = len(efficientnet.layers), efficientnet.chains, efficientnet.length, efficientnet.paths
    assert found == (82, 1, 82, 2_519_424)
    assert verdicts(efficientnet, "features.0.0")[2:] == (True, True)
    assert verdicts(efficientnet, "features.2.0.block.2.fc1")[2:] == (True, False)


def test_section_4_2_the_paper_s_choice_in_efficientnet_is_no_antichain(efficientnet: LayerPoset) -> None:
    with torch.device("meta"):
        rows = layers(torchvision.models.efficientnet_b0())
    chosen = [row.name for row in rows if row.index <= 150 and row.kind in ("convolution", "linear")]
    assert (len(rows), len(chosen)) == (213, 58)
    assert verdicts(efficientnet, *chosen)[0] is False
    assert efficientnet.verdict(chosen).chains == Hits(0, 0, 1)


def test_section_4_2_vit_b_16(vit: LayerPoset) -> None:
    assert (len(vit.layers), vit.chains, vit.length, vit.paths) == (50, 1, 50, 2**36)
    block = "encoder.layers.encoder_layer_0"
    assert vit.layers[:3] == (
        "conv_proj",
        f"{block}.self_attention.in_proj_weight",
        f"{block}.self_attention.out_proj",
    )
    assert verdicts(vit, "conv_proj") == (True, False, True, True)
    assert verdicts(vit, f"{block}.self_attention.out_proj")[2:] == (True, False)
    assert verdicts(vit, "heads.head") == (True, True, True, True)


def test_section_4_2_vit_b_16_with_its_constants_as_layers() -> None:
    start = time.process_time()
    poset = poset_of("vit_b_16", constants=True)
    assert time.process_time() - start < 10
    assert poset.chains == 3
    own, tokens = "conv_proj", ("class_token", "encoder.pos_embedding")
    assert [poset.is_cauchy(chosen) for chosen in ([own], [own, tokens[0]], [own, *tokens])] == [False, False, True]
    assert poset.is_cauchy_by_paths([own, *tokens])
    for token in tokens:
        assert not poset.less(own, token)
        assert not poset.less(token, own)
    assert poset.select(FIRST) == (own,)


def test_section_4_2_the_counter_example_is_cauchy_by_order_and_not_by_paths() -> None:
    poset = LayerPoset.of(Skip(0.5), torch.ones(1, 1))
    assert (poset.chains, poset.length, poset.paths) == (1, 1, 2)
    assert verdicts(poset, "layer") == (True, True, True, False)


def test_erratum_8_a_cauchy_domain_by_order_does_not_carry_the_network() -> None:
    """Two inputs with the same output of L_neg and different outputs of the network: nothing factorises through it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), _Residual(), nn.Linear(3, 1)).double()
    poset = LayerPoset.of(model, torch.ones(1, 2).double())
    assert poset.is_cauchy("1.down")
    assert not poset.is_cauchy_by_paths("1.down")
    assert poset.is_cauchy_by_paths("0")
    inner = model[1].down.weight
    kernel = torch.linalg.svd(inner @ model[0].weight).Vh[-1]  # changes what comes in, and not what the layer gives
    x = torch.ones(1, 2).double()
    assert inner.shape == (1, 3)
    assert torch.allclose(model[1].down(model[0](x)), model[1].down(model[0](x + kernel)))
    assert not torch.allclose(model(x), model(x + kernel))


class _Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(3, 1), nn.Linear(1, 3)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.up(self.down(x))


# Against brute force


@settings(max_examples=8)
@given(st.integers(0, 10_000), st.integers(3, 6), st.data())
def test_section_4_1_everything_is_what_brute_force_says(seed: int, count: int, data: st.DataObject) -> None:
    poset = LayerPoset.of(RandomDag(seed, count), torch.ones(1, 3))
    nodes, names = poset.graph.nodes, poset.layers
    paths = [
        tuple(nodes[index].layer for index in path if nodes[index].layer)
        for path in brute_paths([node.inputs for node in nodes])
    ]
    less = {pair for path in paths for pair in itertools.combinations(path, 2)}
    assert {(a, b) for a, b in itertools.product(names, repeat=2) if poset.less(a, b)} == less
    chains = [
        chain
        for size in range(1, len(names) + 1)
        for chain in itertools.combinations(names, size)
        if all(pair in less for pair in itertools.combinations(chain, 2))
    ]
    maximal = [one for one in chains if not any(set(one) < set(other) for other in chains)]
    assert (poset.chains, poset.length, poset.paths) == (len(maximal), max(map(len, chains)), len(paths))
    assert poset.length == max(map(len, paths)), "the paths between the members of a chain join to one"
    between = {(a, b) for a, b in less if any((a, c) in less and (c, b) in less for c in names)}
    assert set(poset.covers) == less - between
    assert set(poset.minimal) == {b for b in names if not any((a, b) in less for a in names)}
    assert set(poset.maximal) == {a for a in names if not any((a, b) in less for b in names)}
    chosen = data.draw(st.sets(st.sampled_from(names), min_size=1))
    met = [[len(chosen & set(way)) for way in ways] for ways in (maximal, paths)]
    counts = [Hits(sum(n == 0 for n in ns), sum(n == 1 for n in ns), sum(n > 1 for n in ns)) for ns in met]
    verdict = poset.verdict(tuple(chosen))
    assert [verdict.chains, verdict.paths] == counts
    assert verdict.antichain == less.isdisjoint(itertools.product(chosen, repeat=2))
    assert set(poset.above(tuple(chosen))) == {b for a, b in less if a in chosen}
    assert set(poset.below(tuple(chosen))) == {a for a, b in less if b in chosen}
    inside = [chain for chain in chains if set(chain) <= chosen]
    longest = [one for one in inside if not any(set(one) < set(other) for other in inside)]
    assert poset.within(tuple(chosen)) == (len(longest), max(map(len, inside)))


@settings(max_examples=8)
@given(st.integers(0, 10_000), st.integers(3, 6))
def test_what_every_path_meets_once_every_maximal_chain_meets_once(seed: int, count: int) -> None:
    """By paths is the stronger of the two, for each maximal chain lies on a path."""
    poset = LayerPoset.of(RandomDag(seed, count), torch.ones(1, 3))
    for size in (1, 2, 3):
        for chosen in itertools.combinations(poset.layers, size):
            if poset.is_cauchy_by_paths(chosen):
                assert poset.is_cauchy(chosen)
                assert poset.is_antichain(chosen)


def test_a_diamond_by_hand() -> None:
    """a below b and c, both below d; and a connection from a to the output."""
    names = ("", "a", "b", "c", "", "d", "", "")
    inputs = ((), (0,), (1,), (1,), (2, 3), (4,), (5, 1), (6,))
    nodes = [Node(index, "linear", of, layer=name) for index, (of, name) in enumerate(zip(inputs, names, strict=True))]
    poset = LayerPoset(Graph(tuple(nodes)))
    assert (poset.chains, poset.length, poset.paths) == (2, 3, 3)
    assert poset.heights == {"a": 1, "b": 2, "c": 2, "d": 3}
    assert set(poset.covers) == {("a", "b"), ("a", "c"), ("b", "d"), ("c", "d")}
    assert poset.is_cauchy(["b", "c"])
    assert not poset.is_cauchy_by_paths(["b", "c"])
    assert not poset.is_cauchy("b")


# Shared weights


def test_section_4_1_a_layer_called_again_on_its_own_output_has_no_order() -> None:
    layer = nn.Linear(3, 3)
    with pytest.raises(ValueError, match="0 runs again on what was made of its own output"):
        LayerPoset.of(nn.Sequential(layer, nn.ReLU(), layer), torch.ones(1, 3))


class Siamese(nn.Module):
    """One encoder for two inputs; ``crossed``: what one branch has behind a layer, the other has before it."""

    def __init__(self, crossed: bool) -> None:
        super().__init__()
        self.crossed = crossed
        self.a, self.b, self.head = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(6, 2)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        second = self.a(self.b(y)) if self.crossed else self.b(self.a(y))
        return self.head(torch.cat([self.b(self.a(x)), second], 1))


def test_section_4_1_layers_that_share_their_weight_side_by_side_are_one_element() -> None:
    poset = LayerPoset.of(Siamese(False), (torch.ones(1, 3), torch.ones(1, 3)))
    assert (poset.layers, poset.chains, poset.length, poset.paths) == (("a", "b", "head"), 1, 3, 2)
    assert verdicts(poset, "a") == (True, False, True, True)
    with pytest.raises(ValueError, match="the layers have no order"):
        LayerPoset.of(Siamese(True), (torch.ones(1, 3), torch.ones(1, 3)))


def test_shared_weights_join_what_is_apart_in_the_graph() -> None:
    """a before the shared s on one branch, s before b on the other: then a < b by transitivity alone."""

    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.s, self.b = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.s(self.a(x)) + self.b(self.s(x))

    poset = LayerPoset.of(Joined(), torch.ones(1, 2))
    assert poset.less("a", "b")
    assert (poset.chains, poset.length, poset.paths) == (1, 3, 2)


# Naming


def test_layers_are_named_as_elsewhere(resnet18: LayerPoset, vit: LayerPoset) -> None:
    assert resnet18.select("conv1.weight") == resnet18.select(FIRST) == ("conv1",)
    assert resnet18.select("layer1.*.conv2") == ("layer1.0.conv2", "layer1.1.conv2")
    assert resnet18.select(["fc", "conv1"]) == ("conv1", "fc")
    attention = "encoder.layers.encoder_layer_0.self_attention"
    assert vit.select(attention) == vit.select(f"{attention}.in_proj_weight") == (f"{attention}.in_proj_weight",)
    for wrong, match in (("conv2", "did you mean"), ("bn1", "no layer"), ("conv1[0:3]", "name the whole layer")):
        with pytest.raises(ValueError, match=match):
            resnet18.select(wrong)
    with pytest.raises(ValueError, match="at least one"):
        resnet18.select([])
    assert resnet18.less("conv1.weight", "fc")
    with pytest.raises(ValueError, match="means 2 layers"):
        resnet18.less("layer1.*.conv2", "fc")


def test_a_network_without_layers_is_refused() -> None:
    with pytest.raises(ValueError, match="no layer"):
        LayerPoset.of(nn.ReLU(), torch.ones(1, 3))


def test_a_network_of_the_package_is_a_chain() -> None:
    poset = LayerPoset.of(LayerNormCNN(10), torch.zeros(1, 1, 28, 28))
    assert poset.heights == {"conv1": 1, "conv2": 2, "head": 3}
