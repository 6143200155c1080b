"""Knowledge distillation: how far a student's answers are from a teacher's."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F  # noqa: N812

__all__ = ["distilled", "divergence"]


def divergence(taught: Tensor, learnt: Tensor, temperature: float) -> Tensor:
    """KL(softmax(taught / T) || softmax(learnt / T)) of scores ``(n, C)`` each, mean over the n samples."""
    told, found = (F.log_softmax(scores / temperature, 1) for scores in (taught, learnt))
    return F.kl_div(found, told, reduction="batchmean", log_target=True)


def distilled(taught: Tensor, learnt: Tensor, temperature: float) -> Tensor:
    """T^2 times `divergence`, so that its gradient is about as large at any temperature (Hinton et al. 2015)."""
    return temperature**2 * divergence(taught, learnt, temperature)
