"""Jacobian control: how the law of a network's Jacobian, and the gradient, change when layers are negated."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from fedunlearn.kinds import LAYER_KINDS, kind_of
from fedunlearn.layers import BatchNormPolicy, Selection, plan
from fedunlearn.negation import negate
from fedunlearn.randomness import generator, stable_seed
from fedunlearn.theory.modes import device_of
from fedunlearn.theory.strength import relative
from fedunlearn.theory.transport import Variation, permutation_p, sliced, sliced_wasserstein, variation
from fedunlearn.weights import unwrap

__all__ = ["JacobianControl", "LayerJacobian", "Place", "gradient_norms", "jacobian_control", "jacobian_sketches"]

Place = Literal["above", "at", "below", "between", "beside"]
"""Of a layer, as the negated layers see it; ``between``: above one and below another of them."""

_WIDTH = 128  # numbers that a sample's Jacobian of a layer is reduced to
_OUTPUTS = 10  # outputs, or random combinations of them, that are differentiated
_SLICES, _SPLITS = 64, 4
_LEAST = 20  # samples


@dataclass(frozen=True)
class LayerJacobian:
    """What negation did to a layer's Jacobian J = grad_theta N(X), over samples X, and to its gradient.

    Distances are sliced Wasserstein-1, between halves of the samples, in units of the mean size of J: 1 is as far as
    J is from 0.

    Attributes:
        layer: the module that holds theta, weight and bias together.
        place: where the layer is, seen from the negated ones.
        sign: Theorem 6's epsilon: -1 where a negated layer lies above, else 1.
        distance: between sign * J before and J after.
        opposite: between -sign * J before and J after.
        floor: between two halves of the same law: what a distance is where nothing changed.
        p: of the distance, by a permutation test that sign * J before and J after have the same law.
        before, after: Euclidean norm of the gradient of the mean loss.
        ratio: after / before.
    """

    layer: str
    place: Place
    sign: int
    distance: float
    opposite: float
    floor: float
    p: float
    before: float
    after: float
    ratio: float


@dataclass(frozen=True)
class JacobianControl:
    """Theorems 3 and 6, measured.

    Attributes:
        negated: the negated tensors.
        samples: that were looked at.
        outputs: how many outputs of the network, or random combinations of them, were differentiated.
        variation: lower bound of TV(Y_-; Y_- after): the theorem's TV(Y_-; -Y_-) if biases are negated too.
        rows: the layers, in the order in which they run.
    """

    negated: tuple[str, ...]
    samples: int
    outputs: int
    variation: Variation
    rows: tuple[LayerJacobian, ...]


def jacobian_control(
    model: nn.Module,
    layers: Selection,
    x: Tensor,
    y: Tensor,
    *,
    seed: int,
    order: Callable[[str, str], bool] | None = None,
    include_bias: bool = False,
    batchnorm: BatchNormPolicy = "negate_mean",
    batch_size: int = 256,
) -> JacobianControl:
    """Compare each layer's Jacobian law before and after negation, and the gradient of the loss.

    Theorem 3 (main body, (5); supplement, Theorem 6, (51)-(52)) bounds the distance of the laws by A TV(Y_-; -Y_-)
    above the negated layers, where Y_- are their outputs, as the main body says and the supplement does not. Of the
    bound only the direction can be tested, for A is astronomical. At and below them the paper's bound, by TV((X, Y_-);
    (X, -Y_-)), is vacuous: Y_- is a function of X, the two laws live on graphs that meet only where Y_- = 0, and the
    distance is P(Y_- != 0), which is 1 for continuous laws. What is left there is to measure, with either sign: where
    the law of X is symmetric and all is odd below the negated layers, for example, J after has at them the law of -J,
    and below them that of J, each time the opposite of the sign in (52).

    The model is evaluated, in eval mode; it is left as it was. Where a BatchNorm reads a negated layer and its running
    mean follows, the network above is another, and the theorem speaks of Y_- less that mean.

    Args:
        model: takes ``(n, ...)``, answers ``(n, classes)``.
        layers: what is negated, as in `fedunlearn.layers.plan`.
        x, y: samples, ``(n, ...)``, 20 at least, and their classes, ``(n,)``.
        seed: of projections, halves, permutations and classifiers.
        order: whether the first layer lies below the second, both named as modules (``layer1.0.conv1``). None: whether
            it runs earlier, which is right for networks without branches.
        include_bias, batchnorm: as in `plan`. Y_- becomes exactly -Y_- only if biases are negated too.
        batch_size: samples a pass; per-sample gradients take one at a time.

    Raises:
        LayerError: the selection does not fit.
        ValueError: there are fewer than 20 samples, or a negated layer does not run.
    """
    if len(x) < _LEAST:
        raise ValueError(f"{len(x)} samples are too few to compare laws: give {_LEAST} or more")
    model = unwrap(model)
    chosen = plan(model, layers, include_bias=include_bias, batchnorm=batchnorm)
    before = copy.deepcopy(model).eval()
    after = negate(copy.deepcopy(model).eval(), chosen)
    running = _running(before, x[:1])
    at = dict.fromkeys(part.name.rpartition(".")[0] for part in chosen.parts)
    idle = [name for name in at if name not in running]
    if idle:
        raise ValueError(f"{idle[0]} is no layer that the input flows through: select others")
    below = order or (lambda one, other: list(running).index(one) < list(running).index(other))
    norms = [gradient_norms(network, x, y, batch_size=batch_size) for network in (before, after)]
    laws = [jacobian_sketches(network, x, seed=seed) for network in (before, after)]
    rows = []
    for name in running:
        place, sign = _place(name, at, below)
        compared = _compare(laws[0][name], laws[1][name], sign, stable_seed("jacobian", seed, name))
        gradients = norms[0][name], norms[1][name]
        rows.append(LayerJacobian(name, place, sign, *compared, *gradients, relative(gradients[1], gradients[0])))
    one, other = (_outputs(network, tuple(at), x, batch_size) for network in (before, after))
    apart = variation(one, other, stable_seed("variation", seed))
    return JacobianControl(chosen.names, len(x), min(_classes(before, x), _OUTPUTS), apart, tuple(rows))


def gradient_norms(model: nn.Module, x: Tensor, y: Tensor, *, batch_size: int = 256) -> dict[str, float]:
    """Norm of the gradient of the mean cross-entropy, layer by layer, in eval mode.

    Args:
        model: takes ``(n, ...)``, answers ``(n, classes)``; it is left as it was.
        x, y: samples, ``(n, ...)``, and their classes, ``(n,)``.
        batch_size: samples a pass.

    Returns:
        For each layer that the input flows through, by its module's name and in the order of running: the Euclidean
        norm over weight and bias, summed in float64.

    Raises:
        ValueError: there is no sample.
    """
    if not len(x):
        raise ValueError("there is no sample to take a gradient of: give one at least")
    network = copy.deepcopy(unwrap(model)).eval()
    layers = _running(network, x[:1])
    leaves, device = _leaves(network, layers), device_of(network)
    sums = {name: torch.zeros_like(leaf, dtype=torch.float64) for name, leaf in leaves.items()}
    for xs, ys in zip(torch.split(x, batch_size), torch.split(y, batch_size), strict=True):
        with torch.enable_grad():
            loss = F.cross_entropy(network(xs.to(device)), ys.to(device), reduction="sum")
        found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        for total, gradient in zip(sums.values(), found, strict=True):
            if gradient is not None:
                total += gradient.double()
    squares = {name: float((total / len(x)).square().sum()) for name, total in sums.items()}
    return {layer: math.sqrt(sum(squares[name] for name in owned)) for layer, owned in layers.items()}


def jacobian_sketches(model: nn.Module, x: Tensor, *, seed: int) -> dict[str, NDArray[np.float64]]:
    """Each sample's Jacobian of the outputs, layer by layer, reduced to 128 numbers by a random linear map.

    The map is a count sketch (Charikar, Chen, Farach-Colton 2002): each entry of the Jacobian is added, with a random
    sign, to a random one of 128 sums. It keeps inner products in expectation, the squared norm with a relative standard
    deviation of sqrt(2 / 128) at most, and is the same for each seed and architecture, so that sketches before and
    after can be compared. Of more than 10 outputs as many random orthonormal combinations are differentiated. That is a
    pass forward and backward for each sample and output, and no more is held than one sample's gradient, and the map.

    Args:
        model: takes ``(n, ...)``, answers ``(n, classes)``; it is left as it was.
        x: samples, ``(n, ...)``.
        seed: of the map.

    Returns:
        ``(n, 128)`` for each layer that the input flows through, by its module's name.
    """
    network = copy.deepcopy(unwrap(model)).eval()
    layers = _running(network, x[:1])
    leaves = _leaves(network, layers)
    found = {layer: torch.zeros(len(x), _WIDTH, dtype=torch.float64) for layer in layers}
    for number, combination in enumerate(_combinations(_classes(network, x), seed)):
        signs = {name: _signs(leaf, generator("signs", seed, number, name)) for name, leaf in leaves.items()}
        buckets = {name: _buckets(leaf, generator("buckets", seed, number, name)) for name, leaf in leaves.items()}
        # One sample at a time: no slower than `vmap` where weights are many, and right for any network that trains.
        for position, one in enumerate(torch.split(x.to(device_of(network)), 1)):
            with torch.enable_grad():
                answer = network(one)[0]
                output = answer @ combination.to(answer)
            gradients = torch.autograd.grad(output, list(leaves.values()), allow_unused=True)
            of = dict(zip(leaves, gradients, strict=True))
            for layer, owned in layers.items():
                for name in owned:
                    gradient = of[name]
                    if gradient is not None:
                        found[layer][position] += _sketch(gradient.flatten() * signs[name], buckets[name]).cpu()
    return {layer: values.numpy() for layer, values in found.items()}


def _signs(like: Tensor, rng: torch.Generator) -> Tensor:
    """A random sign for each entry, drawn on the CPU: the same on every device."""
    return (torch.randint(2, (like.numel(),), generator=rng) * 2 - 1).to(like)


def _buckets(like: Tensor, rng: torch.Generator) -> Tensor:
    """Which sum each entry is added to, drawn as its sign is: entries of one input must not all meet in one sum."""
    return torch.randint(_WIDTH, (like.numel(),), generator=rng, dtype=torch.int32).to(like.device)


def _sketch(entries: Tensor, buckets: Tensor) -> Tensor:
    """Entries added up in 128 groups, ``(p,)`` -> ``(128,)``, float64."""
    sums = torch.zeros(_WIDTH, dtype=torch.float64, device=entries.device)
    return sums.index_add_(0, buckets, entries.double())


def _combinations(classes: int, seed: int) -> Tensor:
    """How much each output counts, a row a combination: each alone, or orthonormal ones where outputs are many."""
    if classes <= _OUTPUTS:
        return torch.eye(classes, dtype=torch.float64)
    drawn = torch.randn(classes, _OUTPUTS, generator=generator("outputs", seed), dtype=torch.float64)
    orthonormal: Tensor = torch.linalg.qr(drawn).Q
    return orthonormal.T


def _compare(
    before: NDArray[np.float64], after: NDArray[np.float64], sign: int, seed: int
) -> tuple[float, float, float, float]:
    """Distance, distance with the other sign, floor (the mean of both laws'), and p.

    Before and after are held against each other on different samples: what is drawn together is alike by chance.
    """
    one, two = sliced(sign * before, _SLICES, seed), sliced(after, _SLICES, seed)
    rng, half = np.random.default_rng(seed), len(one) // 2
    orders = [rng.permutation(len(one)) for _ in range(_SPLITS)]
    pairs = [(order[:half], order[half : 2 * half]) for order in orders]
    swapped = [(last, first) for first, last in pairs]
    distance = np.mean([sliced_wasserstein(one[i], two[j]) for i, j in pairs + swapped])
    opposite = np.mean([sliced_wasserstein(-one[i], two[j]) for i, j in pairs + swapped])
    floor = np.mean([sliced_wasserstein(law[i], law[j]) for law in (one, two) for i, j in pairs])
    scale = float(np.abs(one).mean())
    first, last = pairs[0]
    p = permutation_p(one[first], two[last], seed)
    return relative(float(distance), scale), relative(float(opposite), scale), relative(float(floor), scale), p


def _place(name: str, at: Collection[str], below: Callable[[str, str], bool]) -> tuple[Place, int]:
    over = any(below(negated, name) for negated in at if negated != name)
    under = any(below(name, negated) for negated in at if negated != name)
    if name in at:  # epsilon = (-1)^(l not in L_neg), for l <= L_neg
        return "at", 1
    if under:
        return ("between" if over else "below"), -1
    return ("above" if over else "beside"), 1


def _leaves(network: nn.Module, layers: Mapping[str, tuple[str, ...]]) -> dict[str, nn.Parameter]:
    """The layers' parameters; of this copy of the network they alone take a gradient."""
    network.requires_grad_(False)
    leaves = {name: network.get_parameter(name) for owned in layers.values() for name in owned}
    for leaf in leaves.values():
        leaf.requires_grad_()
    return leaves


def _classes(network: nn.Module, x: Tensor) -> int:
    with torch.no_grad():
        return int(network(x[:1].to(device_of(network))).shape[1])


def _running(network: nn.Module, x: Tensor) -> dict[str, tuple[str, ...]]:
    """The layers that the input flows through, in the order of running: module -> the parameters that it holds."""
    owned: dict[str, tuple[str, ...]] = {}
    kept = {name for name, _ in network.named_parameters()}  # of tied parameters the first name
    for name, module in network.named_modules():
        own = dict(module.named_parameters(recurse=False))
        names = tuple(f"{name}.{attribute}" if name else attribute for attribute in own)
        if any(kind_of(module, attribute, parameter) in LAYER_KINDS for attribute, parameter in own.items()):
            owned[name] = tuple(one for one in names if one in kept)
    order: dict[str, None] = {}

    def ran(name: str, module: nn.Module) -> None:
        order[name] = None
        if isinstance(module, nn.MultiheadAttention):  # it uses its projection's weights without calling it
            order[f"{name}.out_proj"] = None

    hooks = [
        network.get_submodule(name).register_forward_pre_hook(lambda module, _, name=name: ran(name, module))
        for name in owned
    ]
    try:
        with torch.no_grad():
            network(x.to(device_of(network)))
    finally:
        for hook in hooks:
            hook.remove()
    return {name: owned[name] for name in order if owned.get(name)}


def _outputs(network: nn.Module, layers: tuple[str, ...], x: Tensor, batch_size: int) -> NDArray[np.float64]:
    """Outputs of these layers, side by side: Y_-, ``(n, d)``."""
    found: list[Tensor] = []
    seen: Mapping[str, list[Tensor]] = {name: [] for name in layers}

    def keep(name: str, output: Any) -> None:
        seen[name].append((output[0] if isinstance(output, tuple) else output).flatten(1).double().cpu())

    hooks = [
        network.get_submodule(name).register_forward_hook(lambda _, __, output, name=name: keep(name, output))
        for name in layers
    ]
    try:
        with torch.no_grad():
            for xs in torch.split(x, batch_size):
                network(xs.to(device_of(network)))
                found.append(torch.cat([value for name in layers for value in seen[name]], 1))
                for values in seen.values():
                    values.clear()
    finally:
        for hook in hooks:
            hook.remove()
    return torch.cat(found).numpy()
