"""The section on layer-wise optimality says what was found."""

from __future__ import annotations

import torch
from torch import nn

from fedunlearn.models.resnet import SmallResNet
from fedunlearn.report.theory.optimality import section
from fedunlearn.theory.optimality import conditions


def test_a_covered_layer_and_its_activation() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Sigmoid(), nn.Linear(6, 3))
    shown = section(conditions(model, "0", torch.randn(2, 4)))
    assert shown.name == "optimality"
    assert shown.says[0] == "Theorem 7 covers the negation of the layer 0."
    assert len(shown.says) == 2
    assert "weight and bias" in shown.says[-1]
    (row,) = shown.rows
    assert len(row) == len(shown.heads)
    assert row[:6] == ("0", "no", "sigmoid: sigmoid-like", "2", "yes", "yes")
    (picture,) = shown.pictures
    assert picture.name == "theory-optimality-1-sigmoid"
    assert "psi(x) from 0.018 to 0.982" in picture.alt
    assert "sum from 1 to 1" in picture.alt
    assert "difference from -0.964 to 0.964" in picture.alt
    assert "psi(x) + psi(-x) = 1." in picture.alt
    assert picture.svg().startswith(b"<?xml")


def test_what_fails_and_what_saves_it_is_said() -> None:
    torch.manual_seed(0)
    model = SmallResNet(10, (3, 16, 16), width=4, blocks=(1,))
    shown = section(conditions(model, ["conv1", "layer1.0.conv1"], torch.randn(2, 3, 16, 16)))
    said = " ".join(shown.says)
    assert shown.says[0] == "Theorem 7 does not cover the negation of the 2 layers."
    assert "No antichain: conv1 comes before layer1.0.conv1." in said
    assert "is preserved all the same" in said
    assert [row[:6] for row in shown.rows] == [
        ("conv1", "no", "-", "bn1", "no", "yes"),
        ("layer1.0.conv1", "no", "-", "layer1.0.bn1", "no", "yes"),
    ]
    assert shown.pictures == ()


def test_an_activation_without_a_relation_is_drawn_and_called_so() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    shown = section(conditions(model, "0", torch.randn(2, 4)))
    assert "is not known" in " ".join(shown.says)
    assert shown.rows[0][2:6] == ("relu: none", "-", "no", "unknown")
    (picture,) = shown.pictures
    assert "sum from 0 to 4" in picture.alt
    assert "difference from -4 to 4; no relation" in picture.alt
    assert "straight line 1 x" in picture.caption


def test_behind_a_sigmoid_the_mirror_image_is_another() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Sigmoid(), nn.Tanh(), nn.Linear(6, 3))
    shown = section(conditions(model, "0", torch.randn(2, 4)))
    assert shown.rows[0][2] == "sigmoid: sigmoid-like, tanh: none"
    assert [picture.name for picture in shown.pictures] == ["theory-optimality-1-sigmoid", "theory-optimality-2-tanh"]
    assert "no relation a psi(x) + b psi(1 - x) = c" in shown.pictures[1].alt
    assert "on [-3.5, 4.5]" in shown.pictures[1].alt
    assert "straight" not in shown.pictures[1].caption
