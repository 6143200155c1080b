"""A network as a graph of operations: what reads what, which operations are layers, and with what arguments."""

from __future__ import annotations

import copy
import io
import logging
import operator
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import InputKind, OutputKind
from torch.func import functional_call, functionalize
from torch.fx.experimental.proxy_tensor import make_fx

from fedunlearn.weights import unwrap

__all__ = ["Graph", "Node", "graph_of", "in_evaluation"]

_MULTIPLIES: Mapping[str, frozenset[str]] = {
    **dict.fromkeys(
        (f"conv{transposed}{d}d" for transposed in ("", "_transpose") for d in (1, 2, 3)), frozenset({"weight"})
    ),
    **dict.fromkeys(("linear", "bilinear", "embedding", "embedding_bag"), frozenset({"weight"})),
    **dict.fromkeys(("matmul", "dot"), frozenset({"self", "other", "tensor"})),
    **dict.fromkeys(("mm", "bmm", "mv"), frozenset({"self", "mat2", "vec"})),
    **dict.fromkeys(("addmm", "addmv", "baddbmm"), frozenset({"mat1", "mat2", "batch1", "batch2", "mat", "vec"})),
    **dict.fromkeys(("einsum", "tensordot"), frozenset({"tensors", "self", "other"})),
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), frozenset({"params"})),
    **dict.fromkeys(("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"), frozenset({"w_ih", "w_hh"})),
}
"""Operations that are layers where one of these arguments is made of parameters: they mix what they read."""

_SCALES = frozenset({"mul", "div"})
"""Operations whose parameter multiplies element by element, and so is no constant that is added."""

_PARAMETER_ROLES = frozenset({"weight", "bias", "running_mean", "running_var", "params", "b_ih", "b_hh"})
"""Arguments that belong to an operation: what stands there never is a branch of its own."""

_OF_THE_SHAPE = frozenset(
    {"zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like"}
    | {"new_zeros", "new_ones", "new_full", "new_empty", "sym_size", "sym_numel", "sym_stride"}
)
"""Operations on a tensor whose result does not depend on its values."""


@dataclass(frozen=True)
class Node:
    """One operation.

    Attributes:
        index: its place in `Graph.nodes`.
        op: the operation's name in torch's schema, without namespace, overload and the underscore of in-place
            variants: ``conv2d``, ``linear``, ``relu``, ``add``; ``placeholder`` is an input of the network, ``output``
            what it returns, ``parameter`` a parameter that is a branch of its own.
        inputs: the operations that it reads, one for each time it reads them: ``x + x`` reads x twice.
        roles: for each of ``inputs``, the schema's name of the argument.
        parameters: the names of all parameters that it takes, directly or after something was computed of them.
        weights: those of ``parameters`` that it multiplies its input by, if it is a layer.
        layer: if it is a layer, the name of the module whose ``weight`` it is (``conv1``), else the weight's
            (``self_attention.in_proj_weight``); empty for all others.
        shape: of its result, with the batch dimension; empty for a scalar and for several results.
        arguments: its other arguments by the schema's names: numbers, texts, tuples of numbers, None.
        tensors: argument -> the parameter or buffer that stands there as it is.
    """

    index: int
    op: str
    inputs: tuple[int, ...] = ()
    roles: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()
    weights: tuple[str, ...] = ()
    layer: str = ""
    shape: tuple[int, ...] = ()
    arguments: Mapping[str, object] = field(default_factory=dict)
    tensors: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Graph:
    """The operations of a network that depend on its input and that its output depends on.

    Attributes:
        nodes: in topological order; the last is the output.
    """

    nodes: tuple[Node, ...]

    @cached_property
    def _consumers(self) -> tuple[tuple[int, ...], ...]:
        found: list[list[int]] = [[] for _ in self.nodes]
        for node in self.nodes:
            for source in node.inputs:
                found[source].append(node.index)
        return tuple(map(tuple, found))

    def consumers(self, index: int) -> tuple[int, ...]:
        """The operations that read this one, one for each time they read it."""
        return self._consumers[index]

    @property
    def layers(self) -> tuple[str, ...]:
        """The names of the layers, in the order in which they run, each once."""
        return tuple(dict.fromkeys(node.layer for node in self.nodes if node.layer))

    def path_count(self) -> int:
        """The number of paths from an input (or a parameter that is a branch of its own) to the output.

        Two arguments of one operation that come from the same node are two paths.
        """
        paths: list[int] = []
        for node in self.nodes:
            paths.append(sum(paths[source] for source in node.inputs) if node.inputs else 1)
        return paths[-1] if self.nodes[-1].inputs else 0


def graph_of(model: nn.Module, example: Tensor | tuple[object, ...], *, constants: bool = False) -> Graph:
    """The graph of a network in evaluation mode, as `torch.export` sees it: nothing is computed.

    A network that cannot be exported, for its forward looks at values, is run once on the example, and the graph is
    of that run (`make_fx`). A network whose parameters are on the meta device costs neither memory nor arithmetic.

    In-place operations are told apart from what they overwrite. A module that is called twice gives two nodes of one
    layer. What is computed of parameters alone is left out: it belongs to the operation that takes it.

    Args:
        model: the network; it is left as it is.
        example: an input with a batch dimension, or all positional arguments; moved to the network's device.
        constants: parameters that are added to what comes from the input, or put beside it, are nodes, and layers,
            too: a ViT's class token and position embedding.

    Raises:
        ValueError: the network neither exports nor runs on the example, or its output does not depend on the input.
    """
    model = unwrap(model)
    arguments = _on_device(model, example if isinstance(example, tuple) else (example,))
    still = in_evaluation(model)
    with _quietly(), _unfused(), torch.no_grad(), torch.random.fork_rng(devices=[]):
        try:
            traced = _exported(still, arguments)
        except Exception as refusal:  # the user's forward may fail in any way while it is traced
            try:
                traced = _run(still, arguments)
            except Exception as error:
                raise ValueError(
                    f"the network has no graph: it does not export ({_first_line(refusal)}) and does not run on the "
                    f"example ({_first_line(error)}): give an example that its forward takes"
                ) from error
    return _graph(model, traced, constants)


@dataclass(frozen=True)
class _Traced:
    """A graph of torch's, and what its placeholders and outputs stand for."""

    graph: fx.Graph
    names: Mapping[str, str]  # placeholder -> parameter or buffer
    data: frozenset[str]  # placeholders that are the user's inputs
    outputs: tuple[fx.Node, ...]


def _exported(model: nn.Module, arguments: tuple[object, ...]) -> _Traced:
    program = torch.export.export(model, arguments, strict=False)
    if _overwrites(program.graph):
        program = program.run_decompositions({})  # decomposes nothing, but tells values apart
    _require_operations(program.graph)
    signature = program.graph_signature
    state = (InputKind.PARAMETER, InputKind.BUFFER)
    names = {
        spec.arg.name: spec.target for spec in signature.input_specs if spec.kind in state and spec.target is not None
    }
    data = frozenset(
        spec.arg.name
        for spec in signature.input_specs
        if spec.kind is InputKind.USER_INPUT and isinstance(getattr(spec.arg, "name", None), str)
    )
    wanted = [spec.kind is OutputKind.USER_OUTPUT for spec in signature.output_specs]
    told = next(node for node in program.graph.nodes if node.op == "output").args[0]
    assert isinstance(told, tuple)
    outputs = tuple(
        node for node, is_wanted in zip(told, wanted, strict=True) if is_wanted and isinstance(node, fx.Node)
    )
    return _Traced(program.graph, names, data, outputs)


def _run(model: nn.Module, arguments: tuple[object, ...]) -> _Traced:
    """The operations of one run on the example, in which every `if` goes one way."""
    state = dict(model.named_parameters()) | dict(model.named_buffers())
    places = [place for place, value in enumerate(arguments) if isinstance(value, Tensor)]

    def call(*tensors: Tensor) -> object:
        given = list(arguments)
        for place, tensor in zip(places, tensors[len(state) :], strict=True):
            given[place] = tensor
        return functional_call(model, dict(zip(state, tensors, strict=False)), tuple(given))

    values = [value.detach().clone() for value in state.values()]  # a forward may write to its buffers
    inputs = [arguments[place] for place in places]
    graph = _traced_on(call, [*values, *inputs])
    if _overwrites(graph):
        graph = _traced_on(functionalize(call), [*values, *inputs])
    _require_operations(graph)
    placeholders = [node.name for node in graph.nodes if node.op == "placeholder"]
    names = dict(zip(placeholders, state, strict=False))
    told = next(node for node in graph.nodes if node.op == "output").all_input_nodes
    return _Traced(graph, names, frozenset(placeholders[len(state) :]), tuple(told))


def _traced_on(call: Callable[..., object], tensors: Sequence[object]) -> fx.Graph:
    tracer = make_fx(call, pre_dispatch=True, tracing_mode="real", _error_on_data_dependent_ops=False)
    return tracer(*tensors).graph


def _overwrites(graph: fx.Graph) -> bool:
    """Whether an in-place operation may change what another operation reads."""
    places = {node: place for place, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        schema = getattr(node.target, "_schema", None)
        if schema is None or not schema.is_mutable or (_name(node) == "dropout" and node.args[-1] is False):
            continue
        changed = node.args[0] if node.args else None
        if not isinstance(changed, fx.Node) or _is_view(changed):
            return True
        if any(places[user] > places[node] or _is_view(user) for user in changed.users if user is not node):
            return True
    return False


def _is_view(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    if schema is None or schema.is_mutable:
        return False
    return any(result.alias_info is not None for result in schema.returns)


def _require_operations(graph: fx.Graph) -> None:
    """Refuse subgraphs (conditions, checkpoints, loops), in which layers would be hidden."""
    for node in graph.nodes:
        if node.op == "call_function" and not (_schema(node) or node.target is operator.getitem):
            raise ValueError(f"{node.target} holds a graph of its own")


def _graph(model: nn.Module, traced: _Traced, constants: bool) -> Graph:
    names = _canonical(model)
    named = {place: names.get(name, name) for place, name in traced.names.items()}
    parameters = dict(model.named_parameters())
    data: set[fx.Node] = set()
    made_of: dict[fx.Node, tuple[str, ...]] = {}  # what is computed of parameters alone -> these
    for node in traced.graph.nodes:
        if node.op == "placeholder":
            if node.name in traced.data:
                data.add(node)
            made_of[node] = (named[node.name],) if named.get(node.name) in parameters else ()
        elif node.op == "call_function":
            if not data.isdisjoint(node.all_input_nodes) and _name(node) not in _OF_THE_SHAPE:
                data.add(node)
            made = (name for source in node.all_input_nodes for name in made_of.get(source, ()))
            made_of[node] = tuple(dict.fromkeys(made)) if node not in data else ()
    branches = _branches(data, made_of) if constants else set()
    kept = _reached(traced.outputs, data | branches)
    if data.isdisjoint(kept):
        raise ValueError("the network's output does not depend on its input: there is no path to follow")
    numbers: dict[fx.Node, int] = {}
    nodes: list[Node] = []
    for node in traced.graph.nodes:
        if node in kept:
            numbers[node] = len(nodes)
            nodes.append(_node(node, len(nodes), numbers, made_of, named, parameters))
    inputs = tuple(numbers[node] for node in traced.outputs if node in numbers)
    nodes.append(Node(len(nodes), "output", inputs, ("output",) * len(inputs)))
    return Graph(tuple(nodes))


def _node(
    node: fx.Node,
    index: int,
    numbers: Mapping[fx.Node, int],
    made_of: Mapping[fx.Node, tuple[str, ...]],
    named: Mapping[str, str],
    parameters: Mapping[str, nn.Parameter],
) -> Node:
    shape = _shape(node)
    if node.op == "placeholder":
        name = named.get(node.name, "")
        layer = (name,) if name in parameters else ()
        return Node(index, "parameter" if layer else "placeholder", (), (), layer, layer, name, shape)
    name = _name(node)
    inputs: list[int] = []
    roles: list[str] = []
    own: list[str] = []
    weights: list[str] = []
    arguments: dict[str, object] = {}
    tensors: dict[str, str] = {}
    for role, value in _bound(node):
        read = list(_nodes_in(value))
        for source in read:
            if source in numbers:
                inputs.append(numbers[source])
                roles.append(role)
            own += made_of.get(source, ())
            if role in _MULTIPLIES.get(name, ()):
                weights += (one for one in made_of.get(source, ()) if parameters[one].ndim > 1)
            if source is value and source.name in named:
                tensors[role] = named[source.name]
        if not read and _is_plain(value):
            arguments[role] = _plain(value)
    weights = list(dict.fromkeys(weights)) if inputs else []
    return Node(
        index,
        name,
        tuple(inputs),
        tuple(roles),
        tuple(dict.fromkeys(own)),
        tuple(weights),
        _layer(weights),
        shape,
        arguments,
        tensors,
    )


def _branches(data: set[fx.Node], made_of: Mapping[fx.Node, tuple[str, ...]]) -> set[fx.Node]:
    """What is computed of parameters alone and then added to, or put beside, what comes from the input."""
    found: set[fx.Node] = set()
    for node in data:
        name = _name(node)
        if name in _SCALES:
            continue
        for role, value in _bound(node):
            if role in _PARAMETER_ROLES or role in _MULTIPLIES.get(name, ()):
                continue
            found.update(source for source in _nodes_in(value) if made_of.get(source))
    for node in list(found):
        found |= _reached((node,), {other for other, made in made_of.items() if made})
    return found


def _reached(ends: Sequence[fx.Node], among: set[fx.Node]) -> set[fx.Node]:
    """The nodes of ``among`` that lead to these ends through nodes of ``among``."""
    found: set[fx.Node] = set()
    waiting = [node for node in ends if node in among]
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += [source for source in node.all_input_nodes if source in among]
    return found


def _layer(weights: Sequence[str]) -> str:
    """``conv1`` of ``conv1.weight`` and of whatever this is computed from; other weights are called as they are."""
    if not weights:
        return ""
    owners = {name.split(".parametrizations.")[0] for name in weights}
    if len(owners) == 1 and ".parametrizations." in weights[0]:
        return owners.pop()
    owners = {name.rpartition(".")[0] for name in weights}
    if len(weights) == 1:
        return owners.pop() if weights[0].endswith(".weight") else weights[0]
    return owners.pop() if len(owners) == 1 and owners != {""} else "+".join(weights)


def _bound(node: fx.Node) -> Iterator[tuple[str, object]]:
    """The arguments of an operation by the schema's names, defaults too."""
    schema = _schema(node)
    if schema is None:
        yield from zip(("self", "index"), node.args, strict=False)
        return
    for place, argument in enumerate(schema.arguments):
        if place < len(node.args):
            yield argument.name, node.args[place]
        else:
            yield argument.name, node.kwargs.get(argument.name, argument.default_value)


def _nodes_in(value: object) -> Iterator[fx.Node]:
    if isinstance(value, fx.Node):
        yield value
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _nodes_in(one)


def _is_plain(value: object) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))


def _plain(value: object) -> object:
    return tuple(map(_plain, value)) if isinstance(value, (list, tuple)) else value


def _schema(node: fx.Node) -> torch.FunctionSchema | None:
    schema = getattr(node.target, "_schema", None)
    return schema if isinstance(schema, torch.FunctionSchema) else None


def _name(node: fx.Node) -> str:
    schema = _schema(node)
    if schema is None:
        return getattr(node.target, "__name__", str(node.target))
    name = str(schema.name).rpartition("::")[2]
    return name.removesuffix("_") if schema.is_mutable else name


def _shape(node: fx.Node) -> tuple[int, ...]:
    value = node.meta.get("val")
    if value is None:
        value = node.meta.get("tensor_meta")
    shape = getattr(value, "shape", ())
    return tuple(int(size) for size in shape)


def _canonical(model: nn.Module) -> dict[str, str]:
    """Every name of a tied tensor -> its first."""
    first: dict[int, str] = {}
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {name: first.setdefault(id(tensor), name) for name, tensor in tensors}


def _on_device(model: nn.Module, arguments: tuple[object, ...]) -> tuple[object, ...]:
    device = next((parameter.device for parameter in model.parameters()), None)
    if device is None:
        return arguments
    return tuple(value.to(device) if isinstance(value, Tensor) else value for value in arguments)


def in_evaluation(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode that holds the same tensors: modules are copied, memory is not."""
    shared: dict[int, object] = {}
    for module in model.modules():
        held = [*vars(module).values(), *module._parameters.values(), *module._buffers.values()]
        shared |= {id(value): value for value in held if isinstance(value, Tensor)}
    return copy.deepcopy(model, shared).eval()


@contextmanager
def _unfused() -> Iterator[None]:
    """Attention as its single layers: the fused kernel of evaluation mode hides them."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


@contextmanager
def _quietly() -> Iterator[None]:
    """Without what torch prints of a network that it refuses: its whole graph."""
    logger = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:160]
