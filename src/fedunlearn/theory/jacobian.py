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
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F  # noqa: N812
from torch.nn.attention import SDPBackend, sdpa_kernel

from fedunlearn.kinds import LAYER_KINDS, kind_of
from fedunlearn.layers import BatchNormPolicy, Selection, plan
from fedunlearn.negation import negate
from fedunlearn.randomness import generator, stable_seed
from fedunlearn.theory.transport import Variation, permutation_p, sliced, sliced_wasserstein, variation
from fedunlearn.weights import unwrap

__all__ = ["JacobianControl", "LayerJacobian", "Place", "gradient_norms", "jacobian_control", "jacobian_sketches"]

Place = Literal["above", "at", "below", "between", "beside"]
"""Of a layer, as the negated layers see it; ``between``: above one and below another of them."""

_WIDTH = 128  # numbers that a sample's Jacobian of a layer is reduced to
_OUTPUTS = 10  # outputs, or random combinations of them, that are differentiated
_SLICES, _SPLITS = 64, 4
_GRADIENTS = 2**25  # numbers of per-sample gradients held at once: 128 MB
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
    above the negated layers, where Y_- are their outputs, which nobody defined in print. Of the bound only the
    direction can be tested, for A is astronomical. At and below them the paper's bound, by TV((X, Y_-); (X, -Y_-)), is
    vacuous: Y_- is a function of X, the two laws live on graphs that meet only where Y_- = 0, and the distance is
    P(Y_- != 0), which is 1 for continuous laws. What is left there is to measure, with either sign: where the law of X
    is symmetric and all is odd below the negated layers, for example, J after has at them the law of -J, and below
    them that of J, each time the opposite of the sign in (52).

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
        batch_size: samples a pass; fewer where their gradients would not fit.

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
    laws = [jacobian_sketches(network, x, seed=seed, batch_size=batch_size) for network in (before, after)]
    rows = []
    for name in running:
        place, sign = _place(name, at, below)
        compared = _compare(laws[0][name], laws[1][name], sign, stable_seed("jacobian", seed, name))
        gradients = norms[0][name], norms[1][name]
        rows.append(LayerJacobian(name, place, sign, *compared, *gradients, _relative(gradients[1], gradients[0])))
    outputs = [_outputs(network, tuple(at), x, batch_size) for network in (before, after)]
    with torch.no_grad():
        classes = before(x[:1].to(_device(before))).shape[1]
    return JacobianControl(
        chosen.names, len(x), min(classes, _OUTPUTS), variation(*outputs, stable_seed("variation", seed)), tuple(rows)
    )


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
    state, device = _state(network), _device(network)
    layers = _running(network, x[:1])
    names = [name for owned in layers.values() for name in owned]
    sums = {name: torch.zeros_like(state[name], dtype=torch.float64) for name in names}
    for xs, ys in zip(x.split(batch_size), y.split(batch_size), strict=True):
        leaves = {name: state[name].clone().requires_grad_() for name in names}
        with torch.enable_grad():
            logits = functional_call(network, {**state, **leaves}, (xs.to(device),))
            loss = F.cross_entropy(logits, ys.to(device), reduction="sum")
        found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        for name, gradient in zip(names, found, strict=True):
            if gradient is not None:
                sums[name] += gradient.double()
    squares = {name: float((total / len(x)).square().sum()) for name, total in sums.items()}
    return {layer: math.sqrt(sum(squares[name] for name in owned)) for layer, owned in layers.items()}


def jacobian_sketches(
    model: nn.Module, x: Tensor, *, seed: int, batch_size: int = 256
) -> dict[str, NDArray[np.float64]]:
    """Each sample's Jacobian of the outputs, layer by layer, reduced to 128 numbers by a random linear map.

    The map is a count sketch (Charikar, Chen, Farach-Colton 2002): each entry of the Jacobian is added, with a random
    sign, to one of 128 sums. It keeps inner products in expectation and is the same for each seed and architecture, so
    that sketches before and after can be compared. Of more than 10 outputs as many random orthonormal combinations are
    differentiated. One output is differentiated at a time, for as many samples as fit.

    Args:
        model: takes ``(n, ...)``, answers ``(n, classes)``; it is left as it was.
        x: samples, ``(n, ...)``.
        seed: of the map.
        batch_size: samples a pass; fewer where their gradients would not fit.

    Returns:
        ``(n, 128)`` for each layer that the input flows through, by its module's name.
    """
    network = copy.deepcopy(unwrap(model)).eval()
    state, device = _state(network), _device(network)
    layers = _running(network, x[:1])
    leaves = {name: state[name] for owned in layers.values() for name in owned}
    chunk = max(1, min(batch_size, _GRADIENTS // max(1, sum(leaf.numel() for leaf in leaves.values()))))
    with torch.no_grad():
        example = network(x[:1].to(device))
    found = {layer: torch.zeros(len(x), _WIDTH, dtype=torch.float64, device=device) for layer in layers}
    for number, combination in enumerate(_combinations(example, seed)):

        def output(values: dict[str, Tensor], one: Tensor, combination: Tensor = combination) -> Tensor:
            answer: Tensor = functional_call(network, {**state, **values}, (one[None],))
            return answer[0] @ combination

        differentiate = vmap(grad(output), in_dims=(None, 0))
        maps = {name: _count_sketch(leaf, generator("sketch", seed, number, name)) for name, leaf in leaves.items()}
        for start in range(0, len(x), chunk):
            # Fused attention has no rule for one sample at a time.
            with sdpa_kernel(SDPBackend.MATH), torch.no_grad():
                gradients = differentiate(leaves, x[start : start + chunk].to(device))
                for layer, owned in layers.items():
                    for name in owned:
                        sums, signs = maps[name]
                        entries = gradients[name].flatten(1).double() * signs
                        found[layer][start : start + chunk].index_add_(1, sums, entries)
    return {layer: values.cpu().numpy() for layer, values in found.items()}


def _count_sketch(like: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Of each entry its sum and its sign, drawn on the CPU: the same on every device."""
    sums = torch.randint(_WIDTH, (like.numel(),), generator=rng)
    signs = torch.randint(2, (like.numel(),), generator=rng).double() * 2 - 1
    return sums.to(like.device), signs.to(like.device)


def _combinations(example: Tensor, seed: int) -> Tensor:
    """Of the outputs, a row each: every output by itself, or orthonormal ones where these are many."""
    classes = example.shape[1]
    if classes <= _OUTPUTS:
        return torch.eye(classes, dtype=example.dtype, device=example.device)
    drawn = torch.randn(classes, _OUTPUTS, generator=generator("outputs", seed), dtype=torch.float64)
    return torch.linalg.qr(drawn).Q.T.to(example)


def _compare(
    before: NDArray[np.float64], after: NDArray[np.float64], sign: int, seed: int
) -> tuple[float, float, float, float]:
    """Distance, distance with the other sign, floor, and p.

    Before and after are held against each other on different samples: what is drawn together is alike by chance.
    """
    one, two = sliced(sign * before, _SLICES, seed), sliced(after, _SLICES, seed)
    rng, half = np.random.default_rng(seed), len(one) // 2
    halves = [np.split(rng.permutation(len(one))[: 2 * half], 2) for _ in range(_SPLITS)]
    both = [*halves, *(reversed(pair) for pair in halves)]
    pairs = [tuple(pair) for pair in both]
    distance = np.mean([sliced_wasserstein(one[i], two[j]) for i, j in pairs])
    opposite = np.mean([sliced_wasserstein(-one[i], two[j]) for i, j in pairs])
    floor = np.mean([sliced_wasserstein(law[i], law[j]) for law in (one, two) for i, j in pairs[:_SPLITS]])
    scale = float(np.abs(one).mean())
    first, second = pairs[0]
    measured = (_relative(float(value), scale) for value in (distance, opposite, floor))
    return (*measured, permutation_p(one[first], two[second], seed))  # type: ignore[return-value]


def _place(name: str, at: Collection[str], below: Callable[[str, str], bool]) -> tuple[Place, int]:
    over = any(below(negated, name) for negated in at if negated != name)
    under = any(below(name, negated) for negated in at if negated != name)
    if name in at:  # epsilon = (-1)^(l not in L_neg), for l <= L_neg
        return "at", 1
    if under:
        return ("between" if over else "below"), -1
    return ("above" if over else "beside"), 1


def _relative(part: float, whole: float) -> float:
    """Relative to nothing, nothing is 0 and something infinite."""
    return part / whole if whole else (math.inf if part else 0.0)


def _state(network: nn.Module) -> dict[str, Tensor]:
    named: tuple[Any, Any] = (network.named_parameters(), network.named_buffers())
    return {name: tensor.detach() for tensors in named for name, tensor in tensors}


def _device(network: nn.Module) -> torch.device:
    return next(network.parameters()).device


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
            network(x.to(_device(network)))
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
            for xs in x.split(batch_size):
                network(xs.to(_device(network)))
                found.append(torch.cat([value for name in layers for value in seen[name]], 1))
                for values in seen.values():
                    values.clear()
    finally:
        for hook in hooks:
            hook.remove()
    return torch.cat(found).numpy()
