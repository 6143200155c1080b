"""The section on CKA: its numbers are the result's, and what is undefined is said."""

from __future__ import annotations

import json
import math
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from fedunlearn import evaluation
from fedunlearn.report.theory.cka import section
from fedunlearn.theory.activations import Similarity

PLACES = ("conv1", "relu1", "head")


def curve(*unbiased: float) -> dict[str, Similarity]:
    return {place: Similarity(value + 0.004, value, 1234) for place, value in zip(PLACES, unbiased, strict=True)}


MODELS = {
    "Retrain, first": curve(0.9995, 0.6, 0.2),
    "NoT, first": curve(1.0, 0.9, -0.4),
    "NoT, last": curve(1.0, 0.95, math.nan),
}


def test_rows_hold_every_value_ours_and_the_papers() -> None:
    made = section(MODELS, published={"NoT, first": (1.0, 0.89, 0.27)})
    assert [head for head, _ in made.heads] == ["position", *MODELS, "NoT, first, paper"]
    assert made.rows == (
        ("conv1", "1.00 (1.00)", "1.00 (1.00)", "1.00 (1.00)", "1.00"),
        ("relu1", "0.60 (0.60)", "0.90 (0.90)", "0.95 (0.95)", "0.89"),
        ("head", "0.20 (0.20)", "-0.40 (-0.40)", "undefined (undefined)", "0.27"),
    )
    (picture,) = made.pictures
    assert picture.name == "theory-cka"
    assert "NoT, first 1.00 at conv1, 0.90 at relu1, -0.40 at head" in picture.alt
    assert "NoT, first, paper 1.00 at conv1, 0.89 at relu1, 0.27 at head" in picture.alt
    assert "Dotted: the paper's" in picture.caption
    assert made.says[-1].startswith("The paper does not say whether its values are biased")


def test_each_model_is_said_with_its_least() -> None:
    said = section(MODELS).says
    assert said[1] == "NoT, first: CKA 1.00 at conv1, -0.40 at head; least -0.40, at head."
    assert said[2] == "NoT, last: CKA 1.00 at conv1, undefined at head; least 0.95, at relu1."
    assert "1,234 samples" in said[3]
    assert section({"flat": curve(math.nan, math.nan, math.nan)}).says[0].startswith("flat: its features do not vary")


def test_normalised_is_drawn_beside_and_masked_where_a_random_network_is_as_the_original() -> None:
    made = section(MODELS, random="Retrain, first")
    assert [picture.name for picture in made.pictures] == ["theory-cka", "theory-cka-normalised"]
    drawn = made.pictures[1].figure.axes[0].get_lines()
    curves = {str(line.get_label()): np.asarray(line.get_ydata(), dtype=float) for line in drawn}
    assert set(MODELS) - set(curves) == {"Retrain, first"}
    np.testing.assert_allclose(curves["NoT, first"], [math.nan, 0.75, -0.75], atol=1e-12)
    assert "NoT, first undefined at conv1, 0.75 at relu1, -0.75 at head" in made.pictures[1].alt
    assert "left out at conv1" in made.says[-1]
    assert len(section(MODELS, random="NoT, first").says) == len(section(MODELS).says) + 1  # conv1 is 1 there too


def test_lines_are_the_values() -> None:
    axes = section(MODELS, published={"NoT, last": (0.5, 0.6, 0.7)}).pictures[0].figure.axes[0]
    lines = {str(line.get_label()): list(map(float, np.asarray(line.get_ydata()))) for line in axes.get_lines()}
    assert lines["NoT, first"] == [1.0, 0.9, -0.4]
    assert lines["NoT, last, paper"] == [0.5, 0.6, 0.7]
    assert [label.get_text() for label in axes.get_xticklabels()] == list(PLACES)


def test_figure_3_fits_beside_its_own_values() -> None:
    content = json.loads((Path(evaluation.__file__).parent / "published.json").read_text())
    figure = next(one for one in content["figures"] if one["id"] == "figure-3")
    papers = {series["what"]: series["cka"] for series in figure["series"]}
    ours = {p: Similarity(v, v, 8) for p, v in zip(figure["positions"], papers["after retraining"], strict=True)}
    made = section({"after retraining": ours}, published=papers)
    assert len(made.heads) == 1 + 1 + 7
    assert made.rows[-1][1:] == ("0.94 (0.94)", "0.53", "0.27", "0.05", "0.08", "0.98", "0.94", "0.94")


def test_pictures_can_be_written_and_many_positions_have_room() -> None:
    many = {f"encoder.layers.encoder_layer_{n}.mlp#{n}": Similarity(0.5, 0.5, 9) for n in range(60)}
    for picture in section({"deep": many}).pictures:
        ElementTree.fromstring(picture.svg())
        assert len(picture.figure.axes[0].get_xticks()) <= 20


def test_what_cannot_be_shown_is_said() -> None:
    with pytest.raises(ValueError, match="one model at least"):
        section({})
    with pytest.raises(ValueError, match="different positions"):
        section({**MODELS, "odd": {"conv1": Similarity(1, 1, 9)}})
    with pytest.raises(ValueError, match="different positions"):
        section(MODELS, published={"NoT, last": (1.0, 0.5)})
    with pytest.raises(ValueError, match="'Retrain' is none of the models"):
        section(MODELS, random="Retrain")
