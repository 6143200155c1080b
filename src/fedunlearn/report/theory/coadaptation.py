"""What a model loses where one of its layers is taken from another model: co-adaptation, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence

from fedunlearn.report.drawing import LIGHT, WIDE, Picture, axes_for, put_legend
from fedunlearn.report.figures import OWN
from fedunlearn.report.theory.section import Section
from fedunlearn.theory.grafting import LayerGap

__all__ = ["section"]

_NAME = 34  # characters of a layer's name
_BAR, _ROOM = 0.11, 0.09  # inches of a bar, and between those of two layers


def section(gaps: Sequence[LayerGap]) -> Section:
    """The gap of each graft to the best of its parents, a bar each.

    Args:
        gaps: of `fedunlearn.theory.grafting.layer_gaps`, of `negation_gaps`, or of both.

    Raises:
        ValueError: there is none.
    """
    if not gaps:
        raise ValueError("there is nothing to show: give one gap at least")
    grafts: dict[str, dict[str, LayerGap]] = {}
    for one in gaps:
        grafts.setdefault(_label(one), {})[one.layer] = one
    return Section(
        name="coadaptation",
        title="Layers that are used to each other",
        says=(
            *(_said(label, list(of.values())) for label, of in grafts.items()),
            "A layer of another model that fits would cost nothing. One that does not may have learned the same with "
            "its units in another order.",
        ),
        heads=(
            ("graft", "the model, and whose layer it was given"),
            ("layer", ""),
            ("loss", "of the graft, cross-entropy"),
            ("above the best parent", "loss"),
            ("above the parents' mean", "loss"),
            ("accuracy, %", "of the graft"),
            ("beside the best parent's", "percentage points"),
        ),
        rows=tuple(
            (
                _label(one),
                one.layer,
                f"{one.gap.loss:.3f}",
                f"{one.gap.loss_above_best:+.3f}",
                f"{one.gap.loss_above_mean:+.3f}",
                f"{one.gap.accuracy:.1f}",
                f"{one.gap.accuracy_above_best:+.1f}",
            )
            for one in gaps
        ),
        pictures=(_bars(grafts),),
    )


def _said(label: str, of: Sequence[LayerGap]) -> str:
    most = max(of, key=lambda one: one.gap.loss_above_best)
    least = min(of, key=lambda one: one.gap.loss_above_best)
    return (
        f"{label}: {most.layer} costs most, {most.gap.loss_above_best:+.3f} of loss and "
        f"{most.gap.accuracy_above_best:+.1f} points beside the best parent; {least.layer} least, "
        f"{least.gap.loss_above_best:+.3f} and {least.gap.accuracy_above_best:+.1f}."
    )


def _bars(grafts: dict[str, dict[str, LayerGap]]) -> Picture:
    layers = list(dict.fromkeys(layer for of in grafts.values() for layer in of))
    each = len(grafts) * _BAR + _ROOM
    size = (WIDE[0], 1.1 + each * len(layers))
    with axes_for("Loss above the best parent's", "cross-entropy", "", size, legend=list(grafts)) as (figure, axes):
        axes.axvline(0, color=LIGHT["faint"], linewidth=0.9)
        for number, (label, of) in enumerate(grafts.items()):
            y = [layers.index(layer) * each + number * _BAR for layer in of]
            widths = [one.gap.loss_above_best for one in of.values()]
            axes.barh(y, widths, 0.85 * _BAR, color=LIGHT[OWN[number % len(OWN)]], label=label)
        middle = (len(grafts) - 1) * _BAR / 2
        axes.set_yticks([at * each + middle for at in range(len(layers))], list(map(_short, layers)))
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
        axes.set_ylim(len(layers) * each - _ROOM, -_BAR)
        put_legend(figure, axes)
    alt = "; ".join(
        f"{label}: {', '.join(f'{layer} {one.gap.loss_above_best:+.3f}' for layer, one in of.items())}"
        for label, of in grafts.items()
    )
    caption = (
        "Loss of a model with one layer of another above the better of the two, in the network's order; 0: it fits."
    )
    return Picture("theory-coadaptation", figure, f"Loss above the best parent's. {alt}.", caption)


def _label(one: LayerGap) -> str:
    """NoT's graft has the layer of no other model, but its own one with the sign turned."""
    return f"{one.host}, layer {one.donor}" if one.donor == "negated" else f"{one.host} with {one.donor}'s"


def _short(layer: str) -> str:
    return layer if len(layer) <= _NAME else f"…{layer[1 - _NAME :]}"
