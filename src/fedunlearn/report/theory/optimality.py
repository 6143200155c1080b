"""Layer-wise optimality, for people: which conditions of Theorem 7 hold, and what the activations are like."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from fedunlearn.report.drawing import LIGHT, WIDE, Picture, axes_for, put_legend, slug
from fedunlearn.report.theory.section import Section
from fedunlearn.theory.optimality import Conditions, LayerConditions
from fedunlearn.theory.reflection import Activation

__all__ = ["section"]

_HEADS = (
    ("layer", ""),
    ("maximal", "no layer comes after it"),
    ("activation", "that its sign meets, and its parity"),
    ("taken up by", "layers whose own sign, or bias, can make up for it"),
    ("covered", "Theorem 7's conditions on it hold"),
    ("preserved", "its negation keeps layer-wise optimality"),
    ("why", ""),
)


def section(found: Conditions, norms: Mapping[str, tuple[float, float]] = {}) -> Section:
    """What `fedunlearn.theory.optimality.conditions` found: a verdict a layer, and a picture an activation.

    Args:
        found: of the negated layers.
        norms: of each, its distance from known optima as a share of its own norm, and the same were its sign free.
    """
    activations = {(one.op, one.shift): one for layer in found.layers for one in layer.activations}
    return Section(
        "optimality",
        "Layer-wise optimality (Theorem 7)",
        (*_says(found), *_said_of_norms(norms)),
        _HEADS,
        tuple(_row(layer) for layer in found.layers),
        tuple(_picture(one, number) for number, one in enumerate(activations.values(), start=1)),
    )


def _says(found: Conditions) -> list[str]:
    one = len(found.layers) == 1
    names = f"the layer {found.layers[0].layer}" if one else f"the {len(found.layers)} layers"
    verdict = "covers" if found.covered_by_theorem else "does not cover"
    said = [f"Theorem 7 {verdict} the negation of {names}."]
    said += [f"{reason[0].upper()}{reason[1:]}." for reason in found.reasons]
    if found.preserved is None:
        said.append("Whether layer-wise optimality is preserved is not known: no change of other tensors was found.")
    said.append("All this is about negating a layer's weight and bias; the paper's listing negates weights alone.")
    return said


def _said_of_norms(norms: Mapping[str, tuple[float, float]]) -> Iterator[str]:
    for name, (bound, free) in norms.items():
        yield (
            f"Negated, {name} is {bound:.0%} of its own norm away from the retrained model's, up to scale; were signs "
            f"free, {free:.0%} (Definition 7). Layers that have nothing to do with one another are 100 % apart."
        )


def _row(layer: LayerConditions) -> tuple[str, ...]:
    activations = [f"{one.op}: {one.parity.kind if one.parity else 'none'}" for one in layer.activations]
    return (
        layer.layer,
        "yes" if layer.maximal else "no",
        ", ".join(activations) or "-",
        ", ".join(layer.takers) or "-",
        "yes" if layer.covered else "no",
        "yes" if layer.preserved else "unknown",
        layer.reason,
    )


def _picture(one: Activation, number: int) -> Picture:
    """The activation, its mirror image, their sum and difference: one of the latter must be flat."""
    pairs = tuple(zip(one.psi, one.mirrored, strict=True))
    image = f"psi({one.shift:g} - x)" if one.shift else "psi(-x)"
    curves = (
        ("psi(x)", one.psi, "c1", "-"),
        (image, one.mirrored, "c2", "-"),
        ("sum", tuple(p + q for p, q in pairs), "c3", "--"),
        ("difference", tuple(p - q for p, q in pairs), "c4", ":"),
    )
    with axes_for(one.op, "x", "", WIDE, legend=[name for name, *_ in curves]) as (figure, axes):
        for name, values, colour, dash in curves:
            axes.plot(one.x, values, color=LIGHT[colour], linestyle=dash, label=name)
        put_legend(figure, axes)
    ranges = [f"{name} from {min(values):.3g} to {max(values):.3g}" for name, values, *_ in curves]
    relation = one.parity.formula if one.parity else f"no relation a psi(x) + b {image} = c"
    alt = f"{one.op} on [{one.x[0]:g}, {one.x[-1]:g}]: {', '.join(ranges)}; {relation}."
    caption = (
        f"{one.op}: {relation}. Lemma 8 needs the dashed or the dotted line to be flat: the sum for sigmoid-like and "
        "odd activations, the difference, at zero, for even ones."
    )
    if one.skip is not None:
        caption += (
            f" Here the difference is the straight line {one.skip:.6g} x: a skip connection around the activation "
            "would make up for the sign, other parameters do not."
        )
    return Picture(f"theory-optimality-{number}-{slug(one.op)}", figure, alt, caption)
