"""Lipschitz constants: of operations, of whole networks (Lemma 5), of their gradients (Lemma 6), and Theorem 6's A.

All constants are natural logarithms, since their products over deep networks overflow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor, nn
from torch.func import functional_call, vjp
from torch.nn.modules.conv import _ConvNd

from fedunlearn.layers import Selection
from fedunlearn.names import bias_of
from fedunlearn.theory.graph import Graph, Node, in_evaluation
from fedunlearn.theory.poset import LayerPoset
from fedunlearn.weights import unwrap

__all__ = [
    "ACTIVATIONS",
    "JacobianBound",
    "LipschitzBound",
    "NetworkConstants",
    "WassersteinConstant",
    "constants_of",
    "jacobian_bound",
    "lipschitz_bound",
    "operator_norm",
    "wasserstein_constant",
]

ACTIVATIONS: Mapping[str, float] = {
    **dict.fromkeys(("relu", "relu6", "hardtanh", "tanh", "abs", "neg", "sin", "cos", "celu"), 1.0),
    **dict.fromkeys(("softplus", "log_sigmoid", "clamp", "clamp_min", "clamp_max"), 1.0),
    "sigmoid": 1 / 4,
    "hardsigmoid": 1 / 6,
    "hardswish": 3 / 2,
    "silu": 1.0998393194506843,
    "gelu": 1.1290403,  # the exact form's is 1.1289041, at the square root of 2; this is its approximation's by tanh
    "mish": 1.0884989,
    "selu": 1.7580993408473766,
    "softmax": 1 / 2,  # the Jacobian diag(p) - pp' has no larger eigenvalue
    "_softmax": 1 / 2,
}
"""The Lipschitz constants of activations without an argument that changes them, rounded up."""

_SAME_VALUES = frozenset(
    {
        "dropout",
        "feature_dropout",
        "alpha_dropout",
        "view",
        "_unsafe_view",
        "reshape",
        "flatten",
        "unflatten",
        "permute",
    }
    | {"transpose", "t", "numpy_T", "movedim", "unsqueeze", "squeeze", "contiguous", "clone", "alias", "detach", "to"}
    | {"_to_copy", "lift_fresh_copy", "select", "slice", "narrow", "split", "split_with_sizes", "chunk", "unbind"}
    | {"getitem", "roll", "flip", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "cat", "stack", "output"}
    | {"maximum", "minimum", "amax", "amin", "constant_pad_nd", "view_as", "reshape_as"}
)
"""Operations of which each input, the others held fixed, is passed on, or a part of it, and nothing is enlarged."""

_CONVOLUTIONS = frozenset(f"conv{kind}{d}d" for kind in ("", "_transpose") for d in (1, 2, 3))
_AVERAGES = frozenset({f"{kind}avg_pool{d}d" for kind in ("", "adaptive_") for d in (1, 2, 3)})
_MAXIMA = frozenset({f"max_pool{d}d{form}" for d in (1, 2, 3) for form in ("", "_with_indices")})
_Step = tuple[list[int], float | None, bool]
_DENSE = 200  # inputs up to which a linear map is written out as a matrix
_TOLERANCE = 1e-7


@dataclass(frozen=True)
class LipschitzBound:
    """Bounds on a network's Lipschitz constant, natural logarithms.

    Attributes:
        printed: Lemma 5 as printed (44): Lambda and length of the order. No bound where a skip connection goes around
            a layer.
        corrected: the same with the paths of the network instead of the chains of the order.
        path_sum: the sum over all paths of the product of all constants on it, from which (44) follows: the tightest.
        activations: the norm of Sigma: the largest constant of what lies between two layers, or behind the last.
        before: of what lies before the first layer, which the paper has none of.
        weights: the norm of theta (43): the largest geometric mean of the layers' norms along a maximal chain.
        weights_by_paths: the same along paths.
        chains: Lambda, the number of maximal chains.
        paths: the number of paths.
        length: of the longest chain.
        norms: of each layer, its operator norm (no logarithm), in the order in which they run.
    """

    printed: float
    corrected: float
    path_sum: float
    activations: float
    before: float
    weights: float
    weights_by_paths: float
    chains: int
    paths: int
    length: int
    norms: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class JacobianBound:
    """Bounds on the norm of the output's derivative by one layer's weight, natural logarithms.

    Attributes:
        layer: whose weight.
        printed: Lemma 6 as printed (50): the radius times Lemma 5's.
        corrected: by paths, and with the biases: the input of the layer is not 0 where the network's is.
    """

    layer: str
    printed: float
    corrected: float


@dataclass(frozen=True)
class WassersteinConstant:
    """Theorem 6's A of one layer, natural logarithms.

    Attributes:
        layer: of whose Jacobian the law is compared before and after.
        above: it comes after the negated layers, so that (51) speaks of it; else (52) does, whose total variation is 1
            for continuous laws: (X, Y) and (X, -Y) meet only where Y = 0.
        printed: (58) or (62).
        corrected: by paths, with biases, with the largest norm of the negated layers' outputs in (58) where the input's
            is printed, and with the factor 2 of Lemma 4 that (62) has lost.
    """

    layer: str
    above: bool
    printed: float
    corrected: float


@dataclass(frozen=True)
class NetworkConstants:
    """A network's constants, operation by operation.

    Attributes:
        poset: the network's layers and graph.
        logs: for each node, the logarithm of its Lipschitz constant in each of its inputs, the others held fixed.
    """

    poset: LayerPoset
    logs: tuple[tuple[float, ...], ...]

    @property
    def graph(self) -> Graph:
        """The network's."""
        return self.poset.graph

    @cached_property
    def norms(self) -> dict[str, float]:
        """Operator norms of the layers; of one that runs several times (at several sizes), the largest."""
        found: dict[str, float] = {}
        for node, logs in zip(self.graph.nodes, self.logs, strict=True):
            if node.layer:
                found[node.layer] = max(found.get(node.layer, 0.0), *map(math.exp, logs))
        return found

    def to_nodes(self, start: Callable[[Node], bool]) -> list[float]:
        """For each node, the logarithm of the sum over all paths to it from the starts; -inf where there is none."""
        found: list[float] = []
        for node, logs in zip(self.graph.nodes, self.logs, strict=True):
            ways = [found[source] + log for source, log in zip(node.inputs, logs, strict=True)]
            found.append(0.0 if start(node) else _log_sum(ways))
        return found

    def to_output(self) -> list[float]:
        """For each node, the logarithm of the sum over all paths from it to the output."""
        found = [-math.inf] * len(self.graph.nodes)
        found[-1] = 0.0
        for node, logs in zip(reversed(self.graph.nodes), reversed(self.logs), strict=True):
            for source, log in zip(node.inputs, logs, strict=True):
                found[source] = _log_sum([found[source], found[node.index] + log])
        return found


def constants_of(model: nn.Module, example: Tensor | tuple[object, ...], *, seed: int = 0) -> NetworkConstants:
    """The Lipschitz constant of every operation, in evaluation mode, in the Euclidean norm, on the whole space.

    A convolution's is its operator's at the size of its input, not its kernel matrix's; a BatchNorm's is that of its
    running statistics. LayerNorm and its kin are steepest where the variance is 0: theirs is the largest weight over
    the square root of ``eps``, finite, and so large that the bounds say little.

    Args:
        model: the network; it is left as it is.
        example: see `fedunlearn.theory.graph.graph_of`; norms do not depend on its values.
        seed: of the vectors that norms of large operators are iterated from.

    Raises:
        ValueError: an operation has no constant, or none is known: softmax attention and every other product of two
            things that depend on the input (squeeze-excitation), recurrent layers, embeddings.
    """
    model = unwrap(model)
    poset = LayerPoset.of(model, example)
    tensors: list[tuple[str, Tensor]] = [*model.named_parameters(), *model.named_buffers()]
    state = {name: tensor.detach() for name, tensor in tensors}
    if any(tensor.device.type == "meta" for tensor in state.values()):
        raise ValueError("the network is on the meta device, where weights have no values: load them first")
    state = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    logs: list[tuple[float, ...]] = []
    refused: dict[tuple[str, str], list[str]] = {}
    for node in poset.graph.nodes:
        try:
            values = _constants(node, poset.graph, state, seed)
        except _NoConstantError as error:
            refused.setdefault((node.op, str(error)), []).append(_place(poset.graph, node))
            continue
        logs.append(tuple(map(_log, values)))
    if refused:
        told = "; ".join(
            f"{op} {places[0]}{f', and {len(places) - 1} more' if len(places) > 1 else ''} ({why})"
            for (op, why), places in refused.items()
        )
        raise ValueError(f"the network has no Lipschitz constant that is known, for it has {told}")
    return NetworkConstants(poset, tuple(logs))


def operator_norm(apply: Callable[[Tensor], Tensor], like: Tensor, *, seed: int = 0) -> float:
    """The norm of a linear map in the Euclidean norm: its largest singular value.

    Small maps are written out as a matrix. For others, Lanczos's iteration on the map and its transpose (by autograd)
    takes the place of the power iteration, which hardly moves where the two largest singular values are close. It
    comes from below, with a relative error of about 1e-7.

    Args:
        apply: the map, of a tensor shaped like ``like`` to any tensor.
        like: says shape, dtype and device; its values do not matter.
        seed: of the first vector.
    """
    zeros = torch.zeros_like(like)
    if zeros.numel() <= _DENSE:
        rows = torch.eye(zeros.numel(), dtype=zeros.dtype, device=zeros.device)
        columns = [apply(row.reshape(zeros.shape)).flatten() for row in rows]
        return float(torch.linalg.matrix_norm(torch.stack(columns), 2))
    pull = vjp(apply, zeros)[1]

    def twice(vector: NDArray[np.float64]) -> NDArray[np.float64]:
        value = torch.from_numpy(vector.reshape(tuple(zeros.shape))).to(zeros)
        result: NDArray[np.float64] = pull(apply(value))[0].detach().double().cpu().numpy().ravel()
        return result

    first = np.random.default_rng(seed).standard_normal(zeros.numel())
    if not np.any(twice(first)):
        return 0.0
    gram = LinearOperator((zeros.numel(), zeros.numel()), matvec=twice, dtype=np.float64)
    (largest,) = eigsh(gram, k=1, which="LA", v0=first, tol=_TOLERANCE, return_eigenvectors=False)
    return math.sqrt(max(float(largest), 0.0))


def lipschitz_bound(constants: NetworkConstants) -> LipschitzBound:
    """Lemma 5, as printed and by paths.

    Printed is ``Lambda max(|Sigma| |theta|, 1)^len`` over maximal chains of the order (44). These do not see skip
    connections: of ``x + W x`` it says max(|W|, 1), where 1 + \\|W\\| can be attained. Over paths it holds.
    """
    poset, graph = constants.poset, constants.graph
    norms = {layer: _log(norm) for layer, norm in constants.norms.items()}
    activations, before = _between(constants)
    weights = _largest_mean(_steps_of_chains(poset, norms))
    weights_by_paths = _largest_mean(_steps_of_paths(graph, norms))
    return LipschitzBound(
        math.log(poset.chains) + poset.length * max(activations + weights, 0.0),
        math.log(poset.paths) + max(before, 0.0) + poset.length * max(activations + weights_by_paths, 0.0),
        constants.to_nodes(lambda node: node.op == "placeholder")[-1],
        activations,
        before,
        weights,
        weights_by_paths,
        poset.chains,
        poset.paths,
        poset.length,
        tuple(constants.norms.items()),
    )


def jacobian_bound(
    model: nn.Module, constants: NetworkConstants, example: Tensor, layer: str, radius: float
) -> JacobianBound:
    """Lemma 6: how large the derivative of the output by a layer's weight can be, on a ball around 0.

    As an operator from the weight, in the Frobenius norm, to the output. Printed is the radius times Lemma 5's bound
    (50). That ignores biases, by which a layer's input can be large where the network's is 0, and that a convolution's
    weight acts at many positions. Corrected: the sum over the paths from the layer to the output, times the largest
    norm of the layer's input, times the root of how often a kernel meets one input.

    Args:
        model: the network; it is left as it is.
        constants: the network's.
        example: an input with a batch dimension, for its shape.
        layer: a module, `nn.Linear` or a convolution, which runs once.
        radius: of the ball that all inputs lie in, in the Euclidean norm of one sample.

    Raises:
        ValueError: the layer is no such module.
    """
    _require_radius(radius)
    poset = constants.poset
    name = poset.one(layer)
    bound = lipschitz_bound(constants)
    inside = _largest_inputs(model, constants, example, [name], radius)[name]
    return JacobianBound(name, math.log(radius) + bound.printed, _derivative(model, constants, name, inside))


def wasserstein_constant(
    model: nn.Module, constants: NetworkConstants, example: Tensor, negated: Selection, layer: str, radius: float
) -> WassersteinConstant:
    """Theorem 6's A of a layer: the Wasserstein distance of the laws of its Jacobian is at most A times a total
    variation.

    Printed, for a layer after the negated ones (58): ``2 sup|x| Lambda max(...)^len`` of the layers after them, and for
    the others (62) without the 2, of all layers. Right is twice a bound of the derivative (Lemma 4, not 3). After the
    negated layers, the subnetwork's inputs are these layers' outputs, so that their norm counts, not the input's.

    Args:
        model, constants, example, layer, radius: as of `jacobian_bound`.
        negated: the negated layers, modules too.

    Raises:
        ValueError: the negated layers are no Cauchy domain by paths, so that the network does not factorise through
            them; or one of the layers is no such module.
    """
    _require_radius(radius)
    poset = constants.poset
    name, chosen = poset.one(layer), poset.select(negated)
    if not poset.is_cauchy_by_paths(chosen):
        raise ValueError(
            f"{', '.join(chosen)} is no Cauchy domain by paths: some path goes around it or meets it twice, and "
            "Theorem 6 does not apply; add the layers that run beside it"
        )
    bound, higher = lipschitz_bound(constants), poset.above(chosen)
    above = name in higher
    steepest = max(bound.activations + bound.weights, 0.0)
    if above:
        chains, length = poset.within(higher)
        printed = math.log(2 * radius * chains) + length * steepest
        inside = _largest_input_after(model, constants, example, chosen, name, radius)
    else:
        printed = math.log(radius) + bound.printed
        inside = _largest_inputs(model, constants, example, [name], radius)[name]
    return WassersteinConstant(name, above, printed, math.log(2) + _derivative(model, constants, name, inside))


class _NoConstantError(Exception):
    """An operation without a Lipschitz constant; the text says why."""


def _constants(node: Node, graph: Graph, state: Mapping[str, Tensor], seed: int) -> tuple[float, ...]:
    """The constants of an operation in each of its inputs, no logarithms."""
    if node.op in _SAME_VALUES:
        return tuple(_broadcast(node, graph.nodes[source]) for source in node.inputs)
    if node.op in ("add", "sub", "rsub"):
        return tuple(
            (abs(_number(node, "alpha", 1.0)) if role == ("self" if node.op == "rsub" else "other") else 1.0)
            * _broadcast(node, graph.nodes[source])
            for source, role in zip(node.inputs, node.roles, strict=True)
        )
    if not node.inputs:
        return ()
    if node.op == "scaled_dot_product_attention":
        raise _NoConstantError("softmax attention grows with its input: no constant holds on the whole space")
    if len(node.inputs) > 1:
        raise _NoConstantError("a product of what depends on the input twice has none on the whole space")
    source = graph.nodes[node.inputs[0]]
    return (_constant(node, source, state, seed),)


def _constant(node: Node, source: Node, state: Mapping[str, Tensor], seed: int) -> float:
    """Of an operation with one input."""
    if node.op in ACTIVATIONS:
        return ACTIVATIONS[node.op]
    if node.op == "threshold":
        return _threshold(node)
    if node.op in ("leaky_relu", "prelu"):
        slope = _largest(node, "weight", state) if node.op == "prelu" else abs(_number(node, "negative_slope", 0.01))
        return max(1.0, slope)
    if node.op == "elu":
        scale = abs(_number(node, "scale", 1.0))
        return scale * max(1.0, abs(_number(node, "alpha", 1.0) * _number(node, "input_scale", 1.0)))
    if node.op in ("mul", "div"):
        return _factor(node, state) * _broadcast(node, source)
    running = node.op == "instance_norm" and not node.arguments.get("use_input_stats")
    if running or node.op in ("batch_norm", "_native_batch_norm_legit_no_training"):
        return _batch_norm(node, state)
    if node.op in ("layer_norm", "native_layer_norm", "group_norm", "instance_norm", "rms_norm"):
        return _normalisation(node, state)
    if node.op in ("mean", "sum"):
        many = math.prod(source.shape) / math.prod(node.shape)
        return math.sqrt(1 / many if node.op == "mean" else many)
    if node.op in ("expand", "repeat"):
        return _broadcast(node, source)
    if node.op == "pad" and node.arguments.get("mode") == "constant":  # the others repeat what they find at the border
        return 1.0
    if node.op in _MAXIMA:  # each output follows the largest change, and each input is in so many windows
        return math.sqrt(_windows(node, "kernel_size"))
    if node.op in _AVERAGES or node.op.startswith("upsample"):
        channel = (1, 1, *source.shape[2:])
        return operator_norm(lambda x: _applied(node, x, state), _like(channel, state), seed=seed)
    if node.op in _CONVOLUTIONS:
        weight = _tensor(node, "weight", state)
        one = (1, *source.shape[-weight.ndim + 1 :])
        return operator_norm(lambda x: _applied(node, x, state), weight.new_zeros(one), seed=seed)
    if node.op in ("linear", "matmul", "mm", "addmm"):
        matrix = _tensor(node, "weight", state) if node.op == "linear" else _factor_matrix(node, state)
        if matrix.ndim == 2:
            return float(torch.linalg.matrix_norm(matrix, 2))
    raise _NoConstantError("none is known")


def _applied(node: Node, x: Tensor, state: Mapping[str, Tensor]) -> Tensor:
    """The linear part of an operation."""
    given = {role: state[name] for role, name in node.tensors.items() if role != "bias"}
    operation = getattr(torch.ops.aten, node.op)
    result: Tensor = operation(
        **{node.roles[0]: x}, **given, **{k: v for k, v in node.arguments.items() if k != "bias"}
    )
    return result


def _tensor(node: Node, role: str, state: Mapping[str, Tensor]) -> Tensor:
    if role not in node.tensors:
        raise _NoConstantError("its weight is computed from others: remove the parametrization first")
    return state[node.tensors[role]]


def _factor_matrix(node: Node, state: Mapping[str, Tensor]) -> Tensor:
    """Of a product of matrices, the one that does not depend on the input; the graph knows it if it is taken as it is.

    What is computed, a transpose too, is left out of the graph: only the parameters that it is made of are known.
    """
    roles = ({"mat1", "mat2"} if node.op == "addmm" else {"self", "other", "mat2"}) & set(node.tensors)
    if not roles:
        raise _NoConstantError("its matrix is computed: of x @ w.T make linear(x, w), keep others as a parameter")
    return _tensor(node, roles.pop(), state)


def _threshold(node: Node) -> float:
    at, value = _number(node, "threshold", math.nan), _number(node, "value", math.nan)
    if at != value:
        raise _NoConstantError(f"it jumps from {value:g} to {at:g} and has none")
    return 1.0


def _largest(node: Node, role: str, state: Mapping[str, Tensor]) -> float:
    """The largest absolute value of a parameter; 1 if it is left out."""
    if node.arguments.get(role, "") is None:
        return 1.0
    return float(_tensor(node, role, state).abs().max())


def _factor(node: Node, state: Mapping[str, Tensor]) -> float:
    """What a product or quotient multiplies its input by at most."""
    other = "other" if node.roles[0] == "self" else "self"
    value = node.arguments.get(other)
    if isinstance(value, (bool, int, float)):
        smallest = largest = abs(float(value))
    elif other in node.tensors:
        values = state[node.tensors[other]].double().abs()
        smallest, largest = float(values.min()), float(values.max())
    else:
        raise _NoConstantError("what it multiplies by is computed from other parameters")
    if node.op == "mul":
        return largest
    if other == "self" or smallest == 0:
        raise _NoConstantError("it divides by what can be 0")
    return 1 / smallest


def _batch_norm(node: Node, state: Mapping[str, Tensor]) -> float:
    if "running_var" not in node.tensors:
        raise _NoConstantError("it has no running statistics")
    spread = (_tensor(node, "running_var", state) + _number(node, "eps", 1e-5)).sqrt()
    weight = state[node.tensors["weight"]] if "weight" in node.tensors else torch.ones_like(spread)
    return float((weight.abs() / spread).max())


def _normalisation(node: Node, state: Mapping[str, Tensor]) -> float:
    """Steepest where all values are alike: there the derivative is the weight over the square root of ``eps``."""
    eps = _number(node, "eps", torch.finfo(torch.float32).eps)  # RMSNorm's own, if it is told none
    if eps <= 0:
        raise _NoConstantError("with eps = 0 it is infinitely steep where the variance is 0")
    return _largest(node, "weight", state) / math.sqrt(eps)


def _broadcast(node: Node, source: Node) -> float:
    """How much longer an input becomes by being repeated along other dimensions."""
    if not node.shape or not source.shape:
        return 1.0
    return math.sqrt(max(math.prod(node.shape) / math.prod(source.shape), 1.0)) if _repeats(node, source) else 1.0


def _repeats(node: Node, source: Node) -> bool:
    return node.op in ("expand", "repeat", "add", "sub", "rsub", "mul", "div", "maximum", "minimum")


def _windows(node: Node, kernel: str) -> float:
    """In how many windows of a kernel one input lies at most."""
    sizes = _sizes(node.arguments[kernel])
    strides = _sizes(node.arguments.get("stride")) or sizes
    dilations = _sizes(node.arguments.get("dilation")) or (1,)
    return _meetings(sizes, strides, dilations)


def _meetings(sizes: Sequence[int], strides: Sequence[int], dilations: Sequence[int]) -> float:
    found = 1
    for place, size in enumerate(sizes):
        stride, dilation = strides[place % len(strides)], dilations[place % len(dilations)]
        found *= -(-size // (stride // math.gcd(stride, dilation)))
    return float(found)


def _sizes(value: object) -> tuple[int, ...]:
    if isinstance(value, int):
        return (value,)
    return tuple(int(one) for one in value) if isinstance(value, tuple) else ()


def _number(node: Node, name: str, default: float) -> float:
    value = node.arguments.get(name)
    return float(value) if isinstance(value, (int, float)) else default


def _like(shape: Sequence[int], state: Mapping[str, Tensor]) -> Tensor:
    device = next(iter(state.values())).device
    return torch.zeros(tuple(shape), dtype=torch.float64, device=device)


def _place(graph: Graph, node: Node) -> str:
    """After which layer an operation stands, for people."""
    waiting = list(node.inputs)
    while waiting:
        before = graph.nodes[waiting.pop(0)]
        if before.layer:
            return f"after {before.layer}"
        waiting += before.inputs
    return f"in {node.layer}" if node.layer else "at the input"


def _log_sum(logs: Iterable[float]) -> float:
    return float(np.logaddexp.reduce([-math.inf, *logs]))


def _between(constants: NetworkConstants) -> tuple[float, float]:
    """The largest constants of what lies between two layers or behind the last, and before the first."""
    after: list[float] = []  # by node: since the last layer
    before: list[float] = []  # by node: since the input, without a layer
    largest = first = -math.inf
    for node, logs in zip(constants.graph.nodes, constants.logs, strict=True):
        since = [0.0 if constants.graph.nodes[source].layer else after[source] for source in node.inputs]
        start = [-math.inf if constants.graph.nodes[source].layer else before[source] for source in node.inputs]
        if node.layer or node.op == "output":
            largest, first = max([largest, *since]), max([first, *start])
        if node.op == "placeholder":
            after.append(-math.inf)
            before.append(0.0)
        else:
            after.append(max(map(sum, zip(since, logs, strict=True)), default=-math.inf))
            before.append(max(map(sum, zip(start, logs, strict=True)), default=-math.inf))
    return largest, first


def _steps_of_chains(poset: LayerPoset, norms: Mapping[str, float]) -> list[_Step]:
    places = {layer: place for place, layer in enumerate(sorted(poset.layers, key=poset.heights.__getitem__))}
    lower: dict[str, list[int]] = {layer: [] for layer in places}
    for below, layer in poset.covers:
        lower[layer].append(places[below])
    return [(lower[layer], norms[layer], layer in poset.maximal) for layer in places]


def _steps_of_paths(graph: Graph, norms: Mapping[str, float]) -> list[_Step]:
    return [(list(node.inputs), norms[node.layer] if node.layer else None, node.op == "output") for node in graph.nodes]


def _largest_mean(steps: Sequence[_Step]) -> float:
    """The largest mean of the norms' logarithms along any way; a step is what comes before it, its norm, and whether
    ways end there. For each number of layers the best sum is kept, since means cannot be compared halfway."""
    best: list[dict[int, float]] = []
    means = [-math.inf]
    for before, norm, ends in steps:
        here: dict[int, float] = {} if before else {0: 0.0}
        for place in before:
            for count, total in best[place].items():
                here[count] = max(here.get(count, -math.inf), total)
        if norm is not None:
            here = {count + 1: total + norm for count, total in here.items()}
        best.append(here)
        if ends:
            means += (total / count for count, total in here.items() if count)
    return max(means)


def _require_radius(radius: float) -> None:
    if not 0 < radius < math.inf:
        raise ValueError(f"a domain's radius is a positive number, not {radius}: Lemma 6 wants it bounded")


def _module(model: nn.Module, layer: str) -> nn.Linear | _ConvNd:
    try:
        module = unwrap(model).get_submodule(layer)
    except AttributeError:
        module = None
    if not isinstance(module, (nn.Linear, _ConvNd)):
        raise ValueError(f"{layer} is no linear or convolution module, whose input could be seen: name one that is")
    return module


def _node_of(constants: NetworkConstants, layer: str) -> Node:
    nodes = [node for node in constants.graph.nodes if node.layer == layer]
    if len(nodes) > 1:
        raise ValueError(f"{layer} runs {len(nodes)} times, and the lemma is of untied weights: name another layer")
    return nodes[0]


def _derivative(model: nn.Module, constants: NetworkConstants, layer: str, inside: float) -> float:
    """The corrected bound of the derivative, from the largest norm of the layer's input."""
    node, module = _node_of(constants, layer), _module(model, layer)
    meetings = 1.0
    if isinstance(module, _ConvNd):
        sizes, dilations = module.kernel_size, module.dilation
        strides = (1,) * len(sizes) if module.transposed else module.stride
        meetings = _meetings(sizes, strides, dilations)
    return constants.to_output()[node.index] + 0.5 * math.log(meetings) + _log(inside)


def _largest_inputs(
    model: nn.Module, constants: NetworkConstants, example: Tensor, layers: Sequence[str], radius: float
) -> dict[str, float]:
    """How long a layer's input can be on the ball: as long as at 0, and the Lipschitz constant times the radius."""
    at_zero = _seen(model, example, layers, {})
    grown = constants.to_nodes(lambda node: node.op == "placeholder")
    return {
        layer: at_zero[layer][0] + radius * math.exp(grown[_node_of(constants, layer).inputs[0]]) for layer in layers
    }


def _largest_input_after(
    model: nn.Module,
    constants: NetworkConstants,
    example: Tensor,
    negated: Sequence[str],
    layer: str,
    radius: float,
) -> float:
    """The same for a layer after the negated ones, as a function of their outputs, be these Y or -Y."""
    grown = constants.to_nodes(lambda node: node.op == "placeholder")
    at_zero = _seen(model, example, negated, {})
    lengths = [at_zero[one][1] + radius * math.exp(grown[_node_of(constants, one).index]) for one in negated]
    weights = {f"{one}.weight" for one in negated}
    silenced = weights | {bias for bias in map(bias_of, weights) if bias}
    without = _seen(model, example, [layer], dict.fromkeys(silenced, 0.0))[layer][0]
    after = constants.to_nodes(lambda node: node.layer in negated)
    return without + math.hypot(*lengths) * math.exp(after[_node_of(constants, layer).inputs[0]])


def _seen(
    model: nn.Module, example: Tensor, layers: Sequence[str], fixed: Mapping[str, float]
) -> dict[str, tuple[float, float]]:
    """The norms of these modules' inputs and outputs where the network's input is 0, some parameters being fixed."""
    still = in_evaluation(unwrap(model))
    found: dict[str, tuple[float, float]] = {}

    def watch(layer: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            found[layer] = (float(inputs[0].double().norm()), float(output.double().norm()))

        return hook

    for layer in layers:
        _module(still, layer).register_forward_hook(watch(layer))
    tensors = [*still.named_parameters(), *still.named_buffers()]
    state = {name: torch.full_like(tensor, fixed[name]) if name in fixed else tensor for name, tensor in tensors}
    with torch.no_grad():
        functional_call(still, state, (torch.zeros_like(example[:1]).to(tensors[0][1].device),))
    return found


def _log(value: float) -> float:
    return math.log(value) if value > 0 else -math.inf
