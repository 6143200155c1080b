"""The backdoor's trigger: four pixels, and the toolbox's own, bit for bit."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedunlearn.data.trigger import triggered


@cache
def arts() -> Callable[..., Any]:
    """ART's function, from its file alone: the package would import every attack there is, which takes seconds."""
    package = importlib.util.find_spec("art")
    assert package is not None
    assert package.submodule_search_locations is not None
    file = Path(package.submodule_search_locations[0], "attacks/poisoning/perturbations/image_perturbations.py")
    spec = importlib.util.spec_from_file_location("image_perturbations", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: Callable[..., Any] = module.add_pattern_bd
    return found


@pytest.mark.parametrize("size", [(4, 4), (28, 28), (32, 32), (64, 64), (224, 224), (20, 37)])
@pytest.mark.parametrize("channels", [1, 3])
def test_it_is_arts_bit_for_bit(size: tuple[int, int], channels: int) -> None:
    images = torch.rand(3, channels, *size, generator=torch.Generator().manual_seed(0))
    ours = triggered(images).numpy()
    for theirs in (
        arts()(images.numpy(), channels_first=True),
        arts()(images.permute(0, 2, 3, 1).numpy()).transpose(0, 3, 1, 2),
    ):
        assert ours.dtype == theirs.dtype
        assert ours.tobytes() == np.ascontiguousarray(theirs).tobytes()


def test_four_pixels_near_the_lower_right_corner_are_white() -> None:
    """On 6x5 pixels: 0 of the image, 1 of the trigger, and the row and the column at the edge left alone."""
    images = torch.zeros(1, 2, 6, 5)
    expected = [[0, 0, 0, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 1, 0], [0, 0, 1, 0, 0], [0, 1, 0, 1, 0], [0, 0, 0, 0, 0]]
    assert triggered(images).tolist() == [[expected, expected]]
    assert not bool(images.any())  # a copy


@pytest.mark.parametrize("shape", [(2, 1, 3, 9), (2, 1, 9, 3), (2, 9), (2, 9, 9)])
def test_there_must_be_room_for_it(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="images of 4x4 pixels or more"):
        triggered(torch.zeros(shape))


def test_on_what_is_cropped_later_few_would_keep_it() -> None:
    """Of the 33x33 places of 224 pixels within 256, those that hold all four pixels, and so all of the 3x3 block."""
    rows, columns = triggered(torch.zeros(1, 1, 256, 256))[0, 0].nonzero().T
    kept = [
        (top, left)
        for top in range(33)
        for left in range(33)
        if top <= rows.min() and rows.max() < top + 224 and left <= columns.min() and columns.max() < left + 224
    ]
    assert len(kept) == 2 * 2
