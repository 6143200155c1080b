"""A residual network for small images."""

from __future__ import annotations

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

__all__ = ["SmallResNet"]


class SmallResNet(nn.Module):
    """ResNet-18 as it is used on CIFAR: torchvision's blocks behind a stem of one 3x3 convolution without pooling.

    He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016; the stem as in most code for images
    of 32 pixels, where torchvision's (7x7, stride 2, pooling) would leave 8x8 of them. Tensors have torchvision's names
    (``conv1``, ``bn1``, ``layer1.0.conv1``, ..., ``fc``). ``width=64`` with two blocks a stage has 11.17 million
    parameters for ten classes; less width makes it fit a CPU.

    Args:
        classes: number of outputs.
        shape: of one input: channels, height, width; 8x8 at least.
        width: channels of the first stage; each further stage doubles them.
        blocks: of each stage.

    Raises:
        ValueError: ``shape`` is no image's, or one of less than 8x8.
    """

    def __init__(
        self,
        classes: int,
        shape: tuple[int, ...] = (3, 32, 32),
        width: int = 64,
        blocks: tuple[int, ...] = (2, 2, 2, 2),
    ) -> None:
        super().__init__()
        if len(shape) != 3 or min(shape[1:]) < 8:
            raise ValueError(f"SmallResNet takes images of (channels, height, width), 8x8 at least, not {shape}")
        self.conv1 = nn.Conv2d(shape[0], width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.stages, inputs = len(blocks), width
        for number, depth in enumerate(blocks):
            outputs = width << number
            first = _block(inputs, outputs, stride=2 if number else 1)
            others = (_block(outputs, outputs) for _ in range(depth - 1))
            self.add_module(f"layer{number + 1}", nn.Sequential(first, *others))
            inputs = outputs
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``(n, *shape)`` to logits ``(n, classes)``."""
        x = self.relu(self.bn1(self.conv1(x)))
        for number in range(self.stages):
            x = self.get_submodule(f"layer{number + 1}")(x)
        logits: Tensor = self.fc(self.avgpool(x).flatten(1))
        return logits


def _block(inputs: int, outputs: int, stride: int = 1) -> nn.Module:
    shortcut = None
    if stride != 1 or inputs != outputs:
        shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
    block: nn.Module = BasicBlock(inputs, outputs, stride, shortcut)
    return block
