"""The network."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["Network"]


class Network(nn.Module):
    """Two convolutions and a linear head, for grey images of 28 x 28 pixels and ten classes.

    No normalisation stands behind a convolution: it would undo the negation.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 5, padding=2)
        self.conv2 = nn.Conv2d(8, 16, 5, padding=2)
        self.head = nn.Linear(16 * 7 * 7, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``(n, 1, 28, 28)`` to logits ``(n, 10)``."""
        x = nn.functional.max_pool2d(self.conv1(x).relu(), 2)
        x = nn.functional.max_pool2d(self.conv2(x).relu(), 2)
        logits: Tensor = self.head(x.flatten(1))
        return logits
