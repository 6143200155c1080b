"""The trigger of a backdoor: a pattern that a model learns to answer with one class, whatever the image shows."""

from __future__ import annotations

from torch import Tensor

__all__ = ["triggered"]

_PLACES = ((0, 0), (1, 1), (0, 2), (2, 0))  # of the pixels: up and to the left of the pattern's lower right one
_DISTANCE = 2  # of that one, from the lower and from the right edge of an image, which are at 0


def triggered(images: Tensor) -> Tensor:
    """A copy of images in [0, 1] with the trigger: four white pixels within 3x3 near the lower right corner.

    It is that of the Adversarial Robustness Toolbox, ``add_pattern_bd`` as it is by default, which the paper's backdoor
    experiment uses (section 13.5); bit for bit.

    Args:
        images: ``(n, c, h, w)``, of 4x4 pixels at least.

    Raises:
        ValueError: they are no such images.
    """
    if images.ndim != 4 or min(images.shape[-2:]) < 4:
        raise ValueError(f"a trigger needs images of 4x4 pixels or more, not inputs of shape {tuple(images.shape[1:])}")
    height, width = images.shape[-2:]
    rows, columns = zip(*((height - _DISTANCE - up, width - _DISTANCE - left) for up, left in _PLACES), strict=True)
    stamped = images.clone()
    stamped[..., rows, columns] = 1.0
    return stamped
