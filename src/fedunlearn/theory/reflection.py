"""Where the sign of a negated layer goes: through which operations, into which layers, and where it is stuck."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from fedunlearn.theory.graph import Graph, Node
from fedunlearn.theory.parity import Parity, parity, skip
from fedunlearn.weights import unwrap

__all__ = ["Activation", "End", "Reflection", "reflection"]

_CARRIES = frozenset(
    {"dropout", "feature_dropout", "alpha_dropout", "identity", "clone", "alias", "detach", "contiguous", "to"}
    | {"_to_copy", "type_as", "view", "_unsafe_view", "view_as", "reshape", "flatten", "unflatten", "permute"}
    | {"transpose", "t", "numpy_T", "movedim", "unsqueeze", "squeeze", "expand", "expand_as", "repeat", "slice"}
    | {"select", "narrow", "chunk", "split", "split_with_sizes", "unbind", "tensor_split", "getitem", "roll", "flip"}
    | {"mean", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d"}
    | {"channel_shuffle", "pixel_shuffle", "pixel_unshuffle", "upsample_nearest2d", "upsample_bilinear2d"}
)
"""Operations in evaluation that make c - f(u) of c - u, where f is what they do: they move elements or average them."""

_AFFINE = frozenset({"linear", "conv1d", "conv2d", "conv3d"} | {f"conv_transpose{d}d" for d in (1, 2, 3)})
_NORMS = frozenset(
    {"batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm"}
    | {
        "_native_batch_norm_legit_no_training"
    }  # what an export makes of batch_norm where it takes apart what is in place
)
_PRODUCTS = frozenset({"mul", "div", "matmul", "bmm", "mm"})
_RECURRENT = frozenset({f"{kind}{cell}" for kind in ("lstm", "gru", "rnn_tanh", "rnn_relu") for cell in ("", "_cell")})
_UNTAGGED = frozenset({"hardswish", "log_sigmoid", "rsub"})
"""Pointwise operations that torch does not say to be so."""


@dataclass(frozen=True)
class Activation:
    """An operation, element by element, that the sign met.

    Attributes:
        op: its name in torch's schema.
        shift: its argument x became shift - x: 0, but behind a sigmoid-like function.
        parity: its relation to its mirror image psi(shift - x); None: it has none.
        skip: of an activation without a relation, and with shift 0, the k of psi(x) - psi(-x) = k x
            (`fedunlearn.theory.parity.skip`); None: there is none.
        x: points within 4 of shift / 2, symmetric about it.
        psi, mirrored: the values of psi(x) and psi(shift - x) there.
    """

    op: str
    shift: float
    parity: Parity | None
    skip: float | None
    x: tuple[float, ...]
    psi: tuple[float, ...]
    mirrored: tuple[float, ...]


@dataclass(frozen=True)
class End:
    """A layer that can take the sign up, for its input u became c - u.

    An affine layer does it with the weight -W and the bias b + c W 1; a normalisation with the weight -g, and the
    running mean c - m.

    Attributes:
        kind: which of the two.
        name: of the layer or the normalisation's module.
        weight, bias, mean: names of tensors; empty: there is none.
        c: the constant.
    """

    kind: Literal["affine", "normalisation"]
    name: str
    weight: str
    bias: str
    mean: str
    c: float


@dataclass(frozen=True)
class Reflection:
    """What becomes of a network whose layer was negated, weight and bias.

    Attributes:
        layer: its name.
        own: the names of the tensors that are negated.
        ends: the layers that take the sign up.
        activations: those between the layer and its ends, each kind once.
        products: operations between that are no activation of one layer: attention, products of matrices, and products
            or quotients, element by element, of two values (gates).
        stuck: a sentence for each place beyond which no change of parameters is known that restores the function.
    """

    layer: str
    own: tuple[str, ...]
    ends: tuple[End, ...]
    activations: tuple[Activation, ...]
    products: tuple[str, ...]
    stuck: tuple[str, ...]

    @property
    def restored(self) -> bool:
        """Whether other values of the network's parameters make it the function that it was."""
        return not self.stuck


def reflection(model: nn.Module, graph: Graph, layer: str) -> Reflection:
    """Follow the sign of a negated layer through a network in evaluation.

    Every value that depends on the layer's output is followed as c - u, u being what it was: c = 0 behind the layer
    itself, c = 1 behind a sigmoid. Lemma 8 says what an activation makes of it; two such values added are one again,
    and an even function, or the product of two values with c = 0, ends it. All branches are followed: the paper's
    proof of Theorem 7 speaks of "the subsequent layer", but each that reads the layer must take its sign up.

    Args:
        model: the network that the graph is of; it is left as it is.
        graph: of it, without constants as nodes.
        layer: as the graph names it, or its weight.

    Raises:
        ValueError: the graph has no such layer.
    """
    own = [node for node in graph.nodes if node.layer and (node.layer == layer or layer in node.weights)]
    if not own:
        raise ValueError(f"the network's graph has no layer {layer}: name one of {', '.join(graph.layers[:5])}, ...")
    return _Walk(unwrap(model), graph, own[0].layer, own).result()


class _Stuck(Exception):
    """No change of parameters is known that restores what follows."""


class _Walk:
    """One pass over the nodes, in topological order."""

    def __init__(self, model: nn.Module, graph: Graph, layer: str, own: Sequence[Node]) -> None:
        self.parameters = dict(model.named_parameters(remove_duplicate=False))
        self.graph, self.layer = graph, layer
        self.own = tuple(dict.fromkeys(name for node in own for name in node.parameters))
        self.shifts: dict[int, float] = {}  # u became shift - u
        self.lost: set[int] = set()
        self.roots: dict[int, int] = {}  # the one value that a node is a function of, element by element
        self.ends: dict[int, End] = {}
        self.activations: dict[tuple[str, float, str], Activation] = {}
        self.products: list[str] = []
        self.stuck: list[str] = []
        for node in graph.nodes:
            if node in own:
                if node.op in _RECURRENT:
                    self._stop(node, f"the output of {layer} ({node.op}) does not turn when all its parameters do")
                elif len(node.weights) > 1 or not set(node.weights) <= set(node.tensors.values()):
                    self._stop(node, f"the weight of {layer} is computed from others: remove the parametrization first")
                elif any(source in self.shifts or source in self.lost for source in node.inputs):
                    self._stop(node, f"{layer} reads its own output, and is negated already")
                else:
                    self.shifts[node.index] = 0.0
            elif self.lost.isdisjoint(node.inputs):
                self._meet(node)
            else:
                self.lost.add(node.index)
        self._require_free_signs()

    def result(self) -> Reflection:
        return Reflection(
            self.layer,
            self.own,
            tuple(dict.fromkeys(self.ends.values())),
            tuple(self.activations.values()),
            tuple(dict.fromkeys(self.products)),
            tuple(dict.fromkeys(self.stuck)),
        )

    def _meet(self, node: Node) -> None:
        if not any(source in self.shifts for source in node.inputs):
            return
        try:
            if node.op == "output":
                raise _Stuck("the sign reaches the network's output")
            if node.layer:
                self.ends[node.index] = self._affine(node)
            elif node.op in _NORMS and "weight" in node.tensors:
                self.ends[node.index] = self._normalisation(node)
            else:
                shift = self._through(node)
                if shift is not None:
                    self.shifts[node.index] = shift
        except _Stuck as reason:
            self._stop(node, str(reason))

    def _stop(self, node: Node, reason: str) -> None:
        self.lost.add(node.index)
        self.stuck.append(reason)

    def _through(self, node: Node) -> float | None:
        """The shift of the node's result; None: it is what it was."""
        told = [self.shifts.get(source) for source in node.inputs]
        turned = [shift for shift in told if shift is not None]
        if node.op == "scaled_dot_product_attention":
            return self._attention(node, told)
        if len(told) == 1 and (node.op in _CARRIES or _keeps(node, turned[0])):
            return turned[0]
        if node.op in _NORMS:
            return self._plain_normalisation(node, turned[0])
        if node.op in ("cat", "stack"):
            return self._beside(node, turned)
        if not {"other", "mat2"} & node.arguments.keys():  # else the other operand is a number
            if node.op in ("add", "sub"):
                return self._sum(node, turned)
            if node.op in _PRODUCTS:
                return self._product(node, turned)
        if len(told) == 1 and not node.parameters and _is_pointwise(node.op):
            return self._activation(node, turned[0])
        if node.op.startswith(("max_pool", "adaptive_max_pool", "fractional_max_pool", "amax", "max", "min", "amin")):
            raise _Stuck(f"{node.op} takes an extreme, and max(-u) = -min(u)")
        raise _Stuck(f"nothing is known of what {node.op} makes of the other sign")

    def _activation(self, node: Node, shift: float) -> float | None:
        psi = _Psi(node)
        try:
            found = parity(psi, shift)
        except (ValueError, TypeError):  # an operand that the graph does not have
            raise _Stuck(f"nothing is known of what {node.op} makes of the other sign") from None
        # Sums and products with numbers are affine, no activation that anybody would look for.
        if node.op not in ("add", "sub", "rsub", "mul", "div", "neg"):
            x = shift / 2 + torch.linspace(-4, 4, 81, dtype=torch.float64)
            with torch.no_grad():
                values = tuple(psi(x.clone()).double().tolist())
            straight = skip(psi) if found is None and not shift else None
            shown = Activation(node.op, shift, found, straight, tuple(x.tolist()), values, values[::-1])
            self.activations.setdefault((node.op, shift, repr(sorted(node.arguments.items()))), shown)
        if found is None:
            argument = f"{shift:g} - x" if shift else "-x"
            raise _Stuck(f"{node.op} has no relation a psi(x) + b psi({argument}) = c")
        return None if found.kind == "even" else found.c

    def _sum(self, node: Node, turned: Sequence[float]) -> float:
        if len(turned) < 2:
            what = ", ".join(node.parameters) or "what keeps its sign, as a residual connection does"
            raise _Stuck(f"{node.op} joins it with {what}")
        factor = node.arguments.get("alpha", 1)
        assert isinstance(factor, int | float)
        return turned[0] + (factor if node.op == "add" else -factor) * turned[1]

    def _beside(self, node: Node, turned: Sequence[float]) -> float:
        read = [self.graph.nodes[source].shape for source in node.inputs]
        dim = node.arguments.get("dim", 0)
        assert isinstance(dim, int)
        # Constants (a class token) are no inputs in the graph, but take room in the result.
        whole = len(read) == node.shape[dim] if node.op == "stack" else sum(s[dim] for s in read) == node.shape[dim]
        if len(turned) < len(read) or len(set(turned)) > 1 or not whole:
            raise _Stuck(f"{node.op} puts it beside what keeps its sign")
        return turned[0]

    def _product(self, node: Node, turned: Sequence[float]) -> float | None:
        if any(turned):
            raise _Stuck(f"{node.op} multiplies the constant {max(turned, key=abs):g} with what varies")
        if node.arguments.get("rounding_mode") is not None:
            raise _Stuck(f"{node.op} rounds")
        if node.op not in ("mul", "div") or len({self._root(source) for source in node.inputs}) > 1:
            self.products.append(node.op)
        return None if len(turned) == 2 else 0.0

    def _root(self, index: int) -> int:
        """The one value that this is a function of, element by element; itself, if there is none."""
        if index not in self.roots:
            node = self.graph.nodes[index]
            pointwise = not node.parameters and _is_pointwise(node.op)
            found = {self._root(source) for source in node.inputs} if pointwise else set()
            self.roots[index] = found.pop() if len(found) == 1 else index
        return self.roots[index]

    def _plain_normalisation(self, node: Node, shift: float) -> float:
        """Without a weight: what is normalised turns, and a constant is taken away."""
        if node.parameters:
            raise _Stuck(f"the weight of {node.op} is computed from others")
        if node.tensors.get("running_mean"):
            raise _Stuck(f"{node.op} has a running mean, but no weight whose sign could be turned")
        if shift and node.op == "rms_norm":
            raise _Stuck(f"rms_norm does not remove the constant {shift:g}")
        return 0.0

    def _attention(self, node: Node, told: Sequence[float | None]) -> float | None:
        by_role = dict(zip(node.roles, told, strict=True))
        query, key = by_role.get("query"), by_role.get("key")
        if (query, key) not in ((None, None), (0.0, 0.0)) or by_role.get("attn_mask") is not None:
            raise _Stuck("attention's products of queries and keys change their sign")
        self.products.append(node.op)
        return by_role.get("value")  # softmax: the weights of attention sum to one

    def _affine(self, node: Node) -> End:
        weight, bias = node.tensors.get("weight", ""), node.tensors.get("bias", "")
        if node.op not in _AFFINE or len(node.inputs) > 1 or not weight:
            raise _Stuck(f"{node.layer} is no plain affine layer ({node.op})")
        (shift,) = (self.shifts[source] for source in node.inputs)
        if shift and node.op.startswith("conv_transpose"):
            raise _Stuck(f"{node.layer} is a transposed convolution, which the constant {shift:g} does not survive")
        if shift and _pads(node.arguments.get("padding"), self.parameters[weight].shape):
            raise _Stuck(f"{node.layer} pads with zeros, where the constant {shift:g} would have to stand")
        return End("affine", node.layer, weight, bias, "", shift)

    def _normalisation(self, node: Node) -> End:
        (shift,) = (self.shifts[source] for source in node.inputs)
        if shift and node.op == "rms_norm":
            raise _Stuck(f"rms_norm does not remove the constant {shift:g}")
        weight = node.tensors["weight"]
        mean = node.tensors.get("running_mean", "")
        name = weight.removesuffix(".weight")
        return End("normalisation", name, weight, node.tensors.get("bias", ""), mean, shift)

    def _require_free_signs(self) -> None:
        """Tensors that take the sign up may serve nobody else, and must be trainable."""
        for index, end in list(self.ends.items()):
            changed = {end.weight} | ({end.bias} if end.c and end.kind == "affine" else set())
            users = [node for node in self.graph.nodes if not changed.isdisjoint(node.parameters)]
            if any(self.ends.get(node.index) != end for node in users):
                self.stuck.append(f"{end.name} is used elsewhere too, where its sign must stay")
                del self.ends[index]
            elif not all(self.parameters[name].requires_grad for name in changed if name):
                self.stuck.append(f"{end.name} is not trainable")
                del self.ends[index]


@dataclass(frozen=True)
class _Psi:
    """A node as a function of the one tensor that it reads."""

    node: Node

    def __call__(self, x: Tensor) -> Tensor:
        given = {name: list(v) if isinstance(v, tuple) else v for name, v in self.node.arguments.items()}
        operation = getattr(torch.ops.aten, self.node.op)
        result: Tensor = operation(**{**given, self.node.roles[0]: x})
        return result


def _is_pointwise(op: str) -> bool:
    packet = getattr(torch.ops.aten, op, None)
    if packet is None or op in _UNTAGGED:
        return packet is not None
    tags = [tag for overload in packet.overloads() for tag in getattr(packet, overload).tags]
    return torch.Tag.pointwise in tags and torch.Tag.nondeterministic_seeded not in tags


def _keeps(node: Node, shift: float) -> bool:
    """Of operations that carry any sign, but a constant only under conditions."""
    given: Mapping[str, object] = node.arguments
    if node.op in ("avg_pool1d", "avg_pool2d", "avg_pool3d"):
        plain = given.get("divisor_override") is None
        return not shift or (plain and not (_pads(given.get("padding"), ()) and given.get("count_include_pad")))
    if node.op in ("pad", "constant_pad_nd"):
        inserted = given.get("value") or 0.0
        return given.get("mode", "constant") != "constant" or (inserted == 0 and not shift)
    return node.op == "sum" and not shift


def _pads(padding: object, shape: Sequence[int]) -> bool:
    if padding == "same":
        return math.prod(shape[2:]) > 1
    return isinstance(padding, int | tuple) and any(padding if isinstance(padding, tuple) else (padding,))
