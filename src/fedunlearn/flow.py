"""How data flow through a network: which layer is met first, which normalisation reads which layer."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import NoneType

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

from fedunlearn.kinds import LAYER_KINDS, is_normalisation, kind_of

__all__ = ["Flow", "first_by_running", "in_order_of_registration", "trace"]

_PASSES_SIGN = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
"""Modules that turn -y into -(what they make of y) and keep the mean."""

_OPERATIONS = frozenset(
    {"conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"}
    | {"linear", "bilinear", "embedding", "embedding_bag", "einsum", "tensordot"}
    | {"matmul", "mm", "bmm", "mv", "addmm", "baddbmm"}
)
"""Functions that make a layer of a tensor which is a parameter."""

_OF_THE_SHAPE = frozenset(
    {"size", "dim", "ndimension", "numel", "nelement", "stride", "len", "get_device", "is_floating_point"}
    | {"zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like"}
    | {"new_zeros", "new_ones", "new_full", "new_empty", "new_tensor"}
)
"""Functions of a tensor whose result does not depend on its values."""

_RECTIFIERS = frozenset(
    {"relu", "relu_", "relu6", "leaky_relu", "leaky_relu_", "prelu", "rrelu", "rrelu_", "elu", "elu_", "celu", "celu_"}
    | {"selu", "selu_", "gelu", "silu", "mish", "softplus", "hardswish"}
)
"""Activations of which psi(x) and psi(-x) are alike neither in size nor in sign: neither odd, even nor sigmoid."""

_VALUES = frozenset({"T", "mT", "H", "mH", "data", "real", "imag"})
"""Attributes of a tensor that hold its values; all others (shape, dtype, device) only describe it."""


@dataclass(frozen=True)
class Flow:
    """What is known of a network's data flow.

    ``first``: the weights of the layer that is the first to run on the input; empty: unknown.
    ``readers``: weight -> the normalisation modules that read its layer's output directly.
    ``read``: normalisation module -> the weights of the layers it reads, a tuple for each of its calls; an
    empty tuple stands for anything that is no layer.
    ``pairs``: weights of two layers of which the first hands all its output to the second, along one path on which a
    rectifier lies, and of which the second is not the last; in the order in which they run.
    """

    first: tuple[str, ...] = ()
    readers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    read: Mapping[str, tuple[tuple[str, ...], ...]] = field(default_factory=dict)
    pairs: tuple[tuple[str, str], ...] = ()


def trace(model: nn.Module) -> Flow | None:
    """Follow the data through the network (``torch.fx``), computing nothing. None: it cannot be traced."""
    tracer = _Tracer()
    if tracer.is_leaf_module(model, ""):  # the network is itself one layer
        return Flow(_weights(model, ""))
    try:
        with _unchanged(model):
            graph = tracer.trace(model, _defaults(model))
    except Exception:  # a trace runs the user's forward on stand-ins, which may fail in any way
        return None
    return _follow(model, graph)


def in_order_of_registration(model: nn.Module) -> Flow:
    """For networks that cannot be traced: each normalisation reads the layer registered before it."""
    readers: dict[str, tuple[str, ...]] = {}
    read: dict[str, tuple[tuple[str, ...], ...]] = {}
    previous: tuple[str, ...] = ()
    channels = 0
    for name, module in model.named_modules():
        weights = _weights(module, name)
        if is_normalisation(module):
            if previous and getattr(module, "num_features", channels) == channels:
                readers |= dict.fromkeys(previous, (name,))
                read[name] = (previous,)
            previous = ()
        elif weights or not (any(True for _ in module.children()) or isinstance(module, _PASSES_SIGN)):
            previous = weights  # none after, say, an activation: what is normalised is no layer's output then
            channels = getattr(module, "out_channels", getattr(module, "out_features", 0))
    return Flow(readers=readers, read=read)


def first_by_running(model: nn.Module, example: object) -> tuple[str, ...]:
    """The weights of the first layer that reads the example, found by running the network on it.

    The network's parameters, buffers, gradients, modes and the random state of the CPU are as before. A layer
    counts if its input depends on the example: by autograd where the example is floating, else because it is
    the example (token numbers).

    Args:
        model: the network.
        example: an input: a tensor, a tuple of positional or a mapping of named arguments.

    Returns:
        The names, or nothing if no layer read the example.
    """
    positional, named = _arguments(example)
    inputs = [value for value in (*positional, *named.values()) if isinstance(value, Tensor)]
    found: list[tuple[str, ...]] = []
    handles = []
    for name, module in model.named_modules():
        weights = _weights(module, name) or _own_weight(module, name)
        if weights:
            handles.append(module.register_forward_pre_hook(_Watch(weights, inputs, found), with_kwargs=True))
    # Stand-ins: what then requires a gradient comes from the example, and no buffer is written to.
    state = {name: parameter.detach() for name, parameter in model.named_parameters()}
    state |= {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        with _unchanged(model), torch.enable_grad():
            for module in model.modules():
                module.training = False
            functional_call(model, state, positional, named)
    except _FoundError:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else ()


@contextmanager
def _unchanged(model: nn.Module) -> Iterator[None]:
    """Undo what a forward assigns to its modules (counters, caches, modes); keep the CPU's random state."""
    inner = ("_parameters", "_buffers", "_modules")
    tables = [vars(module) for module in model.modules()]
    tables += [table[name] for table in tables for name in inner if isinstance(table.get(name), dict)]
    before = [(table, dict(table)) for table in tables]
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        for table, content in before:
            table.clear()
            table.update(content)


class _FoundError(Exception):
    """Ends a run as soon as the first layer is known."""


@dataclass(frozen=True)
class _Watch:
    """A forward hook that notes the first layer to read the example."""

    weights: tuple[str, ...]
    inputs: Sequence[Tensor]
    found: list[tuple[str, ...]]

    def __call__(self, module: nn.Module, positional: tuple[object, ...], named: dict[str, object]) -> None:
        for value in (*positional, *named.values()):
            if isinstance(value, Tensor) and (value.requires_grad or any(value is x for x in self.inputs)):
                self.found.append(self.weights)
                raise _FoundError


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True  # else a forward that counts its calls in a buffer would count this one

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if isinstance(m, nn.MultiheadAttention):
            return True
        if any(True for _ in m.children()):
            return False  # torch's own blocks (TransformerEncoder) hold the layers that are looked for
        known = is_normalisation(m) or bool(_weights(m, module_qualified_name))
        return known or super().is_leaf_module(m, module_qualified_name)


def _defaults(model: nn.Module) -> dict[str, object] | None:
    """Optional arguments at their defaults, so that ``if mask is not None`` goes the usual way."""
    parameters = inspect.signature(model.forward).parameters.values()
    optional: dict[str, object] = {
        p.name: p.default for p in parameters if isinstance(p.default, (bool, int, float, str, NoneType))
    }
    return optional if len(optional) < len(parameters) else None


def _follow(model: nn.Module, graph: fx.Graph) -> Flow:
    modules = dict(model.named_modules())
    parameters = dict(model.named_parameters())
    data: set[fx.Node] = set()  # depends on the values of the input
    made_of: dict[fx.Node, frozenset[str]] = {}  # parameters that a value which is not data was made of
    outputs: dict[fx.Node, tuple[str, ...]] = {}  # the weights of the layer whose output this is
    layers: dict[fx.Node, tuple[str, ...]] = {}  # the weights of the layer that this is
    first: tuple[str, ...] = ()
    readers: dict[str, tuple[str, ...]] = {}
    read: dict[str, tuple[tuple[str, ...], ...]] = {}
    for node in graph.nodes:
        made = frozenset[str]().union(*(made_of.get(n, frozenset()) for n in node.all_input_nodes))
        if node.op == "placeholder":
            data.add(node)
        elif node.op == "get_attr":
            made_of[node] = frozenset({str(node.target)} & parameters.keys())
        elif data.isdisjoint(node.all_input_nodes) or _describes(node):
            made_of[node] = made
        else:
            data.add(node)
            source = next((n for n in node.all_input_nodes if n in data), None)
            before = outputs.get(source, ()) if source is not None else ()
            module = modules.get(str(node.target)) if node.op == "call_module" else None
            if module is not None and is_normalisation(module):
                name = str(node.target)
                read[name] = (*read.get(name, ()), before)
                for weight in before:
                    readers[weight] = tuple(dict.fromkeys((*readers.get(weight, ()), name)))
            elif isinstance(module, _PASSES_SIGN):
                outputs[node] = before
            else:
                if module is not None:
                    weights = _weights(module, str(node.target))
                elif _operation(node) in _OPERATIONS:
                    weights = tuple(n for n, p in parameters.items() if n in made and p.ndim > 1)
                else:
                    weights = ()
                outputs[node] = weights
                if weights:
                    layers[node] = weights
            first = first or outputs.get(node, ())
    return Flow(first, readers, read, tuple(_pairs(modules, layers, data)))


def _pairs(
    modules: Mapping[str, nn.Module], layers: Mapping[fx.Node, tuple[str, ...]], data: set[fx.Node]
) -> Iterator[tuple[str, str]]:
    """See `Flow.pairs`."""
    calls = list(layers.values())
    for node, weights in layers.items():
        rectified = False
        following = [user for user in node.users if user in data]
        while len(following) == 1 and sum(source in data for source in following[0].all_input_nodes) == 1:
            (node,) = following
            if node in layers:
                both = weights, layers[node]
                once = all(len(one) == 1 and calls.count(one) == 1 for one in both)
                if rectified and once and _leads_to(node, layers):
                    yield weights[0], layers[node][0]
                break
            module = modules.get(str(node.target)) if node.op == "call_module" else None
            operation = _operation(node) if module is None else type(module).__name__.lower()
            rectified = rectified or operation in _RECTIFIERS
            following = [user for user in node.users if user in data]


def _leads_to(node: fx.Node, layers: Mapping[fx.Node, tuple[str, ...]]) -> bool:
    """Whether another layer reads what becomes of a node's output."""
    waiting, seen = list(node.users), set[fx.Node]()
    while waiting:
        user = waiting.pop()
        if user in layers:
            return True
        if user not in seen:
            seen.add(user)
            waiting += user.users
    return False


def _describes(node: fx.Node) -> bool:
    """Whether a node says something of its input (a shape, a type) rather than carrying its values."""
    operation = _operation(node)
    if operation == "getattr":
        return node.args[1] not in _VALUES
    return operation in _OF_THE_SHAPE


def _operation(node: fx.Node) -> str:
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")


def _weights(module: nn.Module, name: str) -> tuple[str, ...]:
    """What a layer multiplies its input with: its weight, or a recurrent one's input projections."""
    prefix = f"{name}." if name else ""
    own = {attribute: kind_of(module, attribute, p) for attribute, p in module.named_parameters(recurse=False)}
    weights = tuple(prefix + attribute for attribute, kind in own.items() if kind in LAYER_KINDS)
    if isinstance(module, nn.RNNBase):
        return tuple(weight for weight in weights if weight.removeprefix(prefix).startswith("weight_ih_l0"))
    if isinstance(module, nn.RNNCellBase):
        return (f"{prefix}weight_ih",)
    return weights


def _own_weight(module: nn.Module, name: str) -> tuple[str, ...]:
    """The matrix of a module of the user's own, which a run cannot look into."""
    weight = module._parameters.get("weight")
    if weight is None or weight.ndim < 2 or is_normalisation(module):
        return ()
    return (f"{name}.weight" if name else "weight",)


def _arguments(example: object) -> tuple[tuple[object, ...], dict[str, object]]:
    """Positional and named arguments, floating tensors as new leaves that require a gradient."""
    if isinstance(example, Mapping):
        return (), {str(name): _watched(value) for name, value in example.items()}
    return tuple(_watched(value) for value in (example if isinstance(example, tuple) else (example,))), {}


def _watched(value: object) -> object:
    if not isinstance(value, Tensor):
        return value
    copy = value.detach().clone()
    return copy.requires_grad_() if copy.is_floating_point() else copy
