"""The bound's section: its numbers are the result's."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fedunlearn.report.theory.bound import section
from fedunlearn.theory.bound import Bound, Checkpoint

START = Checkpoint(0.0, 0.31, 0.05, 0.26, 1.25, 0.01, 0.002, 0.0001, 0.0003)
FT = Bound(
    checkpoints=(START, replace(START, time=2.0)),
    gap_start=0.0511,
    gap_retrained=0.523,
    epsilon=0.0,
    lipschitz=1.37,
    lipschitz_batches=7.89,
    loss_start=0.317,
    loss_least=0.273,
    loss_drop=0.044,
    stochastic=0.0123,
    stochastic_diagonal=0.00217,
    noise=0.00019,
    printed=2.46,
    corrected=1.81,
    lr=0.001,
    printed_steps=2460.0,
    corrected_steps=1810.0,
)
NOT = replace(FT, lipschitz=41.3, loss_start=2.75, loss_drop=2.48, printed=0.0401, corrected=0.0, corrected_steps=0.0)
BOUNDS, MEASURED = {"FT": FT, "NoT": NOT}, {"FT": 48.7, "NoT": 0.93}


def test_every_number_stands_in_the_rows() -> None:
    found = section(BOUNDS, MEASURED)
    assert [name for name, _ in found.heads] == ["term", "FT", "NoT"]
    assert all(len(row) == 3 for row in found.rows)
    rows = {term: cells for term, *cells in found.rows}
    assert rows["loss gap at the start"] == ["0.0511", "0.0511"]
    assert rows["loss gap of Retrain"] == ["0.523", "0.523"]
    assert rows["Lipschitz constant, along the path (eq. 85)"] == ["1.37", "41.3"]
    assert rows["Lipschitz constant, over mini-batches (eq. 84)"] == ["7.89", "7.89"]
    assert rows["loss on what stays, at the start"] == ["0.317", "2.75"]
    assert rows["loss on what stays, the least"] == ["0.273", "0.273"]
    assert rows["A, all covariances"] == ["0.0123", "0.0123"]
    assert rows["A, diagonal"] == ["0.00217", "0.00217"]
    assert rows["N, mean squared way by noise alone"] == ["0.00019", "0.00019"]
    assert rows["bound as printed, time"] == ["2.46", "0.0401"]
    assert rows["bound as printed, steps"] == ["2.46e+03", "2.46e+03"]
    assert rows["bound corrected for noise, time"] == ["1.81", "0"]
    assert rows["bound corrected for noise, steps"] == ["1.81e+03", "0"]
    assert rows["measured time"] == ["48.7", "0.93"]
    assert "bound in Table 3" not in rows


def test_the_predicted_ratio_stands_beside_the_measured_and_the_published_one() -> None:
    """2.46 / 0.0401, 48.7 / 0.93, 2.46 / 0.04; the corrected bound of NoT is 0, of which there is no ratio."""
    says = section(BOUNDS, MEASURED, {"FT": 2.46, "NoT": 0.04}).says
    assert says[0] == (
        "The time of FT is that of NoT 61.3 times by the bound as printed, 52.4 times as measured, "
        "61.5 times in Table 3."
    )
    assert any(said.startswith("Of NoT the corrected bound is 0") for said in says)
    assert any("up to 0.28 times the drop in loss (FT)" in said for said in says)  # 0.0123 / 0.044
    assert "certify nothing" in says[-1]


def test_a_corrected_ratio_is_told_where_there_is_one() -> None:
    bounds = {"FT": FT, "NoT": replace(NOT, corrected=0.0362)}
    says = section(bounds, MEASURED).says
    assert "50 times by the corrected one" in says[0]
    assert "Table 3" not in says[0]
    assert not any("is 0" in said for said in says)


def test_a_bound_above_what_was_measured_is_said() -> None:
    assert not any("above the time" in said for said in section(BOUNDS, MEASURED).says)
    says = section(BOUNDS, {"FT": 48.7, "NoT": 0.04}).says
    assert any(said == "Of NoT the bound as printed is above the time that was measured." for said in says)


def test_the_published_values_have_a_row() -> None:
    assert section(BOUNDS, MEASURED, {"NoT": 0.04}).rows[-1] == ("bound in Table 3", "", "0.04")


def test_the_picture_has_its_numbers_in_its_description() -> None:
    (picture,) = section(BOUNDS, MEASURED, {"FT": 2.46, "NoT": 0.04}).pictures
    assert picture.name == "theory-bound-times"
    assert "FT: bound as printed 2.46, bound corrected 1.81, measured 48.7, Table 3 2.46" in picture.alt
    assert "NoT: bound as printed 0.0401, bound corrected 0, measured 0.93, Table 3 0.04" in picture.alt
    assert all(label in picture.svg().decode() for label in ("bound as printed", "measured", "Table 3", "NoT"))
    assert picture.svg() == section(BOUNDS, MEASURED, {"FT": 2.46, "NoT": 0.04}).pictures[0].svg()


def test_only_marks_that_are_drawn_have_a_place_in_the_legend() -> None:
    (picture,) = section({"NoT": NOT}, {"NoT": 0.93}).pictures
    drawn = picture.svg().decode()
    assert "measured" in drawn
    assert "Table 3" not in drawn
    assert "bound corrected" not in drawn


def test_methods_must_be_the_same() -> None:
    with pytest.raises(ValueError, match=r"give both of the same methods"):
        section(BOUNDS, {"FT": 1.0})
    with pytest.raises(ValueError, match=r"same methods"):
        section({}, {})
