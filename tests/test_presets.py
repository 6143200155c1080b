"""Presets: what others have used, where each value is from, and that it can be run."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest

from fedunlearn.experimentfile import ExperimentError, made, resolved
from fedunlearn.methods.badt import BadT
from fedunlearn.methods.catalogue import CATALOGUE
from fedunlearn.methods.fcu import FCU
from fedunlearn.methods.ga import GA
from fedunlearn.methods.l1_sparse import L1Sparse
from fedunlearn.methods.mode import MoDE
from fedunlearn.methods.neggrad import NegGradPlus
from fedunlearn.methods.pgd import PGD
from fedunlearn.methods.randl import RandL
from fedunlearn.methods.salun import SalUn
from fedunlearn.methods.scrub import SCRUB
from fedunlearn.methods.ssd import SSD
from fedunlearn.presets import SOURCES, grid, origins, presets

ALL = [(method, preset) for method in CATALOGUE for preset in presets(method).values()]


@pytest.mark.parametrize(("method", "preset"), ALL, ids=lambda value: getattr(value, "name", value))
def test_every_preset_makes_its_method_with_its_values(method: str, preset: Any) -> None:
    found = resolved(made({"kind": method, "preset": preset.name}))
    assert {entry: found[entry] for entry in preset.values} == dict(preset.values)
    assert preset.sources.keys() == preset.values.keys()
    assert set(preset.sources.values()) <= set(SOURCES)


@pytest.mark.parametrize("method", CATALOGUE)
def test_every_point_of_a_grid_makes_its_method(method: str) -> None:
    entries = {field.name for field in fields(CATALOGUE[method])}  # type: ignore[arg-type]
    for entry, values in grid(method).items():
        assert entry in entries
        assert all(made({"kind": method, entry: value}) is not None for value in values)


def test_the_papers_values_for_its_cnn_are_the_defaults() -> None:
    """Supplement 14.1: what a user gets who says nothing."""
    assert made({"kind": "PGD", "preset": "paper-cnn"}) == PGD()
    assert made({"kind": "MoDE", "preset": "paper-cnn"}) == MoDE()
    assert made({"kind": "FCU", "preset": "paper-cnn"}) == FCU()


def test_supplement_14_1_by_hand() -> None:
    assert made({"kind": "PGD", "preset": "paper-resnet18"}) == PGD(1e-3, 0.9, 2, 7, 2.2, 1.0)
    assert made({"kind": "PGD", "preset": "paper-vit"}) == PGD(1e-3, 0.9, 10, 5, 1.0, 4.0)
    assert made({"kind": "MoDE", "preset": "paper-resnet18"}) == MoDE(9, 8, 0.95, 0.05, 0.1)
    assert made({"kind": "MoDE", "preset": "paper-vit"}) == MoDE(15, 12, 0.9, 0.001, 0.001)
    assert presets("FCU")["paper-vit"].sources["lr"] == "guess"
    assert presets("FCU")["paper-vit"].sources["interval"] == "supplement"


def test_supplement_14_2_by_hand() -> None:
    """One epoch of ascent at the training's learning rate, and a temperature; it says no more of these methods."""
    assert made({"kind": "GA", "preset": "paper-centralized"}) == GA() == GA(epochs=1, lr=None)
    assert made({"kind": "BadT", "preset": "paper-centralized"}) == BadT()
    assert dict(presets("BadT")["paper-centralized"].sources) == {"temperature": "supplement"}


def test_published_code_of_centralized_methods_by_hand() -> None:
    assert made({"kind": "GA", "preset": "original"}) == GA(5, 1e-4)
    assert made({"kind": "BadT", "preset": "original"}) == BadT(1, 1e-4, 0.3, 1.0, "mean")
    assert made({"kind": "NegGrad+", "preset": "original"}) == NegGradPlus(0.95, 10, 0.01)
    large, small = (made({"kind": "SCRUB", "preset": f"original-{size}"}) for size in ("large", "small"))
    assert large == SCRUB(3, 2, 0.001, 0.99, 4.0, (3, 5, 9), 0.1, 5e-4, 512, 256)
    assert large == replace(SCRUB(), lr=5e-4, forget_batch_size=512, retain_batch_size=256)  # else the defaults
    assert small == SCRUB(10, 3, 0.5, 1.0, 2.0, (5, 8, 9), 0.1, 5e-4, 64, 32)


def test_defaults_of_centralized_methods_are_the_supplements() -> None:
    """Of the centralized methods the supplement's values are the defaults, too."""
    assert made({"kind": "RandL", "preset": "paper-centralized"}) == RandL() == RandL(50, True, "sequential")
    assert made({"kind": "l1-sparse", "preset": "paper-centralized"}) == L1Sparse() == L1Sparse(2, 0.002)
    assert made({"kind": "SSD", "preset": "paper-centralized"}) == SSD() == SSD(0.5, 0.5, 64)
    assert made({"kind": "SalUn", "preset": "paper-centralized"}) == SalUn() == SalUn(0.2, 50)
    assert made({"kind": "SalUn", "preset": "paper-centralized-frozen"}) == SalUn(0.8, 50)
    assert presets("SalUn")["paper-centralized-frozen"].sources["trainable_fraction"] == "guess"


def test_what_stands_beside_a_preset_goes_before_it() -> None:
    assert made({"kind": "PGD", "preset": "paper-resnet18", "lr": 0.5}) == PGD(0.5, 0.9, 2, 7, 2.2, 1.0)


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        (
            {"kind": "FUKD", "preset": "paper-cn"},
            'preset: must be paper-cnn (did you mean paper-cnn?), not "paper-cn"',
        ),
        ({"kind": "FT", "preset": "paper"}, 'preset: there is none of FT, not "paper"'),
        (
            {"kind": "PGD", "preset": 3},
            "preset: must be paper-cnn or paper-resnet18 or paper-vit or original or tuned-fashion or "
            "tuned-small-vit or tuned-small-resnet, not 3",
        ),
        ({"kind": "PGD", "preset": "original", "lr": -1.0}, "lr: must be greater than 0, not -1.0"),
    ],
)
def test_what_is_no_preset_is_told(table: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ExperimentError) as raised:
        made(table)
    assert str(raised.value) == sentence


def test_where_a_value_is_from_is_looked_up_by_value() -> None:
    said = resolved(made({"kind": "PGD", "preset": "paper-resnet18", "clip": 7.0}))
    found = origins("PGD", {entry: value for entry, value in said.items() if entry != "kind"})
    assert {entry: origin.preset for entry, origin in found.items()} == {
        "lr": "paper-resnet18",
        "momentum": "paper-resnet18",  # others have it too; this one agrees in most
        "iterations": "paper-resnet18",
        "updates": "paper-resnet18",
        "squared_stop_distance": "paper-resnet18",
    }
    assert all(origin.source == "supplement" for origin in found.values())
    assert origins("FT", {}) == {}
