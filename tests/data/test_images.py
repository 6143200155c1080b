"""How images become inputs: each step by hand, against torchvision, and the same on every device."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from fedunlearn.data.images import Cropped, Flipped
from fedunlearn.samples import TensorSamples

CPU, META = torch.device("cpu"), torch.device("meta")
SIDES = st.integers(1, 40)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(*shape: int) -> Tensor:
    return torch.rand(shape, generator=rng(1))


def test_each_image_is_flipped_or_not_by_its_own_draw() -> None:
    images = noise(400, 2, 3, 4)
    flipped = Flipped()(images, rng())
    mirrored = [torch.equal(one, image.flip(-1)) for one, image in zip(flipped, images, strict=True)]
    kept = [torch.equal(one, image) for one, image in zip(flipped, images, strict=True)]
    assert all(a != b for a, b in zip(mirrored, kept, strict=True))
    assert 160 < sum(mirrored) < 240  # 4 standard deviations of 400 fair coins
    assert mirrored == (torch.rand(400, generator=rng()) < 0.5).tolist()
    assert Flipped()(images, None) is images


@given(SIDES, SIDES, st.integers(1, 50), st.data())
def test_at_test_time_it_is_torchvisions_resize_and_centre_crop(
    height: int, width: int, resize: int, data: st.DataObject
) -> None:
    crop = data.draw(st.integers(1, resize))
    images = noise(2, 3, height, width)
    expected = tv.center_crop(tv.resize(images, [resize], antialias=True), [crop, crop])
    assert torch.equal(Cropped(resize, crop)(images, None), expected)


def test_in_training_the_square_lies_anywhere_and_is_a_part_of_the_resized_image() -> None:
    """4x6 pixels at their own size, 3x3 of them: 2 x 4 places, each seen, and flips of each."""
    image = torch.arange(24.0).reshape(1, 4, 6)
    cut = Cropped(4, 3)(image.expand(2000, 1, 4, 6), rng())
    places = {tuple(one.flatten().tolist()) for one in cut}
    assert cut.shape == (2000, 1, 3, 3)
    possible = [image[0, top : top + 3, left : left + 3] for top in range(2) for left in range(4)]
    assert places == {tuple(part.flatten().tolist()) for one in possible for part in (one, one.flip(-1))}
    unflipped = Cropped(4, 3, flip=False)(image.expand(2000, 1, 4, 6), rng())
    assert {tuple(one.flatten().tolist()) for one in unflipped} == {tuple(one.flatten().tolist()) for one in possible}
    corners = np.unique(unflipped[:, 0, 0, 0].numpy(), return_counts=True)[1]
    assert corners.min() > 180  # of 250 expected of each place


@given(st.lists(st.tuples(SIDES, SIDES), min_size=1, max_size=4), st.booleans())
def test_images_of_different_sizes_go_through_one_by_one(sizes: list[tuple[int, int]], training: bool) -> None:
    images = [noise(3, *size) for size in sizes]
    cropped = Cropped(12, 9)
    found = cropped(images, rng() if training else None)
    assert found.shape == (len(sizes), 3, 9, 9)
    if not training:
        assert torch.equal(found, torch.cat([cropped(image.unsqueeze(0), None) for image in images]))
    if len(set(sizes)) == 1:
        assert torch.equal(found, cropped(torch.stack(images), rng() if training else None))


def test_a_square_fits_into_the_image() -> None:
    for wrong in ((256, 257), (10, 0)):
        with pytest.raises(ValueError, match=r"crop must be 1 \.\. resize"):
            Cropped(*wrong)


def test_the_shape_that_the_network_sees_is_said() -> None:
    assert Flipped().shape((3, 32, 32)) == (3, 32, 32)
    assert Cropped().shape((3, 32, 32)) == (3, 224, 224)
    assert Cropped()(noise(1, 3, 32, 32), None).shape == (1, 3, 224, 224)


@pytest.mark.parametrize("geometry", [Flipped(), Cropped(12, 8)])
def test_inputs_are_made_on_the_device_and_drawn_on_the_cpu(geometry: Flipped | Cropped) -> None:
    """The meta device computes shapes alone: whatever was made there was made of what was moved there."""
    images = torch.zeros(6, 3, 9, 9, dtype=torch.uint8)
    samples = TensorSamples(images, torch.zeros(6).long(), mean=(0.1, 0.2, 0.3), std=(1, 2, 3), geometry=geometry)
    here, there = rng(), rng()
    x = samples.inputs(torch.arange(4), here, CPU)
    elsewhere = samples.inputs(torch.arange(4), there, META)
    assert (x.device.type, elsewhere.device.type, elsewhere.dtype) == ("cpu", "meta", torch.float32)
    assert x.shape == elsewhere.shape
    assert torch.equal(here.get_state(), there.get_state())
    assert not torch.equal(here.get_state(), rng().get_state())


def test_bytes_then_geometry_then_normalisation_per_channel() -> None:
    """51 and 255 are 0.2 and 1; the first channel is (x - 0.1) / 2, the second (x - 0.2) / 4."""
    values = torch.tensor([[[[51, 255]], [[51, 255]]]], dtype=torch.uint8)
    seen: list[Any] = []

    def mirrored(x: Tensor, draws: torch.Generator | None) -> Tensor:
        seen.append((x.dtype, x.flatten().tolist(), draws))
        return x.flip(-1)

    samples = TensorSamples(values, torch.tensor([0]), mean=(0.1, 0.2), std=(2.0, 4.0), geometry=mirrored)
    x = samples.inputs(torch.tensor([0]), None, CPU)
    assert seen == [(torch.float32, pytest.approx([0.2, 1, 0.2, 1]), None)]
    assert x.flatten().tolist() == pytest.approx([0.45, 0.05, 0.2, 0.0])
    assert samples.shown(torch.tensor([0]), None, CPU).flatten().tolist() == pytest.approx([1, 0.2, 1, 0.2])


def test_what_is_held_stays_bytes() -> None:
    values = torch.full((3, 1, 2, 2), 7, dtype=torch.uint8)
    samples = TensorSamples(values, torch.zeros(3).long(), mean=0.5, geometry=Cropped(4, 2))
    samples.inputs(torch.arange(3), rng(), CPU).zero_()
    assert samples.values is values
    assert values.dtype == torch.uint8
    assert bool((values == 7).all())
