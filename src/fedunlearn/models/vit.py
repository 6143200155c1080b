"""A vision transformer for small images."""

from __future__ import annotations

import math

from torch import nn
from torchvision.models.vision_transformer import VisionTransformer

__all__ = ["SmallViT"]


class SmallViT(VisionTransformer):  # type: ignore[misc]  # torchvision has no types
    """Torchvision's vision transformer, made small, for images of any number of channels.

    Tensors have torchvision's names (``conv_proj``, ``class_token``, ``encoder.pos_embedding``,
    ``encoder.layers.encoder_layer_0.self_attention.in_proj_weight``, ``heads.head``), so that what is said of a layer
    here is said of ViT-B/16's too. Torchvision's patch projection takes three channels; ours is drawn as its is, a
    normal distribution of variance 1 / fan-in cut off at 2, with biases of zero.

    Args:
        classes: number of outputs.
        shape: of one input: channels, height, width; square.
        patch: height and width of a patch; it divides the image's.
        layers: encoder blocks.
        heads: of each self-attention; their number divides ``hidden``.
        hidden: width of a token.
        mlp: width of the hidden layer in each block's perceptron.

    Raises:
        ValueError: the image is not square or not of whole patches, or heads do not divide a token.
    """

    def __init__(
        self,
        classes: int,
        shape: tuple[int, ...] = (1, 28, 28),
        patch: int = 4,
        layers: int = 3,
        heads: int = 4,
        hidden: int = 64,
        mlp: int = 128,
    ) -> None:
        if len(shape) != 3 or shape[1] != shape[2]:
            raise ValueError(f"SmallViT takes square images of (channels, height, width), not {shape}")
        channels, side, _ = shape
        if patch < 1 or side % patch:
            raise ValueError(
                f"patches of {patch}x{patch} do not fill images of {side}x{side}: take a divisor of {side}"
            )
        if heads < 1 or hidden % heads:
            raise ValueError(f"{heads} heads do not divide a token of {hidden}: take a multiple of heads as hidden")
        super().__init__(side, patch, layers, heads, hidden, mlp, num_classes=classes)
        projection = nn.Conv2d(channels, hidden, patch, stride=patch)
        nn.init.trunc_normal_(projection.weight, std=math.sqrt(1 / (channels * patch**2)))
        nn.init.zeros_(projection.get_parameter("bias"))
        self.conv_proj = projection
