"""A convolutional network without normalisation, as the theory of negation assumes it."""

from __future__ import annotations

from typing import Literal

from torch import nn

from fedunlearn.models.cnn import Stack, require_fit

__all__ = ["PlainCNN"]

_ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh}


class PlainCNN(Stack):
    """Convolutions that are activated and, the first two, pooled; and a linear head.

    Theorem 7 of the paper is about layers whose activation is odd, even or sigmoid-like, and which an affine layer
    reads. With ``activation="tanh"`` that holds for every convolution here: negate one with its bias, and the next
    layer with the other sign makes up for it exactly, since convolutions, zero padding and pooling by the mean commute
    with the sign. Pooling by the maximum does not, for max(-u) is -min(u). With ``activation="relu"``, which the
    paper's networks have, the theorem does not hold.

    Modules are called ``conv1``, ``tanh1`` or ``relu1``, ``pool1``, ``conv2``, ..., ``head``.

    Args:
        classes: number of outputs.
        shape: of one input: channels, height, width; 4x4 at least.
        channels: of each convolution, one at least.
        kernel: height and width of all kernels, odd.
        activation: behind every convolution.

    Raises:
        ValueError: ``shape`` is no image's, or one of less than 4x4; ``kernel`` is even; no convolution is asked for,
            or another activation.
    """

    def __init__(
        self,
        classes: int,
        shape: tuple[int, ...] = (1, 28, 28),
        channels: tuple[int, ...] = (8, 16),
        kernel: int = 5,
        activation: Literal["relu", "tanh"] = "relu",
    ) -> None:
        super().__init__()
        require_fit("PlainCNN", shape, channels, kernel)
        if activation not in _ACTIVATIONS:
            raise ValueError(f"activation={activation!r} is none of PlainCNN's: take {' or '.join(_ACTIVATIONS)}")
        inputs, height, width = shape
        for number, outputs in enumerate(channels, 1):
            self.add_module(f"conv{number}", nn.Conv2d(inputs, outputs, kernel, padding="same"))
            self.add_module(f"{activation}{number}", _ACTIVATIONS[activation]())
            if number <= 2:
                self.add_module(f"pool{number}", nn.AvgPool2d(2))
                height, width = height // 2, width // 2
            inputs = outputs
        self.head = nn.Linear(inputs * height * width, classes)
