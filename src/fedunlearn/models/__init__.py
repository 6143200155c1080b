"""Networks by name, and the user's own."""

from __future__ import annotations

from typing import Any

from torch import nn

from fedunlearn.importing import load_object, unknown
from fedunlearn.models.cnn import LayerNormCNN
from fedunlearn.models.plain import PlainCNN

__all__ = ["NAMES", "LayerNormCNN", "PlainCNN", "build"]

_TORCHVISION = ("resnet18", "vit_b_16", "efficientnet_b0")
NAMES = ("layernorm-cnn", "plain-cnn", "small-resnet", "small-vit", *_TORCHVISION)


def build(name: str, classes: int, shape: tuple[int, ...], **options: Any) -> nn.Module:
    """Build a newly initialised network.

    Args:
        name: ``layernorm-cnn`` (`LayerNormCNN`); ``plain-cnn`` (`PlainCNN`); ``small-resnet``
            (`fedunlearn.models.resnet.SmallResNet`); ``small-vit`` (`fedunlearn.models.vit.SmallViT`); torchvision's
            ``resnet18``, ``vit_b_16`` or ``efficientnet_b0``, without pretrained weights; or ``package.module:Class``,
            anything that returns a network when it is called with ``options`` alone (your own network knows its
            classes).
        classes: number of outputs.
        shape: of one input, without the batch dimension.
        **options: further arguments of the network's constructor.

    Raises:
        ValueError: the name is unknown, the network cannot take inputs of this shape, the options do not fit,
            or what ``package.module:Class`` returned is no network.
        ImportError: there is no such class.
    """
    if name not in NAMES and ":" not in name:
        raise unknown("model", name, NAMES)
    try:
        network = _built(name, classes, shape, options)
    except TypeError as error:
        raise ValueError(f"cannot build {name}: {error} (arguments go into model.options)") from error
    if not isinstance(network, nn.Module):
        raise ValueError(f"{name} returned {type(network).__name__}, not a torch.nn.Module")
    return network


def _built(name: str, classes: int, shape: tuple[int, ...], options: dict[str, Any]) -> Any:
    if name == "layernorm-cnn":
        return LayerNormCNN(classes, shape, **options)
    if name == "plain-cnn":
        return PlainCNN(classes, shape, **options)
    if name == "small-resnet":
        from fedunlearn.models.resnet import SmallResNet  # torchvision takes a second to import

        return SmallResNet(classes, shape, **options)
    if name == "small-vit":
        from fedunlearn.models.vit import SmallViT

        return SmallViT(classes, shape, **options)
    if name in _TORCHVISION:
        return _torchvision(name, classes, shape, options)
    return load_object(name)(**options)


def _torchvision(name: str, classes: int, shape: tuple[int, ...], options: dict[str, Any]) -> nn.Module:
    if len(shape) != 3 or shape[0] != 3:
        raise ValueError(f"{name} takes images of 3 channels, not {shape}: repeat a grey image's channel 3 times")
    side = {}
    if name == "vit_b_16":
        _, height, width = shape
        if height != width or height % 16 != 0:
            raise ValueError(f"vit_b_16 takes square images whose side is a multiple of 16, not {height}x{width}")
        side = {"image_size": height}
    import torchvision

    network: nn.Module = getattr(torchvision.models, name)(weights=None, num_classes=classes, **side, **options)
    return network
