"""Co-adaptation: whether layers of different models work together (supplement, section 9)."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from statistics import fmean

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from fedunlearn.flow import in_order_of_registration, trace
from fedunlearn.kinds import LAYER_KINDS
from fedunlearn.layers import layers
from fedunlearn.negation import negate
from fedunlearn.weights import Weights, unwrap

__all__ = ["Gap", "LayerGap", "coadaptation_gap", "graft", "graftable", "layer_gaps", "negation_gaps"]


@dataclass(frozen=True)
class Gap:
    """How a graft does beside the models that it was made of, its parents.

    Attributes:
        loss: mean cross-entropy of the graft, natural logarithm.
        accuracy: of the graft, in percent.
        loss_above_best, loss_above_mean: by how much its loss is above that of the best parent, and above their mean.
        accuracy_above_best, accuracy_above_mean: likewise in percentage points; below 0 if the graft is worse.
    """

    loss: float
    accuracy: float
    loss_above_best: float
    loss_above_mean: float
    accuracy_above_best: float
    accuracy_above_mean: float


@dataclass(frozen=True)
class LayerGap:
    """The gap of a graft that has one layer of another model.

    Attributes:
        layer: its name.
        host, donor: names of the models that all else, and that this layer come from.
        gap: to both.
    """

    layer: str
    host: str
    donor: str
    gap: Gap


def graftable(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """The layers of Definition 3: a partition of a network's parameters, by name of layer, in their order.

    The paper does not say what is one layer. Here it is a module with all its own parameters and buffers. A
    normalisation that reads one layer alone, as each BatchNorm of a ResNet does, belongs to that layer: its running
    mean and variance are those of this layer's outputs, and beside another layer they would be wrong whatever the two
    had learned. Other normalisations, such as a transformer's, are layers of their own, as is each single parameter of
    a module that is made of others, such as a class token. Buffers of modules without parameters are not in it.

    Args:
        model: the network; it is not changed.

    Returns:
        Name of the layer -> names of its tensors in `Weights`.
    """
    model = unwrap(model)
    flow = trace(model) or in_order_of_registration(model)
    weights = Weights.of(model)
    owners = {_owner(row.name) for row in layers(model) if row.kind in LAYER_KINDS} - {""}
    owners |= {name for name, module in model.named_modules() if name and _is_leaf(module)}
    feeds = {}
    for norm, read in flow.read.items():
        modules = {weight.rpartition(".")[0] for calls in read for weight in calls or ("",)}
        if len(modules) == 1 and modules <= owners:
            feeds[norm] = modules.pop()
    found: dict[str, list[str]] = {}
    for name in (*weights.parameters, *weights.buffers):
        owner = _owner(name)
        layer = feeds.get(owner, owner) if owner in owners else name
        if name in weights.parameters or layer in found:
            found.setdefault(layer, []).append(name)
    return {layer: tuple(names) for layer, names in found.items()}


def graft(models: Mapping[str, Weights], take: Mapping[str, str], like: nn.Module) -> Weights:
    """Put a model together from layers of several (Definition 3): every layer comes from exactly one of them.

    Args:
        models: of one architecture, by name. What ``take`` does not name comes from the first.
        take: name of a layer, see `graftable` -> name of the model that it is taken from.
        like: a module of the same architecture; it is not changed.

    Returns:
        Weights that share their tensors with the models; aliases and sign history are the first model's.

    Raises:
        ValueError: there is no such layer or no such model, or the models are of different architectures.
    """
    _require_one_architecture(models)
    known = graftable(like)
    for layer, model in take.items():
        if layer not in known:
            raise ValueError(f"there is no layer {layer!r} to graft: take one of {', '.join(known)}")
        if model not in models:
            raise ValueError(f"there is no model {model!r} to take {layer} from: take one of {', '.join(models)}")
    source = {name: models[model] for layer, model in take.items() for name in known[layer]}
    return _spliced(next(iter(models.values())), source)


def coadaptation_gap(
    model: nn.Module, grafted: Weights, parents: Sequence[Weights], x: Tensor, y: Tensor, batch_size: int = 256
) -> Gap:
    """How much worse a graft is than its parents: what its layers lack in co-adaptation (Definition 4).

    Definition 4 calls layers co-adapted if their model is optimal, and takes the parents for optimal. What can be
    computed is by how much the graft's loss is above theirs, on these samples. A gap does not show that the layers have
    learned different things: where hidden units are numbered otherwise, layers of one and the same function do not fit.

    Args:
        model: the network that the weights are for; it is left as it was.
        grafted: see `graft`.
        parents: the models that it was made of.
        x, y: inputs ``(n, ...)`` and classes ``(n,)``.
        batch_size: of a forward pass.

    Returns:
        All 0 beside the loss and the accuracy if all layers are of one parent, and it is the only one.

    Raises:
        ValueError: there is no parent or no sample, or the weights do not fit the network.
    """
    network = _Network(model, x, y, batch_size)
    return _gap(network(grafted), [network(parent) for parent in parents])


def layer_gaps(
    model: nn.Module, models: Mapping[str, Weights], x: Tensor, y: Tensor, batch_size: int = 256
) -> tuple[LayerGap, ...]:
    """For each ordered pair of models and each layer: the gap of the one with that layer alone from the other.

    Args:
        model, x, y, batch_size: as of `coadaptation_gap`.
        models: of one architecture, by name; two at least.

    Returns:
        Host by host, donor by donor, layer by layer.

    Raises:
        ValueError: fewer than two models; else as `graft` and `coadaptation_gap`.
    """
    if len(models) < 2:
        raise ValueError("a layer is grafted from one model into another: give two at least")
    _require_one_architecture(models)
    network, known = _Network(model, x, y, batch_size), graftable(model)
    alone = {name: network(weights) for name, weights in models.items()}

    def each() -> Iterator[LayerGap]:
        for host, donor in permutations(models, 2):
            for layer, names in known.items():
                grafted = network(_spliced(models[host], dict.fromkeys(names, models[donor])))
                yield LayerGap(layer, host, donor, _gap(grafted, [alone[host], alone[donor]]))

    return tuple(each())


def negation_gaps(
    model: nn.Module, weights: Weights, x: Tensor, y: Tensor, batch_size: int = 256
) -> tuple[LayerGap, ...]:
    """For each layer: the gap of the model with that layer's weight negated, NoT's graft of theta and -theta.

    A single layer of -theta is as optimal as theta's (Theorem 4 says where); -theta as a whole is in general not. So
    theta is the parent that counts. As in `fedunlearn.negation.negate`, weights alone are negated, and the running
    mean of a BatchNorm that reads them follows.

    Args:
        model, x, y, batch_size: as of `coadaptation_gap`.
        weights: theta.

    Returns:
        Layer by layer, ``host`` "original" and ``donor`` "negated"; layers are called as in `graftable` where
        they have one weight.

    Raises:
        LayerError: a running mean cannot follow.
        ValueError: as `coadaptation_gap`.
    """
    network = _Network(model, x, y, batch_size)
    alone = [network(weights)]
    names = [row.name for row in layers(model) if row.kind in LAYER_KINDS]
    return tuple(
        LayerGap(
            name.removesuffix(".weight").removesuffix(".in_proj_weight"),
            "original",
            "negated",
            _gap(network(negate(weights, name, like=model)), alone),
        )
        for name in names
    )


@dataclass(frozen=True)
class _Score:
    loss: float
    accuracy: float


class _Network:
    """A copy of a network, scored with one weights after another."""

    def __init__(self, model: nn.Module, x: Tensor, y: Tensor, batch_size: int) -> None:
        if not len(x) or len(x) != len(y):
            raise ValueError(f"{len(x)} inputs with {len(y)} classes cannot be scored: give one sample at least")
        self.network = copy.deepcopy(unwrap(model)).eval()
        self.batches = list(zip(torch.split(x, batch_size), torch.split(y, batch_size), strict=True))

    @torch.no_grad()
    def __call__(self, weights: Weights) -> _Score:
        weights.into(self.network)
        device = next(self.network.parameters()).device
        loss, right, samples = 0.0, 0, 0
        for x, y in self.batches:
            logits, classes = self.network(x.to(device)), y.to(device)
            loss += float(F.cross_entropy(logits.double(), classes, reduction="sum"))
            right += int((logits.argmax(1) == classes).sum())
            samples += len(y)
        return _Score(loss / samples, 100 * right / samples)


def _gap(grafted: _Score, parents: Sequence[_Score]) -> Gap:
    if not parents:
        raise ValueError("a graft is held against its parents: give one at least")
    losses, accuracies = [one.loss for one in parents], [one.accuracy for one in parents]
    return Gap(
        grafted.loss,
        grafted.accuracy,
        grafted.loss - min(losses),
        grafted.loss - fmean(losses),
        grafted.accuracy - max(accuracies),
        grafted.accuracy - fmean(accuracies),
    )


def _owner(name: str) -> str:
    """The module of a tensor; of a weight that is computed from others (weight_norm), the module that it is for."""
    return name.partition(".parametrizations.")[0] if ".parametrizations." in name else name.rpartition(".")[0]


def _is_leaf(module: nn.Module) -> bool:
    return all(name == "parametrizations" for name, _ in module.named_children())


def _spliced(host: Weights, source: Mapping[str, Weights]) -> Weights:
    """The host with some tensors, by name, of others."""
    return replace(
        host,
        parameters={name: source.get(name, host).parameters[name] for name in host.parameters},
        buffers={name: source.get(name, host).buffers[name] for name in host.buffers},
    )


def _require_one_architecture(models: Mapping[str, Weights]) -> None:
    if not models:
        raise ValueError("there is nothing to graft: give one model at least")
    shapes = [{n: t.shape for n, t in {**of.parameters, **of.buffers}.items()} for of in models.values()]
    if any(others != shapes[0] for others in shapes):
        raise ValueError("their tensors differ in name or shape: graft models of one architecture")
