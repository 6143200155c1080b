"""The poset's section: its numbers are the poset's, and what it says follows from them."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

from fedunlearn.report.theory.poset import section
from fedunlearn.theory.poset import LayerPoset


@pytest.fixture(scope="module")
def resnet18() -> LayerPoset:
    with torch.device("meta"):
        model = torchvision.models.resnet18()
    return LayerPoset.of(model, torch.zeros(1, 3, 64, 64))


def test_the_numbers_stand_in_rows_and_sentences(resnet18: LayerPoset) -> None:
    found = section(resnet18.judged("conv1", "layer1.0.conv1", "layer2.0.conv1", "fc", ["conv1", "fc"]))
    assert found.says[0] == "21 layers, 8 maximal chains, the longest of 18 layers, and 256 paths from input to output."
    assert found.rows == (
        ("conv1", "yes", "none", "yes: 8 of 8 chains once", "yes: 256 of 256 paths once"),
        ("layer1.0.conv1", "yes", "none", "yes: 8 of 8 chains once", "no: of 256 paths, 128 never"),
        ("layer2.0.conv1", "yes", "none", "no: of 8 chains, 4 never", "no: of 256 paths, 128 never"),
        ("fc", "yes", "fc", "yes: 8 of 8 chains once", "yes: 256 of 256 paths once"),
        ("conv1, fc", "no", "fc", "no: of 8 chains, 8 more than once", "no: of 256 paths, 256 more than once"),
    )
    assert all(len(row) == len(found.heads) for row in found.rows)
    said = found.says[1:]
    assert said[0] == "conv1: a Cauchy domain, by order and by paths, and not maximal."
    assert "128 paths go around it" in said[1]
    assert said[2].startswith("layer2.0.conv1: no Cauchy domain")
    assert "fc is maximal, which Theorem 7 excludes" in said[3]
    assert "say nothing of them" in said[4]


def test_the_diagram_has_a_dot_for_each_layer_and_a_line_for_each_cover(resnet18: LayerPoset) -> None:
    (picture,) = section(resnet18.judged(["layer2.0.conv1", "layer2.0.downsample.0"])).pictures
    (axes,) = picture.figure.axes
    others, marked = axes.collections
    assert (len(others.get_offsets()), len(marked.get_offsets())) == (19, 2)
    assert len(axes.lines) == len(resnet18.covers) == 23
    places = {tuple(place) for dots in axes.collections for place in dots.get_offsets().tolist()}
    assert len(places) == 21, "no two dots lie on each other"
    for line in axes.lines:
        assert line.get_xdata()[0] < line.get_xdata()[1], "lines lead from lower to higher"
        assert {tuple(map(float, end)) for end in line.get_xydata()} <= places
    assert picture.name == "theory-poset"
    assert "21 layers with 23 lines, from conv1 at height 1 to fc at height 18" in picture.alt
    assert "layer2.0.conv1 at height 6, layer2.0.downsample.0 at height 6." in picture.alt
    assert picture.svg().startswith(b"<?xml")


def test_long_rows_are_thinned_but_what_is_negated_and_the_ends_are_drawn() -> None:
    poset = LayerPoset.of(nn.Sequential(*(nn.Linear(2, 2) for _ in range(150))), torch.ones(1, 2))
    (picture,) = section(poset.judged("100")).pictures
    (axes,) = picture.figure.axes
    others, marked = axes.collections
    assert marked.get_offsets().tolist() == [[101, 0]]
    xs = {x for x, _ in others.get_offsets().tolist()}
    assert {1, 150} <= xs
    assert len(xs) + 1 <= 60
    assert len(axes.lines) == len(xs)
    assert "Layers in a row are left out" in picture.caption
    assert (
        section(poset.judged("100"))
        .says[0]
        .startswith("150 layers, 1 maximal chain, the longest of 150 layers, and 1 path ")
    )
