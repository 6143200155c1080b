"""Lemma 8, constructive: the next layer changed so that a negated layer goes unnoticed."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.pooling import _AdaptiveMaxPoolNd, _MaxPoolNd

from fedunlearn.theory.graph import graph_of
from fedunlearn.theory.parity import parity
from fedunlearn.theory.reflection import reflection
from fedunlearn.weights import unwrap

__all__ = ["compensated", "negated_and_compensated"]

_CARRIES = (nn.Identity, nn.Dropout, nn.Flatten, nn.Unflatten, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d)
_AVERAGES = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
_MAXIMA = (_MaxPoolNd, _AdaptiveMaxPoolNd, nn.FractionalMaxPool2d, nn.FractionalMaxPool3d)


def compensated(first: nn.Module, psi: Callable[[Tensor], Tensor], second: nn.Module) -> nn.Module:
    """The layer l2' with l2 o psi o l1 = l2' o psi o (-l1), where -l1 has weight and bias negated (Lemma 8).

    With a psi(x) + b psi(-x) = c it is l2' = l2 o l3, l3(u) = c / a - (b / a) u. The paper's proof prints
    l3(u) = c - (b / a) u, which is right for a = 1 alone: multiply the relation of a sigmoid by 2, and c becomes 2.
    Since a = 1 and b = 1 or -1 can always be had (`Parity`), l2' has the weight W of l2 or -W, and the bias
    b2 + c W 1: another bias, which l2' has even where l2 has none.

    "Linear" means affine here. A convolution that pads with zeros pads with zeros after l3 too, where l3 would want c,
    so it has no l2' among the convolutions unless c = 0.

    Args:
        first: ``nn.Linear`` or a convolution. l2' does not depend on its values.
        psi: the activation, element by element; or an ``nn.Sequential`` of it and of what leaves an affine function as
            it is: average pooling, dropout (in evaluation), flattening. Maxima do not: max(-u) = -min(u).
        second: ``nn.Linear`` or a convolution; it is left as it is.

    Returns:
        A new module of the type of ``second``.

    Raises:
        ValueError: one of the two is no affine layer, psi has no such relation or takes a maximum, or c != 0 meets
            padding with zeros or a transposed convolution.
    """
    for layer in (first, second):
        if not isinstance(layer, nn.Linear | _ConvNd):
            raise ValueError(f"Lemma 8 is about affine layers: give nn.Linear or a convolution, not {_name(layer)}")
    activation, around = _split(psi)
    relation = parity(activation)
    if relation is None or not relation.at_zero:
        where = "" if relation is None else " at x = 0"
        raise ValueError(f"{_name(activation)} has no relation a psi(x) + b psi(-x) = c{where}: nothing compensates it")
    pooled = [module for module in around if isinstance(module, _AVERAGES) and not _keeps_constants(module)]
    if relation.c and pooled:
        raise ValueError(
            f"{_name(pooled[0])} takes no plain average, which c = {relation.c:g} does not survive: "
            "leave out its padding and divisor_override"
        )
    new = copy.deepcopy(second)
    assert isinstance(new, nn.Linear | _ConvNd)
    if relation.c and not _takes_constants(new):
        raise ValueError(
            f"{_name(new)} pads with zeros or leaves gaps, so no other weight or bias makes up for c = {relation.c:g}: "
            "use an odd activation, another padding_mode, or no padding"
        )
    if relation.kind != "even":
        with torch.no_grad():
            if relation.c:
                _turn_bias(new, new.weight, "bias", relation.c)
            new.weight.neg_()
    return new


def negated_and_compensated(model: nn.Module, layer: str, example: Tensor | tuple[object, ...]) -> nn.Module:
    """A network that computes what this one does, with a layer negated, weight and bias, and its readers changed.

    Affine layers that read the negated one through an activation are changed as Lemma 8 has it, all of them; a
    normalisation that reads it gets the weight -g, and its running mean follows.

    Args:
        model: the network; it is left as it is.
        layer: the name of a convolution or linear layer, or of its weight.
        example: an input with a batch dimension, or all positional arguments; it serves to follow the data.

    Returns:
        A copy, which in evaluation gives the same outputs up to rounding.

    Raises:
        ValueError: there is no such layer, or its sign is stuck somewhere, which is said.
    """
    network = copy.deepcopy(unwrap(model))
    found = reflection(network, graph_of(network, example), layer)
    if not found.restored:
        raise ValueError(f"{found.layer} cannot be compensated: {'; '.join(found.stuck)}")
    for activation in found.activations:
        if activation.parity is not None and not activation.parity.at_zero:
            raise ValueError(f"{found.layer} cannot be compensated: the relation of {activation.op} fails at x = 0")
    parameters = dict(network.named_parameters(remove_duplicate=False))
    buffers = dict(network.named_buffers(remove_duplicate=False))
    with torch.no_grad():
        for name in found.own:
            parameters[name].neg_()
        for end in found.ends:
            if end.kind == "affine" and end.c:
                owner = network.get_submodule(end.weight.rpartition(".")[0])
                _turn_bias(owner, parameters[end.weight], end.bias.rpartition(".")[2] or "bias", end.c)
            parameters[end.weight].neg_()
            if end.mean:
                buffers[end.mean].copy_(end.c - buffers[end.mean])
    return network


def _turn_bias(owner: nn.Module, weight: Tensor, name: str, c: float) -> None:
    """The bias that makes of c - u, with the weight -W, what it made of u with W: b + c W 1."""
    shift = c * weight.double().flatten(1).sum(1)  # long sums
    bias = owner._parameters.get(name)
    if bias is not None:
        bias.copy_(bias.double() + shift)
    elif isinstance(owner, nn.Linear | _ConvNd):
        owner.bias = nn.Parameter(shift.to(weight.dtype))
    else:
        raise ValueError(f"{_name(owner)} has no bias that could make up for c = {c:g}: build it with one")


def _takes_constants(layer: nn.Module) -> bool:
    """Whether the layer makes of a constant input a constant output: no zeros at the border, no gaps."""
    if not isinstance(layer, _ConvNd):
        return True
    if isinstance(layer, _ConvTransposeNd):
        return False
    reversed_padding: list[int] = layer._reversed_padding_repeated_twice  # "same" and "valid" as numbers too
    return layer.padding_mode != "zeros" or not any(reversed_padding)


def _split(psi: Callable[[Tensor], Tensor]) -> tuple[Callable[[Tensor], Tensor], list[nn.Module]]:
    """The one activation, and the modules around it that carry a sign."""
    parts: list[Callable[[Tensor], Tensor]] = list(psi) if isinstance(psi, nn.Sequential) else [psi]
    maxima = [part for part in parts if isinstance(part, _MAXIMA)]
    if maxima:
        raise ValueError(f"{_name(maxima[0])} takes maxima, and max(-u) = -min(u): nothing compensates it")
    around: list[nn.Module] = [part for part in parts if isinstance(part, _CARRIES + _AVERAGES)]
    rest = [part for part in parts if part not in around] or [nn.Identity()]
    if len(rest) > 1:
        names = ", ".join(map(_name, rest))
        raise ValueError(f"Lemma 8 is about one activation between two layers: make one function of {names}")
    return rest[0], around


def _keeps_constants(pooling: nn.Module) -> bool:
    padding = getattr(pooling, "padding", 0)
    padded = any(padding) if isinstance(padding, tuple) else bool(padding)
    divided = getattr(pooling, "divisor_override", None) is not None
    return not divided and not (padded and getattr(pooling, "count_include_pad", True))


def _name(thing: object) -> str:
    return getattr(thing, "__name__", type(thing).__name__)
