"""Is negation a strong perturbation? How far it moves a layer's activations, in theory and in a network."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from scipy.integrate import quad
from scipy.special import erfc, gammaln
from torch import Generator, Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.overrides import TorchFunctionMode

from fedunlearn.layers import BatchNormPolicy, Part, Selection, plan
from fedunlearn.negation import negate, rows_of
from fedunlearn.randomness import generator
from fedunlearn.weights import unwrap

__all__ = [
    "INDEPENDENT",
    "Lemma1",
    "Moved",
    "Strength",
    "Theorem2",
    "independent_share",
    "largest_distance",
    "lemma_1",
    "relative",
    "strength",
    "theorem_2",
]

INDEPENDENT = 1 - 1 / math.pi
"""Lemma 2's alpha: what an independent redraw reaches of the largest distance. It is the limit for wide layers."""

_ROUNDING = 1e-9  # relative: what float64 sums may miss an inequality by

_ACTIVATIONS = frozenset(
    {"relu", "relu6", "leaky_relu", "prelu", "rrelu", "elu", "selu", "celu", "gelu", "silu", "mish", "softplus"}
    | {"sigmoid", "hardsigmoid", "logsigmoid", "tanh", "hardtanh", "softsign", "hardswish", "threshold"}
    | {"sin", "cos", "abs", "square"}
)
_BEFORE_ACTIVATIONS = frozenset(
    {"batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm"}
    | {"dropout", "dropout1d", "dropout2d", "dropout3d", "contiguous"}
)
"""What may stand between a layer and its activation: the pre-activation is what the activation reads."""


def largest_distance(activations: Tensor, activation: Literal["relu", "step", "odd"]) -> Tensor:
    """The largest squared distance from activations s to others of the same norm and the same range.

    Supplement, section 12.2:

    - ``relu``: 2 |s| (|s| - min s), for of all non-negative vectors of that norm the one along the smallest coordinate
      has the smallest product with s. Printed are 2 |s|^2 "if at least one coordinate is non-zero" (22), right where
      at least one *is* zero, and |s|^2 if all are positive (23), which is neither an upper nor a lower bound.
    - ``step``: 2 min(k, n - k) for k ones among n. Negating the layer flips all n, the largest distance whatever the
      norm; of the same norm the result is where k = n / 2, which the paper does not say.
    - ``odd``: 4 |s|^2, at -s.

    Args:
        activations: ``(..., n)``; non-negative for ``relu``, 0 or 1 for ``step``.
        activation: what made them.

    Returns:
        ``(...,)``, float64.

    Raises:
        ValueError: a value is not in the activation's range.
    """
    s = activations.double()
    if activation == "relu":
        if bool((s < 0).any()):
            raise ValueError("a ReLU gives no negative value: pass activations, not pre-activations")
        norm = s.square().sum(-1).sqrt()
        return 2 * norm * (norm - s.amin(-1))
    if activation == "step":
        if not bool(((s == 0) | (s == 1)).all()):
            raise ValueError("a step gives 0 or 1: leave out samples with a pre-activation of exactly 0")
        ones = s.sum(-1)
        return 2 * torch.minimum(ones, s.shape[-1] - ones)
    return 4 * s.square().sum(-1)


@dataclass(frozen=True)
class Lemma1:
    """Lemma 1 (supplement, 12.2) on pre-activations Y of a ReLU layer: distance >= largest - epsilon.

    Attributes:
        samples, width: shape of Y.
        distance: E|s(Y) - s(-Y)|^2 = E|Y|^2.
        largest: E max of |s(Y) - y|^2 over y >= 0 with |y| = |s(Y)| (`largest_distance`).
        epsilon: E| |s(Y)|^2 - |s(-Y)|^2 |.
        slack: distance - largest + epsilon.
        holds: whether the slack is not negative, rounding aside.
    """

    samples: int
    width: int
    distance: float
    largest: float
    epsilon: float
    slack: float
    holds: bool


def lemma_1(pre_activations: Tensor) -> Lemma1:
    """Lemma 1 on data.

    The lemma is true with the true maximum, sample by sample, though step (28) of its proof is not: where all of Y is
    positive the distance is |Y|^2, the maximum up to 2 |Y|^2, and their difference no more than what that sample adds
    to epsilon.

    Args:
        pre_activations: ``(samples, width)``.

    Raises:
        ValueError: there is no sample, or not two dimensions.
    """
    y = _matrix(pre_activations)
    on, off = y.relu(), (-y).relu()
    distance = float((on - off).square().sum(1).mean())
    largest = float(largest_distance(on, "relu").mean())
    epsilon = float((_energy(on) - _energy(off)).abs().mean())
    slack = distance - largest + epsilon
    return Lemma1(len(y), y.shape[1], distance, largest, epsilon, slack, slack >= -_ROUNDING * distance)


@dataclass(frozen=True)
class Theorem2:
    """Theorem 2 (main body, (4)) on pre-activations: at equal energy no other perturbation moves a ReLU layer further.

    Attributes:
        samples, width: shape of Y.
        energy: E|s(Y)|^2, what the distances are to be held against.
        distance: E|s(Y) - s(-Y)|^2.
        other: E|s(Y) - s(Y')|^2 of another perturbation.
        epsilon: the smallest for which both hypotheses hold: the larger of E| |s(Y)|^2 - |s(-Y)|^2 | and
            E| |s(Y)|^2 - |s(Y')|^2 |.
        bound: other - 2 epsilon.
        holds: whether distance >= bound, rounding aside.
        vacuous: whether the bound is 0 or less: energies differ too much for the theorem to say anything.
    """

    samples: int
    width: int
    energy: float
    distance: float
    other: float
    epsilon: float
    bound: float
    holds: bool
    vacuous: bool


def theorem_2(pre_activations: Tensor, other: Tensor) -> Theorem2:
    """Theorem 2 on data.

    Args:
        pre_activations: Y, ``(samples, width)``.
        other: Y', of the same samples under another perturbation of the layer, ``(samples, width)``.

    Raises:
        ValueError: there is no sample, or the shapes are not the same two dimensions.
    """
    y, changed = _matrix(pre_activations), _matrix(other)
    if y.shape != changed.shape:
        raise ValueError(f"pre-activations of shapes {tuple(y.shape)} and {tuple(changed.shape)} cannot be compared")
    return _theorem_2(_Sums.of(y, changed), *y.shape)


def independent_share(width: int) -> float:
    """What an independent redraw of a ReLU layer reaches of the largest distance: Lemma 2, exactly.

    For Y1, Y2 standard normal in R^n, E|s(Y1) - s(Y2)|^2 / E max = n (1 - 1/pi) / E max. The lemma says that this is
    1 - 1/pi; it is the limit for large n, from above (n = 2: 0.838, 5: 0.687, 10: 0.682). With probability 2^-n all
    of Y1 is positive and the maximum less than 2 |Y1|^2, by 2 |Y1| min Y1; length and direction of a normal vector
    are independent, so E max = n - 2^(1-n) n E[min |Y|] / E|Y|.

    Args:
        width: n, 2 at least.

    Raises:
        ValueError: the width is less than 2: a single activation of the same size is the same.
    """
    if width < 2:
        raise ValueError(f"a layer of width {width} cannot move at equal energy: give 2 or more")
    smallest = quad(lambda t: erfc(t / math.sqrt(2)) ** width, 0, math.inf)[0]
    length = math.sqrt(2) * math.exp(gammaln((width + 1) / 2) - gammaln(width / 2))
    return float(INDEPENDENT / (1 - 2.0 ** (1 - width) * smallest / length))


@dataclass(frozen=True)
class Moved:
    """What a change of one layer did.

    Attributes:
        distance: E|s - s'|^2 / E|s|^2 of the activations s before and s' after.
        energy: E|s'|^2 / E|s|^2; Theorem 2 compares perturbations where it is near to 1.
        logits: sqrt(E|f - f'|^2 / E|f|^2) of the network's outputs.
        loss: mean cross-entropy after.
        changed: share of the samples with another predicted class, in [0, 1].
    """

    distance: float
    energy: float
    logits: float
    loss: float
    changed: float


@dataclass(frozen=True)
class Strength:
    """How strong a perturbation negating a layer is (condition C1, section 4.1).

    Attributes:
        layer: the negated tensors.
        activation: the function that follows the layer, such as ``relu``; ``none``: its output was compared.
        samples: that were looked at.
        loss: mean cross-entropy before.
        negated: what negation did.
        redrawn: what independent normal weights of the same norm did in its stead.
        theorem: Theorem 2 on Y, -Y and the redrawn layer's Y'; None: the activation is no ReLU.
    """

    layer: tuple[str, ...]
    activation: str
    samples: int
    loss: float
    negated: Moved
    redrawn: Moved
    theorem: Theorem2 | None


def strength(
    model: nn.Module,
    layer: Selection,
    x: Tensor,
    y: Tensor,
    *,
    seed: int,
    include_bias: bool = False,
    batchnorm: BatchNormPolicy = "negate_mean",
    batch_size: int = 256,
) -> Strength:
    """Negate one layer of a network, and look at its activations, the outputs and the loss.

    The comparison is the paper's "weight randomisation" (supplement, 12.2), with one difference: the random weights
    have the norm of those that they replace. An initialiser's are mostly smaller than trained ones, and the theory
    compares perturbations of equal energy.

    The model is evaluated, in eval mode; it is left as it was.

    Args:
        model: takes ``(n, ...)``, answers ``(n, classes)``.
        layer: one layer, as in `fedunlearn.layers.plan`.
        x, y: samples, ``(n, ...)``, and their classes, ``(n,)``.
        seed: of the redrawn weights.
        include_bias, batchnorm: as in `plan`. Y becomes exactly -Y only if the bias is negated too.
        batch_size: samples a forward pass.

    Raises:
        LayerError: the selection does not fit.
        ValueError: several layers are selected, or there is no sample.
    """
    if not len(x):
        raise ValueError("there is no sample to look at: give one at least")
    model = unwrap(model)
    chosen = plan(model, layer, include_bias=include_bias, batchnorm=batchnorm)
    owners = {part.name.rpartition(".")[0] for part in chosen.parts}
    if len(owners) != 1:
        raise ValueError(f"the activations of one layer are compared: select one of {', '.join(sorted(owners))}")
    (owner,) = owners
    networks = {name: copy.deepcopy(model).eval() for name in ("before", "negated", "redrawn")}
    negate(networks["negated"], chosen)
    _redraw(networks["redrawn"], chosen.parts, seed)
    device = next(model.parameters()).device
    totals, bounds, activation, width = _Totals(), _Sums(), "none", 0
    for xs, ys in zip(torch.split(x, batch_size), torch.split(y, batch_size), strict=True):
        seen = {name: _seen(network, owner, xs.to(device)) for name, network in networks.items()}
        activation = seen["before"].activation
        width = seen["before"].pre.shape[1]
        totals.add(seen, ys.to(device))
        if activation == "relu":
            bounds = bounds + _Sums.of(seen["before"].pre, seen["redrawn"].pre)
    return Strength(
        layer=chosen.names,
        activation=activation,
        samples=len(x),
        loss=totals.loss["before"] / len(x),
        negated=totals.moved("negated", len(x)),
        redrawn=totals.moved("redrawn", len(x)),
        theorem=_theorem_2(bounds, len(x), width) if activation == "relu" else None,
    )


def _matrix(values: Tensor) -> Tensor:
    if values.ndim != 2 or not values.numel():
        raise ValueError(f"pre-activations are (samples, width), one of each at least, not {tuple(values.shape)}")
    return values.detach().double()


def _energy(values: Tensor) -> Tensor:
    return values.square().sum(1)


@dataclass(frozen=True)
class _Sums:
    """What Theorem 2 needs, summed over samples."""

    energy: float = 0.0
    distance: float = 0.0
    other: float = 0.0
    gap: float = 0.0
    other_gap: float = 0.0

    @classmethod
    def of(cls, y: Tensor, changed: Tensor) -> _Sums:
        on, off, there = y.relu(), (-y).relu(), changed.relu()
        energy = _energy(on)
        gaps = [float((energy - _energy(values)).abs().sum()) for values in (off, there)]
        distances = [float((on - values).square().sum()) for values in (off, there)]
        return cls(float(energy.sum()), *distances, *gaps)

    def __add__(self, other: _Sums) -> _Sums:
        return _Sums(
            self.energy + other.energy,
            self.distance + other.distance,
            self.other + other.other,
            self.gap + other.gap,
            self.other_gap + other.other_gap,
        )


def _theorem_2(sums: _Sums, samples: int, width: int) -> Theorem2:
    energy, distance, other = (value / samples for value in (sums.energy, sums.distance, sums.other))
    epsilon = max(sums.gap, sums.other_gap) / samples
    bound = other - 2 * epsilon
    holds = distance >= bound - _ROUNDING * (distance + other)
    return Theorem2(samples, width, energy, distance, other, epsilon, bound, holds, bound <= 0)


def _redraw(model: nn.Module, parts: Sequence[Part], seed: int) -> None:
    """Independent normal values of the same norm, drawn on the CPU: the same on every device."""
    tensors = dict(model.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for part in parts:
            values = rows_of(tensors[part.name], part)
            drawn = _normal(tuple(values.shape), generator("strength", seed, str(part)))
            values.copy_(drawn * (values.double().norm().cpu() / drawn.norm()))


def _normal(shape: tuple[int, ...], rng: Generator) -> Tensor:
    return torch.randn(shape, generator=rng, dtype=torch.float64)


@dataclass(frozen=True)
class _Seen:
    """One batch in one network: pre-activations and activations ``(n, d)``, outputs; float64."""

    pre: Tensor
    post: Tensor
    logits: Tensor
    activation: str


class _Totals:
    """Sums over batches of what `Moved` says."""

    def __init__(self) -> None:
        self.loss = dict.fromkeys(("before", "negated", "redrawn"), 0.0)
        self.energy, self.logits = dict(self.loss), dict(self.loss)
        self.distance, self.away, self.changed = dict(self.loss), dict(self.loss), dict(self.loss)

    def add(self, seen: dict[str, _Seen], y: Tensor) -> None:
        before = seen["before"]
        for name, after in seen.items():
            self.loss[name] += float(F.cross_entropy(after.logits, y, reduction="sum"))
            self.energy[name] += float(after.post.square().sum())
            self.logits[name] += float(after.logits.square().sum())
            self.distance[name] += float((before.post - after.post).square().sum())
            self.away[name] += float((before.logits - after.logits).square().sum())
            self.changed[name] += float((before.logits.argmax(1) != after.logits.argmax(1)).sum())

    def moved(self, name: str, samples: int) -> Moved:
        return Moved(
            distance=relative(self.distance[name], self.energy["before"]),
            energy=relative(self.energy[name], self.energy["before"]),
            logits=math.sqrt(relative(self.away[name], self.logits["before"])),
            loss=self.loss[name] / samples,
            changed=self.changed[name] / samples,
        )


def relative(part: float, whole: float) -> float:
    """Relative to nothing, nothing is 0 and something infinite."""
    return part / whole if whole else (math.inf if part else 0.0)


def _seen(model: nn.Module, owner: str, x: Tensor) -> _Seen:
    follow = _Follow()
    module = model.get_submodule(owner)
    hook = module.register_forward_hook(lambda _, __, output: follow.start(output))
    try:
        with torch.no_grad(), follow:
            logits = model(x)
    finally:
        hook.remove()
    pre, post = follow.found()
    return _Seen(pre.flatten(1).double(), post.flatten(1).double(), logits.double(), follow.activation)


class _Follow(TorchFunctionMode):
    """Follows a layer's output to its activation, be that a module, a function or a method, in place or not.

    Where something else reads the output first (a sum, a reshape), there is no activation, and the output as it
    arrives there is what is compared. A layer that is called several times is followed from its first call.
    """

    def __init__(self) -> None:
        super().__init__()
        self.activation = "none"
        self._followed: Tensor | None = None
        self._pre: Tensor | None = None
        self._post: Tensor | None = None

    def start(self, output: Any) -> None:
        if self._followed is None and self._pre is None:
            self._followed = output[0] if isinstance(output, tuple) else output

    def found(self) -> tuple[Tensor, Tensor]:
        if self._followed is not None:  # nothing read it: the layer is the last
            self._pre = self._post = self._followed
        if self._pre is None or self._post is None:
            raise ValueError("the selected layer did not run: select one that the input flows through")
        return self._pre, self._post

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        followed = self._followed
        if followed is None or not any(value is followed for value in (*args, *kwargs.values())):
            return func(*args, **kwargs)
        before = followed.clone()  # what follows may work in place
        result = func(*args, **kwargs)
        name = getattr(func, "__name__", "").removesuffix("_")
        if not isinstance(result, Tensor):  # its shape, say
            return result
        if name in _BEFORE_ACTIVATIONS:
            self._followed = result
        else:
            self._followed, self._pre, self._post = None, before, before
            if name in _ACTIVATIONS:
                self.activation, self._post = name, result.clone()
        return result
