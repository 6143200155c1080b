"""The section on spectral content says the numbers that were measured, and what they are worth."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fedunlearn.report.theory.spectrum import section
from fedunlearn.theory.gradient_spectrum import Band, GradientSpectrum

ALPHA = (0.0, 0.05, 0.25, 0.5, 0.75, 1.0)


def band(*mean: float) -> Band:
    return Band(mean, tuple(max(one - 0.02, 0) for one in mean), tuple(min(one + 0.02, 1) for one in mean))


RETRAIN = GradientSpectrum(
    parameters=("conv1.weight",),
    elements=90,
    batches=10,
    batch_size=4,
    subset_size=20,
    subsets=3,
    alpha=ALPHA,
    sample=band(0, 0.6, 0.96, 1, 1, 1),
    population=band(0, 0.1, 0.4, 0.7, 0.96, 1),
    residual=0.0123,
    split_half=0.031,
    control=(0, 0.05, 0.27, 0.52, 0.76, 1),
    control_error=0.042,
    warnings=("too few gradients.",),
)
NOT = replace(RETRAIN, population=band(0, 0.2, 0.6, 0.96, 0.992, 1), residual=0.02)


def test_rows_have_what_was_measured() -> None:
    found = section({"Retrain": RETRAIN, "NoT": NOT})
    assert found.name == "spectrum"
    assert found.rows == (
        ("Retrain", "0.5", "75.0", "25.0", "1.00", "20.0", "3.1", "4.2", "0.012"),
        ("NoT", "0.5", "50.0", "25.0", "0.75", "44.0", "3.1", "4.2", "0.020"),
    )
    assert all(len(row) == len(found.heads) for row in found.rows)


def test_sentences_say_the_dimensions_the_ratio_and_what_cannot_be_trusted() -> None:
    says = section({"Retrain": RETRAIN, "NoT": NOT}).says
    assert says[1] == (
        "NoT: 95% of the variance of its gradients lies in 50.0% of the dimensions; the sample covariance says 25.0%."
    )
    assert "NoT needs 0.75 times as many dimensions as Retrain for 99%" in says[2]
    assert "Figure 8: 0.7 to 0.8" in says[2]
    assert "differ by up to 26.0%, halves of the gradients by 3.1%" in says[2]
    assert "comes to 100 % at 45.0% of the dimensions" in says[3]
    assert says[4] == "Retrain, NoT: too few gradients."
    assert len(says) == 5


def test_a_difference_that_halves_have_too_is_said_to_be_none() -> None:
    shaken = replace(NOT, split_half=0.3)
    assert "but the curves differ by 26.0% at most, and halves of the gradients by 30.0%" in " ".join(
        section({"Retrain": RETRAIN, "NoT": shaken}).says
    )


def test_a_model_alone_is_compared_with_none_and_enough_gradients_need_no_warning() -> None:
    found = section({"a < b": replace(NOT, batches=30, warnings=())})
    assert found.rows[0][4] == ""
    assert len(found.says) == 1
    assert "1.5" in found.rows[0]


def test_the_picture_has_its_numbers_in_words() -> None:
    (picture,) = section({"Retrain": RETRAIN, "NoT": NOT}).pictures
    assert picture.name == "theory-spectrum"
    assert "NoT 95% in 50.0% of the dimensions, half in 25.0%; by its sample 25.0% and 5.0%" in picture.alt
    assert "dashed" in picture.caption
    lines = picture.figure.axes[0].get_lines()
    drawn = [list(line.get_ydata()) for line in lines]
    for one in (RETRAIN, NOT):
        for curve in (one.population.mean, one.sample.mean):
            assert any(ys == pytest.approx([100 * share for share in curve]) for ys in drawn)
    marks = [(line.get_xdata()[0], line.get_ydata()[0]) for line in lines if len(line.get_xdata()) == 1]
    assert marks == [(75.0, 95.0), (50.0, 95.0)]
    assert picture.svg().startswith(b"<?xml")


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ValueError, match="no spectrum to show"):
        section({})
    with pytest.raises(ValueError, match="different sizes"):
        section({"Retrain": RETRAIN, "NoT": replace(NOT, subset_size=10)})
