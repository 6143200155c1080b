"""Where images stand: how they are resized, cropped and flipped on their way to the network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn import functional as F  # noqa: N812

__all__ = ["Cropped", "Flipped"]


@dataclass(frozen=True)
class Flipped:
    """Each image mirrored left to right with probability 0.5 in training, as for the paper's CNNs (section 14.1)."""

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """What becomes of the shape of an image, (channels, height, width)."""
        return shape

    def __call__(self, images: Tensor, rng: Generator | None) -> Tensor:
        """See `fedunlearn.samples.Geometry`.

        Args:
            images: ``(n, c, h, w)``.
            rng: what is drawn from; None: as at test time, where nothing is flipped.
        """
        if rng is None:
            return images
        chosen = torch.rand(len(images), generator=rng) < 0.5
        return torch.where(chosen.to(images.device).reshape(-1, 1, 1, 1), images.flip(-1), images)


@dataclass(frozen=True)
class Cropped:
    """Images of any size brought to one: resized, then a square of them, where chance puts it in training.

    Without arguments as in the paper for all networks but its CNNs (section 14.1). Resizing is bilinear, and is
    antialiased where images get smaller.

    Attributes:
        resize: pixels of the shorter side after resizing; the other keeps the proportions, rounded down.
        crop: pixels of the square's sides. At test time it is cut from the centre.
        flip: whether images are mirrored too, see `Flipped`.
    """

    resize: int = 256
    crop: int = 224
    flip: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.crop <= self.resize:
            raise ValueError(f"a square of {self.crop} cannot be cut from {self.resize}: crop must be 1 .. resize")

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """What becomes of the shape of an image, (channels, height, width)."""
        return shape[0], self.crop, self.crop

    def __call__(self, images: Tensor | Sequence[Tensor], rng: Generator | None) -> Tensor:
        """See `fedunlearn.samples.Geometry`.

        Args:
            images: floats ``(n, c, h, w)``, or of different sizes, each ``(c, h, w)``.
            rng: what is drawn from; None: as at test time.

        Returns:
            ``(n, c, crop, crop)``.
        """
        resized: Sequence[Tensor] | Tensor
        if isinstance(images, Tensor):
            resized = self._resized(images)
        else:
            resized = [self._resized(image.unsqueeze(0)).squeeze(0) for image in images]
        room = torch.tensor([(image.shape[-2] - self.crop, image.shape[-1] - self.crop) for image in resized])
        if rng is None:
            corners = (room / 2).round().long()
        else:
            corners = (torch.rand(len(resized), 2, generator=rng, dtype=torch.float64) * (room + 1)).long()
        cut = torch.stack(
            [
                image[:, top : top + self.crop, left : left + self.crop]
                for image, (top, left) in zip(resized, corners.tolist(), strict=True)
            ]
        )
        return Flipped()(cut, rng) if self.flip else cut

    def _resized(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        shorter = min(height, width)
        size = (self.resize * height // shorter, self.resize * width // shorter)
        return F.interpolate(images, size, mode="bilinear", antialias=True)
