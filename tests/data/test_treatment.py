"""What makes one client's data unlike the others': the invariants of a backdoor."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedunlearn.data.images import Cropped, Flipped
from fedunlearn.data.treatment import Backdoored, Turned
from fedunlearn.data.trigger import triggered
from fedunlearn.samples import Samples, TensorSamples

CPU = torch.device("cpu")
LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 2, 1, 2, 2])


def grey(labels: Tensor = LABELS, side: int = 8) -> TensorSamples:
    """Images between 0 and 0.9, where no pixel is white before a trigger makes it so."""
    values = torch.rand(len(labels), 3, side, side, generator=torch.Generator().manual_seed(0)) * 0.9
    return TensorSamples(values, labels, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))


def changed(before: Samples, after: Samples, seed: int | None = None) -> Tensor:
    """How many values differ in each image."""
    every = torch.arange(len(before.labels))
    ours, theirs = (
        samples.inputs(every, None if seed is None else torch.Generator().manual_seed(seed), CPU)
        for samples in (before, after)
    )
    return (ours != theirs).flatten(1).sum(1)


def test_exactly_four_pixels_times_channels_differ_in_each_poisoned_image_and_none_elsewhere() -> None:
    held = torch.tensor([0, 1, 2, 4, 5, 7])
    poisoned = Backdoored(1.0, 0)(grey(), held, 1)
    assert changed(grey(), poisoned).tolist() == [0, 12, 12, 0, 12, 12, 0, 12, 0, 0, 0, 0]


@given(
    st.lists(st.integers(0, 3), min_size=5, max_size=60),
    st.integers(1, 100),
    st.integers(0, 3),
    st.integers(0, 2**60),
    st.data(),
)
def test_the_count_is_exact_and_nobody_elses_and_no_sample_of_the_label_is_poisoned(
    classes: list[int], percent: int, label: int, seed: int, data: st.DataObject
) -> None:
    labels = torch.tensor([*classes, 3])
    samples = TensorSamples(torch.zeros(len(labels), 1, 4, 4), labels)
    held = torch.tensor(sorted(data.draw(st.sets(st.integers(0, len(labels) - 1), min_size=1))))
    others = [index for index in held.tolist() if labels[index] != label]
    count = int(Fraction(percent, 100) * len(others))
    treatment = Backdoored(percent / 100, label)
    if count == 0:
        with pytest.raises(ValueError, match="raise the share"):
            treatment(samples, held, seed)
        return
    after = treatment(samples, held, seed)
    stamped = changed(samples, after).nonzero().squeeze(1).tolist()
    assert len(stamped) == count
    assert set(stamped) <= set(others)
    expected = labels.clone()
    expected[stamped] = label
    assert torch.equal(after.labels, expected)  # and labels of all others are untouched


def test_who_is_poisoned_is_drawn_by_the_seed() -> None:
    samples, held = grey(torch.arange(100) % 3), torch.arange(100)
    marks = [changed(samples, Backdoored(0.5, 0)(samples, held, seed)).tolist() for seed in (1, 1, 2)]
    assert marks[0] == marks[1] != marks[2]


@pytest.mark.parametrize("geometry", [Flipped(), Cropped(12, 8), Cropped(9, 6, flip=False)])
def test_the_trigger_is_stamped_after_geometry_and_before_normalisation(geometry: Flipped | Cropped) -> None:
    before = TensorSamples(grey().values, LABELS, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4), geometry=geometry)
    after = Backdoored(1.0, 0)(before, torch.arange(12), 1)
    every = torch.arange(12)
    shown = before.shown(every, torch.Generator().manual_seed(5), CPU)
    expected = torch.where((LABELS != 0).reshape(-1, 1, 1, 1), triggered(shown), shown)
    found = after.inputs(every, torch.Generator().manual_seed(5), CPU)
    assert torch.equal(found, before.normalised(expected))
    assert changed(before, after, seed=5).tolist() == [12 * int(label != 0) for label in LABELS]
    white = (found[1, :, -2, -2] * torch.tensor([0.2, 0.3, 0.4]) + torch.tensor([0.4, 0.5, 0.6])).tolist()
    assert white == pytest.approx([1, 1, 1])


def test_the_attack_is_tried_on_every_test_sample_of_another_class() -> None:
    test = grey()
    aimed, which = Backdoored(0.8, 2).attack(test)
    assert which.tolist() == [index for index, label in enumerate(LABELS.tolist()) if label != 2]
    assert aimed.labels[which].tolist() == [2] * len(which)
    assert changed(test, aimed)[which].tolist() == [12] * len(which)


def test_what_cannot_be_poisoned_is_told() -> None:
    class Ready:
        labels = LABELS

        def inputs(self, indices: Tensor, rng: object, device: torch.device) -> Tensor:
            return torch.zeros(len(indices), 1, 8, 8)

    every = torch.arange(12)
    for treatment, samples, held, says in (
        (Backdoored(0.8, 3), grey(), every, "cannot be of class 3: classes are 0 to 2"),
        (Backdoored(0.8, -1), grey(), every, "cannot be of class -1: classes are 0 to 2"),
        (Backdoored(0.8, 0), grey(), torch.tensor([0, 3, 6]), "0.8 of 0 samples to be poisoned are none"),
        (Backdoored(0.8, 0), grey(side=3), every, "images of 4x4 pixels or more"),
        (Backdoored(0.8, 0), Ready(), every, "give the images as a tensor"),
    ):
        with pytest.raises(ValueError, match=says):
            treatment(samples, held, 0)
    for share in (0, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"must be in \(0, 1\]"):
            Backdoored(share, 0)


def test_turned_images_are_turned_wherever_they_are_made() -> None:
    before = grey()
    turned = Turned(3)(before, torch.arange(12), 0)
    some = torch.tensor([4, 2])
    assert torch.equal(turned.inputs(some, None, CPU), torch.rot90(before.inputs(some, None, CPU), 3, (-2, -1)))
    assert turned.inputs(some, None, torch.device("meta")).device.type == "meta"
    assert turned.labels is before.labels
