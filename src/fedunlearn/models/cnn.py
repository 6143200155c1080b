"""The paper's small network."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["LayerNormCNN", "Stack", "require_fit"]


class Stack(nn.Module):
    """Modules that run one after the other, the last of them a linear head on all features."""

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``(n, *shape)`` to logits ``(n, classes)``."""
        *features, head = self.children()
        for module in features:
            x = module(x)
        logits: Tensor = head(x.flatten(1))
        return logits


class LayerNormCNN(Stack):
    """Convolutions with layer normalisation, two unless said otherwise, and a linear head.

    Published are "two convolution layers with layer normalization" (section 6.1) and, by the labels of Figure
    3, the order convolution, ReLU, pooling, normalisation, twice, then the head; modules are named after that
    figure. Not published are channels, kernel and pooling sizes, what the normalisation runs over, and the
    number of parameters. Here convolutions keep the size of the image, pooling takes the maximum of 2x2, and
    normalisation runs over channel, height and width. The defaults are small, for quick trials;
    ``channels=(32, 64)`` on CIFAR-10 is of the size that the paper's costs suggest, about 10^5 parameters.
    A third convolution and further ones, which the paper's network has not, follow without pooling.

    No normalisation stands directly behind a convolution, so negating one is not undone by normalisation (the
    paper's footnote 4).

    Args:
        classes: number of outputs.
        shape: of one input: channels, height, width; 4x4 at least.
        channels: of each convolution, one at least.
        kernel: height and width of all kernels, odd.

    Raises:
        ValueError: ``shape`` is no image's, or one of less than 4x4; ``kernel`` is even; no convolution is asked for.
    """

    def __init__(
        self,
        classes: int,
        shape: tuple[int, ...] = (1, 28, 28),
        channels: tuple[int, ...] = (8, 16),
        kernel: int = 5,
    ) -> None:
        super().__init__()
        require_fit("LayerNormCNN", shape, channels, kernel)
        inputs, height, width = shape
        for number, outputs in enumerate(channels, 1):
            self.add_module(f"conv{number}", nn.Conv2d(inputs, outputs, kernel, padding="same"))
            self.add_module(f"relu{number}", nn.ReLU())
            if number <= 2:
                self.add_module(f"pool{number}", nn.MaxPool2d(2))
                height, width = height // 2, width // 2
            self.add_module(f"norm{number}", nn.LayerNorm((outputs, height, width)))
            inputs = outputs
        self.head = nn.Linear(inputs * height * width, classes)


def require_fit(network: str, shape: tuple[int, ...], channels: tuple[int, ...], kernel: int) -> None:
    """Look whether a stack of convolutions, of which two may be pooled, can be built so.

    Raises:
        ValueError: it cannot.
    """
    if len(shape) != 3 or min(shape[1:]) < 4:
        raise ValueError(f"{network} takes images of (channels, height, width), 4x4 at least, not {shape}")
    if not channels:
        raise ValueError(f"{network} has one convolution at least: say how many channels it has")
    if kernel % 2 == 0:
        raise ValueError(f"take an odd kernel, which has a middle, not {kernel}")
