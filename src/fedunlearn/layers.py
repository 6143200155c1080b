"""Which layers a network has, which of them are meant, and what negating these entails.

The paper negates "selected layers" and counts them by parameter index; its choice is always the layer that
the input meets first (the first convolution, a ViT's patch projection). Indices are brittle: in
torchvision's ViT, index 0 is the class token. So a layer is named here, and the first one is found by
following the input.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fedunlearn.flow import Flow, first_by_running, in_order_of_registration, trace
from fedunlearn.kinds import LAYER_KINDS, has_running_mean, kind_of, rows_are_outputs
from fedunlearn.names import Layer, LayerError, Part, bias_of, pick, spans
from fedunlearn.weights import unwrap

__all__ = [
    "FIRST",
    "BatchNormPolicy",
    "CancellingNegation",
    "First",
    "Layer",
    "LayerError",
    "Mean",
    "NegationWarning",
    "Part",
    "Plan",
    "Selection",
    "layers",
    "pairs",
    "plan",
    "select",
    "warn_if_cancelling",
]

BatchNormPolicy = Literal["negate_mean", "leave"]
MeanRule = Literal["-m", "2b - m", "m - 2b"]


@dataclass(frozen=True)
class First:
    """Selects the first layer that the input runs through, normalisations aside: the paper's choice."""

    def __str__(self) -> str:
        return "first"


FIRST = First()
"""The default selection."""

Selection = First | str | Sequence[str]
"""`FIRST`, or names, globs and slices as `fedunlearn.names.pick` reads them."""


class NegationWarning(UserWarning):
    """What is negated is probably not what was meant."""


class CancellingNegation(NegationWarning):
    """The negated tensors undo one another: a convolution together with the normalisation that reads it."""


@dataclass(frozen=True)
class Mean:
    """How a running mean follows the negated layer that it averages; its variance does not change.

    With the layer's output y = Wx + b and m = E[y], the new mean is -m if W and b are negated or there is
    no b; 2b - m if only W is; m - 2b if only b is (b as it was).
    """

    part: Part
    rule: MeanRule
    bias: str = ""

    def __str__(self) -> str:
        return f"{self.part} becomes {self.rule}" + (f" with b = {self.bias}" if self.bias else "")


@dataclass(frozen=True)
class Plan:
    """What will be negated, by name: parts of parameters, each row once, and running means that follow.

    A plan made with a module acts on that module, on any of its architecture, and on their `Weights`.
    """

    parts: tuple[Part, ...]
    means: tuple[Mean, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The negated tensors and slices as they can be written in a selection."""
        return tuple(map(str, self.parts))

    def __str__(self) -> str:
        return "; ".join([f"negate {', '.join(self.names)}", *map(str, self.means)])


def layers(model: nn.Module) -> list[Layer]:
    """Every parameter tensor of a network, in the order of ``model.parameters()``; tied ones stand once.

    Raises:
        LayerError: the network is scripted, or holds lazy parameters that have no shape yet.
    """
    model = unwrap(model)
    if isinstance(model, torch.jit.ScriptModule):
        raise LayerError("a scripted network hides its layers: negate the network that it was made from")
    rows = []
    for index, (name, parameter) in enumerate(model.named_parameters()):
        if is_lazy(parameter):
            raise LayerError(f"{name} has no shape yet: run one batch through the network first")
        owner, _, attribute = name.rpartition(".")
        kind = kind_of(model.get_submodule(owner), attribute, parameter)
        dtype = str(parameter.dtype).removeprefix("torch.")
        rows.append(Layer(index, name, tuple(parameter.shape), dtype, kind))
    return rows


def plan(
    model: nn.Module,
    layers: Selection = FIRST,
    *,
    include_bias: bool = False,
    batchnorm: BatchNormPolicy = "negate_mean",
    example: object = None,
) -> Plan:
    """Resolve a selection against a network.

    Args:
        model: the network, also a compiled or data-parallel one. It is not changed.
        layers: what to negate.
        include_bias: negate the bias of each selected weight too. The paper's listing negates weights alone;
            its theory negates the layer's output, hence both.
        batchnorm: ``negate_mean``: where a BatchNorm reads a negated layer, its running mean follows, so that
            evaluation agrees with training from the first moment. ``leave``: buffers stay as they are, as in
            the paper's listing; the wrong mean then decays with the norm's momentum as training goes on.
        example: an input to find the first layer with, needed only if the network cannot be traced: a tensor,
            a tuple of positional or a mapping of named arguments.

    Raises:
        LayerError: the selection is empty or does not fit the network, a tensor cannot be negated, the first
            layer cannot be found, or a running mean cannot follow.
        ValueError: the policy is none of the two.

    Warns:
        CancellingNegation: the selection undoes itself.
    """
    if batchnorm not in ("negate_mean", "leave"):
        raise ValueError(f"batchnorm={batchnorm!r} is no policy: write 'negate_mean' or 'leave'")
    model = unwrap(model)
    flow = trace(model)
    parts = _select(model, layers, include_bias, flow, example)
    _warn_if_cancelling(model, parts, flow)
    if batchnorm == "leave":
        return Plan(parts)
    means = _following_means(model, parts, flow or in_order_of_registration(model))
    if means and flow is None:
        warnings.warn(
            f"the network cannot be traced: {', '.join(str(mean.part) for mean in means)} follows because its "
            "normalisation is registered next; if it reads another layer, give batchnorm='leave'",
            NegationWarning,
            stacklevel=3,
        )
    return Plan(parts, means)


def select(model: nn.Module, layers: Selection = FIRST, *, include_bias: bool = False) -> tuple[Part, ...]:
    """The parts of a network that a selection means, whatever is to be done to them; arguments and errors: `plan`'s."""
    model = unwrap(model)
    return _select(model, layers, include_bias, trace(model) if isinstance(layers, First) else None, None)


def pairs(model: nn.Module) -> tuple[tuple[str, str], ...]:
    """Weights of two layers in a row, of which negating both turns most signs back; in the order in which they run.

    The first hands all its output to the second, through a rectifier such as ReLU or GELU (behind an odd activation the
    two signs would cancel altogether), and the second is not the last layer.

    Raises:
        LayerError: there is none, or the network cannot be traced.
    """
    flow = trace(unwrap(model))
    if flow is None or not flow.pairs:
        why = "cannot be traced" if flow is None else "has no two layers in a row with a rectifier between them"
        raise LayerError(f"the network {why}: name two layers (layers=[...])")
    return flow.pairs


def warn_if_cancelling(model: nn.Module, parts: Sequence[Part]) -> None:
    """Warn with `CancellingNegation` if these parts undo one another."""
    model = unwrap(model)
    _warn_if_cancelling(model, parts, trace(model))


_layers_of = layers  # a selection is called by the same name


def _select(
    model: nn.Module, layers: Selection, include_bias: bool, flow: Flow | None, example: object
) -> tuple[Part, ...]:
    rows = _layers_of(model)
    written = _first(model, rows, flow, example) if isinstance(layers, First) else layers
    parts = pick(written, rows, aliases=_aliases(model), include_bias=include_bias)
    _require_own_memory(model, parts)
    return parts


def _first(model: nn.Module, rows: Sequence[Layer], flow: Flow | None, example: object) -> tuple[str, ...]:
    found = flow.first if flow else ()
    if not found and example is not None:
        try:
            found = first_by_running(model, example)
        except Exception as error:  # the user's forward may fail in any way
            raise LayerError(f"the network does not run on the example input: {error}") from error
    if not found:
        candidates = ", ".join(row.name for row in [r for r in rows if r.kind in LAYER_KINDS][:3])
        raise LayerError(
            "the first layer cannot be found by tracing this network: name the layer (layers=...) or give an "
            f"example input (example=...); the first in order of registration are {candidates or 'none'}"
        )
    kinds = {row.name: row.kind for row in rows}
    for name in found:
        hooked = kinds.get(name) in ("convolution", "linear") and name.rpartition(".")[2] != "weight"
        if hooked or "parametrizations" in name.split("."):  # weight_norm, spectral_norm, prune: old and new
            computed = " and ".join(found)
            raise LayerError(f"the first layer's weight is computed from {computed}: name the one to negate")
    return found


def _aliases(model: nn.Module) -> dict[str, str]:
    first: dict[int, str] = {}
    named = model.named_parameters(remove_duplicate=False)
    pairs = [(name, first.setdefault(id(parameter), name)) for name, parameter in named]
    return {name: target for name, target in pairs if name != target}


def _require_own_memory(model: nn.Module, parts: Sequence[Part]) -> None:
    """Refuse tensors tied by their memory alone: they would be negated twice, or by surprise."""
    places: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters():
        if parameter.device.type != "meta" and parameter.numel():
            places.setdefault(parameter.data_ptr(), []).append(name)
    for names in places.values():
        if len(names) > 1 and any(part.name in names for part in parts):
            raise LayerError(f"{' and '.join(names)} share memory: tie them as one Parameter object first")


def _warn_if_cancelling(model: nn.Module, parts: Sequence[Part], flow: Flow | None) -> None:
    """Negating a convolution and its normalisation is useless (footnote 4 of the paper).

    Normalising -y gives minus what normalising y gives, so that negating the normalisation's weight as well
    restores its output: the identity function in training mode, and in evaluation if the mean follows.
    """
    aliases = _aliases(model)
    names = {part.name for part in parts}
    for weight, norms in (flow or in_order_of_registration(model)).readers.items():
        for scale in [f"{norm}.weight" for norm in norms]:
            if aliases.get(weight, weight) in names and aliases.get(scale, scale) in names:
                warnings.warn(
                    f"negating {weight} together with {scale} changes nothing: leave {scale} out",
                    CancellingNegation,
                    stacklevel=4,
                )


def _following_means(model: nn.Module, parts: Sequence[Part], flow: Flow) -> tuple[Mean, ...]:
    parameters = dict(model.named_parameters())
    aliases = _aliases(model)
    names = {part.name for part in parts}
    means: list[Mean] = []
    for layer, norms in flow.readers.items():
        beside = bias_of(layer) or ""
        weight, bias = aliases.get(layer, layer), aliases.get(beside, beside)
        if names.isdisjoint((weight, bias)):
            continue
        for norm in norms:
            if not has_running_mean(model.get_submodule(norm)):
                continue
            alone = set(flow.read[norm]) == {(layer,)}
            if not alone or layer.rpartition(".")[2] != "weight":  # else b is not known by its name
                raise LayerError(
                    f"{norm} averages more than the output of {weight} alone, so its running mean "
                    "cannot follow: pass batchnorm='leave'"
                )
            means += _mean(model, norm, weight, bias, parameters, parts)
    return tuple(means)


def _mean(
    model: nn.Module,
    norm: str,
    weight: str,
    bias: str,
    parameters: Mapping[str, Tensor],
    parts: Sequence[Part],
) -> list[Mean]:
    """The rows of one running mean, sorted by what was negated of their output channels."""
    mean = model.get_submodule(norm).running_mean
    assert isinstance(mean, Tensor)
    channels = set(range(len(mean)))
    rows = _rows(parts, weight, parameters[weight])
    if len(rows) == parameters[weight].shape[0]:
        rows = channels
    elif rows and not (rows_are_outputs(model.get_submodule(weight.rpartition(".")[0])) and rows <= channels):
        raise LayerError(
            f"the rows of {weight} are no output channels, so {norm}'s running mean cannot follow: "
            "pass batchnorm='leave'"
        )
    biased = _rows(parts, bias, parameters[bias]) if bias in parameters else rows
    buffer = f"{norm}.running_mean"
    sets: tuple[tuple[MeanRule, set[int]], ...] = (
        ("-m", rows & biased),
        ("2b - m", rows - biased),
        ("m - 2b", biased - rows),
    )
    return [
        Mean(Part(buffer, None if len(some) == len(channels) else span), rule, "" if rule == "-m" else bias)
        for rule, some in sets
        for span in spans(range(row, row + 1) for row in some)
    ]


def _rows(parts: Sequence[Part], name: str, tensor: Tensor) -> set[int]:
    return {row for part in parts if part.name == name for row in range(*(part.rows or (0, len(tensor))))}
