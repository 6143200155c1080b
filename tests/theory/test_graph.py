"""A network as a graph: what its nodes are, what is left out, and that the network stays as it was."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from poset_networks import RandomDag, Skip, brute_paths
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from fedunlearn.models.cnn import LayerNormCNN
from fedunlearn.theory.graph import Graph, graph_of


def ops(graph: Graph) -> list[str]:
    return [node.op for node in graph.nodes]


def test_the_nodes_of_a_cnn_by_hand() -> None:
    graph = graph_of(LayerNormCNN(10), torch.zeros(2, 1, 28, 28))
    block = ["conv2d", "relu", "max_pool2d", "layer_norm"]
    assert ops(graph) == ["placeholder", *block, *block, "flatten", "linear", "output"]
    first = graph.nodes[1]
    assert (first.layer, first.inputs, first.roles) == ("conv1", (0,), ("input",))
    assert (first.parameters, first.weights) == (("conv1.weight", "conv1.bias"), ("conv1.weight",))
    assert first.shape == (2, 8, 28, 28)
    assert (first.arguments["stride"], first.arguments["padding"], first.arguments["groups"]) == ((1, 1), "same", 1)
    assert first.tensors == {"weight": "conv1.weight", "bias": "conv1.bias"}
    assert graph.nodes[3].arguments["kernel_size"] == (2, 2)
    assert graph.layers == ("conv1", "conv2", "head")
    assert graph.path_count() == 1
    assert [graph.consumers(index) for index in (0, 1, len(graph.nodes) - 1)] == [(1,), (2,), ()]


def test_a_value_that_is_read_twice_is_two_paths() -> None:
    class Doubled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x + x) * x

    graph = graph_of(Doubled(), torch.ones(1, 2))
    assert graph.nodes[1].inputs == (0, 0)
    assert graph.path_count() == 3
    assert graph.consumers(0) == (1, 1, 2)


@settings(max_examples=6)
@given(st.integers(0, 10_000))
def test_the_number_of_paths_is_the_number_of_paths(seed: int) -> None:
    graph = graph_of(RandomDag(seed), torch.ones(1, 3))
    paths = brute_paths([node.inputs for node in graph.nodes])
    assert graph.path_count() == len(paths)
    assert {path[0] for path in paths} == {0}
    assert {index for path in paths for index in path} == set(range(len(graph.nodes))), (
        "what is read by nobody stays out"
    )


def test_a_network_is_left_as_it_was() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.calls = 0
            self.norm = nn.BatchNorm1d(3)
            self.layer = nn.Linear(3, 2)
            self.layer.bias.requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return self.layer(self.norm(x))

    model = Counting()
    model(torch.randn(4, 3, generator=torch.Generator().manual_seed(0))).sum().backward()
    model.norm.eval()
    before, gradient = copy.deepcopy(model.state_dict()), model.layer.weight.grad.clone()
    state = torch.get_rng_state()
    graph = graph_of(model, torch.ones(4, 3))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert (model.calls, model.training, model.norm.training) == (1, True, False)
    assert (model.layer.weight.requires_grad, model.layer.bias.requires_grad) == (True, False)
    assert torch.equal(model.layer.weight.grad, gradient)
    assert torch.equal(torch.get_rng_state(), state)
    assert graph.nodes[1].arguments["training"] is False


class Branching(nn.Module):
    """Goes one way or the other by what it sees, so that it has no graph but that of a run."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        return self.a(h) if h.sum() > 0 else torch.relu_(self.b(h)) + x


def test_a_network_that_looks_at_values_is_run_once(capfd: pytest.CaptureFixture[str]) -> None:
    model = Branching()
    assert graph_of(model, torch.ones(2, 3)).layers == ("a",)
    other = graph_of(model, -torch.ones(2, 3))
    assert ops(other) == ["placeholder", "batch_norm", "linear", "relu", "add", "output"]
    assert other.nodes[2].parameters == ("b.weight", "b.bias")
    assert other.path_count() == 2
    assert int(model.norm.num_batches_tracked) == 0
    assert "".join(capfd.readouterr()) == "", "torch prints the graph of what it refuses"


def test_in_place_operations_are_told_from_what_they_overwrite() -> None:
    class Rectified(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = self.layer(x)
            rectified = h.relu_()
            return h + rectified

    graph = graph_of(Rectified(), torch.ones(1, 3))
    assert [node.inputs for node in graph.nodes] == [(), (0,), (1,), (2, 2), (3,)]

    class Part(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            h = self.layer(x)
            h[:, :2].mul_(2)
            return h

    written = graph_of(Part(), torch.ones(1, 4))
    assert ops(written) == ["placeholder", "linear", "slice", "mul", "slice_scatter", "output"]


def test_what_is_made_of_parameters_alone_belongs_to_who_takes_it() -> None:
    model = nn.Sequential(weight_norm(nn.Linear(3, 2)), nn.Tanh())
    graph = graph_of(model, torch.ones(1, 3))
    assert ops(graph) == ["placeholder", "linear", "tanh", "output"]
    weight = "0.parametrizations.weight.original"
    assert graph.nodes[1].layer == "0"
    assert set(graph.nodes[1].parameters) == {"0.bias", f"{weight}0", f"{weight}1"}
    assert "weight" not in graph.nodes[1].tensors


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 1, 2))
        self.gain = nn.Parameter(torch.ones(2))
        self.layer = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.token.expand(len(x), -1, -1), self.layer(x)], 1) * self.gain


def test_section_4_1_constants_are_nodes_if_asked() -> None:
    assert ops(graph_of(Tokens(), torch.ones(2, 3, 2))) == ["placeholder", "linear", "cat", "mul", "output"]
    graph = graph_of(Tokens(), torch.ones(2, 3, 2), constants=True)
    assert ops(graph) == ["parameter", "placeholder", "expand", "linear", "cat", "mul", "output"]
    assert graph.layers == ("token", "layer")
    assert graph.path_count() == 2


def test_section_4_1_attention_is_its_two_layers_even_where_torch_would_fuse_it() -> None:
    encoder = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True).requires_grad_(False)
    assert torch.backends.mha.get_fastpath_enabled()
    graph = graph_of(encoder, torch.ones(1, 3, 4))
    assert graph.layers == ("self_attn.in_proj_weight", "self_attn.out_proj", "linear1", "linear2")
    assert torch.backends.mha.get_fastpath_enabled()


def test_layers_that_are_no_modules_are_named_by_their_weight() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.matrix = nn.Parameter(torch.eye(3))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.matrix * torch.zeros_like(x).add(2)

    graph = graph_of(Own(), torch.ones(1, 3))
    assert ops(graph) == ["placeholder", "matmul", "mul", "output"]
    assert graph.nodes[1].layer == "matrix"
    (recurrent,) = (node for node in graph_of(nn.LSTM(3, 2), torch.ones(1, 4, 3)).nodes if node.layer)
    assert (recurrent.op, recurrent.weights) == ("lstm", ("weight_ih_l0", "weight_hh_l0"))


def test_a_called_twice_module_is_two_nodes_of_one_layer() -> None:
    layer = nn.Linear(3, 3)
    graph = graph_of(nn.Sequential(layer, nn.ReLU(), layer), torch.ones(1, 3))
    assert [node.layer for node in graph.nodes] == ["", "0", "", "0", ""]
    assert graph.layers == ("0",)


def test_wrappers_do_not_show() -> None:
    assert graph_of(nn.DataParallel(Skip(2.0)), torch.ones(1, 1)).layers == ("layer",)


def test_what_has_no_graph_is_refused() -> None:
    with pytest.raises(ValueError, match="give an example that its forward takes"):
        graph_of(nn.Linear(3, 2), torch.ones(1, 4))

    class Deaf(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))

        def forward(self, x: Tensor) -> Tensor:
            return self.weight * torch.ones_like(x)

    with pytest.raises(ValueError, match="does not depend on its input"):
        graph_of(Deaf(), torch.ones(1, 3))
