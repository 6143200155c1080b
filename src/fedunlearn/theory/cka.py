"""Centred kernel alignment: how alike two layers' features are, whatever rotation, shift or scale lies between them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["MinibatchCKA", "cka", "gram", "normalised", "unbiased_cka"]

_CONSTANT = 1e-12  # features that vary by less of their size, squared, are constant up to rounding
_FEWEST = 4  # samples of an unbiased estimate, whose every term takes four
_ROOM = 1e-3  # below 1, where a random network leaves less nothing can be normalised


def cka(x: Tensor, y: Tensor) -> float:
    """Linear CKA, ``||Y'X||^2 / (||X'X|| ||Y'Y||)`` with centred columns and Frobenius norms.

    Kornblith, Norouzi, Lee, Hinton, "Similarity of Neural Network Representations Revisited", ICML 2019. Of few samples
    with many features it is biased towards 1: independent normal features have about sqrt(pq / ((n + p)(n + q))). It
    does not see signs: of a layer and the negated layer it is 1.

    Args:
        x: features of one model, ``(n, ...)``; what follows the first dimension is flattened, to p of them.
        y: features of another one of the same samples in the same order, ``(n, ...)``, q of them.

    Returns:
        In [0, 1]; NaN where either does not vary over the samples.

    Raises:
        ValueError: not the same number of samples, or fewer than two.
    """
    _require_same(x, y, 2)
    x, y = _centred(x), _centred(y)
    if max(x.shape[1], y.shape[1]) > len(x):  # the same number from the smaller matrices
        k, m = x @ x.T, y @ y.T
        return _ratio(_dot(k, m), _dot(k, k), _dot(m, m))
    return _ratio(*(float((a.T @ b).square().sum()) for a, b in ((y, x), (x, x), (y, y))))


def unbiased_cka(x: Tensor, y: Tensor) -> float:
    """Linear CKA from unbiased estimates of its three parts; of independent features about 0, so it can be negative.

    Song, Smola, Gretton, Bedo, Borgwardt, "Feature Selection via Dependence Maximization", JMLR 2012, equation 5, for
    each of the parts.

    Args:
        x, y: as of `cka`.

    Returns:
        In [-1, 1]; NaN where either does not vary over the samples.

    Raises:
        ValueError: not the same number of samples, or fewer than four.
    """
    sums = MinibatchCKA()
    sums.add(gram(x), gram(y))
    return sums.unbiased


def gram(x: Tensor) -> Tensor:
    """Inner products of all pairs of samples, ``(n, n)`` float64, of features ``(n, ...)`` that were centred."""
    centred = _centred(x)
    return centred @ centred.T


def normalised(cka_q: float, cka_r0: float) -> float:
    """CKA above that of a random network, ``(CKA_Q - CKA_R0) / (1 - CKA_R0)``, as in Figure 7 (section 13.6).

    Both are to the same reference, the model before unlearning. A random network is one draw: take the mean of several
    for ``cka_r0``.

    Args:
        cka_q: of the model that is looked at.
        cka_r0: of a newly initialised one.

    Returns:
        1: like the reference; 0: no more than a random network; below 0: less. NaN where 1 - ``cka_r0`` is less than
        0.001, or either is NaN. The paper does not say what it does there: the quotient is then one of rounding errors.
    """
    room = 1 - cka_r0
    return (cka_q - cka_r0) / room if room >= _ROOM else math.nan


class MinibatchCKA:
    """CKA of more samples than fit into memory: its three parts, summed over batches, and divided at the end.

    Nguyen, Raghu, Kornblith, "Do Wide and Deep Networks Learn the Same Things?", ICLR 2021, section 3.2. Each batch
    counts by its number of samples, so the last one may be smaller. `unbiased` comes nearer to that of all samples at
    once with each batch; `biased` keeps the bias of a batch's size.
    """

    def __init__(self) -> None:
        self._unbiased = self._biased = (0.0, 0.0, 0.0)
        self._samples = 0

    def add(self, k: Tensor, m: Tensor) -> None:
        """Add a batch: `gram` of its features in one model and in the other, ``(n, n)`` each.

        Raises:
            ValueError: not the same number of samples, or fewer than four.
        """
        _require_same(k, m, _FEWEST)
        n = len(k)
        self._biased = _added(self._biased, k, m, n / (n - 1) ** 2)
        self._unbiased = _added(self._unbiased, _u_centred(k), _u_centred(m), 1 / (n - 3))  # times n, of n (n - 3)
        self._samples += n

    @property
    def samples(self) -> int:
        """How many were added."""
        return self._samples

    @property
    def biased(self) -> float:
        """As `cka`, which it is if there was one batch."""
        return _ratio(*self._biased)

    @property
    def unbiased(self) -> float:
        """As `unbiased_cka`, which it is if there was one batch."""
        return _ratio(*self._unbiased)


def _added(sums: tuple[float, float, float], k: Tensor, m: Tensor, weight: float) -> tuple[float, float, float]:
    km, kk, mm = sums
    return km + weight * _dot(k, m), kk + weight * _dot(k, k), mm + weight * _dot(m, m)


def _centred(x: Tensor) -> Tensor:
    """``(n, p)`` float64 with column means of 0; all 0 where the samples differ by rounding alone."""
    x = x.detach().flatten(1).double() if x.ndim > 1 else x.detach().double()[:, None]
    centred = x - x.mean(0)
    varies = bool(centred.square().sum() > _CONSTANT**2 * x.square().sum())
    return centred if varies or not bool(x.isfinite().all()) else torch.zeros_like(centred)


def _u_centred(k: Tensor) -> Tensor:
    """Without the diagonal, and such that rows and columns sum to 0.

    Two of these, multiplied entry by entry and summed, are n (n - 3) times the estimate of Song et al. (Székely and
    Rizzo, "Partial distance correlation", Annals of Statistics 2014), which their formula finds as a difference of
    large numbers. Here it also shows that the estimate for one kernel with itself is never negative.
    """
    n = len(k)
    off = k - torch.diag(k.diag())
    rows = off.sum(1)
    centred = off - (rows[:, None] + rows) / (n - 2) + rows.sum() / ((n - 1) * (n - 2))
    return centred.fill_diagonal_(0)


def _dot(a: Tensor, b: Tensor) -> float:
    return float((a * b).sum())


def _ratio(both: float, one: float, other: float) -> float:
    # a root each: their product may be too small or too large for a float
    return both / (math.sqrt(one) * math.sqrt(other)) if one > 0 and other > 0 else math.nan


def _require_same(x: Tensor, y: Tensor, fewest: int) -> None:
    if len(x) != len(y):
        raise ValueError(f"features of {len(x)} and of {len(y)} samples cannot be compared: take those of the same")
    if len(x) < fewest:
        raise ValueError(f"{len(x)} samples are too few to compare features: take {fewest} at least")
