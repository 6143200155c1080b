"""Images in files of their own, in a folder a class: decoded when they are gathered, and never all held."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from fedunlearn.samples import SteppedSamples, scaled

__all__ = ["FileSamples", "Listing", "listed"]


@dataclass(frozen=True, eq=False)
class FileSamples(SteppedSamples):
    """Images in files, of any sizes, grey ones as RGB. Of them only paths are held, and sent to other processes.

    Attributes:
        files: ``N`` paths.
        labels: ``(N,)``, int64.
        mean, std, geometry: see `SteppedSamples`; the last brings all images to one size.
    """

    files: tuple[str, ...]
    labels: Tensor

    def values_at(self, indices: Tensor, device: torch.device) -> list[Tensor]:
        """See `SteppedSamples.values_at`; each ``(3, h, w)``.

        Raises:
            ValueError: a file is damaged, or no image.
        """
        return [scaled(_decoded(self.files[index]).to(device)) for index in indices.tolist()]


class Listing(NamedTuple):
    """Which images there are.

    Attributes:
        classes: their names, by number.
        files: ``N`` paths.
        labels: ``(N,)``, int64.
    """

    classes: tuple[str, ...]
    files: tuple[str, ...]
    labels: Tensor


def listed(folder: Path, without: Collection[str] = ()) -> Listing:
    """The images below a folder's folders, each of which is a class, all in the order of their names.

    Args:
        folder: of the classes.
        without: names of folders that are none.

    Returns:
        What torchvision's ``ImageFolder`` would find.

    Raises:
        ValueError: there is no class, or one without an image.
    """
    from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

    classes = tuple(sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name not in without))
    if not classes:
        raise ValueError(f"{folder} has no folders of images: put those of each class into one of its own")
    numbers = {name: number for number, name in enumerate(classes)}
    try:
        found = make_dataset(str(folder.resolve()), numbers, extensions=IMG_EXTENSIONS)
    except FileNotFoundError as error:
        raise ValueError(f"{folder} has a class without an image ({error}): remove its folder") from None
    files, labels = zip(*found, strict=True)
    return Listing(classes, files, torch.tensor(labels))


def _decoded(file: str) -> Tensor:
    """An image's bytes, ``(3, h, w)`` uint8."""
    from torchvision.datasets.folder import pil_loader
    from torchvision.transforms.v2.functional import pil_to_tensor

    try:
        image: Tensor = pil_to_tensor(pil_loader(file))
    except (OSError, ValueError, SyntaxError) as error:  # SyntaxError: a damaged PNG, by Pillow
        raise ValueError(f"{file} is no image that can be read ({error}): replace or remove it") from None
    return image
