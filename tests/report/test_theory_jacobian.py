"""The section on Jacobian control says what was measured."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fedunlearn.report.theory.jacobian import section
from fedunlearn.theory.jacobian import JacobianControl, LayerJacobian
from fedunlearn.theory.transport import Variation

ROWS = (
    LayerJacobian("conv1", "below", -1, 0.713, 0.412, 0.101, 0.005, 2.5, 0.05, 0.02),
    LayerJacobian("conv2", "at", 1, 0.314, 0.851, 0.102, 0.005, 1.5, 0.75, 0.5),
    LayerJacobian("side", "beside", 1, 0.103, 1.9, 0.103, 0.9, 1.0, 1.0, 1.0),
    LayerJacobian("fc1", "above", 1, 0.555, 1.7, 0.104, 0.005, 0.8, 1.6, 2.0),
    LayerJacobian("fc2", "above", 1, 0.116, 1.6, 0.105, 0.44, 0.8, 1.2, 1.5),
)
CONTROL = JacobianControl(("conv2.weight",), 321, 7, Variation(0.66, 0.04, 0.66, 0.61, 321), ROWS)


def test_rows_have_a_cell_for_each_head_and_the_numbers() -> None:
    made = section(CONTROL)
    assert made.name == "jacobian"
    assert all(len(row) == len(made.heads) for row in made.rows)
    assert made.rows[0] == ("conv1", "below", "0.713", "-1", "0.412", "0.101", "0.005", "2.5", "0.05", "0.02")


def test_sentences_count_what_changed_turned_and_vanished() -> None:
    first, second, third, fourth, fifth = section(CONTROL).says
    assert all(part in first for part in ("conv2.weight", "321 samples", "7 outputs"))
    assert all(part in second for part in ("0.66", "0.04", "lower bound"))
    assert "1 of 2 layers" in third
    assert "opposite to the theorem's in 1 of 2 layers" in fourth
    assert "below a tenth in 1 of 2" in fifth
    assert "0.02, in conv1" in fifth


def test_a_p_is_how_often_equal_laws_look_as_far_apart() -> None:
    assert dict(section(CONTROL).heads)["p"] == "how often equal laws would look as far apart"


@pytest.mark.parametrize(
    ("ps", "count"), [((0.03, 0.04), 0), ((0.03,), 1), ((0.005, 0.02, 0.03, 0.04), 1), ((0.01, 0.02, 0.04), 3)]
)
def test_layers_whose_law_has_changed_are_counted_after_holms_correction(ps: tuple[float, ...], count: int) -> None:
    rows = (ROWS[1], *(replace(ROWS[3], layer=f"fc{number}", p=p) for number, p in enumerate(ps)))
    third = section(replace(CONTROL, rows=rows)).says[2]
    assert f"changed in {count} of {len(ps)} layers (p at most 0.05 by Holm's correction for {len(ps)} tests)" in third


def test_of_more_layers_than_a_p_of_one_in_200_can_tell_apart_none_is_said_to_be_changed() -> None:
    rows = (ROWS[1], *(replace(ROWS[3], layer=f"fc{number}", p=0.005 if number else 0.8) for number in range(11)))
    third = section(replace(CONTROL, rows=rows)).says[2]
    assert "changed in" not in third
    assert "p is at most 0.05 in 10 of 11 layers, where chance alone would make it so in 0.6" in third
    assert "no p is below 1/200, which Holm's correction for 11 tests makes 0.055" in third


def test_without_layers_above_or_starved_ones_nothing_is_said_of_them() -> None:
    says = section(replace(CONTROL, rows=(replace(ROWS[1], layer="last"),))).says
    assert len(says) == 4
    assert "nowhere fallen below a tenth; the smallest ratio is 0.5, in last" in says[-1]


def test_pictures_say_their_numbers_and_have_names_of_their_own() -> None:
    gradients, distances = section(CONTROL).pictures
    assert (gradients.name, distances.name) == ("theory-jacobian-gradients", "theory-jacobian-distances")
    for row in ROWS:
        assert f"{row.layer} {row.ratio:.3g}" in gradients.alt
        assert f"{row.layer} {row.distance:.3g} (other sign {row.opposite:.3g}, floor {row.floor:.3g})" in distances.alt
    assert gradients.figure.axes[0].get_xscale() == "log"
    assert [label.get_text() for label in distances.figure.axes[0].get_yticklabels()] == [row.layer for row in ROWS]


@pytest.mark.parametrize("ratio", [0.0, float("inf")])
def test_ratios_without_a_logarithm_are_drawn_at_the_edge(ratio: float) -> None:
    rows = (replace(ROWS[0], ratio=ratio, distance=min(ratio, 3.0)), *ROWS[1:])
    for picture in section(replace(CONTROL, rows=rows)).pictures:
        assert picture.svg().startswith(b"<?xml")


def test_a_hundred_layers_and_long_names_fit() -> None:
    rows = tuple(
        replace(ROWS[3], layer=f"encoder.layers.encoder_layer_{i}.self_attention.out_proj") for i in range(100)
    )
    for picture in section(replace(CONTROL, rows=(*rows, ROWS[1]))).pictures:
        assert picture.figure.get_figheight() < 9
        assert 20 < len(picture.figure.axes[0].get_yticks()) <= 32
