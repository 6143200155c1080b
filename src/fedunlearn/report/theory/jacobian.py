"""What negation did to the Jacobian of each layer and to its gradient, for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from fedunlearn.audits.certainty import LEVEL, holm
from fedunlearn.report.drawing import LIGHT, WIDE, Picture, axes_for, put_legend
from fedunlearn.report.theory.section import Section
from fedunlearn.theory.jacobian import JacobianControl, LayerJacobian

__all__ = ["section"]

_ROW, _TALLEST, _NAMED = 0.19, 6.0, 32  # inches of a layer, and of all; layers that an axis can name
_FINEST = 200  # 1 / the smallest p that a permutation test can have
_VANISHED = 0.1  # of a gradient's norm
_EDGE = 1e6  # beyond which a ratio is drawn at the edge

_COLOURS = {"above": "c1", "at": "c2", "below": "c3", "between": "c4", "beside": "c6"}
_MARKERS = {"above": "^", "at": "s", "below": "v", "between": "D", "beside": "o"}


def section(control: JacobianControl) -> Section:
    """A sentence on each half of Theorem 6 and on the gradients, a row a layer, and two pictures."""
    heads = (
        ("layer", "in the order of running"),
        ("place", "seen from the negated layers"),
        ("distance", "of the Jacobian's law before, times the sign, to that after; 1 is as far as from 0"),
        ("sign", "of the Jacobian before, as in Theorem 6"),
        ("other sign", "the distance with it"),
        ("floor", "distance of two halves of one law"),
        ("p", "how often equal laws would look as far apart"),
        ("gradient before", "Euclidean norm, of the mean loss"),
        ("gradient after", ""),
        ("ratio", "after / before"),
    )
    rows = tuple(
        (
            row.layer,
            row.place,
            f"{row.distance:.3g}",
            f"{row.sign:+d}",
            f"{row.opposite:.3g}",
            f"{row.floor:.3g}",
            f"{row.p:.3g}",
            f"{row.before:.3g}",
            f"{row.after:.3g}",
            f"{row.ratio:.3g}",
        )
        for row in control.rows
    )
    pictures = (_gradients(control.rows), _distances(control.rows))
    return Section("jacobian", "Jacobian control", tuple(_says(control)), heads, rows, pictures)


def _says(control: JacobianControl) -> list[str]:
    above = [row for row in control.rows if row.place == "above"]
    under = [row for row in control.rows if row.place in ("at", "below", "between")]
    apart = control.variation
    says = [
        f"Negated: {', '.join(control.negated)}; {control.samples} samples, {control.outputs} outputs differentiated.",
        f"Classifiers tell the negated layers' outputs from those before with a lead of {apart.value:.2f} "
        f"(standard error {apart.error:.2f}): a lower bound of their total variation distance, which is at most 1.",
    ]
    if above:
        says.append(
            f"Above them {_changed([row.p for row in above])}; Theorem 6 bounds the change by the total variation "
            "distance times a constant too large to be of use."
        )
    nearer = sum(row.opposite < row.distance for row in under)
    says.append(
        "At and below them Theorem 6 says nothing, since its bound is that of a distance which is always 1; measured, "
        f"the law is nearer to the one with the sign opposite to the theorem's in {nearer} of {len(under)} layers."
    )
    starved = [row for row in under if row.ratio < _VANISHED]
    least = min(under, key=lambda row: row.ratio)
    said = f"fallen below a tenth in {len(starved)} of {len(under)}" if starved else "nowhere fallen below a tenth"
    says.append(f"There the gradient has {said}; the smallest ratio is {least.ratio:.3g}, in {least.layer}.")
    return says


def _changed(ps: list[float]) -> str:
    """In how many layers the law has changed, one false alarm among them all being as rare as the level."""
    count = len(ps)
    if count / _FINEST > LEVEL:
        return (
            f"the law of the Jacobian cannot be said to have changed layer by layer: no p is below 1/{_FINEST}, which "
            f"Holm's correction for {count} tests makes {count / _FINEST:.3g}; uncorrected, p is at most {LEVEL:g} in "
            f"{sum(p <= LEVEL for p in ps)} of {count} layers, where chance alone would make it so in "
            f"{count * LEVEL:.1f}"
        )
    return (
        f"the law of the Jacobian has changed in {sum(p <= LEVEL for p in holm(ps))} of {count} layers (p at most "
        f"{LEVEL:g} by Holm's correction for {count} tests)"
    )


def _gradients(rows: Sequence[LayerJacobian]) -> Picture:
    places = list(dict.fromkeys(row.place for row in rows))
    size = _size(rows)
    with axes_for("Gradient after negation", "norm, after / before", "", size, legend=places) as (figure, axes):
        axes.axvline(1, color=LIGHT["faint"], linewidth=0.9)
        for place in places:
            at = [number for number, row in enumerate(rows) if row.place == place]
            ratios = [min(max(rows[number].ratio, 1 / _EDGE), _EDGE) for number in at]
            style: Any = {"color": LIGHT[_COLOURS[place]], "marker": _MARKERS[place], "linestyle": "none"}
            axes.plot(ratios, at, markersize=4.2, label=place, **style)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        drawn = [min(max(row.ratio, 1 / _EDGE), _EDGE) for row in rows]
        axes.set_xlim(min(*drawn, 0.5) / 1.5, max(*drawn, 2.0) * 1.5)
        _name_layers(axes, rows)
        put_legend(figure, axes)
    alt = (
        f"Norm of the gradient after negation over that before: {'; '.join(f'{r.layer} {r.ratio:.3g}' for r in rows)}."
    )
    caption = "Gradient of the mean loss after negation, relative to before; line: as before. Left: it vanishes."
    return Picture("theory-jacobian-gradients", figure, alt, caption)


def _distances(rows: Sequence[LayerJacobian]) -> Picture:
    names = ["sign of Theorem 6", "other sign", "noise floor"]
    looks = (("c1", "o"), ("c2", "x"), ("ink", "|"))
    with axes_for("Jacobian after negation", "distance of the laws", "", _size(rows), legend=names) as (figure, axes):
        for name, (colour, marker), values in zip(
            names,
            looks,
            ([row.distance for row in rows], [row.opposite for row in rows], [row.floor for row in rows]),
            strict=True,
        ):
            style: Any = {"color": LIGHT[colour], "marker": marker, "linestyle": "none"}
            axes.plot(values, range(len(rows)), markersize=6, label=name, **style)
        axes.set_xlim(left=0)
        _name_layers(axes, rows)
        put_legend(figure, axes)
    told = (f"{row.layer} {row.distance:.3g} (other sign {row.opposite:.3g}, floor {row.floor:.3g})" for row in rows)
    alt = f"Distance of the Jacobian's laws before and after negation: {'; '.join(told)}."
    caption = (
        "Sliced Wasserstein distance of the Jacobian's law before, with either sign, to that after; 1 is as far as "
        "from 0. At the noise floor the laws cannot be told apart."
    )
    return Picture("theory-jacobian-distances", figure, alt, caption)


def _size(rows: Sequence[LayerJacobian]) -> tuple[float, float]:
    return WIDE[0], 1.15 + min(_ROW * len(rows), _TALLEST)


def _name_layers(axes: Axes, rows: Sequence[LayerJacobian]) -> None:
    """The input on top; where there are too many layers, some of them by name."""
    some = range(0, len(rows), -(-len(rows) // _NAMED))
    axes.set_yticks(list(some), [_short(rows[number].layer) for number in some])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(rows) - 0.5, -0.5)


def _short(name: str) -> str:
    return name if len(name) <= 24 else f"…{name[-23:]}"
