"""The section on gradients' spectral content: Figure 8, with what its curves can tell."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from fedunlearn.evaluation.rows import ORIGINAL
from fedunlearn.evaluation.table import REFERENCE
from fedunlearn.report.drawing import LIGHT, Picture, axes_for, put_legend
from fedunlearn.report.figures import looks
from fedunlearn.report.theory.section import Section
from fedunlearn.theory.gradient_spectrum import GradientSpectrum, dimension_ratio

__all__ = ["section"]

_BETA, _LEVEL = 0.95, 0.99
_PAPER = (0.7, 0.8)  # Figure 8's caption: NoT's dimensions over Retrain's
_HEADS = (
    ("model", ""),
    ("gradients a coordinate", "b / |K|"),
    ("dimensions", "that hold 95 % of the variance, %"),
    ("by the sample", "the same, read off the sample covariance, %"),
    ("over Retrain's", "ratio of the dimensions that hold 99 %"),
    ("above the control", "largest lead of the curve over that of gradients with random signs, points"),
    ("halves", "largest difference between two halves of the gradients, points"),
    ("control's error", "on gradients with random signs, whose spectrum is known, points"),
    ("u", "violation of the Marcenko-Pastur equation"),
)


def section(spectra: Mapping[str, GradientSpectrum]) -> Section:
    """How many dimensions models' gradients are noisy in.

    Args:
        spectra: of models by name, with the same subset size; NoT's and Retrain's are what Figure 8 compares.

    Raises:
        ValueError: there is no model, or subsets have different sizes.
    """
    if not spectra:
        raise ValueError("there is no spectrum to show: measure that of one model at least")
    if len({one.subset_size for one in spectra.values()}) > 1:
        raise ValueError("the models' subsets have different sizes, so their spectra cannot be compared: take one size")
    return Section(
        name="spectrum",
        title="Spectral content of gradients",
        says=tuple(_says(spectra)),
        heads=_HEADS,
        rows=tuple(_row(name, one, spectra.get(REFERENCE)) for name, one in spectra.items()),
        pictures=(_picture(spectra),),
    )


def _says(spectra: Mapping[str, GradientSpectrum]) -> Iterator[str]:
    for name, one in spectra.items():
        yield (
            f"{name}: {_BETA:.0%} of the variance of its gradients lies in {one.dimension(_BETA):.1%} of the "
            f"dimensions; the sample covariance says {one.sample_dimension(_BETA):.1%}."
        )
    reference = spectra.get(REFERENCE)
    for name, one in spectra.items():
        if reference is not None and name != REFERENCE:
            yield _compared(name, one, reference)
    bent = [name for name, one in spectra.items() if one.batches <= one.subset_size]
    if bent:
        ranks = {f"{(one.batches - 1) / one.subset_size:.1%}" for name, one in spectra.items() if name in bent}
        yield (
            f"With fewer gradients than coordinates the sample's curve comes to 100 % at {' and '.join(sorted(ranks))} "
            f"of the dimensions, whatever the model ({', '.join(bent)}): it tells nothing of where theirs would."
        )
    warned: dict[str, list[str]] = {}
    for name, one in spectra.items():
        for text in one.warnings:
            warned.setdefault(text, []).append(name)
    for text, names in warned.items():
        yield f"{', '.join(names)}: {text}"


def _compared(name: str, one: GradientSpectrum, reference: GradientSpectrum) -> str:
    """Beside Figure 8's caption, where the curves are further apart than chance brings them."""
    ratio = dimension_ratio(one, reference, _LEVEL)
    apart = float(np.abs(np.array(one.population.mean) - np.array(reference.population.mean)).max())
    chance = max(one.split_half, reference.split_half)
    said = f"{name} needs {ratio:.2f} times as many dimensions as {REFERENCE} for {_LEVEL:.0%} of the variance"
    if name == "NoT":
        said += f" (Figure 8: {_PAPER[0]} to {_PAPER[1]} for all of it)"
    if apart <= chance:
        return f"{said}, but the curves differ by {apart:.1%} at most, and halves of the gradients by {chance:.1%}."
    return f"{said}; the curves differ by up to {apart:.1%}, halves of the gradients by {chance:.1%}."


def _row(name: str, one: GradientSpectrum, reference: GradientSpectrum | None) -> tuple[str, ...]:
    lead = float((np.array(one.population.mean) - np.array(one.control)).max())
    return (
        name,
        f"{one.batches / one.subset_size:.3g}",
        f"{100 * one.dimension(_BETA):.1f}",
        f"{100 * one.sample_dimension(_BETA):.1f}",
        "" if reference is None else f"{dimension_ratio(one, reference, _LEVEL):.2f}",
        f"{100 * lead:.1f}",
        f"{100 * one.split_half:.1f}",
        f"{100 * one.control_error:.1f}",
        f"{one.residual:.3f}",
    )


def _picture(spectra: Mapping[str, GradientSpectrum]) -> Picture:
    drawn, said = looks([name for name in spectra if name != ORIGINAL]), []
    with axes_for("Spectral content", "dimensions, %", "variance of gradients, %", legend=list(spectra)) as (
        figure,
        axes,
    ):
        axes.axhline(100 * _BETA, color=LIGHT["faint"], linewidth=0.9)
        for name, one in spectra.items():
            alpha, colour = 100 * np.array(one.alpha), LIGHT[drawn[name].colour]
            low, high = (100 * np.array(curve) for curve in (one.population.low, one.population.high))
            axes.fill_between(alpha, low, high, color=colour, alpha=0.18, linewidth=0)
            axes.plot(alpha, 100 * np.array(one.population.mean), color=colour, label=name)
            dash: Any = (0, (4, 1.5))
            axes.plot(alpha, 100 * np.array(one.sample.mean), color=colour, linestyle=dash, linewidth=1.1)
            style: Any = {"color": colour, "marker": drawn[name].marker, "linestyle": "none", "markersize": 5}
            axes.plot([100 * one.dimension(_BETA)], [100 * _BETA], **style)
            said.append(
                f"{name} {_BETA:.0%} in {one.dimension(_BETA):.1%} of the dimensions, half in "
                f"{one.dimension(0.5):.1%}; by its sample {one.sample_dimension(_BETA):.1%} and "
                f"{one.sample_dimension(0.5):.1%}"
            )
        axes.set(xlim=(0, 100), ylim=(0, 102))
        put_legend(figure, axes)
    alt = f"Share of the variance of minibatch gradients in the leading dimensions: {'. '.join(said)}."
    caption = (
        "Variance of minibatch gradients in the leading dimensions, mean over subsets of the parameters. Solid, with a "
        "band from 10 to 90 % of the subsets: the spectrum behind the sample's; dashed: the sample's own. Marks: where "
        f"{_BETA:.0%} is reached. The further left, the fewer dimensions."
    )
    return Picture("theory-spectrum", figure, alt, caption)
