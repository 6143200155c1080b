"""Who takes part, with which network and data: the same wherever the work is done."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["ASKER", "CLIENTS", "Cnn", "images"]

CLIENTS = ("hospital-1", "hospital-2", "hospital-3")
ASKER = CLIENTS[1]  # who is forgotten
IMAGES = 600


class Cnn(nn.Sequential):
    """That of `benchmarks/engine.py`, which is not sent along with this app."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 16, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(512, 160),
            nn.ReLU(),
            nn.Linear(160, 10),
        )


def images(number: int) -> tuple[Tensor, Tensor]:
    """Images ``(600, 1, 28, 28)`` and labels ``(600,)`` of one client; a fifth is kept for validation."""
    rng = torch.Generator().manual_seed(number)
    return torch.randn(IMAGES, 1, 28, 28, generator=rng), torch.randint(10, (IMAGES,), generator=rng)
