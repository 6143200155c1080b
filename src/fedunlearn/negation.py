"""Weight negation: the one change that NoT makes to a model before it is trained on (Algorithm 1, line 9).

    theta_l  <-  -theta_l    for each selected layer l

It needs no data, moves no byte, keeps each tensor's norm, and undoes itself when done twice.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeVar, overload

import torch
from torch import Tensor, nn

from fedunlearn.layers import (
    FIRST,
    BatchNormPolicy,
    First,
    LayerError,
    Mean,
    NegationWarning,
    Part,
    Plan,
    Selection,
    layers,
    plan,
    warn_if_cancelling,
)
from fedunlearn.names import NO_NEGATIVE_ZERO, Layer, bias_of, guess_kinds, pick
from fedunlearn.weights import Weights, unwrap

__all__ = ["negate", "negate_layers", "rows_of"]

ModuleT = TypeVar("ModuleT", bound=nn.Module)

_DIRECTIONS = ("momentum_buffer", "exp_avg", "grad_avg", "prev")
"""What torch's optimizers call a remembered direction: SGD and RMSprop, the Adams, centred RMSprop, Rprop."""


@overload
def negate(
    target: Weights,
    layers: Selection | Plan = FIRST,
    *,
    like: nn.Module | None = None,
    include_bias: bool = False,
    batchnorm: BatchNormPolicy = "negate_mean",
    example: object = None,
) -> Weights: ...


@overload
def negate(
    target: ModuleT,
    layers: Selection | Plan = FIRST,
    *,
    include_bias: bool = False,
    batchnorm: BatchNormPolicy = "negate_mean",
    example: object = None,
    optimizer: torch.optim.Optimizer | None = None,
) -> ModuleT: ...


def negate(
    target: nn.Module | Weights,
    layers: Selection | Plan = FIRST,
    *,
    like: nn.Module | None = None,
    include_bias: bool = False,
    batchnorm: BatchNormPolicy = "negate_mean",
    example: object = None,
    optimizer: torch.optim.Optimizer | None = None,
) -> nn.Module | Weights:
    """Negate the selected layers of a network (in place) or of its weights (as new ones).

    Exact for every signed floating dtype, and its own inverse bit for bit; the one exception is a running
    mean that becomes 2b - m, which rounds (see `fedunlearn.layers.Mean`).

    Args:
        target: a module, also a compiled or data-parallel one: changed in place, its Parameter objects and
            gradients stay, and it is returned. Or `Weights`: new ones are returned that share each untouched
            tensor and have one more entry in ``negations``.
        layers: what to negate: `FIRST`, names as `fedunlearn.names.pick` reads them, or a `Plan`, which has
            settled the three arguments below.
        like: for `Weights`: a module of the same architecture. `FIRST`, globs and the BatchNorm policy ask
            it; plans, and names where no BatchNorm is in the weights or ``batchnorm="leave"``, do without.
        include_bias, batchnorm, example: as in `fedunlearn.layers.plan`.
        optimizer: the module's optimizer. Its remembered directions (momentum, Adam's first moment) of the
            negated rows point along the old sign and become zero. Second moments are sums of squared
            gradients and do not know the sign: they stay.

    Raises:
        LayerError: the selection does not fit, or cannot be resolved without ``like``; nothing was changed.
        ValueError: an argument does not go with the target, or ``optimizer`` is LBFGS, whose curvature is
            void.

    Warns:
        CancellingNegation: the selection undoes itself.
    """
    if not isinstance(target, nn.Module | Weights):
        raise TypeError(
            f"negate takes a module or Weights, not {type(target).__name__}: load a state dict into its module first, "
            "and negate a file with `fedunlearn negate`"
        )
    if not isinstance(layers, Plan | First | str | Sequence) or not all(
        isinstance(name, str) for name in _names(layers)
    ):
        raise TypeError("layers are named by strings: for the paper's indices there is negate_layers(model, [0])")
    if isinstance(layers, Plan) and include_bias:
        raise ValueError("a plan has settled what is negated: give include_bias to plan(...) instead")
    if isinstance(target, Weights):
        if optimizer is not None:
            raise ValueError("an optimizer belongs to a module: negate the module to reset its momentum")
        if isinstance(layers, Plan):
            chosen = layers
        elif like is not None:
            chosen = plan(like, layers, include_bias=include_bias, batchnorm=batchnorm, example=example)
        else:
            chosen = _plan_by_name(target, layers, include_bias, batchnorm)
        return _negated_weights(target, chosen)
    if like is not None:
        raise ValueError("like=... goes with Weights: a module is its own architecture")
    if not isinstance(layers, Plan):
        layers = plan(target, layers, include_bias=include_bias, batchnorm=batchnorm, example=example)
    _negate_module(unwrap(target), layers, optimizer)
    return target


def negate_layers(model: ModuleT, layer_indices: Sequence[int] = (0,)) -> ModuleT:
    """The paper's own listing (supplement, section 11): negate parameters by index, leave buffers alone.

    Indices count ``model.parameters()``: each weight, bias and normalisation apart, tied tensors once.
    Unlike the listing, which assigns ``param.data = -1 * param.data``, this works in place under
    ``no_grad``: an assignment to ``.data`` leaves whoever shares the memory (a flattened recurrent network,
    a sharded or exported model) with the old sign, holds the tensor twice, and hides the change from
    autograd's version check.

    Args:
        model: changed in place and returned.
        layer_indices: which parameters, in any order; naming one twice negates it once.

    Raises:
        LayerError: an index is out of range, or its tensor cannot be negated; nothing was changed.

    Warns:
        NegationWarning: an index is a normalisation, a token, or a bias without its weight.
        CancellingNegation: the set undoes itself.
    """
    rows = layers(model)
    wrong = sorted(set(layer_indices) - set(range(len(rows))))
    if wrong:
        raise LayerError(f"parameter index {wrong[0]} is out of range: the network's indices are 0 to {len(rows) - 1}")
    chosen = [rows[index] for index in sorted(set(layer_indices))]
    parts = pick([row.name for row in chosen], rows)
    _warn_of_no_layers(chosen)
    warn_if_cancelling(model, parts)
    _negate_module(unwrap(model), Plan(parts), None)
    return model


def _names(layers: Selection | Plan) -> Sequence[object]:
    return () if isinstance(layers, Plan | First) else layers


def _warn_of_no_layers(chosen: Sequence[Layer]) -> None:
    names = {row.name for row in chosen}
    lonely = [bias_of(name) for name in names]
    for kind, why in (
        ("normalisation", "is a normalisation, which undoes a negated layer before it"),
        ("token", "is a constant token or embedding, not a layer that reads the input"),
        ("bias", "is a bias without its weight"),
    ):
        found = [row for row in chosen if row.kind == kind and not (kind == "bias" and row.name in lonely)]
        if found:
            first = f"parameter index {found[0].index} ({found[0].name}) {why}"
            more = f", and so do {len(found) - 1} more" if len(found) > 1 else ""
            warnings.warn(f"{first}{more}: choose layers by name with negate(...)", NegationWarning, stacklevel=3)


def _plan_by_name(weights: Weights, selection: Selection, include_bias: bool, batchnorm: BatchNormPolicy) -> Plan:
    """A plan from names alone."""
    if isinstance(selection, First) or any(sign in str(selection) for sign in "*?"):
        raise LayerError("weights alone do not know their layers: give the module (like=...) or full names")
    if batchnorm != "leave" and any(name.endswith("running_mean") for name in weights.buffers):
        raise LayerError(
            "which running mean follows the negated layer only a module knows: "
            "give it (like=...), or leave the means alone (batchnorm='leave')"
        )
    kinds = guess_kinds({name: tuple(tensor.shape) for name, tensor in weights.parameters.items()})
    rows = [
        Layer(index, name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), kinds[name])
        for index, (name, tensor) in enumerate(weights.parameters.items())
    ]
    return Plan(
        pick(
            selection,
            rows,
            aliases=weights.aliases,
            include_bias=include_bias,
            source="the weights' architecture",
        )
    )


def _negate_module(model: nn.Module, chosen: Plan, optimizer: torch.optim.Optimizer | None) -> None:
    if isinstance(optimizer, torch.optim.LBFGS):
        raise ValueError("LBFGS remembers a curvature that negation voids: make a new optimizer after negating")
    parameters: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    buffers = dict(model.named_buffers(remove_duplicate=False))
    _require_fit(chosen, parameters, buffers)
    with torch.no_grad():
        # Means first: 2b - m reads the bias as it was.
        for mean in chosen.means:
            rows = rows_of(buffers[mean.part.name], mean.part)
            rows.copy_(_followed(rows, mean, parameters))
        for part in chosen.parts:
            _flip(rows_of(parameters[part.name], part))
            for direction in _directions(optimizer, parameters[part.name]):
                rows_of(direction, part).zero_()


def _negated_weights(weights: Weights, chosen: Plan) -> Weights:
    parameters, buffers = dict(weights.parameters), dict(weights.buffers)
    parts = [replace(part, name=weights.aliases.get(part.name, part.name)) for part in chosen.parts]
    _require_fit(chosen, {**parameters, **{name: parameters[of] for name, of in weights.aliases.items()}}, buffers)
    for name in {part.name for part in parts}:
        parameters[name] = parameters[name].clone()
    for name in {mean.part.name for mean in chosen.means}:
        buffers[name] = buffers[name].clone()
    for mean in chosen.means:
        rows = rows_of(buffers[mean.part.name], mean.part)
        rows.copy_(_followed(rows, mean, weights.parameters))
    for part in parts:
        _flip(rows_of(parameters[part.name], part))
    return replace(weights, parameters=parameters, buffers=buffers, negations=(*weights.negations, chosen.names))


def _require_fit(chosen: Plan, parameters: Mapping[str, Tensor], buffers: Mapping[str, Tensor]) -> None:
    wanted = [(part, parameters) for part in chosen.parts] + [(mean.part, buffers) for mean in chosen.means]
    wanted += [(replace(mean.part, name=mean.bias), parameters) for mean in chosen.means if mean.bias]
    for part, tensors in wanted:
        if part.name not in tensors:
            raise LayerError(f"the plan is for another architecture: there is no {part.name} here")
        if part.rows is not None and part.rows[1] > len(tensors[part.name]):
            raise LayerError(f"the plan is for another architecture: {part} has too many rows")


def rows_of(tensor: Tensor, part: Part) -> Tensor:
    """What a part means of its tensor, as a view of it."""
    return tensor if part.rows is None else tensor[part.rows[0] : part.rows[1]]


def _followed(mean: Tensor, how: Mean, parameters: Mapping[str, Tensor]) -> Tensor:
    if how.rule == "-m":
        return -mean
    bias = rows_of(parameters[how.bias], how.part).to(mean.dtype)
    return 2 * bias - mean if how.rule == "2b - m" else mean - 2 * bias


def _flip(tensor: Tensor) -> None:
    """Flip the sign of every element in place."""
    if tensor.element_size() > 1:
        tensor.neg_()
        return
    # torch does not compute in float8, and a way through float32 would lose the payload of a NaN.
    bits = tensor.detach().view(torch.int8)
    sign = torch.full_like(bits, -128)
    if str(tensor.dtype).removeprefix("torch.") in NO_NEGATIVE_ZERO:
        sign *= (bits & 127) != 0  # zero has no sign, and the sign bit alone is NaN
    bits.bitwise_xor_(sign)


def _directions(optimizer: torch.optim.Optimizer | None, parameter: Tensor) -> list[Tensor]:
    state = optimizer.state.get(parameter, {}) if optimizer is not None else {}
    return [state[key] for key in _DIRECTIONS if isinstance(state.get(key), Tensor)]
