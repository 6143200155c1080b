"""What each hospital holds: here a share of Fashion-MNIST; a real one reads its own archive."""

from __future__ import annotations

import torch
from torch import Tensor

from fedunlearn.data.datasets import load

__all__ = ["IMAGES", "share"]

IMAGES = 600
"""Of each hospital."""


def share(number: int) -> tuple[Tensor, Tensor]:
    """Images ``(600, 1, 28, 28)`` and labels ``(600,)`` of one hospital; no two hospitals share an image.

    The place of an image in these is how a deletion request names it: it must not change between rounds.
    """
    train = load("fashion-mnist").train
    order = torch.randperm(len(train.labels), generator=torch.Generator().manual_seed(0))
    mine = order[number * IMAGES : (number + 1) * IMAGES]
    return train.values[mine], train.labels[mine]
