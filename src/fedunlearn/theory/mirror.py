"""What comes through a negated layer: its mirror image psi(-y) beside psi(y), and what later layers hear."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence

import torch
from scipy.integrate import quad
from torch import Tensor, nn

from fedunlearn.layers import Selection
from fedunlearn.negation import negate
from fedunlearn.theory.activations import hearing
from fedunlearn.theory.modes import device_of
from fedunlearn.weights import unwrap

__all__ = ["carried", "mirror_correlation"]

_REACH = 12.0  # standard deviations; beyond them a normal density is zero in float64


def mirror_correlation(psi: Callable[[Tensor], Tensor], *, mean: float = 0.0, std: float = 1.0) -> float:
    """The correlation of psi(Y) and psi(-Y) for a normal Y: how much of a signal a negation lets through, and its sign.

    -1 for odd and sigmoid-like functions, where the sign is turned and nothing is lost; 1 for even ones, which do not
    see it. ReLU's is -1 / (pi - 1) = -0.467 at mean 0: with E psi = s / sqrt(2 pi) and E psi^2 = s^2 / 2 for a standard
    deviation s, and psi(Y) psi(-Y) = 0, the covariance is -s^2 / (2 pi), the variance s^2 (1/2 - 1 / (2 pi)).

    Args:
        psi: an activation, element by element.
        mean, std: of Y; the standard deviation above 0.

    Raises:
        ValueError: the standard deviation is not above 0, one is not finite, or psi is constant.
    """
    if not (0 < std < math.inf and math.isfinite(mean)):
        raise ValueError(f"the standard deviation of what is mirrored must be above 0, and both finite: {mean}, {std}")

    def at(y: float) -> float:
        return float(psi(torch.tensor(y, dtype=torch.float64)))

    def expected(f: Callable[[float], float]) -> float:
        def weighed(z: float) -> float:
            return f(mean + std * z) * math.exp(-z * z / 2) / math.sqrt(2 * math.pi)

        kink = [-mean / std] if abs(mean) < _REACH * std else None
        return float(quad(weighed, -_REACH, _REACH, points=kink, limit=400)[0])

    here, there = expected(at), expected(lambda y: at(-y))
    both = expected(lambda y: (at(y) - here) * (at(-y) - there))
    spread = expected(lambda y: (at(y) - here) ** 2) * expected(lambda y: (at(-y) - there) ** 2)
    if spread <= 1e-28 * (std * std + here * here) ** 2:
        raise ValueError("the function is constant where Y is: there is nothing to correlate")
    return both / math.sqrt(spread)


def carried(model: nn.Module, layers: Selection, x: Tensor, at: Sequence[str]) -> Mapping[str, float]:
    """The correlation of what modules put out before and after a negation, over samples and elements.

    Each element's mean over the samples is taken off first: a shift that is the same for all samples is what the next
    bias or normalisation makes up for, and carries nothing.

    Args:
        model: in evaluation; left as it was.
        layers: what is negated.
        x: inputs, ``(n, ...)``, two or more.
        at: names of modules that each run once.

    Returns:
        By module, in [-1, 1]; 0 where one of the two outputs does not vary.

    Raises:
        ValueError: there are fewer than two inputs, or a module does not run once.
    """
    if len(x) < 2:
        raise ValueError("one input has nothing to correlate: give two or more")
    before, after = (_outputs(network, x, at) for network in (model, negate(copy.deepcopy(unwrap(model)), layers)))
    return {name: _correlation(before[name], after[name]) for name in at}


def _outputs(model: nn.Module, x: Tensor, at: Sequence[str]) -> dict[str, Tensor]:
    network, found = unwrap(model), {name: list[Tensor]() for name in at}

    def keep(name: str, _: int, output: Tensor) -> None:
        # A copy, since an activation in place writes over what came before it.
        found[name].append(output.detach().flatten(1).to(torch.float64, copy=True))

    with hearing(network, found, keep), torch.no_grad():
        network(x.to(device_of(network)))
    if several := [name for name, outputs in found.items() if len(outputs) != 1]:
        raise ValueError(f"{several[0]} runs {len(found[several[0]])} times, not once: name other modules")
    return {name: output for name, (output,) in found.items()}


def _correlation(a: Tensor, b: Tensor) -> float:
    a, b = a - a.mean(0), b - b.mean(0)
    norms = float(a.norm() * b.norm())
    # Of two that are the same but for the sign, rounding alone gives more than 1.
    return max(-1.0, min(1.0, float((a * b).sum()) / norms)) if norms else 0.0
