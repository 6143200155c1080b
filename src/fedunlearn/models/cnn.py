"""The paper's small network."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["LayerNormCNN"]


class LayerNormCNN(nn.Module):
    """Two convolutions with layer normalisation, and a linear head.

    Published are "two convolution layers with layer normalization" (section 6.1) and, by the labels of Figure
    3, the order convolution, ReLU, pooling, normalisation, twice, then the head; modules are named after that
    figure. Not published are channels, kernel and pooling sizes, what the normalisation runs over, and the
    number of parameters. Here convolutions keep the size of the image, pooling takes the maximum of 2x2, and
    normalisation runs over channel, height and width. The defaults are small, for quick trials;
    ``channels=(32, 64)`` on CIFAR-10 is of the size that the paper's costs suggest, about 10^5 parameters.

    No normalisation stands directly behind a convolution, so negating one is not undone by normalisation (the
    paper's footnote 4).

    Args:
        classes: number of outputs.
        shape: of one input: channels, height, width; 4x4 at least.
        channels: of the two convolutions.
        kernel: height and width of both kernels, odd.

    Raises:
        ValueError: ``shape`` is no image's, or one of less than 4x4; ``kernel`` is even.
    """

    def __init__(
        self,
        classes: int,
        shape: tuple[int, ...] = (1, 28, 28),
        channels: tuple[int, int] = (8, 16),
        kernel: int = 5,
    ) -> None:
        super().__init__()
        if len(shape) != 3 or min(shape[1:]) < 4:
            raise ValueError(f"LayerNormCNN takes images of (channels, height, width), 4x4 at least, not {shape}")
        if kernel % 2 == 0:
            raise ValueError(f"take an odd kernel, which has a middle, not {kernel}")
        inputs, height, width = shape
        first, second = channels
        self.conv1 = nn.Conv2d(inputs, first, kernel, padding="same")
        self.relu1 = nn.ReLU()
        self.pool1 = nn.MaxPool2d(2)
        self.norm1 = nn.LayerNorm((first, height // 2, width // 2))
        self.conv2 = nn.Conv2d(first, second, kernel, padding="same")
        self.relu2 = nn.ReLU()
        self.pool2 = nn.MaxPool2d(2)
        self.norm2 = nn.LayerNorm((second, height // 4, width // 4))
        self.head = nn.Linear(second * (height // 4) * (width // 4), classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``(n, *shape)`` to logits ``(n, classes)``."""
        x = self.norm1(self.pool1(self.relu1(self.conv1(x))))
        x = self.norm2(self.pool2(self.relu2(self.conv2(x))))
        logits: Tensor = self.head(x.flatten(1))
        return logits
