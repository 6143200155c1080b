"""The section on co-adaptation: each graft is a row and a bar, with the result's numbers."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest
from matplotlib.patches import Rectangle

from fedunlearn.report.theory.coadaptation import section
from fedunlearn.theory.grafting import Gap, LayerGap


def gap(layer: str, host: str, donor: str, loss: float) -> LayerGap:
    return LayerGap(layer, host, donor, Gap(loss, 90 - 10 * loss, loss - 0.5, loss - 0.75, -10 * loss, -5 * loss))


GAPS = (
    gap("conv1", "A", "B", 2.5),
    gap("head", "A", "B", 0.4),
    gap("conv1", "original", "negated", 3.25),
)


def test_rows_and_sentences_hold_the_numbers() -> None:
    made = section(GAPS)
    assert made.rows == (
        ("A with B's", "conv1", "2.500", "+2.000", "+1.750", "65.0", "-25.0"),
        ("A with B's", "head", "0.400", "-0.100", "-0.350", "86.0", "-4.0"),
        ("original, layer negated", "conv1", "3.250", "+2.750", "+2.500", "57.5", "-32.5"),
    )
    assert all(len(row) == len(made.heads) for row in made.rows)
    assert made.says[0] == (
        "A with B's: conv1 costs most, +2.000 of loss and -25.0 points beside the best parent; "
        "head least, -0.100 and -4.0."
    )


def test_bars_are_the_losses_above_the_best_parent_beside_their_layer() -> None:
    (picture,) = section(GAPS).pictures
    axes = picture.figure.axes[0]
    bars = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    assert [bar.get_width() for bar in bars] == pytest.approx([2.0, -0.1, 2.75])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["conv1", "head"]
    middles = [bar.get_y() + bar.get_height() / 2 for bar in bars]
    first, second = axes.get_yticks()
    nearest = [min((abs(tick - y), name) for tick, name in ((first, "conv1"), (second, "head")))[1] for y in middles]
    assert nearest == ["conv1", "head", "conv1"]
    assert "A with B's: conv1 +2.000, head -0.100; original, layer negated: conv1 +2.750" in picture.alt
    ElementTree.fromstring(picture.svg())


def test_nothing_is_no_section() -> None:
    with pytest.raises(ValueError, match="one gap at least"):
        section([])
