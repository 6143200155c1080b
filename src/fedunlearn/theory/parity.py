"""What an activation makes of the other sign: the algebraic relation that Lemma 8 asks for."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

__all__ = ["Parity", "parity", "skip"]

Kind = Literal["odd", "even", "sigmoid-like"]

_RANGES = (1.0, 8.0, 100.0)
"""Half widths of the intervals that a relation must hold on: the middle alone would take a clamp at 8 for odd."""

_POINTS = 1000  # in these intervals, both signs
_FAR = 1e6
"""Beyond the intervals a relation must hold too, up to here: a clamp to [-200, 300] is odd on all of them."""

_TOLERANCE = 1e-6  # of the relation's root mean square, as a share of the activation's; far out, of each point's


@dataclass(frozen=True)
class Parity:
    """The relation a psi(x) + b psi(-x) = c with ab != 0 (supplement, equation (75)), scaled to a = 1.

    There are no others than these three. With x for -x the relation reads a psi(-x) + b psi(x) = c; sum and difference
    of both are (a + b)(psi(x) + psi(-x)) = 2c and (a - b)(psi(x) - psi(-x)) = 0. So psi(x) + psi(-x) is a constant or
    psi is even, and a psi with both is a constant.

    Attributes:
        kind: ``odd`` (a = b, c = 0), ``sigmoid-like`` (a = b, c != 0: odd about the height c / 2), or ``even`` (a = -b,
            c = 0; constants too).
        a, b, c: of the relation.
        shift: 0; or the relation is that of psi(x) to psi(shift - x), and zero is shift / 2.
        error: root mean square of what is left of the relation, as a share of psi's own variation; the largest over
            the intervals that were looked at, and over the points beyond them.
        at_zero: whether the relation holds at x = 0 too. The paper's step, 1 where x > 0, obeys it everywhere else:
            its value at 0 would have to be 1/2.
    """

    kind: Kind
    a: float
    b: float
    c: float
    shift: float
    error: float
    at_zero: bool

    @property
    def formula(self) -> str:
        """The relation as it is written."""
        mirrored = f"psi({self.shift:g} - x)" if self.shift else "psi(-x)"
        return f"psi(x) {'+' if self.b > 0 else '-'} {mirrored} = {self.c:.6g}"


def parity(psi: Callable[[Tensor], Tensor], shift: float = 0.0) -> Parity | None:
    """Find the relation of an activation to its mirror image, numerically.

    In points that lie symmetrically, psi(x) + psi(-x) and the constant 1 are even, psi(x) - psi(-x) is odd. So the
    singular value problem of the three columns psi(x), psi(-x), 1 falls apart into two of one unknown each, which are
    solved here: the variation of the sum about its mean, and the size of the difference.

    Beyond the largest interval, up to 1e6, every point counts by itself, or the largest values would hide the others.

    Args:
        psi: acts element by element on a float64 tensor ``(n,)`` and returns one of the same shape.
        shift: for a psi whose argument became ``shift - x`` and not ``-x``: the relation of psi(x) to psi(shift - x).

    Returns:
        None: there is none (ReLU, GELU, SiLU, softplus), or psi is finite nowhere. Points at which psi or its mirror
        image is not finite say nothing.

    Raises:
        ValueError: psi does not act element by element.
    """
    positive = _points()
    p, q = _values(psi, shift / 2 + positive), _values(psi, shift / 2 - positive)
    finite = p.isfinite() & q.isfinite()
    near, beyond = finite & (positive <= _RANGES[-1]), finite & (positive > _RANGES[-1])
    if not near.any():
        return None
    total = float((p + q)[near].mean())
    middle = total / 2
    sizes = torch.maximum((p - middle).abs(), (q - middle).abs())
    found: list[tuple[float, Kind]] = []
    for kind in ("even", "odd"):
        rest = p - q if kind == "even" else p + q - total
        errors, size = [], 0.0
        for half in _RANGES:
            inside = near & (positive <= half)
            size = _rms(torch.cat([p[inside], q[inside]]) - middle)
            left = _rms(rest[inside])
            # A value is known to a few units in its last place only.
            errors.append(0.0 if left <= 1e-14 * abs(total) else left / size if size else float("inf"))
        errors.append(_largest(rest[beyond].abs(), sizes[beyond].clamp(min=size), 1e-14 * abs(total)))
        found.append((max(errors), kind))
    error, kind = min(found)
    if error > _TOLERANCE:
        return None
    zero = float(_values(psi, positive.new_tensor([shift / 2]))[0])
    if kind == "even":
        return Parity("even", 1.0, -1.0, 0.0, shift, error, at_zero=True)
    # A sum that is zero but for rounding is none.
    c = 0.0 if abs(total) <= _TOLERANCE * _rms(torch.cat([p[near], q[near]])) else total
    odd = abs(2 * zero - c) <= _TOLERANCE * max(1.0, abs(c))
    return Parity("sigmoid-like" if c else "odd", 1.0, 1.0, c, shift, error, odd)


def skip(psi: Callable[[Tensor], Tensor]) -> float | None:
    """The k of psi(x) - psi(-x) = k x, where the odd part of an activation is a straight line.

    ReLU, GELU, SiLU and softplus have k = 1, a leaky ReLU of slope s has 1 + s. Then l2(psi(l1(x))) equals
    l2(psi(-l1(x))) plus k times the linear part of l2 at l1(x): the negated layer is compensated by a skip connection
    around the activation. That is another network, not other parameters of this one, so Theorem 7 does not follow.

    Args:
        psi: as of `parity`.

    Returns:
        None: the odd part is no straight line, or it is zero (psi is even).
    """
    x = _points()
    difference = _values(psi, x) - _values(psi, -x)
    near, beyond = (difference.isfinite() & part for part in (x <= _RANGES[-1], x > _RANGES[-1]))
    if not near.any():
        return None
    far, x, ends, difference = x[beyond], x[near], difference[beyond], difference[near]
    slope = float((x @ difference) / (x @ x))
    size = _rms(difference)
    for half in _RANGES:
        inside = x <= half
        if _rms(difference[inside] - slope * x[inside]) > _TOLERANCE * _rms(x[inside]):
            return None
    if _largest((ends - slope * far).abs(), far, 0.0) > _TOLERANCE:
        return None
    return slope if size > _TOLERANCE * _rms(x) else None


def _points() -> Tensor:
    """Positive points: even in each interval, geometric beyond; no random draw could make the answer better."""
    count = _POINTS // (2 * len(_RANGES))
    even = torch.arange(1, count + 1, dtype=torch.float64) / count
    edge = math.log10(_RANGES[-1])
    return torch.cat([half * even for half in _RANGES] + [10 ** (edge + (math.log10(_FAR) - edge) * even)])


def _largest(left: Tensor, sizes: Tensor, rounding: float) -> float:
    """What is left at a point, as a share of its size, where it is most; what is mere rounding is nothing."""
    shares = torch.where(left <= rounding, 0.0, left / sizes)
    return float(shares.max()) if len(shares) else 0.0


def _values(psi: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    with torch.no_grad():
        try:
            y = psi(x.clone())  # an activation may work in place
        except (RuntimeError, ValueError, IndexError) as error:
            raise ValueError(f"give an activation that acts element by element on a vector: {error}") from error
    if y.shape != x.shape:
        raise ValueError(f"give an activation that acts element by element: {tuple(x.shape)} became {tuple(y.shape)}")
    return y.to(torch.float64)


def _rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt()) if values.numel() else 0.0
